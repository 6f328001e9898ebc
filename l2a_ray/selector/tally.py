"""Keeping the best K of a stream of scored pairs, in memory that does not grow with the number of pairs.

Pairs are ranked by their logits: omega, the sigmoid, runs into 1.0 where logits still differ.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2a_ray.pairs.table import read_pairs, write_table
from l2a_ray.pairs.vectors import Floats, Rows
from l2a_ray.selector.scoring import omega
from l2a_ray.storage.files import AnyPath, write_json

BINS = 50


class TopK:
    """The best ``k`` of a stream of scored rows; equal scores: the smaller row first.

    The result is what sorting everything would give, whatever the order and size of the updates. Between updates less
    than 2 ``k`` rows are held: its length.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._pending: list[tuple[Floats, Rows]] = []
        self._count, self._threshold = 0, -np.inf

    def __len__(self) -> int:
        return self._count

    def update(self, scores: Floats, rows: Rows) -> None:
        """Take in more rows with their scores."""
        good = scores >= self._threshold
        self._pending.append((scores[good], rows[good]))
        self._count += int(good.sum())
        if self._count >= 2 * self.k:
            self._cut()

    def result(self) -> tuple[Floats, Rows]:
        """Return scores and rows of the best ``k`` (or all, if there were fewer), best first."""
        self._cut()
        return self._pending[0]

    def _cut(self) -> None:
        scores = np.concatenate([np.empty(0, np.float32), *(scores for scores, _ in self._pending)])
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in self._pending)])
        order = best_first(scores, rows)[: self.k]
        self._pending, self._count = [(scores[order], rows[order])], len(order)
        if self._count == self.k:
            self._threshold = float(scores[order[-1]])


def best_first(scores: Floats, rows: Rows) -> NDArray[np.intp]:
    """Return the order of falling scores; equal scores: the smaller row first."""
    return np.lexsort((rows, -scores))


class Tally:
    """What is kept of all scores: the best K, the worst few, the scores of K rows drawn at random, a histogram.

    Args:
        budgets: how many to keep of each group of pairs; K is their sum.
        worst: how many of the lowest to keep of all.
        drawn: the rows drawn at random, sorted.
        total: number of pairs.
    """

    def __init__(self, budgets: Mapping[int, int], worst: int, drawn: Rows, total: int) -> None:
        self.total = total
        self.best = {group: TopK(k) for group, k in budgets.items()}
        self.worst = TopK(worst)
        self.drawn, self.drawn_scores = drawn, np.empty(len(drawn), np.float32)
        self.counts = np.zeros(BINS, np.int64)
        self.edges = np.linspace(0, 1, BINS + 1)

    def update(self, scores: Floats, rows: Rows, groups: Rows) -> None:
        """Take in more rows with their scores (logits) and groups, in any order."""
        for group in np.unique(groups):
            self.best[int(group)].update(scores[groups == group], rows[groups == group])
        self.worst.update(-scores, rows)
        self.counts += np.histogram(omega(scores).astype(np.float64), bins=self.edges)[0]
        place = np.searchsorted(self.drawn, rows).clip(max=len(self.drawn) - 1)
        hit = self.drawn[place] == rows
        self.drawn_scores[place[hit]] = scores[hit]

    def write(self, pairs_path: AnyPath, out: AnyPath) -> None:
        """Write selected, sample, worst and histogram.parquet and, last, summary.json."""
        results = [best.result() for best in self.best.values()]
        scores, rows = (np.concatenate(part) for part in zip(*results, strict=True))
        order = best_first(scores, rows)
        scores, rows = scores[order], rows[order]
        write_table(out / "selected.parquet", _scored(pairs_path, rows, scores))
        write_table(out / "sample.parquet", _scored(pairs_path, self.drawn, self.drawn_scores))
        negated, lowest = self.worst.result()
        write_table(out / "worst.parquet", _scored(pairs_path, lowest, -negated))
        bins = {"left": self.edges[:-1], "right": self.edges[1:], "count": self.counts}
        write_table(out / "histogram.parquet", pa.table(bins))
        summary = {"candidates": self.total, "budget": len(rows), "threshold": float(omega(scores)[-1])}
        write_json(out / "summary.json", summary)


def _scored(path: AnyPath, rows: Rows, logits: Floats) -> pa.Table:
    """Read the given rows of the pairs, in that order, and add their omega."""
    return read_pairs(path, rows).append_column("score", pa.array(omega(logits), pa.float32()))
