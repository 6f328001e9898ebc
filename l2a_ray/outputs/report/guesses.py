"""Pseudo-labels in the report: how many were kept, of which classes, and how many of those are right."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from l2a_ray.outputs.report.figures import FAINT, GREY, LINE, NAMED_CLASSES, STRONG, legend, new_figure, short
from l2a_ray.outputs.report.spread import Json, mean_of
from l2a_ray.pairs.labels import NONE


def summarise_guesses(guesses: pd.DataFrame, classes: Sequence[str]) -> Json:
    """Describe the guesses, the mean over the repetitions.

    Args:
        guesses: seed, id, label, confidence, kept and truth (-1: not known), as ``pseudo-label`` writes them.
        classes: class names by label.

    Returns:
        ``pseudo/clips``, ``pseudo/kept``, ``pseudo/kept_share``; ``pseudo/precision``, the share of the kept guesses
        that are right, and ``pseudo/accuracy``, that of all, where the truth is known, else NaN; and by class
        ``pseudo/by_class``: guessed, kept, right (kept and right) and true (clips that are of the class).
    """
    return mean_of(_repetition(rows, classes) for _, rows in guesses.groupby("seed"))


def _repetition(rows: pd.DataFrame, classes: Sequence[str]) -> Json:
    kept, known = rows[rows["kept"]], rows["truth"] != NONE
    right = rows["label"] == rows["truth"]
    counts = {
        "guessed": rows["label"],
        "kept": kept["label"],
        "right": rows.loc[rows["kept"] & right, "label"],
        "true": rows.loc[known, "truth"],
    }
    of_class = {name: np.bincount(labels, minlength=len(classes)) for name, labels in counts.items()}
    return {
        "pseudo/clips": len(rows),
        "pseudo/kept": len(kept),
        "pseudo/kept_share": len(kept) / len(rows),
        "pseudo/precision": float(right[rows["kept"] & known].mean()),
        "pseudo/accuracy": float(right[known].mean()),
        "pseudo/by_class": {
            name: {column: int(found[label]) for column, found in of_class.items()}
            for label, name in enumerate(classes)
        },
    }


def draw_guesses(about: Json) -> tuple[Figure, str, str]:
    """Draw what :func:`summarise_guesses` found, a bar a class: kept and right, kept and wrong, not kept."""
    classes = list(about["pseudo/by_class"].items())[:NAMED_CLASSES]
    figure, (ax,) = new_figure(0.9 + 0.24 * len(classes), grid="x")
    rows = np.arange(len(classes))
    right, kept, guessed, true = (
        np.array([found[name] for _, found in classes]) for name in ("right", "kept", "guessed", "true")
    )
    told = about["pseudo/precision"] is not None
    if told:
        ax.barh(rows, right, color=STRONG, label="kept, right")
        ax.barh(rows, kept - right, left=right, color=LINE, label="kept, wrong")
        ax.scatter(true, rows, marker="|", s=120, color=GREY, label="clips of the class", zorder=3)
    else:
        ax.barh(rows, kept, color=STRONG, label="kept")
    ax.barh(rows, guessed - kept, left=kept, color=FAINT, label="guessed, not kept")
    ax.set_yticks(rows, [short(name) for name, _ in classes], parse_math=False)
    ax.invert_yaxis()
    ax.set_xlabel("clips without a label")
    legend(ax)
    caption = (
        "What the plain classifier took the clips without labels for, the mean over the repetitions. A class far "
        "beyond its own clips swallows others; one that keeps nothing gets no new composites."
    )
    return figure, "Pseudo-labels", caption
