"""How good the masks are, at a glance: of the clips that composites take actors from."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from l2a_ray.outputs.report.spread import Json
from l2a_ray.prepare.store import ClipStore, Part

SHOWN = 12
BARE = SHOWN // 2  # of the worst that are shown, at most so many without any mask, which all look alike


def look_at_masks(store: ClipStore, plane: Part) -> pd.DataFrame:
    """Return what the index says of the training clips' masks.

    Args:
        store: the prepared clips.
        plane: the mask that is pasted; of boxes, the mask that they are around.

    Returns:
        A row a clip: id, class_name, label; ``share`` of its frames in which the mask is not empty; ``area``, the share
        of the pixels that the mask covers in these frames, NaN if there are none.
    """
    actors = "people" if plane.startswith("people") else "foreground"
    table = store.columns("id", "class_name", "label", "split", f"{actors}_ratio", f"{actors}_frames")
    table = table[table["split"] == "train"].sort_values(["label", "id"], ignore_index=True)
    share = table[f"{actors}_frames"]
    area = table[f"{actors}_ratio"] / share.where(share > 0)
    return table[["id", "class_name", "label"]].assign(share=share, area=area)


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
    """Return the numbers of all these clips; none if there are no clips."""
    if looked.empty:
        return {}
    by_class = looked.groupby("label")["share"].mean()
    return {
        "masks/clips": len(looked),
        "masks/frames_with_actor": looked["share"].mean(),
        "masks/clips_without_actor": (looked["share"] == 0).mean(),
        "masks/median_area": looked["area"].median() if looked["area"].any() else None,
        "masks/frames_with_actor_by_class": {name: by_class.get(label) for label, name in enumerate(classes)},
    }
