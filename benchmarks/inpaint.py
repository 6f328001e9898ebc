"""Inpainting against a hidden truth: ours beside what does without other times.

    python benchmarks/inpaint.py [--data shared/data/jhmdb] [--store runs/demo/results/prepare] [--cases 150]

The masks of one clip are cut out of another clip, filled, and compared with what was there. Pixels under the second
clip's own actor are masked too, but not scored: nobody knows what is behind them. Three kinds of camera:

- still: real clips in which half of the unmasked pixels change by at most 4 grey levels between first and last frame,
- moving: all other real clips, with pans, zooms, shaking hands, depth and whatever else moves,
- made pan: a window slides over a clip's empty scene on a straight line, noise of 2 grey levels on top.

Scores, means over cases, on the cut pixels: PSNR (dB, higher is better); SSIM (Wang et al. 2004: grey, Gaussian of 1.5
pixels; higher is better); flicker (see `flicker`; grey levels, 0 is as calm as the truth). "wins" is the share of cases
in which `ours` has the higher PSNR. `zero` is what HAT and ActorCutMix leave behind an actor. ms a clip: thread time.

Temporal fill wins on every kind of camera; on a still one, aligning changes next to nothing. Figures:
docs/benchmarks.md.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from l2a_ray.prepare.inpaint.camera import after, alignments
from l2a_ray.prepare.inpaint.fill import InpaintSettings, inpaint
from l2a_ray.prepare.segment.precomputed import PrecomputedSegmenter
from l2a_ray.prepare.store import ClipStore
from l2a_ray.videos.catalog import DataSettings, read_catalog
from l2a_ray.videos.decode import DecodeSettings, decode

Frames = NDArray[np.uint8]
Masks = NDArray[np.bool_]
OURS, ALONE = InpaintSettings(), InpaintSettings(compensate=False)
WINDOW = 0.75  # of a made pan: its sides as shares of the scene's
STILL = 4.0  # grey levels
LEAST_HOLE = 0.02  # of the pixels: smaller holes are not worth a case
OWN_MARGIN = 4  # pixels around the clip's own actor that are not scored


@dataclass(frozen=True)
class Case:
    """A clip with a hole cut into it."""

    camera: str
    truth_THWC: Frames
    masks_THW: Masks  # to be filled: the hole, and the clip's own actor
    scored_THW: Masks  # where the truth is known
    maps: list[NDArray[np.float64]]  # of the camera's motion: from each frame onto one of them

    @property
    def hole_THW(self) -> Masks:
        """The pixels that count."""
        return self.masks_THW & self.scored_THW


def zero(frames_THWC: Frames, masks_THW: Masks) -> Frames:
    return np.where(masks_THW[..., None], np.uint8(0), frames_THWC)


def frame_by_frame(frames_THWC: Frames, masks_THW: Masks) -> Frames:
    pairs = zip(frames_THWC, masks_THW, strict=True)
    return np.stack([inpaint(frame_HWC[None], mask_HW[None], ALONE)[0] for frame_HWC, mask_HW in pairs])


METHODS: dict[str, Callable[[Frames, Masks], Frames]] = {
    "ours": partial(inpaint, settings=OURS),
    "ours, not compensated": partial(inpaint, settings=ALONE),
    "cv2.inpaint a frame": frame_by_frame,
    "zero": zero,
}


def psnr(filled_THWC: Frames, truth_THWC: Frames, hole_THW: Masks) -> float:
    """Return the peak signal-to-noise ratio inside the hole in dB, at most 60."""
    error = float(np.mean((filled_THWC[hole_THW].astype(np.float64) - truth_THWC[hole_THW]) ** 2))
    return float(10 * np.log10(255**2 / max(error, 255**2 / 1e6)))


def ssim(filled_THWC: Frames, truth_THWC: Frames, hole_THW: Masks) -> float:
    """Return the mean of the structural similarity's map inside the hole, in [-1, 1]."""
    blur = partial(cv2.GaussianBlur, ksize=(11, 11), sigmaX=1.5)
    values = []
    for filled_HWC, truth_HWC, hole_HW in zip(filled_THWC, truth_THWC, hole_THW, strict=True):
        x, y = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (filled_HWC, truth_HWC))
        mean_x, mean_y = blur(x), blur(y)
        spread = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
        common = blur(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + 2.55**2) / (mean_x**2 + mean_y**2 + 2.55**2)
        values.append((luminance * (2 * common + 7.65**2) / (spread + 7.65**2))[hole_HW])
    return float(np.concatenate(values).mean())


def flicker(filled_THWC: Frames, case: Case) -> float:
    """Return how much more successive frames differ than those of the truth, the camera's motion taken out.

    Frame t + 1 is laid on frame t: by the motion of a made pan, which is known, else by what `alignments` finds in the
    uncut frames. Over the pixels that were filled in either, and whose truth is known in both, this is the mean
    absolute difference of the two filled frames, less that of the two true ones. Grey levels.
    """
    size = filled_THWC.shape[2], filled_THWC.shape[1]
    own: list[NDArray[np.float64]] = []
    true: list[NDArray[np.float64]] = []
    for t in range(len(filled_THWC) - 1):
        step = after(np.asarray(cv2.invertAffineTransform(case.maps[t]), dtype=np.float64), case.maps[t + 1])
        lay = partial(cv2.warpAffine, M=step, dsize=size)
        scored_HW, masked_HW = (
            lay(plane_THW[t + 1].astype(np.float32)) for plane_THW in (case.scored_THW, case.masks_THW)
        )
        counted_HW = (scored_HW > 0.999) & case.scored_THW[t] & (case.masks_THW[t] | (masked_HW > 0))
        for differences, frames_THWC in ((own, filled_THWC), (true, case.truth_THWC)):
            differences.append(cv2.absdiff(lay(frames_THWC[t + 1]), frames_THWC[t])[counted_HW].astype(np.float64))
    return float(np.concatenate(own).mean() - np.concatenate(true).mean())


def real_case(frames_THWC: Frames, own_THW: Masks, other_THW: Masks) -> Case:
    """Cut another clip's masks out of a clip as it is."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * OWN_MARGIN + 1, 2 * OWN_MARGIN + 1))
    scored_THW = np.stack([cv2.dilate(mask_HW.view(np.uint8), disc) for mask_HW in own_THW]) == 0
    shown_HW = ~(own_THW[0] | own_THW[-1])
    change = np.median(cv2.absdiff(frames_THWC[0], frames_THWC[-1])[shown_HW]) if shown_HW.any() else np.inf
    masks_THW = own_THW | resized(other_THW, own_THW.shape[1:])
    camera = "still" if change <= STILL else "moving"
    return Case(camera, frames_THWC, masks_THW, scored_THW, alignments(frames_THWC, own_THW))


def made_pan(frames_THWC: Frames, own_THW: Masks, other_THW: Masks, rng: Generator) -> Case:
    """Slide a window over a clip's scene, its own actor removed, and cut another clip's masks out of the view."""
    count, middle = len(frames_THWC), len(frames_THWC) // 2
    scene_HWC = inpaint(frames_THWC, own_THW, OURS)[middle]
    side = np.array(own_THW.shape[:0:-1])  # width, height
    size = (WINDOW * side).astype(int)
    room = side - size - 1
    ends = rng.uniform(0.1, 0.9, 2) * room, (rng.integers(0, 2, 2) * 0.9 + 0.05) * room
    truth, scored, maps = [], [], []
    for share in np.linspace(0, 1, count):
        shift = ends[0] * (1 - share) + ends[1] * share
        maps.append(np.column_stack([np.eye(2), shift]))
        view = partial(cv2.warpAffine, M=maps[-1], dsize=size.tolist())
        noisy = view(scene_HWC, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP) + rng.normal(0, 2, (*size[::-1], 3))
        truth.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        made_up_HW = own_THW[middle].astype(np.float32)
        scored.append(view(made_up_HW, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) == 0)
    return Case("made pan", np.stack(truth), resized(other_THW, size[::-1]), np.stack(scored), maps)


def resized(masks_THW: Masks, shape: tuple[int, ...] | NDArray[np.int64]) -> Masks:
    size = int(shape[1]), int(shape[0])
    planes = [cv2.resize(mask_HW.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask_HW in masks_THW]
    return np.stack(planes).astype(np.bool_)


def jhmdb_clips(root: Path) -> list[Callable[[], tuple[Frames, Masks]]]:
    segment = PrecomputedSegmenter(str(root / "masks"))

    def read(path: str) -> tuple[Frames, Masks]:
        clip = decode(path, DecodeSettings())
        return clip.frames_THWC, segment(clip).planes().objects

    catalog = read_catalog(DataSettings(root=str(root), layout="jhmdb"))
    return [partial(read, video.path) for video in catalog.videos]


def stored_clips(root: Path) -> list[Callable[[], tuple[Frames, Masks]]]:
    store = ClipStore(root)

    def read(clip_id: str) -> tuple[Frames, Masks]:
        clip = store.read(clip_id)
        return clip.frames_THWC, clip.planes.objects

    return [partial(read, clip_id) for clip_id in store.index["id"]]


def cases(clips: list[Callable[[], tuple[Frames, Masks]]], count: int) -> Iterator[Case]:
    """Draw pairs of clips; each gives a real case and a made pan, or none if the hole is too small to score."""
    rng = np.random.default_rng(0)
    made = 0
    while made < count:
        (frames_THWC, own_THW), (_, other_THW) = (clips[n]() for n in rng.choice(len(clips), 2, replace=False))
        if len(own_THW) != len(other_THW) or not own_THW.mean() < 0.5:
            continue
        pair = [real_case(frames_THWC, own_THW, other_THW), made_pan(frames_THWC, own_THW, other_THW, rng)]
        if min(case.hole_THW.mean() for case in pair) >= LEAST_HOLE:
            made += 1
            yield from pair


def measure(case: Case, number: int) -> Iterator[dict[str, object]]:
    frames_THWC = zero(case.truth_THWC, case.masks_THW)  # nothing under the masks may leak
    for name, method in METHODS.items():
        start = time.thread_time()
        filled_THWC = method(frames_THWC, case.masks_THW)
        seconds = time.thread_time() - start
        yield {
            "case": number,
            "camera": case.camera,
            "method": name,
            "psnr": psnr(filled_THWC, case.truth_THWC, case.hole_THW),
            "ssim": ssim(filled_THWC, case.truth_THWC, case.hole_THW),
            "flicker": flicker(filled_THWC, case),
            "ms": 1000 * seconds,
        }


def table(rows: pd.DataFrame, source: str) -> Iterator[str]:
    for camera in ("still", "moving", "made pan"):
        chosen = rows[rows["camera"] == camera]
        ours = chosen[chosen["method"] == "ours"].set_index("case")["psnr"]
        for method in METHODS:
            part = chosen[chosen["method"] == method].set_index("case")
            means = part[["psnr", "ssim", "flicker", "ms"]].mean()
            wins = "" if method == "ours" else f"{(ours > part['psnr']).mean():.0%}"
            cells = f"{means['psnr']:.2f} | {means['ssim']:.3f} | {means['flicker']:.2f} | {wins} | {means['ms']:.1f}"
            yield f"| {source} | {camera} ({len(part)}) | {method} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("shared/data/jhmdb"), help="J-HMDB")
    parser.add_argument("--store", type=Path, help="clip store of another run, the demo's say")
    parser.add_argument("--cases", type=int, default=150, help="real cases, and as many made pans, of each source")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    sources = {"J-HMDB": jhmdb_clips(arguments.data)}
    if arguments.store:
        sources["demo"] = stored_clips(arguments.store)
    print("| clips | camera (cases) | method | PSNR | SSIM | flicker | wins | ms a clip |\n" + "|---" * 8 + "|")
    for source, clips in sources.items():
        rows = [row for number, case in enumerate(cases(clips, arguments.cases)) for row in measure(case, number)]
        print("\n".join(table(pd.DataFrame(rows), source)), flush=True)


if __name__ == "__main__":
    main()
