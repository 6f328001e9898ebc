"""The features that episodes are made of: of novel clips and of their composites, as the rows of one bank. No Ray.

Axes: N rows of the bank, T frames, F features of a frame, C clips, D composites of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.errors import StageError
from l2a_ray.fewshot.episodes import Clips, Episodes, Rows, draw_episodes, read_episodes
from l2a_ray.fewshot.features import read_features
from l2a_ray.fewshot.settings import EpisodeSettings
from l2a_ray.fewshot.splits import ClassSplit
from l2a_ray.fewshot.supports import NONE, Ranked
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, as_path


@dataclass(frozen=True)
class Bank:
    """Features by row: of novel clips, then of composites.

    Args:
        features_NTF: float32.
        row_of_clip: row of each clip of the data set, -1 where it is no novel one (C,).
        ranked: the composites of each of the bank's clips, the best first; None: there are none.
    """

    features_NTF: NDArray[np.float32]
    row_of_clip: Rows
    ranked: Ranked | None


def read_clips(store: ClipStore) -> Clips:
    """Return the clips of a store, whatever part of the data set they are in: here classes have roles."""
    index = store.columns("id", "class_name", "group")
    return Clips(*(index[name].to_numpy(np.str_) for name in ("id", "class_name", "group")))


def novel_episodes(settings: EpisodeSettings, shot: int, split: ClassSplit, clips: Clips) -> Episodes:
    """Draw the test episodes of a shot, or read them where a list is given.

    Raises:
        DatasetError: there are too few classes, clips or sources.
        StageError: the list is of other clips, or has other ways or queries than the settings.
    """
    if settings.file is not None:
        found = read_episodes(as_path(settings.file), shot, clips, split.novel)
        _, way, queries = found.queries_EWQ.shape
        if (way, queries) != (settings.way, settings.queries):
            reason = f"its episodes have {way} ways and {queries} queries a class. Set fewshot.episodes so"
            raise StageError(f"{settings.file}: {reason}")
        return found
    return draw_episodes(
        clips,
        split.novel,
        numbers=range(settings.count),
        way=settings.way,
        shot=shot,
        queries=settings.queries,
        seed=settings.seed,
        split=f"{split.name}/novel",
        source_disjoint=settings.source_disjoint,
    )


def read_bank(
    clips: Clips, novel: Sequence[str], features: AnyPath, composites: AnyPath | None, pairs: pd.DataFrame | None
) -> Bank:
    """Read the features of novel clips, and of composites of these.

    Args:
        clips: all clips.
        novel: the novel classes.
        features: folder of all clips' features.
        composites: folder of those of ``pairs``, in their order.
        pairs: by foreground and rank; the composites of a clip stand side by side.
    """
    rows = np.flatnonzero(np.isin(clips.classes, list(novel)))
    row_of_clip = np.full(len(clips.ids), NONE, np.int64)
    row_of_clip[rows] = np.arange(len(rows))
    own = read_features(features)[rows]
    if composites is None or pairs is None:
        return Bank(own, row_of_clip, None)
    depth = int(pairs["rank"].max()) + 1 if len(pairs) else 1
    of_pair, backgrounds = np.full((2, len(rows), depth), NONE, np.int64)
    places = row_of_clip[np.searchsorted(clips.ids, pairs["foreground"].to_numpy(np.str_))], pairs["rank"].to_numpy()
    of_pair[places] = len(rows) + np.arange(len(pairs))
    backgrounds[places] = np.searchsorted(clips.ids, pairs["background"].to_numpy(np.str_))
    made = read_features(composites)
    features_NTF = np.concatenate([own, made]) if len(made) else own
    return Bank(features_NTF, row_of_clip, Ranked(of_pair, backgrounds))
