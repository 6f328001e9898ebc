"""Keeping the best K of a stream of scored pairs, in memory that does not grow with the number of pairs.

Pairs are ranked by their logits: omega, the sigmoid, runs into 1.0 where logits still differ. Axes: B pairs, K budget,
R pairs scored again.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2a_ray.pairs.table import read_pairs, write_table
from l2a_ray.selector.scoring import BATCH, Floats, Rows, Scorer, Screen, omega
from l2a_ray.storage.files import AnyPath, write_json

WORST = 12
BINS = 50

Batch = tuple[Floats, Rows, Rows]
"""Logits, row numbers and groups of some pairs."""
Stream = Callable[[Scorer, Rows | None], Iterator[Batch]]
"""Scores the pairs of the given rows (sorted; None: all pairs)."""


class TopK:
    """The best ``k`` of a stream of scored rows; equal scores: the smaller row first.

    The result is what sorting everything would give, whatever the order and size of the updates, in memory of
    O(k + batch).

    Args:
        k: how many are kept.
        slack: keeps also every row whose score is at most this much below the ``k``-th. If they are more than again
            ``k`` and a batch, ``crowded`` is set and nothing is kept.
    """

    def __init__(self, k: int, slack: float = 0) -> None:
        self.k, self.slack, self.crowded = k, slack, False
        self._pending: list[tuple[Floats, Rows]] = []
        self._count, self._limit = 0, 2 * k
        self._threshold = -np.inf

    def update(self, scores_B: Floats, rows_B: Rows) -> None:
        """Take in more rows with their scores."""
        good = scores_B >= self._threshold
        self._pending.append((scores_B[good], rows_B[good]))
        self._count += int(good.sum())
        if self._count >= self._limit:
            self._cut()

    def result(self) -> tuple[Floats, Rows]:
        """Return scores and rows of the best ``k`` (or all, if there were fewer), best first."""
        self._cut()
        return self._pending[0]

    def _cut(self) -> None:
        scores = np.concatenate([np.empty(0, np.float32), *(scores for scores, _ in self._pending)])
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in self._pending)])
        order = best_first(scores, rows)
        if len(order) >= self.k:
            self._threshold = float(scores[order[self.k - 1]]) - self.slack
            order = order[scores[order] >= self._threshold] if self.slack else order[: self.k]
        if len(order) > 2 * self.k + BATCH:
            self.crowded, self._threshold, order = True, np.inf, order[:0]
        self._pending, self._count = [(scores[order], rows[order])], len(order)
        self._limit = 2 * max(self.k, self._count)


def best_first(scores_B: Floats, rows_B: Rows) -> NDArray[np.intp]:
    """Return the order of falling scores; equal scores: the smaller row first."""
    return np.lexsort((rows_B, -scores_B))


class Tally:
    """What is kept of all scores: the best K, the worst few, the scores of K rows drawn at random, a histogram.

    Args:
        budgets: how many to keep of each group of pairs; K is their sum.
        drawn_K: the rows drawn at random, sorted.
        total: number of pairs.
        slack: of the best and the worst, as :class:`TopK`.
    """

    def __init__(self, budgets: dict[int, int], drawn_K: Rows, total: int, slack: float = 0) -> None:
        self.best = {group: TopK(k, slack) for group, k in budgets.items()}
        self.worst = TopK(min(WORST, total), slack)
        self.drawn_K, self.drawn_scores_K = drawn_K, np.empty(len(drawn_K), np.float32)
        self.counts = np.zeros(BINS, np.int64)
        self.edges = np.linspace(0, 1, BINS + 1)

    def update(self, scores_B: Floats, rows_B: Rows, groups_B: Rows) -> None:
        """Take in more rows with their scores (logits) and groups, in any order."""
        for group in np.unique(groups_B):
            self.best[int(group)].update(scores_B[groups_B == group], rows_B[groups_B == group])
        self.worst.update(-scores_B, rows_B)
        self.counts += np.histogram(omega(scores_B).astype(np.float64), bins=self.edges)[0]
        place = np.searchsorted(self.drawn_K, rows_B).clip(max=len(self.drawn_K) - 1)
        hit = self.drawn_K[place] == rows_B
        self.drawn_scores_K[place[hit]] = scores_B[hit]

    def kept(self) -> tuple[Floats, Rows] | None:
        """Return the scores of all rows that are kept for any reason, and the rows, sorted; None: too many."""
        negated, worst = self.worst.result()
        parts = [best.result() for best in self.best.values()]
        if any(top.crowded for top in (self.worst, *self.best.values())):
            return None
        scores, rows = zip(*parts, (-negated, worst), (self.drawn_scores_K, self.drawn_K), strict=True)
        rows_R, first_R = np.unique(np.concatenate(rows), return_index=True)
        return np.concatenate(scores)[first_R], rows_R

    def write(self, pairs_path: AnyPath, out: AnyPath) -> None:
        """Write the files of ``select/``, the summary last."""
        results = [best.result() for best in self.best.values()]
        scores_K, rows_K = (np.concatenate(part) for part in zip(*results, strict=True))
        order = best_first(scores_K, rows_K)
        scores_K, rows_K = scores_K[order], rows_K[order]
        write_table(out / "selected.parquet", _scored(pairs_path, rows_K, scores_K))
        # In the candidates' order: the random arm must owe nothing to the Selector, not even the order of its pairs.
        write_table(out / "random.parquet", _scored(pairs_path, self.drawn_K, self.drawn_scores_K))
        negated, rows = self.worst.result()
        write_table(out / "worst.parquet", _scored(pairs_path, rows, -negated))
        bins = {"left": self.edges[:-1], "right": self.edges[1:], "count": self.counts}
        write_table(out / "histogram.parquet", pa.table(bins))
        summary = {"candidates": int(self.counts.sum()), "budget": len(rows_K), "threshold": float(omega(scores_K)[-1])}
        write_json(out / "summary.json", summary)


def tally_pairs(
    stream: Stream, exact: Scorer, screen: Screen | None, budgets: dict[int, int], drawn_K: Rows, total: int
) -> Tally:
    """Tally all pairs; with a screen, score in float32 only what it leaves. All but the histogram is the same.

    If no logit of the screen is wrong by more than its margin, the K-th best is at most one margin below the screen's
    K-th, and no pair is more than one margin above what the screen says. So a pair that the screen puts more than two
    margins below its K-th is out. What is scored again, the drawn rows among it, shows whether the margin holds: if it
    does not, or if too many pairs are left, all are scored in float32.

    Args:
        stream: scores pairs, a batch at a time.
        exact: scorer in float32.
        screen: quicker scorer, or None.
        budgets: as :class:`Tally`.
        drawn_K: as :class:`Tally`.
        total: as :class:`Tally`.
    """
    if screen is not None:
        rough = _tallied(stream(screen.scorer, None), Tally(budgets, drawn_K, total, 2 * screen.margin))
        if (kept := rough.kept()) is not None:
            tally = Tally(budgets, drawn_K, total)
            if _rescore(stream(exact, kept[1]), tally, *kept) <= screen.margin:
                tally.counts = rough.counts
                return tally
    return _tallied(stream(exact, None), Tally(budgets, drawn_K, total))


def _tallied(batches: Iterator[Batch], tally: Tally) -> Tally:
    for batch in batches:
        tally.update(*batch)
    return tally


def _rescore(batches: Iterator[Batch], tally: Tally, rough_R: Floats, rows_R: Rows) -> float:
    """Tally the scores; return by how much they differ from the rough ones at most."""
    errors = []
    for scores_B, rows_B, groups_B in batches:
        tally.update(scores_B, rows_B, groups_B)
        errors.append(np.abs(scores_B - rough_R[np.searchsorted(rows_R, rows_B)]).max(initial=0))
    return float(np.max(errors))


def _scored(path: AnyPath, rows_K: Rows, logits_K: Floats) -> pa.Table:
    """Read the given rows of the pairs, in that order, and add their omega."""
    return read_pairs(path, rows_K).append_column("score", pa.array(omega(logits_K), pa.float32()))
