"""Cutting validation and test parts off a data set, and the guard that keeps test clips out of training. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

import numpy as np

from l2a_ray.errors import DatasetError, LeakError

_NAMED = 3  # shared sources that a note names


def draw_groups(
    classes: Sequence[str],
    groups: Sequence[str],
    fraction: float,
    rng: np.random.Generator,
    barred: Collection[str] = frozenset(),
    keep_small: bool = False,
) -> set[str]:
    """Draw groups of clips until they hold about ``fraction`` of every class's clips.

    Groups are drawn whole, so that the part drawn and the rest never share a source video; a group may span classes
    (a film does). In every class at least one clip is drawn and at least one is left; a class too small for that is an
    error, or stays whole.

    Args:
        classes: class name of each clip.
        groups: source video of each clip.
        fraction: share of each class to draw, in (0, 1).
        rng: decides which groups; the order of the clips does not matter.
        barred: groups that must not be drawn.
        keep_small: whether a class that is too small to be cut stays whole.

    Raises:
        DatasetError: a class is too small to be cut, and must not stay whole.
    """
    sizes: defaultdict[str, Counter[str]] = defaultdict(Counter)  # group -> class -> clips
    for name, group in zip(classes, groups, strict=True):
        sizes[group][name] += 1
    totals, have = Counter(classes), Counter[str]()
    wanted = {name: min(max(1, round(fraction * total)), total - 1) for name, total in totals.items()}
    spare = {name: total - 1 for name, total in totals.items()}
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for group in sorted(sizes):
        for name in sizes[group]:
            by_class[name].append(group)

    def fits(group: str, limits: dict[str, int]) -> bool:
        return all(have[name] + clips <= limits[name] for name, clips in sizes[group].items())

    def take(group: str) -> None:
        drawn.add(group)
        have.update(sizes[group])

    drawn: set[str] = set()
    for name in sorted(totals):
        left = [group for group in by_class[name] if group not in barred and group not in drawn]
        left = [left[i] for i in rng.permutation(len(left))]
        for group in left:
            if fits(group, wanted):
                take(group)
        short = wanted[name] - have[name]
        left = [group for group in left if group not in drawn and fits(group, spare)]
        smallest = min(left, key=lambda group: sizes[group][name], default=None)
        if smallest is not None and (not have[name] or sizes[smallest][name] < 2 * short):  # nearer than falling short
            take(smallest)
        if not have[name] and not keep_small:
            raise DatasetError(_too_small(name, totals[name], fraction))
    return drawn


def _too_small(name: str, clips: int, fraction: float) -> str:
    return (
        f"class {name!r} is too small to be cut: its {clips} clips come from too few source videos for a part of "
        f"{fraction:.0%} beside the rest. Add videos, or leave the class out by a labels file"
    )


def shared_sources(clips: Iterable[tuple[str, str, str]]) -> list[str]:
    """Say which source videos two parts share, in a few sentences; for published parts, as those we draw share none.

    Args:
        clips: part, class name and source video of each clip.
    """
    classes_of: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for part, name, group in clips:
        classes_of[part][group].add(name)
    notes = []
    for one, other in combinations(sorted(classes_of), 2):
        same, across = [], []
        for group in sorted(classes_of[one].keys() & classes_of[other].keys()):
            both = sorted(classes_of[one][group] & classes_of[other][group])
            if both:
                same.append(f"{group!r} ({', '.join(both)})")
            else:
                across.append(group)
        if len(same) > _NAMED:
            start = f"the published {one} and {other} parts share {len(same)} sources within a class"
            notes.append(f"{start}, such as {', '.join(same[:_NAMED])}")
        else:
            notes += [f"the published {one} and {other} parts share the source {group}" for group in same]
        if across:
            start = f"the published {one} and {other} parts share {len(across)} sources under different classes"
            notes.append(f"{start}, such as {', '.join(across[:_NAMED])}")
    return notes


def refuse_test_clips(ids: Iterable[str], test_ids: Collection[str], where: str) -> None:
    """Guard every place that must never see a test clip.

    Args:
        ids: clips about to be used.
        test_ids: clips of the test part.
        where: the use, for the message ("D_val", "the foregrounds of the pairs").

    Raises:
        LeakError: a test clip is among them.
    """
    leaked = sorted(set(ids).intersection(test_ids))
    if leaked:
        raise LeakError(
            f"{len(leaked)} test clips in {where}, for example {leaked[0]}: test clips are for the final evaluation "
            "alone. Make the stage's input again from the clip store's train and val parts"
        )
