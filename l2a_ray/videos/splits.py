"""Cutting validation and test parts off a data set, and what the clips of each part may be used for. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, LeakError
from l2a_ray.videos.layouts import Part

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["train", "pair", "validate", "test", "unlabelled"]
ROLES: Mapping[Part, frozenset[Role]] = {
    "train": frozenset({"train", "pair"}),
    # Trained on only where `classifier.train_on` gives D_val back to the final training.
    "val": frozenset({"validate", "train"}),
    "test": frozenset({"test"}),
    # Learned by methods that learn from clips without labels, and by nothing that looks at a label.
    "unlabelled": frozenset({"unlabelled"}),
    # Of those, the clips that bear a classifier's guess as their label; no data set has them.
    "pseudo": frozenset({"train", "pair"}),
}
"""What the clips of each part may be used for."""
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


def may(parts: "pd.Series[str]", role: Role) -> NDArray[np.bool_]:
    """Return, for each clip's part, whether its clips have a role."""
    return np.isin(parts, [part for part, roles in ROLES.items() if role in roles])


def refuse_others(ids: Iterable[str], index: "pd.DataFrame", role: Role, where: str) -> None:
    """Guard every place that must see clips of one role alone: so test clips stay unseen until the end.

    Args:
        ids: clips about to be used.
        index: rows of ``ClipStore.index``; columns id and split are read.
        role: what they are about to be used for.
        where: the use, for the message ("D_val", "the foregrounds of the pairs").

    Raises:
        LeakError: a clip is not in the index, or in a part without that role.
    """
    fit, wanted = may(index["split"], role), set(ids)
    # A clip that is also in another part, listed twice, is refused too.
    unfit = sorted(wanted.difference(index.loc[fit, "id"]) | wanted.intersection(index.loc[~fit, "id"]))
    if not unfit:
        return
    of = index.loc[(index["id"] == unfit[0]) & ~fit, "split"]
    article = "an" if len(of) and of.iloc[0] == "unlabelled" else "a"
    part = f"{article} {of.iloc[0]} clip" if len(of) else "no clip of this store"
    allowed = " and ".join(part for part, roles in ROLES.items() if role in roles)
    raise LeakError(
        f"{len(unfit)} clips in {where}, for example {unfit[0]} ({part}), are not for the role {role!r}: only "
        f"{allowed} clips are. Make the stage's input again from this clip store"
    )
