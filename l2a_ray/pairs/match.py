"""Which clips may be composited: class names -> nearest neighbours -> candidate pairs (paper, 3.2).

A foreground of class c1 is paired with backgrounds of one other class alone, so pairs grow linearly with classes.

Axes: L classes, D numbers of an embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, SettingError
from l2a_ray.pairs.names import EmbeddingSettings, embed_names
from l2a_ray.prepare.store import NO_BACKGROUND
from l2a_ray.storage.files import AnyPath, write_bytes
from l2a_ray.videos.splits import refuse_test_clips

Kind = Literal["semantic", "random", "same_class"]

PAIR_SCHEMA = pa.schema(
    [
        ("foreground", pa.string()),
        ("background", pa.string()),
        ("foreground_label", pa.int32()),
        ("background_label", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Which pairs are candidates."""

    kind: Kind = "semantic"
    """The background's class: semantic, the nearest name; random, any other class, about as many pairs; same_class.
    Origin: the paper, 3.2."""

    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    """Embedding of the class names."""

    min_foreground: float = 0.005
    """Least share of a clip's pixels under its mask to serve as foreground; below it little is seen. Ours."""

    max_foreground: float = 0.9
    """Largest share of a clip's pixels under its mask to serve as background; beyond it all is inpainted. Ours."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingError("match.kind", self.kind, f"must be one of {', '.join(get_args(Kind))}")
        for name in ("min_foreground", "max_foreground"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SettingError(f"match.{name}", value, "must be a share in [0, 1]")


def nearest_neighbours(embeddings_LD: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find for each class the other class whose name is nearest by cosine; ties go to the lower label.

    Args:
        embeddings_LD: unit rows.

    Returns:
        Labels of the neighbours (L,) and their cosine similarity (L,).

    Raises:
        DatasetError: there are fewer than two classes.
    """
    if len(embeddings_LD) < 2:
        raise DatasetError("the data set has one class; matching needs two. Add a class, or set match.kind same_class")
    # Rounded, so that equal names tie on every machine whatever the order of its sums.
    similarity_LL = np.round(embeddings_LD @ embeddings_LD.T, 6)
    np.fill_diagonal(similarity_LL, -np.inf)
    neighbour_L = similarity_LL.argmax(axis=1)
    return neighbour_L, similarity_LL[np.arange(len(neighbour_L)), neighbour_L].astype(np.float32)


def candidate_pairs(
    index: pd.DataFrame,
    classes: Sequence[str],
    settings: MatchSettings,
    neighbours: NDArray[np.int64] | None,
    seed: int,
    actors: str = "foreground_ratio",
) -> Iterator[pa.Table]:
    """Pair the training clips, one table for each foreground class in order of its label.

    - semantic: every foreground of a class with every background of its neighbour.
    - random: every foreground with as many backgrounds as a class has on average, drawn evenly from all other classes.
    - same_class: every foreground with every other background of its own class.

    Args:
        index: rows of ``ClipStore.index``; clips outside the training split are left out.
        classes: class names, position = label.
        settings: kind and limits.
        neighbours: label of each class's neighbour (L,); the semantic kind alone needs it.
        seed: of the random kind.
        actors: column that says how much of a foreground will be pasted: ``foreground_ratio`` or ``people_ratio``.

    Yields:
        Tables of ``PAIR_SCHEMA``; only one is held at a time.

    Raises:
        DatasetError: a class has no clip to serve as foreground or background, or one that has itself alone.
    """
    train = index[index["split"] == "train"]
    ids, labels = pa.array(train["id"], pa.string()), train["label"].to_numpy(np.int32)
    pools = _Pools(train, classes, settings, actors)
    for label in range(len(classes)):
        foregrounds = pools.foregrounds(label)
        if settings.kind == "random":
            rng = np.random.default_rng([seed, label])
            others, count = pools.other_backgrounds(label)
            draws = [rng.choice(others, count, replace=False, shuffle=False) for _ in foregrounds]
        else:
            draws = [pools.backgrounds(label if neighbours is None else int(neighbours[label]))] * len(foregrounds)
        first, second = np.repeat(foregrounds, len(draws[0])), np.concatenate(draws)
        first, second = first[first != second], second[first != second]
        if first.size == 0:
            raise DatasetError(f"class {classes[label]!r}: its one usable training clip has no other to be paired with")
        columns = [ids.take(pa.array(first)), ids.take(pa.array(second)), labels[first], labels[second]]
        yield pa.table(columns, schema=PAIR_SCHEMA)


def match(
    index: pd.DataFrame,
    classes: Sequence[str],
    settings: MatchSettings,
    seed: int,
    out: AnyPath,
    actors: str = "foreground_ratio",
) -> None:
    """Write ``pairs.parquet`` (all candidate pairs).

    The semantic kind also writes ``neighbours.parquet`` (class_name, neighbour, similarity).

    Args:
        index: ``ClipStore.index``.
        classes: class names, position = label.
        settings: kind, embedding and limits.
        seed: of the random kind.
        out: folder to write into.
        actors: as :func:`candidate_pairs`.

    Raises:
        DatasetError: a class has no usable clip, or the embedding does not know its name.
        LeakError: a clip of a pair is also a test clip.
    """
    test_ids = frozenset(index.loc[index["split"] == "test", "id"])
    out.mkdir(parents=True, exist_ok=True)
    neighbours = None
    if settings.kind == "semantic":
        neighbours, similarity = nearest_neighbours(embed_names(classes, settings.embedding))
        names = {"class_name": list(classes), "neighbour": [classes[label] for label in neighbours.tolist()]}
        table = pd.DataFrame({**names, "similarity": similarity})
        write_bytes(out / "neighbours.parquet", table.to_parquet(index=False))
    with (out / "pairs.parquet").open("wb") as file, pq.ParquetWriter(file, PAIR_SCHEMA) as writer:
        for pairs in candidate_pairs(index, classes, settings, neighbours, seed, actors):
            for column in ("foreground", "background"):
                refuse_test_clips(pairs[column].unique().to_pylist(), test_ids, f"the {column}s of candidate pairs")
            writer.write_table(pairs)


class _Pools:
    """Positions of the usable training clips of each class."""

    def __init__(self, train: pd.DataFrame, classes: Sequence[str], settings: MatchSettings, actors: str) -> None:
        self.classes, self.settings = classes, settings
        self.labels = train["label"].to_numpy()
        self.ratios = train[actors].to_numpy()
        seen = (train["remark"] != NO_BACKGROUND).to_numpy()
        self.scenes = seen & (train["foreground_ratio"].to_numpy() <= settings.max_foreground)

    def foregrounds(self, label: int) -> NDArray[np.int64]:
        usable = self.ratios >= self.settings.min_foreground
        limit = f"cover less than match.min_foreground={self.settings.min_foreground}"
        return self._usable(label, usable, "foreground", limit)

    def backgrounds(self, label: int) -> NDArray[np.int64]:
        limit = f"cover more than match.max_foreground={self.settings.max_foreground}"
        return self._usable(label, self.scenes, "background", limit)

    def other_backgrounds(self, label: int) -> tuple[NDArray[np.int64], int]:
        """Return the usable clips of all other classes, and how many a class has on average."""
        others = np.flatnonzero((self.labels != label) & self.scenes)
        if others.size == 0:
            raise DatasetError(
                f"class {self.classes[label]!r}: no clip of another class can serve as background. "
                f"Add a class, raise match.max_foreground={self.settings.max_foreground} or set match.kind same_class"
            )
        return others, -(-len(others) // (len(self.classes) - 1))

    def _usable(self, label: int, usable: NDArray[np.bool_], role: str, limit: str) -> NDArray[np.int64]:
        own = self.labels == label
        name = self.classes[label]
        if not own.any():
            raise DatasetError(f"class {name!r} has no training clip left. See failed.parquet for the videos it lost")
        positions = np.flatnonzero(own & usable)
        if positions.size == 0:
            raise DatasetError(
                f"class {name!r}: none of its {own.sum()} training clips can serve as {role}: "
                f"all their masks {limit} of the pixels. Use another segmenter, change the limit or drop the class"
            )
        return positions
