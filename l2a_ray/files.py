"""Writing files so that a crash leaves the old one or none, never half of one."""

import json
import os
import uuid
from pathlib import Path

from l2a_ray.errors import StorageError


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, then rename.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        cause = os.strerror(error.errno or 0)
        raise StorageError(f"{path}: cannot be written ({cause}). Free some space or choose another folder") from error


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, keys sorted so that equal content gives equal bytes."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
