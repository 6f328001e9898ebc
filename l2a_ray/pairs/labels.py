"""The labels of clips: data of their own, not a column that every clip must have. Axes: N clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NONE = -1
"""Stands for no label."""
GUESSES = "guesses.parquet"
"""The table of pseudo-labels, beside the index of the clips that bear them."""


@dataclass(frozen=True)
class Labels:
    """Which class each clip shows.

    Args:
        ids: clip ids, bytes (N,), sorted.
        label: int32 (N,); -1 for a clip without a label.
        source: where they come from; `given`: the data set; `true`: kept back from all that learns.
    """

    ids: NDArray[np.bytes_]
    label: NDArray[np.int32]
    source: Literal["given", "true"]

    @classmethod
    def given(cls, index: pd.DataFrame) -> Self:
        """Take the data set's own labels from rows of ``ClipStore.index``, which is sorted by id."""
        return cls(index["id"].to_numpy().astype(np.bytes_), index["label"].to_numpy(np.int32), "given")

    @classmethod
    def true(cls, ids: NDArray[np.bytes_], label: NDArray[np.int32]) -> Self:
        """Hold true labels of clips, which are sorted by id, that are for figures alone."""
        return cls(ids, label, "true")

    def without(self, ids: NDArray[np.bytes_]) -> Self:
        """Return the same, but that some clips have no label."""
        return replace(self, label=np.where(np.isin(self.ids, ids), np.int32(NONE), self.label))

    def of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the label of each clip, int32; -1 for those that have none, or that are unknown."""
        wanted = np.asarray(ids, dtype=np.bytes_)
        if not len(self.ids):
            return np.full(len(wanted), NONE, np.int32)
        rows = np.searchsorted(self.ids, wanted).clip(max=len(self.ids) - 1)
        return np.where(self.ids[rows] == wanted, self.label[rows], NONE).astype(np.int32)
