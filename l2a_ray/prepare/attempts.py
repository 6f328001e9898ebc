"""Videos that kill the process that prepares them: by memory, or by a fault in a decoder.

Ray starts an actor again when its process has died, as often as it takes, because most die without a fault of their
own: a machine goes, a neighbour takes the memory. A video that kills every process would so be tried for ever. Whoever
begins one therefore leaves a note, which only a dead process does not take away.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from l2a_ray.errors import VideoError
from l2a_ray.storage.files import AnyPath, read_bytes, write_json


@contextmanager
def attempt(note: AnyPath, video: str, max_failures: int) -> Iterator[None]:
    """Note that a video is being prepared, for as long as it is.

    Args:
        note: file for the note.
        video: the video's path.
        max_failures: how many processes may have died of it.

    Raises:
        VideoError: more have.
    """
    died = _died(note)
    if died > max_failures:
        note.unlink(missing_ok=True)  # the user's next run may try again, with more memory perhaps
        raise VideoError(
            video,
            f"the process that prepared it died, {died} times in a row",
            "Most often memory ran out: see the video's size, and Ray's logs; or leave the video out",
        )
    write_json(note, {"attempt": died + 1, "process": os.getpid()})
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _died(note: AnyPath) -> int:
    try:
        return int(json.loads(read_bytes(note))["attempt"])
    except FileNotFoundError:
        return 0
