"""Scoring every candidate pair on Ray and keeping the best. Axes: K budget, R pairs scored again, B pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from l2a_ray.errors import SettingError, StageError
from l2a_ray.pairs.table import (
    ENDS,
    LABEL,
    check_clips,
    clip_rows,
    group_sizes,
    open_pairs,
    read_pairs,
    rows_of,
    spans,
)
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.runtime.progress import Bar
from l2a_ray.selector.scoring import PairScorer, Rows, Scorer, make_screen, worth_screening
from l2a_ray.selector.tally import Batch, tally_pairs
from l2a_ray.storage.files import AnyPath

SAMPLE = 1024
"""Pairs on which the error of the screen is measured."""


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """How many of the candidate pairs are kept."""

    budget: float = 0.12
    """Share of the candidate pairs that is kept, in (0, 1]. The paper's Table 1 keeps 12K of 99K matched pairs."""

    per_class: bool = False
    """Whether the budget is a share of each foreground class's pairs, so that the classes stay as even as they were.
    Ours; without it (paper, 4.1) easy classes can take all of a small budget."""

    def __post_init__(self) -> None:
        """Refuse shares that keep nothing or more than there is."""
        if not 0 < self.budget <= 1:
            raise SettingError("select.budget", self.budget, "must be above 0 and at most 1, a share of the pairs")


def select(
    pairs_path: AnyPath,
    clips: ClipVectors,
    scorer: Scorer,
    settings: SelectSettings,
    seed: int,
    out: AnyPath,
) -> None:
    """Score all candidate pairs, keep the best K (paper, 4.1, end) and K drawn at random, and write ``select/``.

    Pairs stream through Ray Data a row group at a time; 20 bytes a pair come back. The result does not depend on the
    number of workers. Ray must be running.

    Args:
        pairs_path: ``match/pairs.parquet``, of which all columns but ``background_label`` are read.
        clips: the ids of all clips; pairs are scored by their rows.
        scorer: of the trained Selector, ``pair_scorer``, or a ``RandomScorer``.
        settings: the budget; K = max(1, round(budget * candidates)), of all pairs or of each foreground class.
        seed: of the K rows drawn at random.
        out: folder for selected, random, worst and histogram.parquet and summary.json.

    Raises:
        StageError: there are no candidate pairs, or they name clips that ``clips`` does not hold.
        StorageError: ``out`` cannot be written.
    """
    total = open_pairs(pairs_path).metadata.num_rows
    if total == 0:
        raise StageError(f"{pairs_path}: holds no candidate pair, so none can be selected. Run `l2a match` again")
    check_clips(pairs_path, clips)
    sizes = group_sizes(pairs_path) if settings.per_class else {0: total}
    budgets = {group: max(1, round(settings.budget * size)) for group, size in sizes.items()}
    rng = np.random.default_rng(seed)
    drawn = {group: np.sort(rng.choice(sizes[group], k, replace=False)) for group, k in budgets.items()}
    drawn_K = rows_of(pairs_path, drawn) if settings.per_class else drawn[0]
    screen = None
    if isinstance(scorer, PairScorer) and worth_screening(len(drawn_K), total):
        sample = read_pairs(pairs_path, np.linspace(0, total - 1, SAMPLE, dtype=np.int64))
        screen = make_screen(scorer, *clip_rows(clips, sample))

    def stream(scorer: Scorer, rows_R: Rows | None) -> Iterator[Batch]:
        with Bar(total=total if rows_R is None else len(rows_R), desc="select", unit="pair") as bar:
            for scores_B, rows_B, labels_B in _stream(pairs_path, clips, scorer, rows_R):
                yield scores_B, rows_B, labels_B if settings.per_class else np.zeros_like(rows_B)
                bar.update(len(rows_B))

    tally_pairs(stream, scorer, screen, budgets, drawn_K, total).write(pairs_path, out)


def _stream(pairs_path: AnyPath, clips: ClipVectors, scorer: Scorer, rows_R: Rows | None) -> Iterator[Batch]:
    """Score the row groups in parallel; yields logits, row numbers and foreground labels, in the table's order."""
    import ray.data  # here, because the rest of this module serves machines without Ray

    from l2a_ray.runtime.session import quieten

    quieten()
    shared = ray.put((scorer, clips, rows_R))

    def work(batch: Any) -> Any:
        scorer, clips, rows_R = ray.get(shared)
        group, start, end = (int(batch[key][0]) for key in ("group", "start", "end"))
        rows_B = np.arange(start, end) if rows_R is None else rows_R[slice(*np.searchsorted(rows_R, [start, end]))]
        pairs = open_pairs(pairs_path).read_row_group(group, columns=[*ENDS, LABEL]).take(pa.array(rows_B - start))
        scores_B = scorer(*clip_rows(clips, pairs))
        return {"score": scores_B, "row": rows_B, "label": pairs[LABEL].to_numpy().astype(np.int64)}

    items = [{"group": group, "start": start, "end": end} for group, (start, end) in enumerate(spans(pairs_path))]
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(work, batch_size=1)
    # A screen's doubts are settled in one order, or the histogram might depend on the number of workers.
    scored.context.execution_options.preserve_order = True
    for batch in scored.iter_batches(batch_size=None, batch_format="numpy"):
        yield np.asarray(batch["score"]), np.asarray(batch["row"]), np.asarray(batch["label"])
