"""The table of candidate pairs on disk, a row group in memory at a time. Axes: K rows that are wanted."""

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2a_ray.errors import StageError
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.selector.scoring import Rows
from l2a_ray.storage.files import AnyPath, open_parquet, write_bytes

ENDS = ["foreground", "background"]
LABEL = "foreground_label"


def group_sizes(path: AnyPath) -> dict[int, int]:
    """Count the pairs of every foreground class, a row group in memory at a time."""
    sizes: Counter[int] = Counter()
    pairs = open_pairs(path)
    for group in range(pairs.num_row_groups):
        labels = pairs.read_row_group(group, columns=[LABEL])[LABEL]
        sizes.update(labels.to_numpy().tolist())
    return dict(sorted(sizes.items()))


def rows_of(path: AnyPath, places: dict[int, Rows]) -> Rows:
    """Turn places among the pairs of each foreground class (sorted) into row numbers of the table, sorted."""
    rows: list[Rows] = []
    before = dict.fromkeys(places, 0)
    for group, (start, _) in enumerate(spans(path)):
        labels = open_pairs(path).read_row_group(group, columns=[LABEL])[LABEL].to_numpy()
        for label, places_K in places.items():
            mine = np.flatnonzero(labels == label)
            first, last = np.searchsorted(places_K, [before[label], before[label] + len(mine)])
            rows.append(start + mine[places_K[first:last] - before[label]])
            before[label] += len(mine)
    return np.sort(np.concatenate(rows))


def open_pairs(path: AnyPath) -> pq.ParquetFile:
    """Open the table; refuse one that cannot be read."""
    try:
        return open_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        advice = f"Delete the folder {path.parent} and run `l2a {path.parent.name}` again"
        raise StageError(f"{path}: cannot be read ({error}). {advice}") from error


def check_clips(path: AnyPath, clips: ClipVectors) -> None:
    """Refuse pairs of unknown clips here, before any work: Ray Data passes on a task's error as text only."""
    pairs = open_pairs(path)
    for group in range(pairs.num_row_groups):
        for column in pairs.read_row_group(group, columns=ENDS).columns:
            clips.rows(column.unique().to_pylist())


def spans(path: AnyPath) -> list[tuple[int, int]]:
    """Return the first row of every row group, and the row after its last."""
    metadata = open_pairs(path).metadata
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def read_pairs(path: AnyPath, rows_K: Rows) -> pa.Table:
    """Read the given rows of the pairs, in that order."""
    order = np.argsort(rows_K)
    sorted_K, parts = rows_K[order], []
    for group, (start, end) in enumerate(spans(path)):
        first, last = np.searchsorted(sorted_K, [start, end])
        if first < last:
            parts.append(open_pairs(path).read_row_group(group).take(pa.array(sorted_K[first:last] - start)))
    return pa.concat_tables(parts).take(pa.array(np.argsort(order)))


def clip_rows(clips: ClipVectors, pairs: pa.Table) -> tuple[Rows, Rows]:
    """Return the rows that ``clips`` has for the pairs' foregrounds and backgrounds; looks up each id once."""
    foreground, background = (pairs[column].combine_chunks().dictionary_encode() for column in ENDS)
    return (
        clips.rows(foreground.dictionary.to_pylist())[foreground.indices.to_numpy()],
        clips.rows(background.dictionary.to_pylist())[background.indices.to_numpy()],
    )


def write_table(path: AnyPath, table: pa.Table) -> None:
    """Write a table, atomically."""
    content = io.BytesIO()
    pq.write_table(table, content)
    write_bytes(path, content.getvalue())
