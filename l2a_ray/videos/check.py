"""What a data set lacks, from the headers of its files alone: minutes where `prepare` takes hours."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pandas as pd

from l2a_ray.errors import VideoError
from l2a_ray.runtime.progress import Bar
from l2a_ray.videos.catalog import Catalog, Video
from l2a_ray.videos.decode import Header, read_header

NOT_THERE = "missing"
COLUMNS = ("path", "class_name", "split", "cause", "advice", "width", "height", "frames", "rate")
_UNKNOWN = asdict(Header(width=0, height=0, frames=0, rate=0.0))
_THREADS = 4 * (os.cpu_count() or 1)  # a header costs more waiting for the disk than work
_CHUNK = 4096  # videos waiting for a thread


def check_videos(catalog: Catalog) -> pd.DataFrame:
    """Read the header of every video, several at a time; a progress bar tells how far it is.

    Returns:
        A row a clip with ``COLUMNS``, clips without a file last: ``cause`` and ``advice`` are empty where nothing is
        wrong with the header, and what the header does not say is 0.
    """
    with Bar(total=len(catalog.videos), desc="check", unit="video") as bar, ThreadPoolExecutor(_THREADS) as pool:
        rows = []
        for row in _stream(pool, catalog.videos):
            rows.append(row)
            bar.update()
    advice = "Get the video, or do without it"
    for clip in catalog.missing:
        about = {"path": clip.name, "class_name": clip.class_name, "split": clip.part}
        rows.append(about | {"cause": NOT_THERE, "advice": advice} | _UNKNOWN)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _stream(pool: ThreadPoolExecutor, videos: tuple[Video, ...]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(videos), _CHUNK):
        yield from pool.map(_check, videos[start : start + _CHUNK])


def _check(video: Video) -> dict[str, Any]:
    about = {"path": video.path, "class_name": video.class_name, "split": video.split}
    try:
        return about | {"cause": "", "advice": ""} | asdict(read_header(video.path))
    except VideoError as error:
        return about | {"cause": error.cause, "advice": error.advice} | _UNKNOWN


def summarise(table: pd.DataFrame, classes: tuple[str, ...], frames: int) -> list[str]:
    """Say in sentences what a check found.

    Args:
        table: what ``check_videos`` returned.
        classes: the classes of the data set.
        frames: frames that a clip will have.
    """
    good = table[table["cause"] == ""]
    parts = ", ".join(f"{count} {part}" for part, count in good["split"].value_counts().items())
    lines = [f"{len(table)} clips, {len(good)} look usable" + (f" ({parts})" if parts else "")]
    lines += [f"{count}: {cause}" for cause, count in table["cause"].value_counts().items() if cause]
    short = int(good["frames"].between(1, frames - 1).sum())
    if short:
        lines.append(f"{short} usable ones have fewer than decode.frames={frames} frames and will repeat some")
    trained = set(good.loc[good["split"] == "train", "class_name"])
    if untrained := [name for name in classes if name not in trained]:
        lines.append(f"classes without a usable training video, which `prepare` will refuse: {', '.join(untrained)}")
    return lines
