"""Compositing against the plain float32 form of Eq. 1 and against a copy of the output, on one thread, in one run.

    python benchmarks/composite.py

Times are the thread's own (other load counts little), the best of three seconds a row in which the three take turns.
"actor" is an ellipse over 15 % of each frame that walks from left to right; "noise" sets half of all pixels at random,
the worst a mask can be. One clip, which is how samples are made, stays inside the processor's caches; a batch streams
through memory, where little is left to gain beside the bare copy: expect a hundred times the plain form's speed for the
one, some tens for the other, and never more than a few copies' time. Figures: docs/benchmarks.md.

A second table says what a training sample costs, from the clip's file to the crop, where more frames are stored than it
shows: half of them composites, 128 x 170 pixels, crops of 112, files in the system's cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from l2a_ray.composites.composite import composite
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule, Stream, stack
from l2a_ray.composites.settings import AugmentSettings, CompositeSettings, FrameSampling
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    ClipStore,
    StoredClip,
    clip_path,
    write_clip,
    write_index,
)

SHAPES = ((8, 128, 170), (8, 112, 112))
BATCHES = (1, 8, 64)
SECONDS = 3.0
REPEATS = 5


def plain_form(
    frames_BTHWC: NDArray[np.uint8], masks_BTHW: NDArray[np.bool_], backgrounds_BTHWC: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    weight = masks_BTHW.astype(np.float32)[..., None]
    mixed = frames_BTHWC.astype(np.float32) * weight + backgrounds_BTHWC.astype(np.float32) * (1 - weight)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def actor_masks(batch: int, frames: int, height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    radius_y = 0.25 * height
    radius_x = 0.15 * height * width / (np.pi * radius_y)
    centres = np.linspace(0.35, 0.65, frames) * width
    clip = [((x - centre) / radius_x) ** 2 + ((y - height / 2) / radius_y) ** 2 < 1 for centre in centres]
    return np.repeat(np.stack(clip)[None], batch, axis=0)


def best_seconds(*works: Callable[[], object]) -> list[float]:
    best = [float("inf")] * len(works)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for number, work in enumerate(works):
            for _ in range(REPEATS):
                start = time.thread_time()
                work()
                best[number] = min(best[number], time.thread_time() - start)
    return best


def measure(shape: tuple[int, int, int], batch: int, kind: str) -> str:
    rng = np.random.default_rng(0)
    frames, backgrounds = (rng.integers(0, 256, (batch, *shape, 3), dtype=np.uint8) for _ in range(2))
    masks = actor_masks(batch, *shape) if kind == "actor" else rng.random((batch, *shape)) < 0.5
    np.testing.assert_array_equal(composite(frames, masks, backgrounds), plain_form(frames, masks, backgrounds))
    copied = np.empty_like(frames)
    plain, ours, copy = best_seconds(
        lambda: plain_form(frames, masks, backgrounds),
        lambda: composite(frames, masks, backgrounds),
        lambda: np.copyto(copied, backgrounds),
    )
    size = "x".join(map(str, shape))
    return f"{size:>9} {batch:5d} {kind:>5} {batch / ours:9.0f} {plain / ours:8.1f} {ours / copy:7.2f}"


def make_store(root: Path, frames: int, clips: int = 16) -> ClipStore:
    """Write clips of noise with a walking actor."""
    rng, rows = np.random.default_rng(0), []
    masks = actor_masks(1, frames, 128, 170)[0]
    for number in range(clips):
        pixels, background = (rng.integers(0, 256, (frames, 128, 170, 3), dtype=np.uint8) for _ in range(2))
        clip = StoredClip(pixels, background, Planes(masks, masks, masks, masks))
        write_clip(clip_path(root / "clips", f"{number:016x}", "0"), clip, {"k": "v"})
        rows.append(dict.fromkeys(INDEX_DTYPES, 0) | {"id": f"{number:016x}", "split": "train"})
    index, failed = pd.DataFrame(rows).astype(INDEX_DTYPES), pd.DataFrame(columns=list(FAILED_COLUMNS))
    write_index(root, root / "clips", ["a"], index, failed)
    return ClipStore(root)


def measure_samples(root: Path) -> list[str]:
    """Return a row for each way to take frames: microseconds a sample, and times 8 of 8."""
    eight, sixteen = make_store(root / "8", 8), make_store(root / "16", 16)
    segments, stretch = FrameSampling(count=8), FrameSampling(count=8, kind="stretch")
    strong = AugmentSettings(kind="randaugment")
    ways = {
        "8 of 8": (eight, FrameSampling(), "weak"),
        "8 of 16, segments": (sixteen, segments, "weak"),
        "8 of 16, stretch": (sixteen, stretch, "weak"),
        "16 of 16": (sixteen, FrameSampling(), "weak"),
        "8 of 8, randaugment": (eight, FrameSampling(), "strong"),
    }

    def epoch(store: ClipStore, sampling: FrameSampling, view: str) -> Callable[[], object]:
        ids = store.columns("id")["id"].to_numpy().astype(np.bytes_)
        clips = np.arange(len(ids), dtype=np.int32)
        pairs = Stream(COMPOSITES, np.stack([clips, clips[::-1]], axis=1), 0.5, views=(view,))
        schedule = Schedule(ids, (pairs, Stream(REAL, clips, views=(view,))), len(ids), 0)
        loader = SampleLoader(store, CompositeSettings(), 112, sampling=sampling)
        return lambda: stack(loader, schedule, schedule.batch(0), strong)

    seconds = best_seconds(*(epoch(*way) for way in ways.values()))
    return [
        f"{name:>20} {1e6 * taken / 16:8.0f} {taken / seconds[0]:6.2f}"
        for name, taken in zip(ways, seconds, strict=True)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    print(f"{'clip':>9} {'batch':>5} {'mask':>5} {'clips/s':>9} {'x plain':>8} {'x copy':>7}")
    for shape in SHAPES:
        for batch in BATCHES:
            for kind in ("actor", "noise"):
                print(measure(shape, batch, kind))
    torch.set_num_threads(1)
    print(f"\n{'frames':>20} {'us':>8} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(measure_samples(Path(folder))))


if __name__ == "__main__":
    main()
