"""How well the Selector finds wrong labels, where it is known which labels are wrong: in data made by `l2a generate`.

Axes: P pairs.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from l2a_ray.pairs.truth import mark_wrong


def auc(scores: ArrayLike, wrong_labels: ArrayLike) -> float:
    """Return how often a pair with a right label scores above one with a wrong label; equal scores count half.

    That is the area under the ROC curve, by ranks (Mann-Whitney). NaN where there is but one kind of pair.
    """
    rank, right_labels = pd.Series(np.asarray(scores)).rank().to_numpy(), ~np.asarray(wrong_labels, dtype=np.bool_)
    right, wrong = int(right_labels.sum()), int((~right_labels).sum())
    if not right or not wrong:
        return float("nan")
    return float((rank[right_labels].sum() - right * (right + 1) / 2) / (right * wrong))


def auc_by_class(pairs: pd.DataFrame) -> "pd.Series[float]":
    """Return the AUC among the pairs of each foreground class, by label; columns foreground_label, score, wrong."""
    groups = pairs.groupby("foreground_label")
    return pd.Series({label: auc(rows["score"], rows["wrong"]) for label, rows in groups}, dtype=np.float64)


def judge(pairs: dict[str, pd.DataFrame], truth: pd.DataFrame, index: pd.DataFrame, classes: tuple[str, ...]) -> Any:
    """Compute the truth's part of ``metrics.json``.

    Args:
        pairs: scored pairs by name; ``random`` is an even sample of the candidates, on which the AUC is computed.
        truth: what ``read_truth`` read.
        index: of the clip store.
        classes: class names by label.

    Returns:
        Numbers by name; empty if no label, or every label, is wrong.
    """
    marked = {name: mark_wrong(table, truth, index, classes) for name, table in pairs.items()}
    drawn = marked["random"]
    whole, by_class = auc(drawn["score"], drawn["wrong"]), auc_by_class(drawn)
    if np.isnan(whole):
        return {}
    return {
        "selector/auc_wrong_label": whole,
        "selector/auc_wrong_label_in_class": by_class.mean(),
        "selector/auc_wrong_label_by_class": {name: by_class.get(label) for label, name in enumerate(classes)},
        "selector/wrong_label_clips": drawn["foreground"][drawn["wrong"]].nunique(),
        **{f"select/share_wrong_label_{name}": table["wrong"].mean() for name, table in marked.items()},
    }
