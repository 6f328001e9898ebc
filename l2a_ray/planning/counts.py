"""What the costs of stages grow with, counted from a list of videos, and the line that costs lie on.

Imports no Ray. Axes: L classes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l2a_ray.videos.catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How large a data set is.

    Args:
        train: clips of the training part.
        val: clips of D_val.
        test: clips of the test part.
        pairs: candidate pairs.
        unlabelled: training clips whose labels are not used.
    """

    train: int
    val: int
    test: int
    pairs: int
    unlabelled: int = 0

    @property
    def clips(self) -> int:
        """Clips of all parts."""
        return self.train + self.val + self.test + self.unlabelled


def count_clips(catalog: Catalog, pairs: int = 0) -> Counts:
    """Count the clips of each part, as if every video could be used."""
    parts = Counter(video.split for video in catalog.videos)
    return Counts(
        train=parts["train"], val=parts["val"], test=parts["test"], pairs=pairs, unlabelled=parts["unlabelled"]
    )


def train_counts(catalog: Catalog) -> NDArray[np.int64]:
    """Count the training clips of each class, (L,)."""
    labels = [video.label for video in catalog.videos if video.split == "train"]
    return np.bincount(labels, minlength=len(catalog.classes)).astype(np.int64)


def count_pairs(
    train: NDArray[np.int64],
    kind: Literal["semantic", "random", "same_class"],
    neighbours: NDArray[np.int64] | None = None,
) -> int:
    """Count the pairs that :func:`l2a_ray.pairs.match.candidate_pairs` makes if every training clip can be used.

    Args:
        train: training clips of each class.
        kind: ``match.kind``.
        neighbours: label of each class's neighbour, which the semantic kind alone needs.
    """
    if kind == "random":
        others = train.sum() - train
        return int((train * -(-others // max(1, len(train) - 1))).sum())
    if neighbours is None:
        return int((train * (train - 1)).sum())
    return int((train * train[neighbours]).sum())


@dataclass(frozen=True)
class Line:
    """A cost that grows: ``fixed + slope * size``."""

    fixed: float
    slope: float

    def at(self, size: float) -> float:
        """Return the cost at a size."""
        return self.fixed + self.slope * size


def fit(first: tuple[float, float], second: tuple[float, float]) -> Line:
    """Lay the line through two measurements (size, cost), the second of the larger size.

    What has not grown is constant. A line that meets size 0 below cost 0 is laid from there to the second one.
    """
    (small, small_cost), (large, large_cost) = first, second
    if large <= small or large_cost <= small_cost:
        return Line(max(small_cost, large_cost), 0.0)
    slope = (large_cost - small_cost) / (large - small)
    fixed = small_cost - slope * small
    return Line(fixed, slope) if fixed >= 0 else Line(0.0, large_cost / large)
