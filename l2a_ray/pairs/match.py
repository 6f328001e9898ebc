"""Which clips may be composited: class names -> nearest neighbours -> candidate pairs (paper, 3.2).

A foreground of class c1 is paired with backgrounds of one other class alone, so pairs grow linearly with classes.

Axes: L classes, D numbers of an embedding.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, owned_by
from l2a_ray.pairs.names import embed_names
from l2a_ray.pairs.settings import MatchSettings as MatchSettings
from l2a_ray.prepare.store import NO_BACKGROUND
from l2a_ray.storage.files import AnyPath, open_new, write_bytes
from l2a_ray.videos.splits import may, refuse_others

logger = logging.getLogger(__name__)
Actors = Literal["foreground", "people"]
PAIR_SCHEMA = pa.schema(
    [
        ("foreground", pa.string()),
        ("background", pa.string()),
        ("foreground_label", pa.int32()),
        ("background_label", pa.int32()),
    ]
)


def nearest_neighbours(
    embeddings_LD: NDArray[np.float32], usable: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find for each class the other class whose name is nearest by cosine; ties go to the lower label.

    Args:
        embeddings_LD: unit rows.
        usable: which classes may be a neighbour; all by default.

    Returns:
        Labels of the neighbours (L,), -1 where there is none, and their cosine similarity (L,).

    Raises:
        DatasetError: there are fewer than two classes.
    """
    if len(embeddings_LD) < 2:
        raise DatasetError("the data set has one class; matching needs two. Add a class, or set match.kind same_class")
    # Rounded, so that equal names tie on every machine whatever the order of its sums.
    similarity = np.round(embeddings_LD @ embeddings_LD.T, 6)
    np.fill_diagonal(similarity, -np.inf)
    if usable is not None:
        similarity[:, ~usable] = -np.inf
    nearest, best = similarity.argmax(axis=1), similarity.max(axis=1).astype(np.float32)
    return np.where(np.isfinite(best), nearest, -1), best


def has_actor(clips: pd.DataFrame, settings: MatchSettings, actors: Actors = "foreground") -> "pd.Series[bool]":
    """Return which rows of ``ClipStore.index`` show enough of an actor, in enough frames, to be pasted elsewhere."""
    large = clips[f"{actors}_ratio"] >= settings.min_foreground
    return large & (clips[f"{actors}_frames"] >= settings.min_actor_frames)


def has_scene(clips: pd.DataFrame, settings: MatchSettings) -> "pd.Series[bool]":
    """Return which rows of ``ClipStore.index`` show enough of a scene to paste another's actor on."""
    return (clips["remark"] != NO_BACKGROUND) & (clips["foreground_ratio"] <= settings.max_foreground)


class Pools:
    """Which training clips of each class can serve as foreground and as background, as positions in a table.

    Args:
        index: rows of ``ClipStore.index``; those of clips that may not be paired are left out.
        classes: class names, position = label.
        settings: kind and limits.
        actors: whose pixels will be pasted: ``foreground``, all objects', or ``people``'s.
    """

    def __init__(
        self, index: pd.DataFrame, classes: Sequence[str], settings: MatchSettings, actors: Actors = "foreground"
    ) -> None:
        self.table = index[may(index["split"], "pair")]
        self.classes, self.settings = classes, settings
        self.labels = self.table["label"].to_numpy(np.int32)
        labelled = (self.table["split"] == "train").to_numpy()
        self._may_give_actor = labelled | (settings.origins == "any")
        self._may_give_scene = labelled | (settings.origins != "labelled")
        self._actors = self._may_give_actor & has_actor(self.table, settings, actors).to_numpy()
        self._scenes = self._may_give_scene & has_scene(self.table, settings).to_numpy()

    def foregrounds(self, label: int) -> NDArray[np.int64]:
        """Return the clips of a class that show enough of an actor."""
        return np.flatnonzero((self.labels == label) & self._actors)

    def backgrounds(self, label: int) -> NDArray[np.int64]:
        """Return the clips of a class that show enough of a scene."""
        return np.flatnonzero((self.labels == label) & self._scenes)

    def other_backgrounds(self, label: int) -> NDArray[np.int64]:
        """Return the clips of all other classes that show enough of a scene."""
        return np.flatnonzero((self.labels != label) & self._scenes)

    def with_background(self) -> NDArray[np.bool_]:
        """Return for each class whether it has a background, (L,)."""
        return np.array([self.backgrounds(label).size > 0 for label in range(len(self.classes))])

    def left_out(self, paired: frozenset[int]) -> pd.DataFrame:
        """Return which classes serve in no pair, in which role and why: class_name, role, reason.

        Args:
            paired: labels of the classes that are the foreground of some pair.
        """
        rows = [row for label in range(len(self.classes)) for row in self._left_out(label, label in paired)]
        return pd.DataFrame(rows, columns=["class_name", "role", "reason"], dtype="str")

    def _left_out(self, label: int, paired: bool) -> Iterator[tuple[str, str, str]]:
        name = self.classes[label]
        if not self.foregrounds(label).size:
            limit = f"less than match.min_foreground={self.settings.min_foreground} of the pixels"
            frames = f"or less than match.min_actor_frames={self.settings.min_actor_frames} of the frames"
            yield name, "foreground", self._reason(label, self._may_give_actor, f"{limit}, {frames}")
        elif not paired:
            others = "its own class but itself" if self.settings.kind == "same_class" else "another class"
            yield name, "foreground", f"no clip of {others} can serve as background"
        if not self.backgrounds(label).size:
            limit = f"more than match.max_foreground={self.settings.max_foreground} of the pixels"
            yield name, "background", self._reason(label, self._may_give_scene, limit)

    def _reason(self, label: int, allowed: NDArray[np.bool_], limit: str) -> str:
        """Say why no clip of a class serves in a role, given which clips may and what their masks cover."""
        own = self.labels == label
        if not own.any():
            return "it has no training clip"
        if not (own & allowed).any():
            return f"its {own.sum()} training clips have pseudo-labels, and match.origins={self.settings.origins}"
        which = "training clips" if (own <= allowed).all() else "training clips with labels of their own"
        return f"the masks of all its {(own & allowed).sum()} {which} cover {limit}"


def candidate_pairs(pools: Pools, neighbours: NDArray[np.int64] | None, seed: int) -> Iterator[pa.Table]:
    """Pair the training clips, one table for each class that has pairs as the foreground, in order of its label.

    - semantic: every foreground of a class with every background of its neighbour.
    - random: every foreground with as many backgrounds as a class has on average, drawn evenly from all other classes.
    - same_class: every foreground with every other background of its own class.

    Args:
        pools: the clips.
        neighbours: label of each class's neighbour (L,), -1 for none; the semantic kind alone needs it.
        seed: of the random kind.

    Yields:
        Tables of ``PAIR_SCHEMA``, none of them empty; only one is held at a time.
    """
    ids, labels = pa.array(pools.table["id"], pa.string()), pools.labels
    for label in range(len(pools.classes)):
        first, second = _positions(pools, label, neighbours, seed)
        first, second = first[first != second], second[first != second]
        if first.size:
            columns = [ids.take(pa.array(first)), ids.take(pa.array(second)), labels[first], labels[second]]
            yield pa.table(columns, schema=PAIR_SCHEMA)


def _positions(
    pools: Pools, label: int, neighbours: NDArray[np.int64] | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the foregrounds and the backgrounds of a class's pairs, as positions."""
    foregrounds = pools.foregrounds(label)
    if pools.settings.kind != "random":
        scenes_of = label if neighbours is None else int(neighbours[label])
        backgrounds = pools.backgrounds(scenes_of) if scenes_of >= 0 else np.empty(0, np.int64)
        return np.repeat(foregrounds, len(backgrounds)), np.tile(backgrounds, len(foregrounds))
    others, rng = pools.other_backgrounds(label), np.random.default_rng([seed, label])
    count = -(-len(others) // max(1, len(pools.classes) - 1))
    draws = [rng.choice(others, count, replace=False, shuffle=False) for _ in foregrounds] if count else []
    return np.repeat(foregrounds, count), np.concatenate([*draws, np.empty(0, np.int64)])


def write_candidates(
    index: pd.DataFrame,
    classes: Sequence[str],
    settings: MatchSettings,
    seed: int,
    out: AnyPath,
    actors: Actors = "foreground",
) -> None:
    """Write ``pairs.parquet`` (all candidate pairs) and ``left_out.parquet`` (class_name, role, reason).

    A class none of whose clips can serve as foreground, or as background, is left out of pairs in that role.
    The semantic kind also writes ``neighbours.parquet``: class_name, neighbour, similarity and ``nearest``, the class
    whose name is nearest; the neighbour is another one where none of that class's clips can serve as background.

    Args:
        index: ``ClipStore.index``; the columns id, label, split, remark and those of the masks are read.
        classes: class names, position = label.
        settings: kind, embedding and limits.
        seed: of the random kind.
        out: folder to write into.
        actors: as of :class:`Pools`.

    Raises:
        DatasetError: there is not one pair, or the embedding does not know a class's name.
        LeakError: a clip of a pair is also in a part that may not be paired, as the test clips.
        StorageError: ``out`` cannot be written.
    """
    pools = Pools(index, classes, settings, actors)
    neighbours = _write_neighbours(pools, out) if settings.kind == "semantic" else None
    paired: set[int] = set()
    with open_new(out / "pairs.parquet") as file, pq.ParquetWriter(file, PAIR_SCHEMA) as writer:
        for pairs in candidate_pairs(pools, neighbours, seed):
            for column in ("foreground", "background"):
                refuse_others(pairs[column].unique().to_pylist(), index, "pair", f"the {column}s of candidate pairs")
            paired.add(pairs["foreground_label"][0].as_py())
            writer.write_table(pairs)
        left_out = pools.left_out(frozenset(paired))
        if not paired:
            advice = "Use another segmenter, change the limits or add videos"
            raise DatasetError(f"not one pair of clips can be made: {_reasons(left_out)}. {advice}")
    write_bytes(out / "left_out.parquet", left_out.to_parquet(index=False))
    if not left_out.empty:
        logger.warning("match: without composites (left_out.parquet): %s", _reasons(left_out))


def _write_neighbours(pools: Pools, out: AnyPath) -> NDArray[np.int64]:
    """Write ``neighbours.parquet``; return the label of each class's neighbour, -1 for none."""
    with owned_by("embedding"):
        embeddings = embed_names(pools.classes, pools.settings.embedding)
    nearest, _ = nearest_neighbours(embeddings)
    neighbours, similarity = nearest_neighbours(embeddings, pools.with_background())
    there, names = neighbours >= 0, np.array(pools.classes, dtype=object)
    table = pd.DataFrame(
        {
            "class_name": names[there],
            "neighbour": names[neighbours[there]],
            "similarity": similarity[there],
            "nearest": names[nearest[there]],
        }
    )
    write_bytes(out / "neighbours.parquet", table.to_parquet(index=False))
    return neighbours


def _reasons(left_out: pd.DataFrame) -> str:
    shown = [f"class {row.class_name!r} as {row.role}: {row.reason}" for row in left_out.head(3).itertuples()]
    return "; ".join([*shown, f"and {len(left_out) - 3} more"] if len(left_out) > 3 else shown)
