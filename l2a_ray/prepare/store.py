"""The clip store: one safetensors file a clip, in a folder that many runs share, and an index of the clips of one.

One file a clip because a pair needs two clips at random, and those are read much faster from such files than from a
columnar table. A file depends on its video and on how clips are made, on nothing else:
labels, classes and splits stand in the index alone. Axes: T time, H height, W width, C channel.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import safetensors.numpy
from cachetools import LRUCache
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from l2a_ray.errors import StageError, StorageError
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.storage.files import (
    AnyPath,
    as_path,
    from_relative,
    header_metadata,
    open_file,
    read_bytes,
    read_table,
    relative_name,
    write_bytes,
    write_json,
)

VERSION = 4
Row = dict[str, Any]
"""A row of the index or of the table of failures, or what a clip's file says of itself."""
Part = Literal["frames", "background", "objects", "people", "boxes", "people_boxes"]
"""A tensor of a clip: ``frames`` and ``background``, uint8 (T, H, W, C), or one of ``PLANES``, bool (T, H, W)."""
Choice = Callable[[int], NDArray[np.int64]]
"""Takes the number of frames that a clip has and returns which of them are wanted."""
PLANES: tuple[Part, ...] = ("objects", "people", "boxes", "people_boxes")
PARTS: tuple[Part, ...] = ("frames", "background", *PLANES)
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
    "foreground_frames": "float64",
    "people_frames": "float64",
    "remark": "str",
    "source_hash": "str",
    "source_size": "int64",
    "source_stamp": "str",
}
FAILED_COLUMNS = ("id", "path", "class_name", "label", "split", "cause", "advice", "source_size", "source_stamp")
MEND = "Run `l2a prepare --refresh`: it makes anew what is missing or damaged"


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
    def parts(self) -> dict[Part, NDArray[Any]]:
        """The arrays by name, as ``ClipStore.read_parts`` gives them."""
        planes = {name: getattr(self.planes, name) for name in PLANES}
        return {"frames": self.frames_THWC, "background": self.background_THWC, **planes}


class ClipStore:
    """Read access to the clips of one data set. Holds no open files, so it travels between processes.

    Args:
        root: folder with ``store.json`` and ``index.parquet``; ``store.json`` says where the clips are.

    Raises:
        StageError: the folder holds no complete clip store, or one of another version.
        StorageError: ``store.json`` is damaged.
    """

    def __init__(self, root: str | AnyPath) -> None:
        self.root = as_path(root)
        about = self.root / "store.json"
        try:
            description = json.loads(read_bytes(about))
            version = description["version"]
        except (FileNotFoundError, NotADirectoryError):
            raise StageError(f"{self.root}: no clip store here. Run `l2a prepare` first") from None
        except (ValueError, LookupError, TypeError) as error:
            raise StorageError(f"{about}: damaged ({error}). {MEND}") from error
        if version != VERSION:
            advice = "Run `l2a prepare` of this program, which makes another; the old one is kept until you delete it"
            raise StageError(f"{about}: a clip store of version {version}, this program reads {VERSION}. {advice}")
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.clips: AnyPath = from_relative(description["clips"], self.root)
        self._columns: dict[str, pd.Series[Any]] = {}

    @property
    def index(self) -> pd.DataFrame:
        """One row a clip, sorted by id; all columns of ``INDEX_DTYPES``, some 200 MB for 240,000 clips."""
        return self.columns(*INDEX_DTYPES)

    def columns(self, *names: str) -> pd.DataFrame:
        """Return some columns of the index; each is read once and kept.

        Raises:
            StorageError: the index is missing or damaged.
        """
        if unread := [name for name in names if name not in self._columns]:
            table = self._table("index.parquet", unread)
            self._columns |= {name: table[name] for name in unread}
        return pd.DataFrame({name: self._columns[name] for name in names})

    def rows(self, split: str) -> pd.DataFrame:
        """Return id, class_name, label and split of the clips of one split: ``train``, ``val`` or ``test``."""
        table = self.columns("id", "class_name", "label", "split")
        return table[table["split"] == split]

    @cached_property
    def failed(self) -> pd.DataFrame:
        """One row a video that could not be used; columns as in ``FAILED_COLUMNS``."""
        return self._table("failed.parquet", list(FAILED_COLUMNS))

    @cached_property
    def content(self) -> str:
        """16 hex digits that stand for the data set: its clips and how they were made, its labels and its splits."""
        table = self.columns("id", "label", "split", "source_hash").to_csv(index=False)
        about = json.dumps([self.clips.name, self.classes])
        return hashlib.blake2b(f"{about}\n{table}".encode(), digest_size=8).hexdigest()

    def path(self, clip_id: str) -> AnyPath:
        """Return where a clip's file lies.

        Raises:
            StorageError: the index names no such clip.
        """
        ids, hashes = self._hashes
        row, wanted = int(np.searchsorted(ids, clip_id.encode())), clip_id.encode()
        if row == len(ids) or ids[row] != wanted:
            raise StorageError(f"{self.root / 'index.parquet'}: it has no clip {clip_id}. {MEND}")
        return clip_path(self.clips, clip_id, hashes[row].decode())

    def read(self, clip_id: str) -> StoredClip:
        """Read a whole clip.

        Raises:
            StorageError: its file is missing or damaged.
        """
        parts = self.read_parts(clip_id, PARTS)
        return StoredClip(parts["frames"], parts["background"], Planes(**{str(name): parts[name] for name in PLANES}))

    def read_parts(self, clip_id: str, parts: Sequence[Part], choice: Choice | None = None) -> dict[Part, NDArray[Any]]:
        """Read some parts of a clip and nothing else of its file; of an object, all of it in one request.

        Args:
            clip_id: the clip.
            parts: which arrays.
            choice: which of their frames; None: all.

        Raises:
            StorageError: its file is missing or damaged.
        """
        path = self.path(clip_id)
        try:
            tensors, width = _read_tensors(path, parts, choice)
        except (OSError, SafetensorError, KeyError) as error:
            raise StorageError(f"{path}: cannot be read ({error}). {MEND}") from error
        return {name: unpack(array, width) if name in PLANES else array for name, array in tensors.items()}

    @cached_property
    def _hashes(self) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
        """Ids, sorted, and the part of the source's hash that names the clip's file: 32 bytes a clip."""
        table = self.columns("id", "source_hash")
        return table["id"].to_numpy().astype(np.bytes_), table["source_hash"].str[:16].to_numpy().astype(np.bytes_)

    def _table(self, name: str, columns: list[str]) -> pd.DataFrame:
        try:
            return read_table(self.root / name, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{self.root / name}: cannot be read ({error}). {MEND}") from error


class CachedClipStore(ClipStore):
    """A store that keeps the parts of clips read last in memory: the environment comes back to the same ones.

    The arrays that it returns are not to be changed.

    Args:
        root: as of ``ClipStore``.
        memory: bytes that the kept parts may take.
    """

    def __init__(self, root: str | AnyPath, memory: int) -> None:
        super().__init__(root)
        self._kept: LRUCache[tuple[str, Part], NDArray[Any]] = LRUCache(memory, getsizeof=attrgetter("nbytes"))

    def read_parts(self, clip_id: str, parts: Sequence[Part], choice: Choice | None = None) -> dict[Part, NDArray[Any]]:
        """Return some parts of a clip, from memory where they are there; all their frames are kept."""
        found = {part: self._kept[clip_id, part] for part in parts if (clip_id, part) in self._kept}
        if unread := [part for part in parts if part not in found]:
            read = super().read_parts(clip_id, unread)
            found |= read
            self._kept.update(
                {(clip_id, part): array for part, array in read.items() if array.nbytes <= self._kept.maxsize}
            )
        return found if choice is None else {part: array[choice(len(array))] for part, array in found.items()}


def clip_path(clips: AnyPath, clip_id: str, source_hash: str) -> AnyPath:
    """Return where the clip of a video of this content lies. 256 folders keep each one small enough to list."""
    return clips / f"{clip_id[:2]}/{clip_id}-{source_hash[:16]}.safetensors"


def pack(mask_THW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack a mask to one bit a pixel, each row padded to whole bytes."""
    return np.packbits(mask_THW, axis=-1)


def unpack(bits: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Undo ``pack`` for rows of ``width`` pixels."""
    # All bits in one row: faster than along an axis.
    padded = np.unpackbits(bits).reshape(*bits.shape[:-1], 8 * bits.shape[-1])
    return np.ascontiguousarray(padded[..., :width]).view(np.bool_)


def write_clip(path: AnyPath, clip: StoredClip, metadata: dict[str, str]) -> None:
    """Write one clip; a reader sees all of it or nothing.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    tensors = {str(name): pack(array) if name in PLANES else array for name, array in clip.parts.items()}
    write_bytes(path, safetensors.numpy.save(tensors, metadata))


def read_metadata(path: AnyPath) -> dict[str, str] | None:
    """Return the metadata that ``write_clip`` stored with a clip, or None if its file is missing or damaged."""
    try:
        with open_file(path) as file:
            return header_metadata(file)
    except (OSError, ValueError):
        return None


def _read_tensors(
    path: AnyPath, names: Sequence[Part], choice: Choice | None
) -> tuple[dict[Part, NDArray[np.uint8]], int]:
    """Return tensors as they are stored, the chosen frames of them, and the clip's width in pixels."""
    if not isinstance(path, Path):
        found = cast("dict[Part, NDArray[np.uint8]]", safetensors.numpy.load(read_bytes(path)))
        frames, _, width, _ = found["frames"].shape
        rows = slice(None) if choice is None else choice(frames)
        return {name: found[name][rows] for name in names}, width
    with safe_open(path, framework="numpy") as file:
        frames, _, width, _ = file.get_slice("frames").get_shape()
        if choice is None:
            return {name: file.get_tensor(name) for name in names}, width
        # Each run of consecutive frames is one piece of the file.
        rows = choice(frames)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        pieces = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
        stored = {name: file.get_slice(name) for name in names}
        return {name: np.concatenate([part[piece] for piece in pieces]) for name, part in stored.items()}, width


def write_index(
    out: AnyPath, clips: AnyPath, classes: Sequence[str], index: pd.DataFrame, failed: pd.DataFrame
) -> None:
    """Write the store's description; ``store.json`` comes last, so its presence means that all is there."""
    write_bytes(out / "index.parquet", index.to_parquet(index=False))
    write_bytes(out / "failed.parquet", failed.to_parquet(index=False))
    about = {"version": VERSION, "classes": list(classes), "clips": relative_name(clips, out)}
    write_json(out / "store.json", about)
