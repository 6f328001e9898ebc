"""Clips per second of `prepare`: where the time goes, what Ray Data adds, what a second worker brings, and memory.

    python benchmarks/prepare.py PATH [--clips 600] [--kind motion]

PATH is a folder data set (PATH/train/<class>/*.mp4, as `l2a generate` writes it). Its training videos, under as many
other names (links) as it takes to have so many clips, are prepared by the same functions three times in turn: in a
plain loop in this process, by Ray Data with one CPU, and with two. Times are those of the clips alone, from the first
one done to the last, so that starting Ray and its processes does not count. Memory is the largest proportional share
(PSS) of all processes, and of the driver's own, sampled while the clips stream through.

Expect Ray Data with one CPU to be about as fast as the loop, two CPUs to be twice as fast as one, and memory that does
not grow with the number of clips (`--clips 10000 --only-two`). Figures: docs/benchmarks.md.
"""

import argparse
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2

from l2a_ray.prepare import clip, job
from l2a_ray.prepare.inpaint.fill import build_inpainter
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter, no_files
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.runtime.session import own_ray
from l2a_ray.runtime.settings import RuntimeSettings
from l2a_ray.videos.catalog import Video
from l2a_ray.videos.decode import DecodeSettings

PARTS = ("decode", "write_clip")  # the others are handed to ClipMaker


def linked(root: Path, folder: Path, count: int) -> list[Video]:
    """Return so many videos, made of the training videos under other names."""
    originals = sorted(root.glob("train/*/*.mp4"))
    videos = []
    for number in range(count):
        path = folder / f"{number:06d}.mp4"
        path.symlink_to(originals[number % len(originals)].absolute())
        videos.append(Video(f"{number:016x}", str(path), "any", 0, "train", str(number)))
    return videos


def counting(name: str, function: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    """Count the seconds that a function takes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    return call


@contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    kept = {name: getattr(clip, name) for name in PARTS}
    for name, function in kept.items():
        setattr(clip, name, counting(name, function, seconds))
    yield
    for name, function in kept.items():
        setattr(clip, name, function)


def in_a_loop(videos: list[Video], settings: PrepareSettings, clips: Path) -> tuple[float, dict[str, float]]:
    seconds: dict[str, float] = defaultdict(float)
    cv2.setNumThreads(1)  # as in a worker
    segmenter = counting("segment", build_segmenter(settings.segment), seconds)
    inpainter = counting("inpaint", build_inpainter(settings.inpaint), seconds)
    maker = clip.ClipMaker(settings, clips, clips.parent / "attempts", segmenter, inpainter, no_files)
    with timed(seconds):
        maker.row(videos[0])
        seconds.clear()
        start = time.perf_counter()
        for video in videos[1:]:
            maker.row(video)
        took = time.perf_counter() - start
    seconds["rest"] = took - sum(seconds.values())
    return (len(videos) - 1) / took, seconds


class Memory(threading.Thread):
    """Samples the proportional memory of this process and all that it started; the peaks are in GiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.driver, self.stop = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        """Sample every two seconds until told to stop."""
        while not self.stop.wait(2):
            own = proportional_share(os.getpid())
            self.driver = max(self.driver, own)
            self.peak = max(self.peak, own + sum(map(proportional_share, descendants(os.getpid()))))


def descendants(process: int) -> list[int]:
    """Return the processes that one has started, and those that these have (Linux)."""
    parents: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = list(parents[process])
    for child in found:
        found += parents[child]
    return found


def proportional_share(process: int) -> float:
    """Return a process's memory in GiB, what it shares divided among those that share it; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 2**20
    return 0.0


def by_ray(videos: list[Video], settings: PrepareSettings, clips: Path, cpus: int) -> tuple[float, float, float]:
    """Return clips per second, the peak memory of all processes and that of the driver."""
    store = round(RuntimeSettings().object_store_gib * 2**30)
    with own_ray(num_cpus=cpus, include_dashboard=False, object_store_memory=store):
        memory = Memory()
        memory.start()
        for row in job._stream(videos, settings, clips, clips.parent / "attempts"):
            assert "cause" not in row, row["cause"]
        memory.stop.set()
    # Rows come many at a time; when a clip was done, its file says.
    done = sorted(path.stat().st_mtime for path in clips.glob("*/*.safetensors"))
    return (len(done) - cpus) / (done[-1] - done[cpus - 1]), memory.peak, memory.driver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="PATH")
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--kind", default="motion")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only-two", action="store_true", help="two CPUs alone, for the memory of many clips")
    arguments = parser.parse_args()
    settings = PrepareSettings(
        decode=DecodeSettings(frames=8, size=arguments.size), segment=SegmentSettings(kind=arguments.kind)
    )
    with tempfile.TemporaryDirectory() as folder:
        (videos_folder := Path(folder) / "videos").mkdir()
        videos = linked(arguments.root, videos_folder, arguments.clips)
        print(f"{len(videos)} clips, {asdict(settings.decode)}")
        if not arguments.only_two:
            plain, seconds = in_a_loop(videos, settings, Path(folder) / "plain")
            total = sum(seconds.values())
            print(f"plain loop: {plain:.1f} clips/s; ", end="")
            print(", ".join(f"{name} {value / total:.0%}" for name, value in seconds.items()))
            one, _, _ = by_ray(videos, settings, Path(folder) / "one", 1)
            print(f"Ray Data, 1 CPU: {one:.1f} clips/s, {one / plain:.2f} times the plain loop", flush=True)
        two, peak, driver = by_ray(videos, settings, Path(folder) / "two", 2)
        more = "" if arguments.only_two else f", {two / one:.2f} times one CPU"
        print(f"Ray Data, 2 CPUs: {two:.1f} clips/s{more}; peak memory {peak:.2f} GiB, driver {driver:.2f} GiB")


if __name__ == "__main__":
    main()
