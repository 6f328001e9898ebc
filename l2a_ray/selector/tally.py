"""Keeping the best K of a stream of scored pairs, in memory that does not grow with the number of pairs.

Pairs are ranked by their logits: omega, the sigmoid, runs into 1.0 where logits still differ.
"""

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2a_ray.pairs.groups import split, take_capped
from l2a_ray.pairs.table import read_pairs, write_table
from l2a_ray.pairs.vectors import Floats, Rows
from l2a_ray.selector.scoring import omega
from l2a_ray.storage.files import AnyPath, write_json

logger = logging.getLogger(__name__)
BINS = 50


class TopK:
    """The ``k`` of a stream of rows with the highest keys; equal keys: the smaller row first.

    The result is what sorting everything would give, whatever the order and size of the updates. Between updates less
    than 2 ``k`` rows are held: its length.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._pending: list[tuple[Floats, Rows, Floats]] = []
        self._count, self._threshold = 0, -np.inf

    def __len__(self) -> int:
        return self._count

    def update(self, keys: Floats, rows: Rows, scores: Floats) -> None:
        """Take in more rows with their keys, and scores that are kept with them."""
        good = keys >= self._threshold
        self._pending.append((keys[good], rows[good], scores[good]))
        self._count += int(good.sum())
        if self._count >= 2 * self.k:
            self._cut()

    def result(self) -> tuple[Floats, Rows]:
        """Return scores and rows of the ``k`` (or all, if there were fewer) with the highest keys, in that order."""
        self._cut()
        _, rows, scores = self._pending[0]
        return scores, rows

    def _cut(self) -> None:
        nothing = (np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
        keys, rows, scores = (np.concatenate(part) for part in zip(nothing, *self._pending, strict=True))
        order = best_first(keys, rows)[: self.k]
        self._pending, self._count = [(keys[order], rows[order], scores[order])], len(order)
        if self._count == self.k:
            self._threshold = float(keys[order[-1]])


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
        most: how many may share a foreground, and how many a background; None: any number. With a cap all scores are
            held, some 40 bytes a pair: whom a clip's last place goes to is known at the end.
    """

    def __init__(
        self, budgets: Mapping[int, int], worst: int, drawn: Rows, total: int, most: int | None = None
    ) -> None:
        self.total, self.budgets, self.most = total, budgets, most
        self.best = {group: TopK(k) for group, k in budgets.items()} if most is None else {}
        self._all: list[tuple[Floats, Rows, Floats, Rows]] = []
        self.worst = TopK(worst)
        self.drawn, self.drawn_scores = drawn, np.empty(len(drawn), np.float32)
        self.counts = np.zeros(BINS, np.int64)
        self.edges = np.linspace(0, 1, BINS + 1)

    def update(self, scores: Floats, rows: Rows, groups: Rows, keys: Floats | None = None) -> None:
        """Take in more rows with their scores (logits), groups and what ranks them (by default the score)."""
        keys = scores if keys is None else keys
        if self.most is None:
            for group, places in split(groups):
                self.best[group].update(keys[places], rows[places], scores[places])
        else:
            self._all.append((keys, rows, scores, groups))
        self.worst.update(-scores, rows, scores)
        self.counts += np.histogram(omega(scores).astype(np.float64), bins=self.edges)[0]
        place = np.searchsorted(self.drawn, rows).clip(max=len(self.drawn) - 1)
        hit = self.drawn[place] == rows
        self.drawn_scores[place[hit]] = scores[hit]

    def kept(self, pairs_path: AnyPath) -> tuple[Floats, Rows]:
        """Return scores and rows of the pairs that are kept, those of the highest scores first."""
        if self.most is None:
            results = [best.result() for best in self.best.values()]
            scores, rows = (np.concatenate(part) for part in zip(*results, strict=True))
        else:
            keys, seen, seen_scores, groups = (np.concatenate(part) for part in zip(*self._all, strict=True))
            order = best_first(keys, seen)
            rows = take_capped(pairs_path, seen[order], groups[order], self.budgets, self.most)
            scores = np.empty(self.total, np.float32)
            scores[seen] = seen_scores
            scores = scores[rows]
        order = best_first(scores, rows)
        return scores[order], rows[order]

    def write(self, pairs_path: AnyPath, out: AnyPath, *, by_chance: bool = False) -> None:
        """Write selected, sample, worst and histogram.parquet and, last, summary.json.

        With ``by_chance`` the pairs drawn at random are those that are kept.
        """
        if by_chance:
            logger.warning("select: random pairs are kept (select.without_signal): the reward carries no sure signal")
        # By chance in the order of the random arm's, so that classifiers are trained alike.
        scores, rows = (self.drawn_scores, self.drawn) if by_chance else self.kept(pairs_path)
        if len(rows) < (wanted := sum(self.budgets.values())):
            logger.warning(
                "select: select.most_per_clip=%d lets %d pairs be kept, the budget %d", self.most, len(rows), wanted
            )
        write_table(out / "selected.parquet", _scored(pairs_path, rows, scores))
        write_table(out / "sample.parquet", _scored(pairs_path, self.drawn, self.drawn_scores))
        low_scores, lowest = self.worst.result()
        write_table(out / "worst.parquet", _scored(pairs_path, lowest, low_scores))
        bins = {"left": self.edges[:-1], "right": self.edges[1:], "count": self.counts}
        write_table(out / "histogram.parquet", pa.table(bins))
        summary = {"candidates": self.total, "budget": len(rows), "threshold": float(omega(scores).min())}
        summary["by_chance"] = by_chance
        write_json(out / "summary.json", summary)


def _scored(path: AnyPath, rows: Rows, logits: Floats) -> pa.Table:
    """Read the given rows of the pairs, in that order, and add their omega."""
    return read_pairs(path, rows).append_column("score", pa.array(omega(logits), pa.float32()))
