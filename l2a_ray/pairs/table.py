"""The table of candidate pairs on disk, a row group in memory at a time. Axes: K rows that are wanted."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2a_ray.errors import StageError
from l2a_ray.pairs.vectors import ClipVectors, Rows
from l2a_ray.storage.files import AnyPath, open_parquet, read_group, write_bytes

ENDS = ["foreground", "background"]
LABEL = "foreground_label"
GROUP = 2**20
"""Rows that are turned from dictionary codes to strings at a time."""


def open_pairs(path: AnyPath) -> pq.ParquetFile:
    """Open the table.

    Raises:
        StageError: it cannot be read.
    """
    try:
        return open_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        advice = f"Delete the folder {path.parent} and run `l2a {path.parent.name}` again"
        raise StageError(f"{path}: cannot be read ({error}). {advice}") from error


def count_pairs(path: AnyPath) -> int:
    """Count the pairs.

    Raises:
        StageError: the table cannot be read, or there are none.
    """
    total: int = open_pairs(path).metadata.num_rows
    if total == 0:
        advice = "Check match.min_foreground and the masks, and run `l2a match` again"
        raise StageError(f"{path}: there is no candidate pair. {advice}")
    return total


def check_clips(path: AnyPath, clips: ClipVectors) -> None:
    """Refuse pairs of unknown clips here, before any work: Ray Data passes on a task's error as text only."""
    pairs = open_pairs(path)
    for group in range(pairs.num_row_groups):
        for column in read_group(pairs, group, ENDS).columns:
            clips.rows(column.unique().to_pylist())


def spans(path: AnyPath) -> list[tuple[int, int]]:
    """Return the first row of every row group, and the row after its last."""
    metadata = open_pairs(path).metadata
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def read_pairs(path: AnyPath, rows: Rows | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the given rows of the pairs, in that order, or all; ids as dictionary codes, which take a fifth of strings.

    Row groups that hold none of them are not read.
    """
    order = None if rows is None else np.argsort(rows)
    ordered = None if rows is None else rows[order]
    pairs = open_pairs(path)
    parts = [_empty(pairs, columns)]
    for group, (start, end) in enumerate(spans(path)):
        if ordered is None:
            parts.append(_coded(read_group(pairs, group, columns)))
            continue
        first, last = np.searchsorted(ordered, [start, end])
        if first < last:
            wanted = pa.array(ordered[first:last] - start)
            parts.append(_coded(read_group(pairs, group, columns).take(wanted)))
    table = pa.concat_tables(parts).unify_dictionaries()
    return table if order is None else table.take(pa.array(np.argsort(order)))


def _coded(pairs: pa.Table) -> pa.Table:
    for place, name in enumerate(pairs.column_names):
        if name in ENDS:
            pairs = pairs.set_column(place, name, pairs[name].dictionary_encode())
    return pairs


def _empty(pairs: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    schema: pa.Schema = pairs.schema_arrow
    return _coded(pa.table({name: pa.array([], schema.field(name).type) for name in columns or schema.names}))


def clip_rows(clips: ClipVectors, pairs: pa.Table) -> tuple[Rows, Rows]:
    """Return the rows that ``clips`` has for the pairs' foregrounds and backgrounds; looks up each id once.

    Raises:
        StageError: a clip has no vector.
    """
    foreground, background = (_codes(pairs[column].combine_chunks()) for column in ENDS)
    return (
        clips.rows(foreground.dictionary.to_pylist())[foreground.indices.to_numpy()],
        clips.rows(background.dictionary.to_pylist())[background.indices.to_numpy()],
    )


def _codes(ids: pa.Array) -> pa.DictionaryArray:
    return ids if isinstance(ids, pa.DictionaryArray) else ids.dictionary_encode()


def write_table(path: AnyPath, table: pa.Table) -> None:
    """Write a table, atomically; dictionary codes become what they stand for."""
    plain = pa.schema(
        [field.with_type(field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
         for field in table.schema]
    )  # fmt: skip
    content = io.BytesIO()
    with pq.ParquetWriter(content, plain) as writer:
        for start in range(0, max(1, len(table)), GROUP):
            writer.write_table(table.slice(start, GROUP).cast(plain))
    write_bytes(path, content.getvalue())
