"""What a clip is made of: the video's file and, where its masks were made elsewhere, their files."""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

from l2a_ray.errors import VideoError
from l2a_ray.storage.files import AnyPath, as_path, read_bytes

MaskFiles = Callable[[str], Sequence[AnyPath]]
"""Takes a video's path and returns the files that its masks are read from, or raises VideoError if there are none."""


class Stamp(NamedTuple):
    """By which changed files are noticed without being read."""

    size: int
    """Bytes of all files together."""
    digest: str
    """16 hex digits that stand for each file's path, size and time of change."""


def stamp(video: str, mask_files: MaskFiles) -> Stamp | None:
    """Look at a video's files without reading them; None if one cannot be found."""
    try:
        paths = (as_path(video), *mask_files(video))
        found = [path.stat() for path in paths]
    except (OSError, VideoError):
        return None
    lines = [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in zip(paths, found, strict=True)]
    digest = hashlib.blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return Stamp(sum(status.st_size for status in found), digest)


def content_hash(video: str, mask_files: MaskFiles, fetched: io.BytesIO | None = None) -> str:
    """Return 32 hex digits that stand for the content of a video and of its masks' files.

    Args:
        video: its path.
        mask_files: names the others.
        fetched: the video's content, if it has been read already.

    Raises:
        VideoError: a file cannot be read.
    """
    try:
        content = read_bytes(as_path(video)) if fetched is None else fetched.getbuffer()
        digest = hashlib.blake2b(content, digest_size=16)
        for path in mask_files(video):
            digest.update(hashlib.blake2b(read_bytes(path)).digest())
    except OSError as error:
        raise VideoError(video, f"cannot be read ({error})", "Make it and its masks readable, and try again") from error
    return digest.hexdigest()
