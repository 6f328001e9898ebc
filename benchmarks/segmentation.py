"""How well each segmenter finds the actor of J-HMDB, against its true masks.

    python benchmarks/segmentation.py PATH [--clips 60] [--weights FILE] [--people NAME=VALUE ...]

PATH holds J-HMDB's videos/, masks/ and splits/. Clips are drawn evenly from all classes of a part of split 1 (its test
part, because thresholds of `people` were chosen on the training part) and decoded to 8 frames of short side 128; what a
segmenter calls people is compared with the true mask of each frame. IoU is the mean over frames of intersection over
union; "actor" is the share of frames in which some of the true actor is found, "half" that in which IoU exceeds one
half; milliseconds a frame are the processor's, of one thread. `people` is measured a second time without its neighbours
in time, and once for each setting that `--people` names.

`precomputed` reads the very masks that it is compared with, so its row only shows that the measure is right; `motion`
finds a small part of the actors. Figures: docs/benchmarks.md.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from l2a_ray.config.building import build
from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.segment.base import Segmenter
from l2a_ray.prepare.segment.settings import PeopleSettings
from l2a_ray.videos.catalog import DataSettings, Video, read_catalog
from l2a_ray.videos.decode import Clip, DecodeSettings, decode


def overlaps(found_THW: NDArray[np.bool_], true_THW: NDArray[np.bool_]) -> list[float]:
    """Intersection over union of each frame that has a true mask."""
    common, either = (found_THW & true_THW).sum(axis=(1, 2)), (found_THW | true_THW).sum(axis=(1, 2))
    shown = true_THW.any(axis=(1, 2))
    values: list[float] = (common[shown] / either[shown]).tolist()
    return values


@dataclass(frozen=True)
class Measured:
    """What a segmenter is worth; the head of this file says what each figure is."""

    iou: float
    actor: float
    half: float
    milliseconds: float


def measure(segmenter: Segmenter, truth: Segmenter, clips: list[Clip]) -> Measured:
    values: list[float] = []
    seconds = 0.0
    for clip in clips:
        start = time.process_time()
        planes = segmenter(clip).planes()
        seconds += time.process_time() - start
        values += overlaps(planes.people, truth(clip).planes().objects)
    iou = np.array(values)
    frames = sum(len(clip.frames_THWC) for clip in clips)
    return Measured(iou.mean(), (iou > 0).mean(), (iou > 0.5).mean(), 1000 * seconds / frames)


def draw(root: Path, count: int, part: str) -> list[Video]:
    videos = [
        video
        for video in read_catalog(DataSettings(layout="jhmdb", root=str(root))).videos
        if (video.split == "test") == (part == "test")
    ]
    table = pd.DataFrame({"label": [video.label for video in videos]})
    each = -(-count // table["label"].nunique())
    rows = table.groupby("label").sample(each, random_state=0).index
    return [videos[row] for row in rows]


def variants(changes: list[str]) -> dict[str, PeopleSettings]:
    """The settings of `people` that are measured, by what they are called in the table."""
    alone = PeopleSettings(stride=1, neighbours=0, smooth=0)
    found = {"people": PeopleSettings(), "people, each frame alone": alone}
    for change in changes:
        name, value = change.split("=")
        found[f"people, {change}"] = build(PeopleSettings, {name: yaml.safe_load(value)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="PATH")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--weights", default="COCO_V1", help="of Mask R-CNN: a file, or torchvision's name")
    parser.add_argument("--part", choices=("train", "test"), default="test", help="of split 1")
    parser.add_argument("--people", nargs="*", default=[], metavar="NAME=VALUE", help="settings to measure, one by one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    videos = draw(arguments.root, arguments.clips, arguments.part)
    clips = [decode(video.path, DecodeSettings(frames=8, size=128)) for video in videos]
    masks = SegmentSettings(kind="precomputed", masks=str(arguments.root / "masks"))
    truth = build_segmenter(masks)
    kinds = {"motion": SegmentSettings(kind="motion"), "precomputed": masks}
    kinds |= {name: SegmentSettings(kind="people", people=about) for name, about in variants(arguments.people).items()}
    kinds["maskrcnn"] = SegmentSettings(weights=arguments.weights)
    print(f"{len(clips)} clips\n| segmenter | mean IoU | actor | half | ms a frame |\n|---|---|---|---|---|")
    for name, settings in kinds.items():
        try:
            segmenter = build_segmenter(settings)
        except SettingError as error:
            print(f"| {name} | not measured: {str(error).split('. ')[0]} | | | |")
            continue
        found = measure(segmenter, truth, clips)
        shares = f"{100 * found.actor:.1f} % | {100 * found.half:.1f} %"
        print(f"| {name} | {found.iou:.3f} | {shares} | {found.milliseconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
