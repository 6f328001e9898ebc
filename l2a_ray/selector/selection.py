"""Scoring every candidate pair on Ray and keeping the best. Axes: B pairs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from l2a_ray.pairs.draw import draw_rows, group_budgets
from l2a_ray.pairs.settings import SelectSettings
from l2a_ray.pairs.table import ENDS, LABEL, check_clips, clip_rows, open_pairs, spans
from l2a_ray.pairs.vectors import ClipVectors, Floats, Rows
from l2a_ray.runtime.progress import Bar
from l2a_ray.selector.scoring import Scorer
from l2a_ray.selector.tally import Tally
from l2a_ray.storage.files import AnyPath


def select_pairs(
    pairs_path: AnyPath,
    clips: ClipVectors,
    scorer: Scorer,
    settings: SelectSettings,
    seed: int,
    out: AnyPath,
) -> None:
    """Score all candidate pairs and keep the best K (paper, 4.1, end).

    Writes ``selected.parquet`` (the K best, best first), ``sample.parquet`` (an even sample: the rows that
    :func:`l2a_ray.pairs.draw.draw_pairs` draws with the same seed), ``worst.parquet``, all three with ``score``;
    ``histogram.parquet`` of all scores and ``summary.json``. Pairs stream through Ray Data a row group at a time; 20
    bytes a pair come back. The result does not depend on the number of workers. Ray must be running.

    Args:
        pairs_path: ``match/pairs.parquet``, of which all columns but ``background_label`` are read.
        clips: the ids of all clips; pairs are scored by their rows.
        scorer: ``pair_scorer`` of a trained Selector and these clips, or another.
        settings: the budget; K = max(1, round(budget * candidates)), of all pairs or of each foreground class.
        seed: of the sample.
        out: folder to write to.

    Raises:
        StageError: there are no candidate pairs, or they name clips that ``clips`` does not hold.
        StorageError: ``out`` cannot be written.
    """
    tally = begin_tally(pairs_path, clips, settings, seed)
    with Bar(total=tally.total, desc="select", unit="pair") as bar:
        for scores, rows, labels in _stream(pairs_path, clips, scorer, settings.gpus):
            tally.update(scores, rows, labels if settings.per_class else np.zeros_like(rows))
            bar.update(len(rows))
    tally.write(pairs_path, out)


def begin_tally(pairs_path: AnyPath, clips: ClipVectors, settings: SelectSettings, seed: int) -> Tally:
    """Return a tally of all candidate pairs, none of which it has seen; arguments and errors as of `select_pairs`."""
    groups = group_budgets(pairs_path, settings)
    check_clips(pairs_path, clips)
    total = sum(size for size, _ in groups.values())
    budgets = {group: budget for group, (_, budget) in groups.items()}
    return Tally(budgets, min(settings.worst, total), draw_rows(pairs_path, settings, seed), total)


def _stream(
    pairs_path: AnyPath, clips: ClipVectors, scorer: Scorer, gpus: float
) -> Iterator[tuple[Floats, Rows, Rows]]:
    """Score the row groups in parallel; yields what :func:`score_group` returns, in any order."""
    import ray.data  # here, because the rest of this module serves machines without Ray

    from l2a_ray.runtime.session import quieten
    from l2a_ray.runtime.streams import reading

    quieten()
    # Ids alone: what the scorer knows of the clips besides, it brings itself. Shared arrays are stored once.
    shared = ray.put((scorer, clips.only_ids()))

    def work(batch: Any) -> Any:
        scorer, clips = ray.get(shared)
        group, start = int(batch["group"][0]), int(batch["start"][0])
        return dict(zip(("score", "row", "label"), score_group(pairs_path, group, start, clips, scorer), strict=True))

    items = [{"group": group, "start": start} for group, (start, _) in enumerate(spans(pairs_path))]
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        work, batch_size=1, num_gpus=gpus or None
    )
    with reading(scored.iter_batches(batch_size=None, batch_format="numpy")) as batches:
        for batch in batches:
            yield np.asarray(batch["score"]), np.asarray(batch["row"]), np.asarray(batch["label"])


def score_group(
    pairs_path: AnyPath, group: int, start: int, clips: ClipVectors, scorer: Scorer
) -> tuple[Floats, Rows, Rows]:
    """Score one row group, whose first row is ``start``; returns logits, row numbers and foreground labels (B,)."""
    pairs = open_pairs(pairs_path).read_row_group(group, columns=[*ENDS, LABEL])
    rows = np.arange(start, start + len(pairs))
    return scorer(*clip_rows(clips, pairs)), rows, pairs[LABEL].to_numpy().astype(np.int64)
