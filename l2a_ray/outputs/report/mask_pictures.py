"""Pictures of the masks: the share of frames with an actor by class, and the worst and the best foregrounds."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from l2a_ray.outputs.report.clips import INK, SOFT, ClipTile, draw_clips, middle_frame
from l2a_ray.outputs.report.figures import LINE, NAMED_CLASSES, STRONG, Picture, new_figure, save, short
from l2a_ray.outputs.report.masks import worst_and_best
from l2a_ray.outputs.report.spread import Json
from l2a_ray.prepare.store import ClipStore, Part
from l2a_ray.storage.files import AnyPath

LEGEND = (
    "Of each clip the middle one of the frames that have a mask, with its outline; below, the share of the frames that "
    "have one, and the share of these pictures that the actor's mask covers."
)
WORST = (
    "Clips without any mask and with one in few frames come first, then masks far smaller or larger than the usual. "
    "If these are whole actors, all is well; if not, a composite pastes what is outlined here."
)
BEST = "With an actor in every frame and of a usual size: the outline should follow the actor and nothing else."


def draw_masks(looked: pd.DataFrame, metrics: Json, store: ClipStore, plane: Part, out: AnyPath) -> dict[str, Picture]:
    """Draw what ``look_at_masks`` has seen; a picture that nothing can be shown on is left out.

    Args:
        looked: what was seen.
        metrics: its numbers, of ``summarise_masks``.
        store: the clips.
        plane: the mask that was looked at.
        out: folder whose ``plots`` and ``sheets`` are written to.

    Returns:
        Of the pictures ``actors``, ``masks_worst`` and ``masks_best`` those that there are.
    """
    drawn: dict[str, Picture] = {}
    if metrics:
        figure, caption = _actors(looked, metrics)
        drawn["actors"] = Picture(out / "plots" / "actors.png", "Frames with an actor", caption)
        save(figure, drawn["actors"].path)
    worst, best = worst_and_best(looked)
    for name, title, clips, caption in (
        ("masks_worst", "Worst masks", worst, WORST),
        ("masks_best", "Best masks", best, BEST),
    ):
        tiles = [tile for clip in clips.itertuples() if (tile := _tile(clip, store, plane)) is not None]
        if tiles:
            drawn[name] = Picture(out / "sheets" / f"{name}.png", title, f"{LEGEND} {caption}")
            save(draw_clips(tiles), drawn[name].path)
    return drawn


def _tile(clip: Any, store: ClipStore, plane: Part) -> ClipTile | None:
    image = middle_frame(store, clip.id, plane)
    found = "no actor in any frame"
    if clip.share > 0:
        found = f"{100 * clip.share:.0f} % of frames · area {100 * clip.area:.1f} %"
    return None if image is None else ClipTile(image, [(short(clip.class_name, 24), INK), (found, SOFT)])


def _actors(looked: pd.DataFrame, metrics: Json) -> tuple[Figure, str]:
    """Draw a bar a class, the least at the top; of many classes, the least."""
    classes = looked.groupby("class_name")["share"].agg(["mean", "size"]).sort_values("mean", kind="stable")
    shown = classes.head(NAMED_CLASSES)
    figure, (ax,) = new_figure(0.7 + 0.21 * len(shown), grid="x")
    y, percent, mean = range(len(shown)), 100 * shown["mean"], 100 * metrics["masks/frames_with_actor"]
    ax.barh(y, percent, height=0.62, color=STRONG, alpha=0.6)
    ax.axvline(mean, color=LINE, linewidth=1.4, linestyle="--")
    for at, (value, clips) in enumerate(zip(percent, shown["size"], strict=True)):
        label = f"{value:.0f} %  ({clips} clip{'s' if clips > 1 else ''})"
        ax.text(101.5, at, label, va="center", fontsize=8, color=SOFT)
    ax.set_yticks(y, [short(str(name)) for name in shown.index], fontsize=8, parse_math=False)
    ax.tick_params("y", length=0)
    ax.set(xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6), xlabel="frames with an actor, %")
    which = "" if len(shown) == len(classes) else f" The {len(shown)} classes with the least of {len(classes)}."
    caption = (
        f"Share of a training clip's frames in which the mask is not empty, class by class, of {len(looked)} clips; "
        f"dashed: the mean over the clips, {mean:.1f} %.{which} In a frame without an actor nothing is pasted: "
        "composites of a class far below the others show scenes that bear its label."
    )
    return figure, caption
