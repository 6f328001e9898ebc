"""Paths of this machine and of object stores, and writing files so that a crash leaves the old one or none.

A URI such as ``s3://bucket/folder`` names an object store that fsspec knows; everything else is a path of this machine.
"""

import errno
import io
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import fsspec
from upath import UPath

from l2a_ray.errors import L2AError, MissingPackageError, StorageError

if TYPE_CHECKING:  # pandas and pyarrow take a second, which what only names files need not wait for
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

AnyPath: TypeAlias = Path | UPath
_LARGEST_HEADER = 2**26  # bytes


def as_path(name: str | AnyPath) -> AnyPath:
    """Return the path that a setting names.

    Raises:
        MissingPackageError: fsspec needs a package for this kind of object store.
        StorageError: fsspec knows no such kind.
    """
    text = str(name)
    protocol, separator, rest = text.partition("://")
    if not separator or isinstance(name, Path):
        return Path(text).expanduser()
    if protocol in ("file", "local"):
        return Path(rest)
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise MissingPackageError(f"{text}: {error}") from error
    except ValueError as error:
        raise StorageError(f"{text}: no such kind of storage ({error}). Name a folder, or a URI as s3://...") from error
    # Other processes write there too: a list of files that was right a minute ago may be wrong.
    return UPath(text, use_listings_cache=False)


def absolute_name(name: str | None) -> str | None:
    """Return the whole path of a file or folder that is there; any other name, of weights say, as it is."""
    return name if name is None or not Path(name).exists() else str(Path(name).absolute())


def relative_name(path: AnyPath, start: AnyPath) -> str:
    """Return the name of ``path`` as seen from the folder ``start``, so that both can be moved or mounted elsewhere.

    Between two kinds of storage it is the whole name. Names alone are compared: object stores know no ``..``.
    """
    (scheme, place), (other, origin) = _split(path), _split(start)
    return os.path.relpath(place, origin) if scheme == other else f"{scheme or 'file://'}{place}"


def from_relative(name: str, start: AnyPath) -> AnyPath:
    """Return the path that :func:`relative_name` named."""
    if "://" in name:
        return as_path(name)
    scheme, origin = _split(start)
    return as_path(scheme + posixpath.normpath(posixpath.join(origin, name)))


def _split(path: AnyPath) -> tuple[str, str]:
    """Return the scheme with its slashes, empty for folders of this machine, and the rest."""
    scheme, separator, rest = str(path.absolute()).rpartition("://")
    return scheme + separator, rest


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write beside, then rename; an object store shows an object when all of it is there.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    with _told(path):
        if isinstance(path, Path):
            with _beside(path) as beside:
                beside.write_bytes(content)
        else:
            path.write_bytes(content)


@contextmanager
def open_new(path: AnyPath) -> Iterator[BinaryIO]:
    """Open a file to be written bit by bit; in a folder it has its name only once all of it is there.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    with _told(path):
        if isinstance(path, Path):
            with _beside(path) as beside, beside.open("wb") as file:
                yield file
        else:
            with path.open("wb") as file:
                yield file


@contextmanager
def _told(path: AnyPath) -> Iterator[None]:
    """Say in a StorageError which file could not be written."""
    try:
        yield
    except L2AError:
        raise
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"{path}: cannot be written ({cause}). Free some space or choose another folder") from error
    except Exception as error:  # what cannot be reached has as many exceptions as there are object stores
        if isinstance(path, Path):
            raise
        raise StorageError(f"{path}: cannot be written ({error}). The same command goes on where it stopped") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give another name to write under; what is written takes the path's place unless that fails."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: AnyPath, content: object) -> None:
    """Write JSON atomically, keys sorted so that equal content gives equal bytes."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_bytes(path: AnyPath) -> bytes:
    """Read a file.

    Raises:
        OSError: it cannot be read; an object store's own exceptions are turned into this one.
    """
    try:
        return path.read_bytes()
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(path)) from error


def read_table(path: AnyPath, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Read a parquet file, or some of its columns.

    Raises:
        OSError: it cannot be read.
        ArrowInvalid: it is no parquet file, or has not all of the columns.
    """
    import pyarrow as pa  # here, as below: settings are read through this module, and should not wait for it

    with _parquet(path if isinstance(path, Path) else io.BytesIO(read_bytes(path))) as file:
        if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
            raise pa.ArrowInvalid(f"no column {missing[0]!r}")
        found: pd.DataFrame = file.read(columns, use_threads=False).to_pandas()
    return found if columns is None else found[list(columns)]


def open_file(path: AnyPath) -> Any:
    """Open a file for reading here and there in it; of an object it fetches the parts that are asked for."""
    return path.open("rb") if isinstance(path, Path) else path.fs.open(path.path, "rb", block_size=2**18)


def open_parquet(path: AnyPath) -> "pq.ParquetFile":
    """Open a parquet file, to read it by :func:`read_group`."""
    return _parquet(path if isinstance(path, Path) else open_file(path))


def read_group(file: "pq.ParquetFile", group: int, columns: Sequence[str] | None = None) -> "pa.Table":
    """Read a row group, or some of its columns."""
    return file.read_row_group(group, columns=columns, use_threads=False)


def _parquet(source: Any) -> "pq.ParquetFile":
    """Open a parquet file that this thread alone reads, if it asks for no threads.

    Arrow's own let go of a Python file when they like. Where that is while Python ends, they abort a process whose work
    is done ("terminate called without an active exception"): one in eight that has read bytes by pandas.read_parquet.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False)


def out_of_reach(*paths: AnyPath) -> str | None:
    """Return what is wrong with the first object store that does not answer; None if all do, and of folders."""
    for path in paths:
        try:
            if not isinstance(path, Path):
                path.fs.exists(path.path)
        except Exception as error:  # what cannot be reached has as many exceptions as there are object stores
            return f"{path}: cannot be reached ({error})"
    return None


def remove_folder(path: AnyPath) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.fs.exists(path.path):
        path.fs.rm(path.path, recursive=True)


def header_metadata(file: BinaryIO) -> dict[str, str]:
    """Read the metadata of a safetensors file without its tensors; the library's own reader takes local files only.

    The format: 8 bytes that say how long the header is, then the header, JSON
    (https://github.com/huggingface/safetensors#format).

    Raises:
        ValueError: it is no such file, or is cut off.
    """
    size = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(size, _LARGEST_HEADER)))
        metadata = dict(header.pop("__metadata__"))
        promised = 8 + size + max(tensor["data_offsets"][1] for tensor in header.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header lacks {error}") from error
    if file.seek(0, os.SEEK_END) != promised:
        raise ValueError(f"it should have {promised} bytes")
    return metadata
