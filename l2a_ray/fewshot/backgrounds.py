"""Which base clips' scenes the novel clips are set before: drawn, or the ones that a Selector scores highest. No Ray.

Every novel clip gets its best ``depth`` backgrounds beforehand, whatever episodes it will be a support of: so there are
clips times depth composites and not episodes times k. What an episode takes of them says :mod:`.supports`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, LeakError
from l2a_ray.fewshot.splits import ClassSplit
from l2a_ray.pairs.match import Actors, has_actor, has_scene
from l2a_ray.pairs.names import embed_names
from l2a_ray.pairs.settings import MatchSettings
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.describe import describe_for
from l2a_ray.selector.file import Selector
from l2a_ray.selector.scoring import omega, pair_scorer

Scores = Callable[[str, Sequence[str]], NDArray[np.floating[Any]]]
"""Takes a novel clip and candidates for its background, returns a score of each."""
COLUMNS = ("foreground", "background", "rank", "score")


def choose_backgrounds(
    index: pd.DataFrame,
    split: ClassSplit,
    settings: MatchSettings,
    actors: Actors,
    neighbours: int,
    depth: int,
    score: Scores,
) -> pd.DataFrame:
    """Choose the ``depth`` highest scored backgrounds of every novel clip that shows an actor.

    Args:
        index: rows of ``ClipStore.index``.
        split: the classes.
        settings: limits, and how names are compared; all base classes are near where its kind is random.
        actors: whose pixels will be pasted.
        neighbours: base classes whose scenes are candidates for those of a novel class.
        depth: backgrounds of a clip.
        score: of pairs.

    Returns:
        Columns foreground, background, rank (from 0, the best) and score; by foreground and rank.

    Raises:
        DatasetError: no base clip can serve as background.
    """
    novel = index[index["class_name"].isin(split.novel) & has_actor(index, settings, actors)]
    scenes = index[index["class_name"].isin(split.base) & has_scene(index, settings)]
    near = nearest_base(split, settings, neighbours, sorted(set(scenes["class_name"])))
    rows: list[tuple[str, str, int, float]] = []
    for clip in novel.sort_values("id").itertuples():
        there = scenes["id"][scenes["class_name"].isin(near[str(clip.class_name)])].sort_values().tolist()
        scores = score(str(clip.id), there)
        best = np.argsort(-scores, kind="stable")[:depth]
        rows += [(str(clip.id), there[place], rank, float(scores[place])) for rank, place in enumerate(best)]
    pairs = pd.DataFrame(rows, columns=list(COLUMNS))
    refuse_pairs(pairs, index, split)
    return pairs


def nearest_base(
    split: ClassSplit, settings: MatchSettings, neighbours: int, usable: Sequence[str]
) -> dict[str, list[str]]:
    """Return the base classes nearest to each novel one by name, of those that are usable."""
    if not usable:
        raise DatasetError("no clip of a base class can serve as background. Change match.max_foreground or the masks")
    if settings.kind == "random":
        return {name: list(usable) for name in split.novel}
    vectors = embed_names([*usable, *split.novel], settings.embedding)
    # Rounded, so that equal names tie on every machine whatever the order of its sums.
    similarity = np.round(vectors[len(usable) :] @ vectors[: len(usable)].T, 6)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    return {name: [usable[place] for place in row] for name, row in zip(split.novel, nearest, strict=True)}


def refuse_pairs(pairs: pd.DataFrame, index: pd.DataFrame, split: ClassSplit) -> None:
    """Refuse a background that is no base clip: a query, or any other novel clip, would be seen before its time.

    Raises:
        LeakError: so it is, or a foreground is no novel clip.
    """
    of = index.set_index("id")["class_name"]
    for column, classes, part in (("background", split.base, "base"), ("foreground", split.novel, "novel")):
        _refuse(pairs[column], set(of.index[of.isin(classes)]), part, f"the {column}s of few-shot pairs")


def _refuse(ids: Iterable[str], allowed: set[str], part: str, where: str) -> None:
    wrong = sorted(set(ids) - allowed)
    if wrong:
        reason = f"{len(wrong)} clips in {where}, for example {wrong[0]}, are of no {part} class"
        raise LeakError(f"{reason}: queries and other novel clips may not be seen. Make the pairs again")


def random_scores(seed: int) -> Scores:
    """Return what scores pairs by chance, of each foreground anew."""

    def score(foreground: str, backgrounds: Sequence[str]) -> NDArray[np.floating[Any]]:
        return np.random.default_rng(list(f"{seed} {foreground}".encode())).random(len(backgrounds))

    return score


def selector_scores(selector: Selector, store: ClipStore, split: ClassSplit) -> Scores:
    """Return what scores pairs by a Selector, frozen: omega in [0, 1].

    Agreement, where the Selector sees it, is 0 for a novel clip: how near it lies to its class could be known of the
    class's other clips alone, and queries are among these.
    """
    index = store.columns("id", "class_name", "label")
    vectors = [
        describe_for(selector, store, index[index["class_name"].isin(part)]) for part in (split.base, split.novel)
    ]
    if selector.agreement:
        vectors[1].features_NF[:, -1] = 0
    order = np.argsort(np.concatenate([part.ids_N for part in vectors]))
    ids, features, labels = (
        np.concatenate([getattr(part, name) for part in vectors])[order]
        for name in ("ids_N", "features_NF", "labels_NL")
    )
    clips = ClipVectors(ids, features, labels)
    scorer = pair_scorer(selector.network, clips)

    def score(foreground: str, backgrounds: Sequence[str]) -> NDArray[np.floating[Any]]:
        rows = clips.rows(list(backgrounds))
        return omega(scorer(np.repeat(clips.rows([foreground]), len(rows)), rows))

    return score
