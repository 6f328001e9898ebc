"""How good the masks are, at a glance: measured on an even sample of the clips that composites take actors from.

Axes: T time, H height, W width, C channel.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.outputs.export import UNREADABLE
from l2a_ray.outputs.report.spread import Json
from l2a_ray.prepare.store import ClipStore, Part

SAMPLE = 300  # clips: a share of them has a standard error of 3 points at most, and they are read in seconds
SHOWN = 12
BARE = SHOWN // 2  # of the worst that are shown, at most so many without any mask, which all look alike
COLUMNS = ["id", "class_name", "label", "sampled", "share", "area"]


def look_at_masks(store: ClipStore, plane: Part) -> pd.DataFrame:
    """Measure the masks of some training clips: an even sample, class by class, and the extremes of the whole index.

    What each clip's mask covers stands in the index, in how many of its frames does not: only its file tells. So the
    number of files that are read is bounded, whatever the number of clips.

    Args:
        store: the prepared clips.
        plane: the mask that is pasted.

    Returns:
        A row a clip: id, class_name, label; ``sampled``, whether it is one of the even sample; ``share`` of its frames
        in which the mask is not empty; ``area``, the share of the pixels that the mask covers in these frames, NaN if
        there are none. Clips whose file cannot be read are left out.
    """
    ratio = "people_ratio" if plane.startswith("people") else "foreground_ratio"
    table = store.columns("id", "class_name", "label", "split", ratio)
    table = table[table["split"] == "train"].sort_values(["label", "id"], ignore_index=True)
    even = np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).round().astype(int))
    rows = np.union1d(even, _extremes(table[ratio]))
    seen = []
    for row in rows:
        try:
            mask_THW = store.read_parts(table["id"][row], [plane])[plane]
        except UNREADABLE:
            continue
        found_T = mask_THW.any(axis=(1, 2))
        area = float(mask_THW[found_T].mean()) if found_T.any() else np.nan
        clip = table.loc[row, ["id", "class_name", "label"]]
        seen.append((*clip, bool(np.isin(row, even)), float(found_T.mean()), area))
    return pd.DataFrame(seen, columns=COLUMNS)


def _extremes(ratio: "pd.Series[float]") -> NDArray[np.int64]:
    """Return the rows that the index alone suggests as worst and best: nothing, least, most and middling."""
    some = ratio[ratio > 0].sort_values(kind="stable")
    middle = max(0, len(some) // 2 - SHOWN)
    parts = (ratio[ratio == 0][:SHOWN], some[:SHOWN], some[-SHOWN:], some[middle : middle + 2 * SHOWN])
    return np.unique(np.concatenate([part.index.to_numpy(np.int64) for part in parts]))


def rank(looked: pd.DataFrame) -> pd.DataFrame:
    """Order clips from the worst mask to the best: by the share of frames with an actor, then by the mask's area.

    An area is the worse the larger its ratio to the median area, or the inverse, is; of clips without any mask, one of
    each class comes before a second.
    """
    odd = np.abs(np.log(looked["area"] / looked["area"].median())).fillna(np.inf)
    turn = looked.assign(odd=odd).sort_values("id").groupby(["class_name", "share", "odd"]).cumcount()
    ordered = looked.assign(odd=odd, turn=turn)
    return ordered.sort_values(["share", "odd", "turn", "id"], ascending=[True, False, True, True], ignore_index=True)


def worst_and_best(looked: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the clips that are shown, the worst and the best first; none stands in both."""
    ranked = rank(looked)
    bare = ranked["share"] == 0
    # Behind the others come those without any mask that would crowd the rest out.
    order = ranked.assign(late=bare & (bare.cumsum() > BARE)).sort_values("late", kind="stable")
    worst = order.head(min(SHOWN, len(order) // 2))
    best = ranked[~bare & ~ranked["id"].isin(worst["id"])]
    return worst.sort_index(), best[::-1].head(SHOWN)


def summarise_masks(looked: pd.DataFrame, classes: Sequence[str]) -> Json:
    """Return the numbers of the even sample."""
    sample = looked[looked["sampled"]]
    if sample.empty:
        return {}
    by_class = sample.groupby("label")["share"].mean()
    return {
        "masks/clips_sampled": len(sample),
        "masks/frames_with_actor": sample["share"].mean(),
        "masks/clips_without_actor": (sample["share"] == 0).mean(),
        "masks/median_area": sample["area"].median() if sample["area"].any() else None,
        "masks/frames_with_actor_by_class": {name: by_class.get(label) for label, name in enumerate(classes)},
    }
