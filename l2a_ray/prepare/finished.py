"""Looking for clips that need not be made: by name and header, and by the video's content where these do not tell."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

from l2a_ray.errors import VideoError
from l2a_ray.prepare.sources import MaskFiles, Stamp, content_hash, stamp
from l2a_ray.prepare.store import Row, read_metadata
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath
from l2a_ray.videos.catalog import Video

LOOKING = 32  # threads


class Finished(NamedTuple):
    """What need not be made."""

    rows: dict[str, Row]
    """Index rows of clips, by id."""
    away: list[Video]
    """Those of them whose video or masks cannot be found at the moment."""


def look_for_clips(
    videos: Sequence[Video], clips: AnyPath, mask_files: MaskFiles, known: Mapping[str, Row]
) -> Finished:
    """Find the clips that are there and whose sources have not changed. It asks for many at a time: stores are slow.

    A clip whose video has another path or time of change than it had, as on another mount, is known by its content:
    the video is read and hashed, not decoded. One whose video cannot be found now is taken from ``known``.

    Args:
        videos: what is wanted.
        clips: the folder of clips.
        mask_files: names the files beside a video that its masks are read from.
        known: index rows of an earlier time, by id.
    """
    there: dict[str, list[AnyPath]] = defaultdict(list)
    for path in clips.glob("*/*.safetensors"):  # a listing names a thousand where asking names one
        there[path.name.partition("-")[0]].append(path)
    videos = [video for video in videos if video.id in there]
    look = partial(_look, there=there, mask_files=mask_files, known=known)
    with ThreadPoolExecutor(LOOKING) as pool:
        found = pool.map(look, videos)
        looked = list(Bar(found, total=len(videos), desc="look for clips that are done", unit="clip", delay=2))
    finished = Finished({}, [])
    for video, (row, away) in zip(videos, looked, strict=True):
        if row is not None:
            finished.rows[video.id] = row
            finished.away.extend([video] if away else [])
    return finished


def _look(
    video: Video, there: Mapping[str, Sequence[AnyPath]], mask_files: MaskFiles, known: Mapping[str, Row]
) -> tuple[Row | None, bool]:
    """Return the index row of a video's clip, if it is there, and whether the video cannot be found."""
    now, before = stamp(video.path, mask_files), known.get(video.id)
    headers = [header for path in there[video.id] if (header := read_metadata(path)) is not None]
    if now is not None:
        wanted, digest = _source_hash(video, mask_files, now, before, headers), now.digest
    elif before is not None:
        wanted, digest = before["source_hash"], before["source_stamp"]
    else:
        return None, True
    rows = [asdict(video) | header | {"source_stamp": digest} for header in headers if header["source_hash"] == wanted]
    return next(iter(rows), None), now is None


def _source_hash(
    video: Video, mask_files: MaskFiles, now: Stamp, before: Row | None, headers: Sequence[Row]
) -> str | None:
    """Return the hash of a video's content, read only where nothing else tells it; None if there is no such clip."""
    for past in (*([before] if before else []), *headers):
        if past["source_stamp"] == now.digest:
            return str(past["source_hash"])
    if all(int(header["source_size"]) != now.size for header in headers):
        return None
    try:
        return content_hash(video.path, mask_files)
    except VideoError:
        return None
