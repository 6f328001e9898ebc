"""The clip store: one safetensors file a clip, and an index.

One file a clip because a pair needs two clips at random: reading 600 clips of 1.1 MB at random was 8 to 40 times faster
from such files than from a columnar table. Axes: T time, H height, W width, C channel.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
import pandas as pd
import safetensors.numpy
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray
from safetensors import SafetensorError

from l2a_ray.errors import StageError, StorageError
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.storage.files import (
    AnyPath,
    as_path,
    header_metadata,
    open_file,
    read_bytes,
    read_table,
    write_bytes,
    write_json,
)

VERSION = 2
PLANES = ("objects", "people", "boxes", "people_boxes")
NO_FOREGROUND, NO_BACKGROUND = "no foreground found", "no background seen"
INDEX_DTYPES = {
    "id": "str",
    "path": "str",
    "class_name": "str",
    "label": "int32",
    "split": "str",
    "group": "str",
    "frame_count": "int64",
    "rate": "float64",
    "height": "int32",
    "width": "int32",
    "foreground_ratio": "float64",
    "people_ratio": "float64",
    "remark": "str",
    "source_hash": "str",
    "source_size": "int64",
    "source_mtime_ns": "int64",
}
FAILED_COLUMNS = ("id", "path", "class_name", "label", "split", "cause", "advice", "source_size", "source_mtime_ns")


@dataclass(frozen=True)
class StoredClip:
    """A prepared clip.

    Args:
        frames_THWC: RGB uint8.
        background_THWC: the same frames with people and objects removed and filled in, RGB uint8.
        planes: the masks of its objects, people and bounding boxes.
    """

    frames_THWC: NDArray[np.uint8]
    background_THWC: NDArray[np.uint8]
    planes: Planes

    @property
    def nbytes(self) -> int:
        """Return what the arrays take in memory."""
        return sum(array.nbytes for array in (self.frames_THWC, self.background_THWC, *vars(self.planes).values()))


class ClipStore:
    """Read access to the clips that ``prepare`` made. Holds no open files, so it travels between processes.

    Args:
        root: folder with ``store.json`` and ``index.parquet``.

    Raises:
        StageError: the folder holds no complete clip store.
    """

    def __init__(self, root: str | AnyPath) -> None:
        self.root = as_path(root)
        about = self.root / "store.json"
        try:
            description = json.loads(read_bytes(about))
        except (FileNotFoundError, NotADirectoryError):
            raise StageError(f"{self.root}: no clip store here. Run `l2a prepare` first") from None
        if description["version"] != VERSION:
            raise StageError(f"{about}: version {description['version']}, this program reads {VERSION}. Prepare again")
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.data = self.root / description["data"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row a clip, sorted by id; columns as in ``INDEX_DTYPES``."""
        return read_table(self.root / "index.parquet")

    @cached_property
    def failed(self) -> pd.DataFrame:
        """One row a video that could not be used; columns as in ``FAILED_COLUMNS``."""
        return read_table(self.root / "failed.parquet")

    def rows(self, split: str) -> pd.DataFrame:
        """Return the index rows of one split: ``train``, ``val`` or ``test``."""
        return self.index[self.index["split"] == split]

    def read(self, clip_id: str) -> StoredClip:
        """Read one clip.

        Raises:
            StorageError: its file is missing or damaged.
        """
        path = clip_path(self.data, clip_id)
        try:
            tensors = safetensors.numpy.load(read_bytes(path))
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{path}: {error}. Delete the file if it is there and run `l2a prepare` again"
            ) from error
        width = tensors["frames"].shape[2]
        return StoredClip(
            frames_THWC=tensors["frames"],
            background_THWC=tensors["background"],
            planes=Planes(**{name: unpack(tensors[name], width) for name in PLANES}),
        )


class CachedClipStore(ClipStore):
    """A store that keeps the clips read last in memory: the environment comes back to the same ones.

    Args:
        root: as of ``ClipStore``.
        memory: bytes that the kept clips may take.
    """

    def __init__(self, root: str | AnyPath, memory: int) -> None:
        super().__init__(root)
        self._kept: LRUCache[str, StoredClip] = LRUCache(memory, getsizeof=attrgetter("nbytes"))

    @cachedmethod(attrgetter("_kept"))
    def read(self, clip_id: str) -> StoredClip:
        """Read one clip, which is not to be changed."""
        return super().read(clip_id)


def clip_path(data: AnyPath, clip_id: str) -> AnyPath:
    """Return where a clip's file lies. 256 folders keep each one small enough to list."""
    return data / f"{clip_id[:2]}/{clip_id}.safetensors"


def pack(mask_THW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack a mask to one bit a pixel, each row padded to whole bytes."""
    return np.packbits(mask_THW, axis=-1)


def unpack(bits: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Undo ``pack`` for rows of ``width`` pixels."""
    # All bits in one row: twice as fast as along an axis.
    padded = np.unpackbits(bits).reshape(*bits.shape[:-1], 8 * bits.shape[-1])
    return np.ascontiguousarray(padded[..., :width]).view(np.bool_)


def write_clip(data: AnyPath, clip_id: str, clip: StoredClip, metadata: dict[str, str]) -> None:
    """Write one clip; a reader sees all of it or nothing.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    tensors = {"frames": clip.frames_THWC, "background": clip.background_THWC}
    tensors |= {name: pack(getattr(clip.planes, name)) for name in PLANES}
    write_bytes(clip_path(data, clip_id), safetensors.numpy.save(tensors, metadata))


def read_metadata(data: AnyPath, clip_id: str) -> dict[str, str] | None:
    """Return what ``write_clip`` was told about a clip, or None if its file is missing or damaged."""
    try:
        with open_file(clip_path(data, clip_id)) as file:
            return header_metadata(file)
    except (OSError, ValueError):
        return None


def write_index(root: AnyPath, data: str, classes: Sequence[str], index: pd.DataFrame, failed: pd.DataFrame) -> None:
    """Write the store's description; ``store.json`` comes last, so its presence means that all is there."""
    write_bytes(root / "index.parquet", index.to_parquet(index=False))
    write_bytes(root / "failed.parquet", failed.to_parquet(index=False))
    write_json(root / "store.json", {"version": VERSION, "classes": list(classes), "data": data})
