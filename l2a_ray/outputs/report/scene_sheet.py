"""What the sets of test clips look like, as a contact sheet: the same actors as they are and where no scene helps."""

import pandas as pd

from l2a_ray.composites.loader import Sample
from l2a_ray.composites.scenes import SHOWN, SetName
from l2a_ray.outputs.export import UNREADABLE
from l2a_ray.outputs.report.figures import Picture, save, short
from l2a_ray.outputs.report.sheets import Tile, draw_rows
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath

ROWS = 6
TITLES: dict[SetName, str] = {"real": "as it is", "scenes": "other scene", "stripes": "stripes", "still": "still"}
"""Of the sets."""
CAPTION = (
    "Of each set the first and the last frame, an actor a row; over each row its class and, after it, the class that "
    "the other scene is of. Such clips are what every classifier was tested on: a wrong mask, or a background from "
    "which its own actor was not quite removed, is a fault of the test and not of a classifier."
)


def draw_scenes(predictions: pd.DataFrame | None, store: ClipStore, folder: AnyPath) -> dict[str, Picture]:
    """Draw some test clips as each set shows them; without a set but the clips as they are, there is no sheet.

    Args:
        predictions: of any classifiers: set, id, label, background.
        store: the clips.
        folder: to write ``scenes.png`` to.
    """
    rows = [] if predictions is None else _rows(predictions, store)
    if not rows:
        return {}
    picture = Picture(folder / "scenes.png", "The same actors in every set of test clips", CAPTION)
    save(draw_rows(rows), picture.path)
    return {"scenes": picture}


def _rows(predictions: pd.DataFrame, store: ClipStore) -> list[tuple[str, list[Tile]]]:
    """Return captions and tiles of clips that are in every set, one of each class before a second of any."""
    clips = predictions.drop_duplicates(["set", "id"])
    names: list[SetName] = [name for name in TITLES if name in set(clips["set"])]
    if len(names) < 2:
        return []
    there = clips.groupby("id")["set"].nunique() == len(names)
    plain = clips[clips["id"].isin(there[there].index)].drop_duplicates("id").sort_values("id")
    plain = plain.assign(turn=plain.groupby("label").cumcount()).sort_values(["turn", "label"])
    backgrounds = clips[clips["set"] == "scenes"].set_index("id")["background"]
    classes = store.columns("id", "class_name").set_index("id")["class_name"]
    rows = []
    for clip_id in plain["id"].head(ROWS):
        background = backgrounds.get(clip_id)
        caption = short(classes[clip_id]) + (f"  on  {short(classes[background])}" if background else "")
        try:
            shown = {name: SHOWN[name](store, Sample(clip_id, background), None) for name in names}
        except UNREADABLE:
            continue
        moments = (("first", 0), ("last", -1))
        tiles = [(f"{TITLES[name]}, {when}", shown[name][t]) for name in names for when, t in moments]
        rows.append((caption, tiles))
    return rows
