"""Numbers over the repetitions of a run: means, spread, and differences taken repetition by repetition."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.special import stdtrit

Json = dict[str, Any]


def mean_of(parts: Iterable[Mapping[str, Any]]) -> Json:
    """Return the mean of each number over some mappings of the same names; equal values stay as they are."""
    rows = list(parts)
    if len(rows) < 2:
        return dict(rows[0]) if rows else {}
    merged: Json = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, Mapping):
            merged[name] = mean_of(values)
        else:
            merged[name] = first if all(value == first for value in values) else float(pd.Series(values).mean())
    return merged


def spread(values: "pd.Series[float]") -> Json:
    """Return mean, sample standard deviation (n - 1), half-width of the 95 % interval of the mean, and the values.

    The interval is Student's t. One value has neither deviation nor interval.
    """
    n, several = len(values), len(values) > 1
    # A diverged run must show, not drop out of the mean.
    std = float(values.std(ddof=1, skipna=False)) if several else None
    interval = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if std is not None else None
    by_seed = {str(seed): float(value) for seed, value in values.items()}
    return {"mean": float(values.mean(skipna=False)), "std": std, "interval95": interval, "n": n, "values": by_seed}


def compare(results: pd.DataFrame, order: Sequence[str]) -> Json | None:
    """Set the best arm by mean top-1 against each other one; of equal ones the first in ``order`` is the best.

    Runs of one seed share their initial weights and data split, so differences are taken seed by seed. ``clear`` says
    whether the 95 % interval of the difference leaves out zero.
    """
    top1 = results.pivot(index="seed", columns="arm", values="top1")
    names = sorted(top1.columns, key=order.index)
    if len(names) < 2:
        return None
    means = top1.mean()
    best = max(names, key=lambda name: float(means[name]))
    against: Json = {}
    for name in names:
        difference = (top1[best] - top1[name]).dropna()
        if name == best or difference.empty:
            continue
        about = spread(difference)
        clear = about["interval95"] is not None and about["mean"] > about["interval95"]
        against[name] = about | {"clear": clear}
    return {"best": best, "against": against}


def over(top1: pd.DataFrame, arm: str, other: str) -> Json | None:
    """Return how far an arm lies above another, seed by seed; None if they share no seed.

    Args:
        top1: accuracies, a row a seed, a column an arm.
        arm: one.
        other: another.

    Returns:
        As ``spread``, and ``clear``: whether the 95 % interval of the difference leaves out zero.
    """
    difference = (top1[arm] - top1[other]).dropna()
    if difference.empty:
        return None
    about = spread(difference)
    return about | {"clear": about["interval95"] is not None and abs(about["mean"]) > about["interval95"]}
