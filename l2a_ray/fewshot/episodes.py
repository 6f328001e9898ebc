"""Episodes: a few support clips and some query clips of a few classes. Pure; imports no Ray.

Axes: E episodes, W ways (classes of an episode), S shots (supports of a class), Q queries of a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, StageError
from l2a_ray.storage.files import AnyPath, read_table, write_bytes

Rows = NDArray[np.int64]
TRIES = 100
"""Draws of a class whose clips come from so few sources that a source-disjoint draw may fail."""


@dataclass(frozen=True)
class Clips:
    """The clips that episodes are drawn of.

    Args:
        ids: of each clip, sorted.
        classes: class name of each.
        groups: source video of each.
        of_class: rows of the clips of each class, in order.
    """

    ids: NDArray[np.str_]
    classes: NDArray[np.str_]
    groups: NDArray[np.str_]
    of_class: Mapping[str, Rows] = field(init=False)

    def __post_init__(self) -> None:
        rows = {str(name): np.flatnonzero(self.classes == name) for name in np.unique(self.classes)}
        object.__setattr__(self, "of_class", rows)


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes by rows of :class:`Clips`.

    Args:
        classes_EW: names of their classes.
        supports_EWS: rows of the supports.
        queries_EWQ: rows of the queries.
    """

    classes_EW: NDArray[np.str_]
    supports_EWS: Rows
    queries_EWQ: Rows

    def __len__(self) -> int:
        return len(self.classes_EW)


def draw_episodes(
    clips: Clips,
    classes: Sequence[str],
    *,
    numbers: range,
    way: int,
    shot: int,
    queries: int,
    seed: int,
    split: str,
    source_disjoint: bool = False,
) -> Episodes:
    """Draw the episodes of some numbers; each is a function of (seed, split, shot, number) and of the clips alone.

    Args:
        clips: what they are drawn of.
        classes: which classes.
        numbers: which episodes.
        way: classes of an episode.
        shot: supports of a class.
        queries: queries of a class.
        seed: of the draws.
        split: name of the split and role, so that those of others differ.
        source_disjoint: no query shares its source video with any support of the episode.

    Raises:
        DatasetError: there are fewer classes than ways, or a class has too few clips or sources.
    """
    if len(classes) < way:
        advice = "Lower fewshot.episodes.way, or choose a split with more"
        raise DatasetError(
            f"{split}: an episode of {way} ways needs as many classes, and there are {len(classes)}. {advice}"
        )
    ordered = np.array(sorted(classes))
    for name in ordered.tolist():
        there = len(clips.of_class.get(name, ()))
        if there < shot + queries:
            reason = f"class {name!r} has {there} clips, and {shot} shots and {queries} queries need {shot + queries}"
            raise DatasetError(f"{reason}. Add clips, lower fewshot.shots, or leave the class out (data.labels)")
    names = np.empty((len(numbers), way), ordered.dtype)
    supports = np.empty((len(numbers), way, shot), np.int64)
    asked = np.empty((len(numbers), way, queries), np.int64)
    for place, number in enumerate(numbers):
        rng = np.random.default_rng(list(f"{seed} {split} {shot} {number}".encode()))
        names[place] = ordered[rng.permutation(len(ordered))[:way]]
        own = [clips.of_class[str(name)] for name in names[place]]
        if source_disjoint:
            drawn = _draw_disjoint(own, clips, shot, queries, rng, split)
        else:
            drawn = [rng.permutation(rows)[: shot + queries] for rows in own]
        for way_number, rows in enumerate(drawn):
            asked[place, way_number], supports[place, way_number] = rows[:queries], rows[queries:]
    return Episodes(names, supports, asked)


def _draw_disjoint(
    own: Sequence[Rows], clips: Clips, shot: int, queries: int, rng: np.random.Generator, split: str
) -> list[Rows]:
    """Draw queries, then supports of other source videos than all queries of the episode; queries come first."""
    for _ in range(TRIES):
        orders = [rng.permutation(rows) for rows in own]
        asked = {clips.groups[row] for order in orders for row in order[:queries]}
        left = [[row for row in order[queries:] if clips.groups[row] not in asked][:shot] for order in orders]
        if all(len(rows) == shot for rows in left):
            return [np.array([*order[:queries], *rows]) for order, rows in zip(orders, left, strict=True)]
    advice = "Lower fewshot.shots, or turn fewshot.episodes.source_disjoint off"
    raise DatasetError(f"{split}: too few source videos to keep {shot} supports apart from the queries. {advice}")


def write_episodes(path: AnyPath, of_shots: Mapping[int, Episodes], clips: Clips) -> None:
    """Write episodes as :func:`read_episodes` reads them: shot, episode, class_name, supports, queries (clip ids)."""
    tables = []
    for shot, episodes in of_shots.items():
        count, way = episodes.classes_EW.shape
        tables.append(
            pd.DataFrame(
                {
                    "shot": shot,
                    "episode": np.repeat(np.arange(count), way),
                    "class_name": episodes.classes_EW.reshape(-1),
                    "supports": clips.ids[episodes.supports_EWS.reshape(count * way, -1)].tolist(),
                    "queries": clips.ids[episodes.queries_EWQ.reshape(count * way, -1)].tolist(),
                }
            )
        )
    write_bytes(path, pd.concat(tables).to_parquet(index=False))


def read_episodes(path: AnyPath, shot: int, clips: Clips, classes: Sequence[str]) -> Episodes:
    """Read the episodes of a shot.

    Args:
        path: their file.
        shot: which.
        clips: that they are of.
        classes: the classes that they may be of.

    Raises:
        StageError: the file cannot be read, has no such episodes, or is of other clips or classes.
    """
    advice = "Give an episodes.parquet that `l2a fewshot` wrote for this data set and split, or none"
    try:
        table = read_table(path, ["shot", "episode", "class_name", "supports", "queries"])
        table = table[table["shot"] == shot]
        way = int(table["episode"].value_counts().iloc[0])
        names = table["class_name"].to_numpy(np.str_).reshape(-1, way)
        supports, queries = (np.array(table[column].tolist(), np.str_) for column in ("supports", "queries"))
    except (OSError, ValueError, IndexError) as error:
        raise StageError(f"{path}: no list of episodes of {shot} shots can be read ({error}). {advice}") from error
    if unknown := sorted(set(names.reshape(-1).tolist()) - set(classes)):
        raise StageError(f"{path}: its episodes are of {unknown[0]!r}, which is no novel class here. {advice}")
    found = []
    for wanted in (supports, queries):
        rows = np.searchsorted(clips.ids, wanted).clip(max=len(clips.ids) - 1)
        wrong = (clips.ids[rows] != wanted) | (clips.classes[rows] != names.reshape(-1, 1))
        if wrong.any():
            raise StageError(f"{path}: its episodes are of other clips: {wanted[wrong][0]} is not there. {advice}")
        found.append(rows.reshape(len(names), way, -1))
    made = Episodes(names, *found)
    both = np.concatenate(found, axis=2).reshape(len(names), -1)
    if (np.diff(np.sort(both, axis=1), axis=1) == 0).any():
        raise StageError(f"{path}: an episode holds a clip twice, as support and query perhaps. {advice}")
    return made


def half_width(accuracy_E: NDArray[np.floating[Any]]) -> float | None:
    """Return the half-width of the 95 % interval of the mean over episodes, 1.96 sd / sqrt(E); None for one episode."""
    if len(accuracy_E) < 2:
        return None
    return float(1.96 * accuracy_E.std(ddof=1) / np.sqrt(len(accuracy_E)))
