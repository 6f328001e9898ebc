"""The part of D_val that gives no reward, and whether the reward means anything: whether two parts of D_val agree.

Axes: N clips, B pairs, G source videos, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.videos.splits import draw_groups

RESAMPLES = 1000
OBJECTIVE = "held_out_objective"
"""What the environment calls what is to be low on the held-out part, by source video."""


def hold_out(clips: pd.DataFrame, share: float) -> list[str]:
    """Return ids of about a share of each class's clips, whole source videos, always the same ones.

    A class whose clips are of one source stays whole, so fewer may be held out, or none.

    Args:
        clips: columns id, class_name and group (the source video).
        share: in [0, 1).
    """
    if not share:
        return []
    names, groups = (clips[name].astype(str).tolist() for name in ("class_name", "group"))
    drawn = draw_groups(names, groups, share, np.random.default_rng(0), keep_small=True)
    found: list[str] = clips["id"][[group in drawn for group in groups]].tolist()
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Whether two parts of D_val agree on which pairs are worth choosing."""

    correlation: float
    """Of the pairs' credits by one part and by the other."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    pairs: int
    sources: int
    """Source videos of the smaller part."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What each pair was worth to each clip of a part of D_val.

    Args:
        credit_NB: less its mean over the state's pairs.
        sources: source video of each clip.
        labels: of each clip.
    """

    credit_NB: NDArray[np.float32]
    sources: Sequence[str]
    labels: Sequence[int]

    def halves(self) -> tuple["Judged", "Judged"]:
        """Return two halves, as :func:`hold_out` cuts them; the second is empty where that cannot."""
        table = pd.DataFrame({"class_name": self.labels, "group": self.sources}).assign(id=range(len(self.labels)))
        apart = table["id"].isin(hold_out(table, 1 / 2))
        one, other = (
            Judged(self.credit_NB[part.index], part["group"].tolist(), part["class_name"].tolist())
            for part in (table[~apart], table[apart])
        )
        return one, other

    def drawn(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return what each pair was worth to the part (as a sum) and, drawn anew so often, to others: (1 + R, B).

        Source videos are drawn within their class, as D_val itself is cut; those that are the only one of their class
        among each other ("collapsed strata", Cochran 1977, 5A.12), for alone they would seem not to vary. Of n videos,
        drawing with replacement has (n - 1) / n of the variance, which is a half of it for two: what they deviate by is
        scaled up.
        """
        first, place_N = np.unique(self.sources, return_index=True, return_inverse=True)[1:]
        sums_GB = np.zeros((len(first), self.credit_NB.shape[1]))
        np.add.at(sums_GB, place_N, self.credit_NB)
        _, class_G, of_class = np.unique(np.asarray(self.labels)[first], return_inverse=True, return_counts=True)
        stratum_G, weights = np.where(of_class[class_G] == 1, -1, class_G), np.ones((1 + RESAMPLES, len(first)))
        for stratum in np.unique(stratum_G):
            among = np.flatnonzero(stratum_G == stratum)
            if (n := len(among)) > 1:
                times = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
                weights[1:, among] += np.sqrt(n / (n - 1)) * (times - 1)
        return np.asarray(weights @ sums_GB)


def agreement(one: Judged, other: Judged, rng: np.random.Generator) -> Signal | None:
    """Return how well the credits by two parts of D_val agree.

    None where that cannot be known: a part says the same of all pairs, or is of one source video alone.

    The interval is of a bootstrap over the source videos of both parts: they are few, and the pairs many.
    """
    sources = min(len(set(one.sources)), len(set(other.sources)))
    if sources < 2:
        return None
    ours, theirs = one.drawn(rng), other.drawn(rng)
    spread = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    if not spread[0]:
        return None
    found = (ours * theirs).sum(axis=1) / np.where(spread, spread, 1)
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Signal(
        correlation=float(found[0]),
        low=float(low),
        high=float(high),
        pairs=one.credit_NB.shape[1],
        sources=sources,
    )
