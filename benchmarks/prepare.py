"""Clips per second of `prepare`: where the time goes, what Ray Data adds, what a second worker brings, and memory.

    python benchmarks/prepare.py PATH [--clips 600] [--kind motion]

PATH is a folder data set (PATH/train/<class>/*.mp4, as `l2a generate` writes it). Its training videos, under as many
other names (links) as it takes to have so many clips, are prepared by the same functions three times in turn: in a
plain loop in this process, by Ray Data with one CPU, and with two. Times are those of the clips alone, from the first
one done to the last, so that starting Ray and its processes does not count. Memory is the largest proportional share
(PSS) of all processes, and of the driver's own, sampled while the clips stream through.

Measured on 480 clips of the demo (8 frames of short side 128, `motion`) on two cores, twice:

| | clips/s | |
|---|---|---|
| plain loop | 16.9, 22.4 | decode 9 %, segment 50 %, inpaint 36 %, write 3 %, rest 2 % |
| Ray Data, 1 CPU | 16.8, 20.2 | 1.00, 0.90 times the plain loop |
| Ray Data, 2 CPUs | 34.1, 43.1 | 2.03, 2.13 times one CPU; peak memory 1.63 GiB, the driver's 0.69 GiB |

The machine's speed changes by the minute, so the ratios are good to some 10 %. 10,000 clips (`--clips 10000
--only-two`): 40.2 clips/s, peak memory 1.68 GiB, the driver's 0.68 GiB. With Ray Data's tasks in place of actors two
CPUs brought 1.3 to 1.5 times one: a task's successor waited 0.2 s for Ray Data's loop.
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
import ray

from l2a_ray.prepare import job as preparation
from l2a_ray.prepare.inpaint.fill import build_inpainter
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.runtime.session import OBJECT_STORE_BYTES, quieten
from l2a_ray.videos.catalog import Video
from l2a_ray.videos.decode import DecodeSettings

PARTS = ("decode", "write_clip")  # the others are handed to prepare_clip


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
    kept = {name: getattr(preparation, name) for name in PARTS}
    for name, function in kept.items():
        setattr(preparation, name, counting(name, function, seconds))
    yield
    for name, function in kept.items():
        setattr(preparation, name, function)


def in_a_loop(videos: list[Video], settings: preparation.PrepareSettings, data: Path) -> tuple[float, dict[str, float]]:
    seconds: dict[str, float] = defaultdict(float)
    cv2.setNumThreads(1)  # as in a worker
    segmenter = counting("segment", build_segmenter(settings.segment), seconds)
    inpainter = counting("inpaint", build_inpainter(settings.inpaint), seconds)
    with timed(seconds):
        preparation.prepare_or_fail(videos[0], settings, segmenter, inpainter, data)
        seconds.clear()
        start = time.perf_counter()
        for video in videos[1:]:
            preparation.prepare_or_fail(video, settings, segmenter, inpainter, data)
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


def by_ray(
    videos: list[Video], settings: preparation.PrepareSettings, data: Path, cpus: int
) -> tuple[float, float, float]:
    """Return clips per second, the peak memory of all processes and that of the driver."""
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES)
    quieten()
    memory = Memory()
    memory.start()
    for row in preparation._stream(videos, settings, data):
        assert "cause" not in row, row["cause"]
    memory.stop.set()
    ray.shutdown()
    # Rows come many at a time; when a clip was done, its file says.
    done = sorted(path.stat().st_mtime for path in data.glob("*/*.safetensors"))
    return (len(done) - cpus) / (done[-1] - done[cpus - 1]), memory.peak, memory.driver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="PATH")
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--kind", default="motion")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only-two", action="store_true", help="two CPUs alone, for the memory of many clips")
    arguments = parser.parse_args()
    settings = preparation.PrepareSettings(
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
