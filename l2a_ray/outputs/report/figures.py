"""What every picture of the report is made with. Figures are objects of their own: no pyplot, no global state."""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2a_ray.storage.files import AnyPath, write_bytes

WIDTH = 8.4  # inches; at 120 dots an inch as wide as the page's column
DPI = 120
FAINT, STRONG, LINE, GREY = "#b9c4d0", "#0072b2", "#d55e00", "#555555"
NAMED_CLASSES = 40  # more tick labels than this cannot be read


@dataclass(frozen=True)
class Picture:
    """A picture of the report and what one should see in it."""

    path: AnyPath
    title: str
    caption: str


def save(figure: Figure, path: AnyPath) -> None:
    """Write a figure as PNG.

    Raises:
        StorageError: the folder cannot be written.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A class name may use letters the font lacks; it is then drawn as boxes, and the page has it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # The default metadata names matplotlib's version, which would make equal pictures differ.
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def new_figure(*heights: float, grid: Literal["x", "y"] = "y") -> tuple[Figure, list[Axes]]:
    """Return a figure of axes of these heights in inches, one above the other, that share their x axis."""
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis=grid, color="#e4e4e4", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def legend(ax: Axes) -> None:
    """Put the legend above the axes, where it hides no line."""
    drawn = ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=4)
    for text in drawn.get_texts():
        text.set_parse_math(False)


def short(name: str, letters: int = 28) -> str:
    """Cut a name that is too long for its place."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
