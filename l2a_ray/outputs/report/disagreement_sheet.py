"""The test clips that the arms disagree on, as a contact sheet."""

from l2a_ray.outputs.report.clips import INK, SOFT, WRONG, ClipTile, draw_clips, middle_frame
from l2a_ray.outputs.report.figures import Picture, save, short
from l2a_ray.outputs.report.spread import Json
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath

LETTERS = 20  # of a name, beside which a number has its place
CAPTION = (
    "Test clips that one arm has right in most repetitions and another wrong in most, the widest apart first. Below "
    "each its class, the arm that is right, and what the other says instead, with the number of repetitions that do "
    "so. Look for what they share: a scene, a size of the actor, a class."
)


def draw_disagreements(metrics: Json, store: ClipStore, folder: AnyPath) -> dict[str, Picture]:
    """Draw the clips of ``metrics["disagreements"]``; those that cannot be read, or no sheet at all, are left out.

    Args:
        metrics: the content of ``metrics.json``.
        store: the clips.
        folder: to write ``disagreements.png`` to.
    """
    tiles = []
    for clip in metrics["disagreements"].get("disagreements/widest", ()):
        image = middle_frame(store, clip["id"])
        if image is not None:
            tiles.append(ClipTile(image, [(short(clip["label"], LETTERS + 4), INK), *_sayings(clip, metrics["arms"])]))
    if not tiles:
        return {}
    picture = Picture(folder / "disagreements.png", "Clips that the arms disagree on", CAPTION)
    save(draw_clips(tiles), picture.path)
    return {"disagreements": picture}


def _sayings(clip: Json, arms: Json) -> list[tuple[str, str]]:
    """Return who is right how often, and what the other arm says."""
    right, wrong = (arms[clip[who]]["n"] for who in ("right", "wrong"))
    often = round(clip["right_share"] * right), round((1 - clip["wrong_share"]) * wrong)
    return [
        (f"✓ {short(clip['right'], LETTERS)}  ({often[0]} of {right})", SOFT),
        (f"✗ {short(clip['wrong'], LETTERS)}  ({often[1]} of {wrong})", WRONG),
        (f"    says {short(clip['predicted'], LETTERS)}", WRONG),
    ]
