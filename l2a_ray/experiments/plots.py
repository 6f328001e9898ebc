"""The pictures of a table: a dot plot with intervals, and accuracy against a number that columns or rows vary."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from l2a_ray.config.arms import OTHER_COLOURS, SHIPPED
from l2a_ray.experiments.definition import Changes
from l2a_ray.experiments.grid import Grid
from l2a_ray.experiments.outcome import Entry
from l2a_ray.outputs.report.figures import GREY, Picture, legend, new_figure, save, short
from l2a_ray.storage.files import AnyPath

COLOURS = (*(SHIPPED[arm].colour for arm in ("random", "selected")), *OTHER_COLOURS)
Numbers = tuple[str, Mapping[str, float]]
"""The name of a setting, and its value by the name of a row or column."""


def draw(grid: Grid, entries: Sequence[Entry], folder: AnyPath) -> list[Picture]:
    """Draw what there is data for."""
    there = [entry for entry in entries if entry.values]
    if not there:
        return []
    drawn = [_keep(folder / "accuracy.png", *_dots(grid, there))]
    about = grid.definition
    for kind, axis in (("columns", about.columns), ("rows", about.rows)):
        if (varied := numbers(axis)) is not None:
            drawn.append(_keep(folder / f"against_{kind}.png", *_lines(there, varied, kind == "columns")))
    return drawn


def numbers(axis: Mapping[str, Changes]) -> Numbers | None:
    """Return what an axis varies, if that is one setting alone, by numbers."""
    names = {name for changes in axis.values() for name in changes}
    values = {key: value for key, changes in axis.items() for value in changes.values()}
    real = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    if len(names) != 1 or not len(axis) == len(values) > 1 or not real:
        return None
    return names.pop(), values


def _keep(path: AnyPath, figure: Figure, title: str, caption: str) -> Picture:
    save(figure, path)
    return Picture(path, title, caption)


def _dots(grid: Grid, entries: Sequence[Entry]) -> tuple[Figure, str, str]:
    rows, columns = list(grid.definition.rows), list(grid.definition.columns)
    figure, (ax,) = new_figure(1.0 + 0.2 * len(rows) * (len(columns) + 1), grid="x")
    for entry in entries:
        number = columns.index(entry.column)
        y = rows.index(entry.row) + 0.7 * ((number + 0.5) / len(columns) - 0.5)
        colour, top1 = COLOURS[number % len(COLOURS)], entry.values["top1"]
        values = 100 * np.array(list(top1["values"].values()))
        ax.scatter(
            values, np.full(len(values), y), s=14, color=colour, alpha=0.5, edgecolor="white", linewidth=0.5, zorder=3
        )
        interval = None if top1["interval95"] is None else 100 * top1["interval95"]
        ax.errorbar(100 * top1["mean"], y, xerr=interval, fmt="o", color=colour, capsize=3, markersize=5)
        if entry.published is not None:
            ax.scatter(100 * entry.published, y, marker="D", s=30, facecolor="none", edgecolor=GREY)
    ax.set_yticks(range(len(rows)), [short(row) for row in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("top-1 accuracy, %")
    if len(columns) > 1:
        for number, column in enumerate(columns):
            ax.scatter([], [], color=COLOURS[number % len(COLOURS)], label=short(column))
        legend(ax)
    caption = (
        "Faint: one repetition each. Strong: their mean, with the 95 % interval of the mean (Student's t) if there are "
        "two or more. Intervals of rows may overlap though their paired difference is clear: the table has that."
    )
    if any(entry.published is not None for entry in entries):
        caption += " Diamonds: published."
    return figure, "Accuracy of the rows", caption


def _lines(entries: Sequence[Entry], varied: Numbers, columns: bool) -> tuple[Figure, str, str]:
    name, values = varied
    figure, (ax,) = new_figure(3.4)
    lines: dict[str, list[Entry]] = {}
    for entry in entries:
        lines.setdefault(entry.row if columns else entry.column, []).append(entry)
    for number, (label, own) in enumerate(lines.items()):
        own.sort(key=lambda entry: values[entry.column if columns else entry.row])
        x = [values[entry.column if columns else entry.row] for entry in own]
        y = [100 * entry.values["top1"]["mean"] for entry in own]
        error = [100 * (entry.values["top1"]["interval95"] or 0) for entry in own]
        ax.errorbar(x, y, yerr=error, color=COLOURS[number % len(COLOURS)], marker="o", capsize=3, label=short(label))
    ax.set_xlabel(name)
    ax.set_ylabel("top-1 accuracy, %")
    if len(lines) > 1:
        legend(ax)
    caption = "Means over the repetitions, with their 95 % intervals (Student's t)."
    return figure, f"Accuracy against {name}", caption
