"""The clips and pairs that a classifier may learn from, with the guard that keeps all others out. Imports no Ray.

Clips are rows of one list of ids: 8 bytes a pair, where its two ids are 128.

Axes: N clips, P pairs.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from l2a_ray.classifier.semi import SEMI
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.errors import StageError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, as_path, open_parquet, read_group
from l2a_ray.videos.splits import may, refuse_others


def _none() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class TrainingData:
    """What the streams of a training are made of.

    Args:
        ids: of all clips of the store, bytes (N,).
        real: rows of the real training clips, int32.
        pairs: rows of foreground and background, int32 (P, 2); None: there are no pairs.
        unlabelled: rows of the clips whose labels no method may see, int32, none of them in ``real``.
        truth: true labels of ``unlabelled`` where they are known, int32, else -1: for figures alone, and no loss.
        teacher_classes: number of classes that a teacher has told of each real clip; None: there is no teacher.
    """

    ids: NDArray[np.bytes_]
    real: NDArray[np.int32]
    pairs: NDArray[np.int32] | None
    unlabelled: NDArray[np.int32] = field(default_factory=_none)
    truth: NDArray[np.int32] = field(default_factory=_none)
    teacher_classes: int | None = None


def read_data(
    store: ClipStore,
    pairs: str | None,
    settings: ClassifierSettings,
    teacher: str | None = None,
) -> TrainingData:
    """Read what a classifier is trained on.

    Args:
        store: the prepared clips.
        pairs: a parquet file with the pairs to composite (columns foreground, background), or None.
        settings: ``train_on`` and ``pseudo_labels`` say which parts are learned.
        teacher: folder of a teacher's probabilities, or None.

    Raises:
        LeakError: a clip of a pair is not one that may be paired.
        StageError: there are no training clips, no pairs in the table, or the method needs clips without labels or a
            teacher, and there are none.
    """
    index = store.columns("id", "split", "label")
    learned = [*settings.train_on.split("+"), *(["pseudo"] if settings.pseudo_labels else [])]
    real = np.flatnonzero(index["split"].isin(learned)).astype(np.int32)
    if not len(real):
        raise StageError(f"{store.root}: no clip of the training split was prepared; its failed.parquet says why")
    refuse_others(index["id"].iloc[real], index, "train", "the training")
    found = None if pairs is None else _read_pairs(as_path(pairs), index)
    rows = np.flatnonzero(may(index["split"], "unlabelled")).astype(np.int32)
    if settings.method in SEMI and not len(rows):
        reason = f"method {settings.method} learns from clips without labels, and there are none"
        raise StageError(f"{reason}. Set data.labelled_share below 1 and data.unlabelled=keep, or train supervised")
    if settings.numbers.distill and teacher is None:
        reason = f"method {settings.method} with distill={settings.numbers.distill:g} needs a teacher's opinions"
        raise StageError(f"{reason}, and there are none. Run `l2a teach`, or set distill to 0")
    classes = None if teacher is None else _teacher_classes(teacher)
    truth = index["label"].to_numpy(np.int32)[rows]
    return TrainingData(index["id"].to_numpy().astype(np.bytes_), real, found, rows, truth, classes)


def _teacher_classes(folder: str) -> int:
    from l2a_ray.classifier.teacher import Teacher  # brings PyTorch and timm

    return Teacher(as_path(folder)).classes


def _read_pairs(path: AnyPath, index: pd.DataFrame) -> NDArray[np.int32]:
    """Read a table of pairs as rows of the index, a row group in memory at a time."""
    known = pd.Index(index["id"])
    with open_parquet(path) as file:
        if not file.metadata.num_rows:
            raise StageError(f"{path}: no pairs in it. Run `l2a match` and `l2a select` again")
        groups = range(file.num_row_groups)
        tables = (read_group(file, group, ["foreground", "background"]) for group in groups)
        pairs = np.concatenate([_rows(table, known, index, path) for table in tables])
    used = np.zeros(len(index), np.bool_)
    used[pairs] = True
    refuse_others(index["id"][used], index, "pair", str(path))
    return pairs


def _rows(table: pa.Table, known: "pd.Index[str]", index: pd.DataFrame, path: AnyPath) -> NDArray[np.int32]:
    columns = []
    for column in ("foreground", "background"):
        coded = table[column].combine_chunks().dictionary_encode()
        ids = np.array(coded.dictionary.to_pylist())
        rows = known.get_indexer(pd.Index(ids))
        if (rows < 0).any():
            refuse_others(ids[rows < 0], index, "pair", str(path))
        columns.append(rows[coded.indices.to_numpy()].astype(np.int32))
    return np.stack(columns, axis=1)
