"""What an arm adds to the supports of an episode: n shots become n + k. Pure; imports no Ray.

Clips and composites are rows of one bank of features. Axes: E episodes, W ways, S shots, K added supports, N clips,
D composites of a clip.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2a_ray.fewshot.episodes import Rows

NONE = -1
"""Stands for no support."""


@dataclass(frozen=True)
class Ranked:
    """The composites of each clip, the best first.

    Args:
        rows_ND: their rows in the bank; -1 where a clip has no more.
        backgrounds_ND: rows of the clips whose scenes they show; -1 likewise.
    """

    rows_ND: Rows
    backgrounds_ND: Rows


def add_copies(supports_EWS: Rows, k: int) -> Rows:
    """Return k exact copies of each class's supports, in turn, (E, W, k): they add nothing that is not there."""
    return supports_EWS[..., np.arange(k) % supports_EWS.shape[-1]]


def add_composites(supports_EWS: Rows, ranked: Ranked, k: int) -> Rows:
    """Choose k composites of each class's supports, (E, W, k) rows of the bank, -1 where there are no more.

    Supports take turns, each with its best composite whose background no other of the class has taken; a support that
    has none left, as one without an actor, passes its turn on.
    """
    ways = supports_EWS.reshape(-1, supports_EWS.shape[-1])
    rows, backgrounds = ranked.rows_ND.tolist(), ranked.backgrounds_ND.tolist()
    # A class of an episode often comes again with the same supports where there are few clips.
    known: dict[tuple[int, ...], list[int]] = {}
    added = [
        known[key] if key in known else known.setdefault(key, _of_class(key, rows, backgrounds, k))
        for key in map(tuple, ways.tolist())
    ]
    return np.array(added, np.int64).reshape(*supports_EWS.shape[:-1], k)


def _of_class(supports: tuple[int, ...], rows: list[list[int]], backgrounds: list[list[int]], k: int) -> list[int]:
    added, used, rank = list[int](), set[int](), dict.fromkeys(supports, 0)
    left = list(supports)
    while left and len(added) < k:
        for support in list(left):
            own = backgrounds[support]
            while rank[support] < len(own) and (own[rank[support]] == NONE or own[rank[support]] in used):
                rank[support] += 1
            if rank[support] == len(own):
                left.remove(support)
            elif len(added) < k:
                added.append(rows[support][rank[support]])
                used.add(own[rank[support]])
    return added + [NONE] * (k - len(added))


def join(supports_EWS: Rows, added_EWK: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """Return all supports, (E, W, S + K), with 0 where there is none, and which of them are there."""
    joined = np.concatenate([supports_EWS, added_EWK], axis=-1)
    return np.where(joined == NONE, 0, joined), joined != NONE
