"""Clips per second of our decoding beside decord2's, on one thread.

    python benchmarks/decode.py [FOLDER] [--rounds N]

Both give 8 frames at the same indices with a short side of 128 pixels. The two take turns file by file, so that a busy
machine slows both alike; the median over rounds is printed. Ours also counts every frame by decoding to the end and
refuses damaged files; decord2 trusts the index and stops at the last frame asked for. Expect a ratio above 1. Figures:
docs/benchmarks.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import decord

from l2a_ray.videos.decode import DecodeSettings, decode, uniform_indices
from l2a_ray.videos.layouts import EXTENSIONS

DEFAULT = Path(__file__).parents[2] / "shared" / "data" / "jhmdb_original"
SETTINGS = DecodeSettings()


def with_pyav(path: str) -> tuple[int, ...]:
    return decode(path, SETTINGS).frames_THWC.shape


def with_decord(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    _, height, width, _ = shape
    reader = decord.VideoReader(path, num_threads=1, width=width, height=height)
    frames = reader.get_batch(uniform_indices(len(reader), SETTINGS.frames).tolist()).asnumpy()
    return tuple(frames.shape)


def one_round(shapes: dict[str, tuple[int, ...]]) -> tuple[float, float]:
    """Clips per second of each over all files."""
    ours = theirs = 0.0
    for path, shape in shapes.items():
        start = time.perf_counter()
        with_pyav(path)
        middle = time.perf_counter()
        with_decord(path, shape)
        ours, theirs = ours + middle - start, theirs + time.perf_counter() - middle
    return len(shapes) / ours, len(shapes) / theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    paths = sorted(str(path) for path in args.folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        parser.error(f"no videos in {args.folder}")
    shapes = {path: with_pyav(path) for path in paths}  # also warms the file cache
    for path, shape in shapes.items():
        if with_decord(path, shape) != shape:
            raise AssertionError(f"{path}: the two give frames of different shapes")
    rounds = [one_round(shapes) for _ in range(args.rounds)]
    ours, theirs = (statistics.median(speeds) for speeds in zip(*rounds, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    print(f"| reader | clips/s ({len(paths)} clips, median of {args.rounds} rounds) |\n|---|---|")
    print(f"| l2a_ray.videos.decode | {ours:.0f} |\n| decord2, num_threads=1 | {theirs:.0f} |\n| ratio | {ratio:.2f} |")


if __name__ == "__main__":
    main()
