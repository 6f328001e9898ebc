"""What single classes and single clips came to: gain over real clips, what is confused, where the arms disagree.

Everywhere here, predictions are a row a test clip of each arm and repetition: arm, seed, id, label, predicted,
probability. The repetitions of a run test the same clips. Axes: L classes, N clips, A arms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.config.arms import Arm
from l2a_ray.outputs.report.spread import Json, spread

CONFUSED = 20  # pairs of classes that are told of an arm
HALF = 0.5


def baseline(arms: Mapping[str, Arm]) -> str | None:
    """Return the arm that gains are taken over: the first that sees real clips alone, whatever its name."""
    return next((name for name, arm in arms.items() if arm.pairs == "none"), None)


def confusion(predictions: pd.DataFrame, arm: str, size: int) -> NDArray[np.float64]:
    """Return of each true class (row) the share that was predicted as each class, (L, L), the mean over repetitions.

    A class without test clips is a row of NaN.
    """
    rows, counts_LL = predictions[predictions["arm"] == arm], np.zeros((size, size))
    np.add.at(counts_LL, (rows["label"].to_numpy(), rows["predicted"].to_numpy()), 1)
    clips_L1 = counts_LL.sum(axis=1, keepdims=True)
    return np.where(clips_L1 > 0, counts_LL / np.maximum(clips_L1, 1), np.nan)


def confused(shares_LL: NDArray[np.float64], classes: Sequence[str]) -> list[Json]:
    """Return the classes that are taken for each other most: true, predicted and share, by falling share."""
    wrong_LL = np.nan_to_num(shares_LL * (1 - np.eye(len(shares_LL))))
    order = np.argsort(-wrong_LL, axis=None, kind="stable")[:CONFUSED]
    pairs = [(int(cell) // len(classes), int(cell) % len(classes)) for cell in order if wrong_LL.flat[cell] > 0]
    return [{"true": classes[i], "predicted": classes[j], "share": wrong_LL[i, j]} for i, j in pairs]


def gains(predictions: pd.DataFrame, arm: str, against: str, classes: Sequence[str]) -> Json:
    """Return by class how far an arm's accuracy lies above another's, taken repetition by repetition: as ``spread``.

    None for a class without a test clip, or if the arms share no repetition.
    """
    by_seed = _hits(predictions).groupby(["arm", "label", "seed"])["hit"].mean()
    difference = (by_seed.loc[arm] - by_seed.loc[against]).dropna()
    found = {label: spread(values.droplevel("label")) for label, values in difference.groupby("label")}
    return {name: found.get(label) for label, name in enumerate(classes)}


def disagreements(predictions: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Find the test clips that are right under one arm in most repetitions and wrong under another in most.

    Args:
        predictions: of the arms.
        order: names of the arms; of equal ones the first is told.

    Returns:
        A row a clip, the widest apart first, then those that the classifiers are surest of: id, label; ``right`` and
        ``wrong``, the arms with the largest and the least share of right repetitions; these shares, ``right_share`` and
        ``wrong_share``; ``predicted``, what the second arm says most often where it is wrong.
    """
    hits = _hits(predictions)
    by_arm = hits.groupby(["id", "arm"])
    share, sure = (by_arm[name].mean().unstack("arm") for name in ("hit", "probability"))
    known = _known(share, order)
    share_NA, sure_NA, arms = share[known].to_numpy(np.float64), sure[known].to_numpy(np.float64), np.array(known)
    rows_N = np.arange(len(share_NA))
    right_N, wrong_N = np.nan_to_num(share_NA, nan=-1.0).argmax(1), np.nan_to_num(share_NA, nan=2.0).argmin(1)
    table = pd.DataFrame({"id": share.index, "right": arms[right_N], "wrong": arms[wrong_N]})
    table = table.assign(right_share=share_NA[rows_N, right_N], wrong_share=share_NA[rows_N, wrong_N])
    table = table.assign(apart=table["right_share"] - table["wrong_share"])
    table = table.assign(sure=sure_NA[rows_N, right_N] + sure_NA[rows_N, wrong_N])
    table = table[(table["right_share"] > HALF) & (table["wrong_share"] < HALF)]
    table = table.sort_values(["apart", "sure", "id"], ascending=[False, False, True])
    said = hits[~hits["hit"]].groupby(["id", "arm", "label"])["predicted"].agg(lambda labels: labels.mode().iloc[0])
    table = table.merge(said.reset_index(), left_on=["id", "wrong"], right_on=["id", "arm"])
    return table[["id", "label", "right", "wrong", "right_share", "wrong_share", "predicted"]]


def count_disagreements(predictions: pd.DataFrame, order: Sequence[str]) -> Json:
    """Return for each arm how many test clips it has right in most repetitions that each other one has wrong."""
    share = _hits(predictions).groupby(["id", "arm"])["hit"].mean().unstack("arm")
    arms = _known(share, order)
    return {
        right: {wrong: int(((share[right] > HALF) & (share[wrong] < HALF)).sum()) for wrong in arms if wrong != right}
        for right in arms
    }


def _hits(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions.assign(hit=predictions["label"] == predictions["predicted"])


def _known(table: pd.DataFrame, order: Sequence[str]) -> list[str]:
    """Return the arms that there are predictions of, in order."""
    return [arm for arm in order if arm in table]
