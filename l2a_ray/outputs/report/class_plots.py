"""Plots of the classifiers: how they were trained, what each class gained, and what they take for each other."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from l2a_ray.outputs.report.figures import GREY, NAMED_CLASSES, WIDTH, legend, new_figure, short
from l2a_ray.outputs.report.spread import Json

Colour = Callable[[str], str]
CLOCKED = {"clips_per_s": "clips a second", "wait_share": "share waiting"}
"""What the training's history tells of its speed, and how an axis is named; its other columns are of what it learns."""
NUMBERED_CLASSES = 10  # more cells in a row have no room for numbers
COLUMNS = (NUMBERED_CLASSES, 3), (24, 2), (NAMED_CLASSES, 1)  # most classes, and how many arms then stand side by side


def training(curves: pd.DataFrame, order: Sequence[str], colour: Colour) -> tuple[Figure, str, str]:
    """Draw what the history tells of each epoch, the loss first."""
    known = {"seed", "epoch", "step", "loss", *CLOCKED}
    told = [name for name in map(str, curves.select_dtypes("number").columns) if name not in known]
    names = {"loss": "training loss"} | {name: name.replace("_", " ") for name in told}
    caption = (
        "Line: the mean over the seeds; band: one sample standard deviation each way. Every loss should fall and "
        "flatten; one that still falls at the end asks for more epochs. Arms whose labels are mixed stay above the "
        "others, for a mixed label cannot be fitted to zero: compare no levels."
    )
    return _curves(curves, names, order, colour), "Training of the classifiers", caption


def speed(curves: pd.DataFrame, order: Sequence[str], colour: Colour) -> tuple[Figure, str, str]:
    """Draw how fast the classifiers were trained."""
    caption = (
        "Samples trained on in a second, and the share of the time in which the network waited for them: near 1, more "
        "processes that read clips would help; near 0, a faster device."
    )
    return _curves(curves, CLOCKED, order, colour), "Speed of the training", caption


def _curves(curves: pd.DataFrame, names: dict[str, str], order: Sequence[str], colour: Colour) -> Figure:
    """Draw each column over the epochs, below each other; the first is the tallest."""
    figure, axes = new_figure(*(3.0 if at == 0 else 1.5 for at in range(len(names))))
    for ax, (column, label) in zip(axes, names.items(), strict=True):
        by_epoch = (
            curves.groupby(["arm", "epoch", "seed"])[column].mean().groupby(["arm", "epoch"]).agg(["mean", "std"])
        )
        for arm in sorted(curves["arm"].unique(), key=order.index):
            mean, std = by_epoch.loc[arm, "mean"], by_epoch.loc[arm, "std"].fillna(0.0)
            ax.fill_between(mean.index, mean - std, mean + std, color=colour(arm), alpha=0.16, linewidth=0)
            ax.plot(mean.index, mean, color=colour(arm), linewidth=1.9, marker=".", label=arm)
        ax.set_ylabel(label)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes[0])
    return figure


def gain(arms: Json, against: str, colour: Colour) -> tuple[Figure, str, str]:
    """Draw how far each class's accuracy lies above that of an arm, a row a class, the largest gain at the top."""
    named = [arm for arm in arms if "gain" in arms[arm]]
    mean, half = (_by_class(arms, named, number) for number in ("mean", "interval95"))
    mean = mean.dropna(how="all")
    largest = mean.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:NAMED_CLASSES]
    mean = mean.loc[largest].loc[mean.loc[largest].mean(axis=1).sort_values(ascending=False, kind="stable").index]
    half = half.loc[mean.index]
    figure, (ax,) = new_figure(0.9 + len(mean) * max(0.2, 0.13 * len(named)), grid="x")
    rows = np.arange(len(mean))
    for at, arm in enumerate(named):
        y = rows + (at - (len(named) - 1) / 2) * 0.7 / len(named)
        ax.errorbar(mean[arm], y, xerr=half[arm].fillna(0.0), fmt="o", markersize=4.5, color=colour(arm), label=arm)
    ax.axvline(0, color=GREY, linewidth=1)
    for row in rows[1::2]:
        ax.axhspan(row - 0.5, row + 0.5, color="#f5f7fa", linewidth=0, zorder=-1)
    # Two seeds have intervals of twelve deviations: let them leave the picture rather than flatten all else.
    reach = float((mean.abs() + half.fillna(0.0)).to_numpy().max())
    limit = min(105.0, 1.05 * reach, max(10.0, 3 * float(mean.abs().to_numpy().max()))) or 1.0
    ax.set_yticks(rows, [short(name) for name in mean.index], fontsize=8, parse_math=False)
    ax.tick_params("y", length=0)
    ax.set(xlim=(-limit, limit), ylim=(len(mean) - 0.5, -0.5), xlabel=f"accuracy above {against}, points")
    legend(ax)
    some = len(mean) < len(arms[named[0]]["gain"])
    which = f" The {len(mean)} classes that differ most, of those with test clips." if some else ""
    caption = (
        f"Points of accuracy by which an arm lies above {against}, class by class, the mean over the seeds; whisker: "
        "the 95 % interval (Student's t) of the differences taken seed by seed, where there are two seeds or "
        f"more.{which} A whisker across zero may be chance; among many classes, so may one in twenty that stays clear."
    )
    return figure, f"Gain over {against} by class", caption


def _by_class(arms: Json, named: Sequence[str], number: str) -> pd.DataFrame:
    """Return a number of each class's gain in points, a row a class and a column an arm, NaN where there is none."""
    gains = {arm: {name: (about or {}).get(number) for name, about in arms[arm]["gain"].items()} for arm in named}
    return 100 * pd.DataFrame(gains).astype(np.float64)


def confusions(shares: dict[str, NDArray[np.float64]], classes: Sequence[str]) -> tuple[Figure, str, str]:
    """Draw a matrix (L, L) an arm, of the share of each true class, NaN where it has no test clip."""
    size = len(classes)
    columns = min(len(shares), next(columns for most, columns in COLUMNS if size <= most))
    rows = -(-len(shares) // columns)
    names, font = [short(name, 18) for name in classes], 7.5
    words = 0.07 * max(map(len, names)) + 0.3  # inches
    side = min(5.6, (WIDTH - words) / columns)
    named = words * (2 if len(shares) % columns else 1)  # where the last row is not full, the one above has names too
    figure = Figure(figsize=(WIDTH, rows * (side + 0.25) + named + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for number, (ax, (arm, matrix)) in enumerate(zip(axes.flat, shares.items(), strict=False)):
        image = ax.imshow(100 * matrix, cmap="Blues", vmin=0, vmax=100)
        ax.set_title(arm, fontsize=10, parse_math=False)
        ax.set_xticks(range(size), names, rotation=90, fontsize=font, parse_math=False)
        ax.set_yticks(range(size), names, fontsize=font, parse_math=False)
        lowest = number + columns >= len(shares)
        ax.tick_params(length=0, labelbottom=lowest)
        ax.set(xlabel="predicted" if lowest else "", ylabel="" if number % columns else "true")
        if size <= NUMBERED_CLASSES:
            for (row, column), share in np.ndenumerate(matrix):
                if share >= 0.005:
                    colour = "white" if share > 0.55 else "#1d2733"
                    ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    for ax in axes.flat[len(shares) :]:
        ax.remove()
    figure.colorbar(image, ax=figure.axes, location="bottom", shrink=0.5, aspect=40, label="% of the true class")
    caption = (
        "The row is the true class, the column what was predicted, the mean over the seeds. A dark diagonal is good; a "
        "dark cell off it names two classes that are taken for each other. A class without test clips is a white row."
    )
    return figure, "Confusion of each arm", caption
