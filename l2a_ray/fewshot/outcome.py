"""What a few-shot run has come to: numbers, with two kinds of spread. Imports no Ray.

Axes: E episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.fewshot.episodes import half_width
from l2a_ray.fewshot.settings import FewshotArm, FewshotSettings, Learner
from l2a_ray.fewshot.splits import ROLES, ClassSplit

Json = dict[str, Any]


class Cell(NamedTuple):
    """A cell of the table."""

    learner: Learner
    shot: int
    arm: FewshotArm
    k: int
    """Supports added to each class; 0 of the arm `none`."""

    @property
    def label(self) -> str:
        """The arm and its k, in words."""
        return "none" if self.arm == "none" else f"{self.arm}, k = {self.k}"


@dataclass(frozen=True)
class Measured:
    """What a cell has come to.

    Args:
        accuracy: of each repetition, by its seed, the share of right queries of each episode, float32 (E,).
        about: how many supports there were, how many of them without an actor, and how many were added on average.
        first: the pairs that the first episode's composites are of, where there are composites.
    """

    accuracy: Mapping[int, NDArray[np.float32]]
    about: Json
    first: pd.DataFrame | None = None

    @property
    def by_episode(self) -> NDArray[np.float64]:
        """The mean over repetitions, (E,)."""
        mean: NDArray[np.float64] = np.mean([one.astype(np.float64) for one in self.accuracy.values()], axis=0)
        return mean


def summarise(measured: Mapping[Cell, Measured], settings: FewshotSettings, split: ClassSplit, features: str) -> Json:
    """Return the content of ``metrics.json``.

    Args:
        measured: what there is.
        settings: of the run.
        split: the classes.
        features: what learners see, in words: it stands beside every number.
    """
    episodes = {len(one.accuracy[seed]) for one in measured.values() for seed in one.accuracy}
    return {
        "features": features,
        "split": split.name,
        "classes": {role: list(split.of(role)) for role in ROLES},
        "way": settings.episodes.way,
        "queries": settings.episodes.queries,
        "source_disjoint": settings.episodes.source_disjoint,
        "episodes": max(episodes),
        "rows": [_row(cell, measured) for cell in measured],
    }


def _row(cell: Cell, measured: Mapping[Cell, Measured]) -> Json:
    one = measured[cell]
    means = {str(seed): float(found.mean(dtype=np.float64)) for seed, found in one.accuracy.items()}
    others = {name: cell._replace(arm=name, k=0 if name == "none" else cell.k) for name in ("none", "copies", "random")}
    return {
        **cell._asdict(),
        "accuracy": float(one.by_episode.mean()),
        "interval95": half_width(one.by_episode),
        "seeds": means,
        "seed_std": float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None,
        "against": {
            name: difference(one, measured[other])
            for name, other in others.items()
            if other in measured and other != cell and cell.arm != "none"
        },
        **one.about,
    }


def difference(one: Measured, other: Measured) -> Json:
    """Return the mean difference over the same episodes, its interval over episodes, and its spread over repetitions.

    A repetition of one is compared with the same of the other; where the other has one alone, with that.
    """
    pairs = [
        found.astype(np.float64) - other.accuracy.get(seed, next(iter(other.accuracy.values())))
        for seed, found in one.accuracy.items()
    ]
    by_episode = np.mean(pairs, axis=0)
    means = [float(pair.mean()) for pair in pairs]
    return {
        "mean": float(by_episode.mean()),
        "interval95": half_width(by_episode),
        "seed_std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
    }


def table(metrics: Json) -> list[list[str]]:
    """Return the table as text, its head first: a row a learner and arm, a column a shot."""
    shots = sorted({row["shot"] for row in metrics["rows"]})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for row in metrics["rows"]:
        label = Cell(row["learner"], row["shot"], row["arm"], row["k"]).label
        lines.setdefault((row["learner"], label), {})[row["shot"]] = told(row)
    body = [[learner, label, *(of.get(shot, "") for shot in shots)] for (learner, label), of in lines.items()]
    return [["learner", "added", *(f"{shot}-shot" for shot in shots)], *body]


def told(row: Json) -> str:
    """Return a cell as text: per cent, interval over episodes, and the paired difference to no added supports."""
    text = f"{100 * row['accuracy']:.1f}" + _interval(row["interval95"])
    lead = row["against"].get("none")
    return text if lead is None else f"{text} ({100 * lead['mean']:+.1f}{_interval(lead['interval95'])})"


def _interval(width: float | None) -> str:
    return "" if width is None else f" ± {100 * width:.1f}"


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines of equal columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
