"""How well each segmenter finds the actor of J-HMDB, against its true masks.

    python benchmarks/segmentation.py PATH [--clips 60] [--weights FILE]

PATH holds J-HMDB's videos/, masks/ and splits/. Clips are drawn evenly from all classes and decoded to 8 frames of
short side 128; what a segmenter calls people is compared with the true mask of each frame. IoU is the mean over frames
of intersection over union; "found" is the share of frames in which it exceeds one half; seconds are those of one
thread.

`precomputed` reads the very masks that it is compared with, so its row only shows that the measure is right; `motion`
finds a small part of the actors. Figures: docs/benchmarks.md.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.segment.base import Segmenter
from l2a_ray.videos.catalog import DataSettings, Video, read_catalog
from l2a_ray.videos.decode import Clip, DecodeSettings, decode


def overlaps(found_THW: NDArray[np.bool_], true_THW: NDArray[np.bool_]) -> list[float]:
    """Intersection over union of each frame that has a true mask."""
    common, either = (found_THW & true_THW).sum(axis=(1, 2)), (found_THW | true_THW).sum(axis=(1, 2))
    shown = true_THW.any(axis=(1, 2))
    values: list[float] = (common[shown] / either[shown]).tolist()
    return values


def measure(segmenter: Segmenter, truth: Segmenter, clips: list[Clip]) -> tuple[float, float, float]:
    values: list[float] = []
    seconds = 0.0
    for clip in clips:
        start = time.perf_counter()
        planes = segmenter(clip).planes()
        seconds += time.perf_counter() - start
        values += overlaps(planes.people, truth(clip).planes().objects)
    return float(np.mean(values)), float(np.mean(np.array(values) > 0.5)), seconds / len(clips)


def draw(root: Path, count: int) -> list[Video]:
    videos = read_catalog(DataSettings(layout="jhmdb", root=str(root))).videos
    table = pd.DataFrame({"label": [video.label for video in videos]})
    each = -(-count // table["label"].nunique())
    rows = table.groupby("label").sample(each, random_state=0).index
    return [videos[row] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="PATH")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--weights", default="COCO_V1", help="of Mask R-CNN: a file, or torchvision's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    videos = draw(arguments.root, arguments.clips)
    clips = [decode(video.path, DecodeSettings(frames=8, size=128)) for video in videos]
    masks = SegmentSettings(kind="precomputed", masks=str(arguments.root / "masks"))
    truth = build_segmenter(masks)
    print(f"{len(clips)} clips\n| segmenter | mean IoU | frames found | seconds a clip |\n|---|---|---|---|")
    for settings in (SegmentSettings(kind="motion"), masks, SegmentSettings(weights=arguments.weights)):
        try:
            segmenter = build_segmenter(settings)
        except SettingError as error:
            print(f"| {settings.kind} | not measured: {str(error).split('. ')[0]} | | |")
            continue
        iou, found, seconds = measure(segmenter, truth, clips)
        print(f"| {settings.kind} | {iou:.2f} | {100 * found:.0f} % | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
