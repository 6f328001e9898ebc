"""Drawing candidate pairs at random: the arm that owes nothing to a Selector, and what else is drawn."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from l2a_ray.errors import DatasetError, StageError
from l2a_ray.pairs.groups import Groups, split, take_capped
from l2a_ray.pairs.settings import BudgetSettings
from l2a_ray.pairs.table import ENDS, LABEL, count_pairs, open_pairs, read_pairs, spans, write_table
from l2a_ray.pairs.truth import read_truth, sound_clips
from l2a_ray.pairs.vectors import Rows
from l2a_ray.storage.files import AnyPath, read_group


def budgets_of(sizes: Mapping[int, int], settings: BudgetSettings) -> dict[int, int]:
    """Return how many pairs of each group are kept, max(1, round(budget * pairs)), given how many it has."""
    return {group: max(1, round(settings.budget * size)) for group, size in sizes.items()}


def draw_rows(path: AnyPath, settings: BudgetSettings, seed: int) -> Rows:
    """Draw as many rows as the budget and the cap keep, evenly in each of the groups; sorted.

    Raises:
        StageError: there is no candidate pair.
    """
    rng, groups = np.random.default_rng(seed), Groups.of(path, settings.within)
    sizes = groups.sizes(path)
    budgets = budgets_of(sizes, settings)
    if settings.most_per_clip is not None:
        order = rng.permutation(sum(sizes.values()))
        numbers = groups.all_numbers(path)[order]
        return np.sort(take_capped(path, order, numbers, budgets, settings.most_per_clip))
    drawn = {group: np.sort(rng.choice(sizes[group], budget, replace=False)) for group, budget in budgets.items()}
    return groups.rows(path, drawn)


def draw_pairs(path: AnyPath, settings: BudgetSettings, seed: int, out: AnyPath) -> None:
    """Write ``random.parquet``: as many pairs as the budget keeps, drawn evenly, in the candidates' order.

    Not in any Selector's order: the random arm must owe nothing to one.

    Args:
        path: the candidate pairs.
        settings: how many, and of what.
        seed: of the draw.
        out: folder to write to.

    Raises:
        StageError: there is no candidate pair.
    """
    write_table(out / "random.parquet", read_pairs(path, draw_rows(path, settings, seed)))


def draw_sound_pairs(
    path: AnyPath, index: pd.DataFrame, root: str, settings: BudgetSettings, seed: int, out: AnyPath
) -> None:
    """Write ``random.parquet`` as :func:`draw_pairs` does, of pairs of two sound clips alone.

    Sound is a clip that shows what its label says, actor and all. A group with fewer such pairs than its
    budget gives all of them.

    Args:
        path: the candidate pairs.
        index: rows of ``ClipStore.index``.
        root: folder of the data set, whose ``truth.parquet`` says what its videos show.
        settings: how many, and of what.
        seed: of the draw.
        out: folder to write to.

    Raises:
        DatasetError: nobody knows what the videos show.
        StageError: there is no candidate pair, or none of sound clips.
    """
    truth = read_truth(root)
    if truth is None:
        advice = "Choose another source of pairs, or data that `l2a generate` made"
        raise DatasetError(f"{root}: holds no truth.parquet, which says which videos are bad. {advice}")
    groups = Groups.of(path, settings.within)
    rows, numbers = _sound_rows(path, sound_clips(truth, index), groups)
    budgets = budgets_of(groups.sizes(path), settings)
    rng, drawn = np.random.default_rng(seed), [np.empty(0, np.int64)]
    if settings.most_per_clip is not None:
        order = rng.permutation(len(rows))
        drawn.append(take_capped(path, rows[order], numbers[order], budgets, settings.most_per_clip))
    else:
        for group, places in split(numbers):
            drawn.append(rng.choice(rows[places], min(budgets[group], len(places)), replace=False))
    chosen = np.sort(np.concatenate(drawn))
    if not len(chosen):
        raise StageError(f"{path}: there is no candidate pair of two sound clips")
    write_table(out / "random.parquet", read_pairs(path, chosen))


def _sound_rows(path: AnyPath, sound: Collection[str], groups: Groups) -> tuple[Rows, Rows]:
    """Return the row numbers of pairs of sound clips, and the numbers of their groups."""
    known, pairs = pa.array(sorted(sound), pa.string()), open_pairs(path)
    rows, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for group, (start, _) in enumerate(spans(path)):
        table = read_group(pairs, group, [*ENDS, LABEL])
        good = pc.and_(*(pc.is_in(table[end], value_set=known) for end in ENDS)).to_numpy()
        rows.append(start + np.flatnonzero(good))
        numbers.append(groups.numbers(table)[good])
    return np.concatenate(rows), np.concatenate(numbers)


def draw_candidates(path: AnyPath, most: int, seed: int) -> pa.Table:
    """Read at most ``most`` candidate pairs, drawn evenly without replacement: foreground and background, in order.

    Raises:
        StageError: there is no candidate pair.
    """
    total = count_pairs(path)
    rows = None if total <= most else np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    return read_pairs(path, rows, ENDS)


def draw_warm_pairs(path: AnyPath, most: int, seed: int, out: AnyPath) -> None:
    """Write at most ``most`` candidate pairs to the file ``out``: those that a Selector's warm start is trained with.

    Raises:
        StageError: there is no candidate pair.
    """
    write_table(out, draw_candidates(path, most, seed))
