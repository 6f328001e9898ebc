"""Scoring every candidate pair on Ray and keeping the best. Axes: B pairs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from l2a_ray.pairs.draw import budgets_of, draw_rows
from l2a_ray.pairs.groups import Groups
from l2a_ray.pairs.settings import SelectSettings
from l2a_ray.pairs.table import ENDS, LABEL, check_clips, clip_rows, open_pairs, spans
from l2a_ray.pairs.vectors import ClipVectors, Floats, Rows
from l2a_ray.runtime.progress import Bar
from l2a_ray.selector.scoring import Scorer
from l2a_ray.selector.tally import Tally
from l2a_ray.storage.files import AnyPath, read_group


class Ranked(NamedTuple):
    """Pairs of a table, as they come back from being scored."""

    scores: Floats
    """Logits (B,)."""
    rows: Rows
    """Row numbers (B,)."""
    groups: Rows
    """Groups (B,)."""
    keys: Floats
    """What they are ranked by (B,)."""


def select_pairs(
    pairs_path: AnyPath,
    clips: ClipVectors,
    scorer: Scorer,
    settings: SelectSettings,
    seed: int,
    out: AnyPath,
    *,
    by_chance: bool = False,
) -> None:
    """Score all candidate pairs and keep the best K (paper, 4.1, end).

    Writes ``selected.parquet`` (the K best, best first), ``sample.parquet`` (an even sample: the rows that
    :func:`l2a_ray.pairs.draw.draw_pairs` draws with the same seed), ``worst.parquet``, all three with ``score``;
    ``histogram.parquet`` of all scores and ``summary.json``. Pairs stream through Ray Data a row group at a time; 24
    bytes a pair come back. The result does not depend on the number of workers. Ray must be running.

    Args:
        pairs_path: ``match/pairs.parquet``, of which all columns but ``background_label`` are read.
        clips: the ids of all clips; pairs are scored by their rows.
        scorer: ``pair_scorer`` of a trained Selector and these clips, or another.
        settings: the budget, K = max(1, round(budget * candidates)) of each group, and how they are kept.
        seed: of the sample and, with ``draw=omega``, of the draw.
        out: folder to write to.
        by_chance: whether those of the sample are kept in place of the best, as the scores mean nothing.

    Raises:
        StageError: there are no candidate pairs, or they name clips that ``clips`` does not hold.
        StorageError: ``out`` cannot be written.
    """
    tally = begin_tally(pairs_path, clips, settings, seed)
    with Bar(total=tally.total, desc="select", unit="pair") as bar:
        for scores, rows, groups, keys in _stream(pairs_path, clips, scorer, settings, seed):
            tally.update(scores, rows, groups, keys)
            bar.update(len(rows))
    tally.write(pairs_path, out, by_chance=by_chance)


def begin_tally(pairs_path: AnyPath, clips: ClipVectors, settings: SelectSettings, seed: int) -> Tally:
    """Return a tally of all candidate pairs, none of which it has seen; arguments and errors as of `select_pairs`."""
    sizes = Groups.of(pairs_path, settings.within).sizes(pairs_path)
    check_clips(pairs_path, clips)
    total, drawn = sum(sizes.values()), draw_rows(pairs_path, settings, seed)
    return Tally(budgets_of(sizes, settings), min(settings.worst, total), drawn, total, settings.most_per_clip)


def _stream(
    pairs_path: AnyPath, clips: ClipVectors, scorer: Scorer, settings: SelectSettings, seed: int
) -> Iterator[Ranked]:
    """Score the row groups in parallel, in any order."""
    import ray.data  # here, because the rest of this module serves machines without Ray

    from l2a_ray.runtime.session import quieten
    from l2a_ray.runtime.streams import reading

    quieten()
    # Ids alone: what the scorer knows of the clips besides, it brings itself. Shared arrays are stored once.
    shared = ray.put((scorer, clips.only_ids(), Groups.of(pairs_path, settings.within)))

    def work(batch: Any) -> Any:
        scorer, clips, groups = ray.get(shared)
        group, start = int(batch["group"][0]), int(batch["start"][0])
        rng = np.random.default_rng([seed, group]) if settings.draw == "omega" else None
        return score_group(pairs_path, group, start, clips, scorer, groups, rng)._asdict()

    items = [{"group": group, "start": start} for group, (start, _) in enumerate(spans(pairs_path))]
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        work, batch_size=1, num_gpus=settings.gpus or None
    )
    with reading(scored.iter_batches(batch_size=None, batch_format="numpy")) as batches:
        for batch in batches:
            yield Ranked(**{name: np.asarray(batch[name]) for name in Ranked._fields})


def score_group(
    pairs_path: AnyPath,
    group: int,
    start: int,
    clips: ClipVectors,
    scorer: Scorer,
    groups: Groups,
    rng: np.random.Generator | None = None,
) -> Ranked:
    """Score one row group, whose first row is ``start``, and rank its pairs: by score or, with ``rng``, by chance.

    Those of the K highest keys are then as if drawn one after another, each with a chance in proportion to omega:
    log omega and Gumbel noise (Kool et al., ICML 2019, https://arxiv.org/abs/1903.06059).
    """
    pairs = read_group(open_pairs(pairs_path), group, [*ENDS, LABEL])
    scores = scorer(*clip_rows(clips, pairs))
    keys = scores
    if rng is not None:
        keys = (rng.gumbel(size=len(scores)) - np.logaddexp(0, -scores.astype(np.float64))).astype(np.float32)
    return Ranked(scores, np.arange(start, start + len(pairs)), groups.numbers(pairs), keys)
