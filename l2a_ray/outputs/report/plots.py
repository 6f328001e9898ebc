"""The plots of the report. Figures are objects of their own: nothing here touches pyplot's global state."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from l2a_ray.outputs.report.tables import Json, RunTables, Selection
from l2a_ray.storage.files import AnyPath, write_bytes

WIDTH = 8.4  # inches; at 120 dots an inch as wide as the page's column
DPI = 120
FAINT, STRONG, LINE = "#b9c4d0", "#0072b2", "#d55e00"
Colour = Callable[[str], str]
NAMED_CLASSES = 40  # more tick labels than this cannot be read
LETTERS = 70  # of tick labels that fit side by side


@dataclass(frozen=True)
class Picture:
    """A picture of the report and what one should see in it."""

    path: AnyPath
    title: str
    caption: str


def draw_plots(tables: RunTables, metrics: Json, classes: tuple[str, ...], folder: AnyPath) -> dict[str, Picture]:
    """Draw every plot that the run has data for; returns them by file name without suffix."""
    drawn: dict[str, Picture] = {}

    def keep(name: str, figure: Figure, title: str, caption: str) -> None:
        drawn[name] = Picture(folder / f"{name}.png", title, caption)
        save(figure, drawn[name].path)

    if metrics["arms"]:
        keep("accuracy", *_accuracy(metrics["arms"], len(classes), tables.colour))
    if tables.history is not None:
        mean = tables.history.groupby("step", as_index=False).mean(numeric_only=True)
        keep("reward", *_reward(mean))
        keep("selection", *_selection(mean))
    if shown := next(iter(tables.scored), None):
        keep("scores", *_scores(shown))
    if metrics["truth"]:
        keep("wrong_labels", *_wrong_labels(metrics["truth"]))
    if tables.curves is not None:
        keep("training", *_training(tables.curves, list(tables.arms), tables.colour))
    if tables.predictions is not None and metrics["arms"]:
        keep("confusion", *_confusion(tables.predictions, best_arm(metrics), classes))
    return drawn


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


def best_arm(metrics: Json) -> str:
    """Return the arm of the highest mean top-1 accuracy, the first one where several are equal."""
    arms: Json = metrics["arms"]
    return max(arms, key=lambda arm: float(arms[arm]["classifier/top1"]["mean"]))


def _figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def _legend(ax: Axes) -> None:
    """Put the legend above the axes, where it hides no line."""
    legend = ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=4)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _accuracy(arms: Json, num_classes: int, colour: Colour) -> tuple[Figure, str, str]:
    figure, (ax,) = _figure(3.4)
    names = list(arms)
    for x, name in enumerate(names):
        top1 = arms[name]["classifier/top1"]
        values = 100 * np.array(list(top1["values"].values()))
        ax.bar(x, 100 * top1["mean"], width=0.5, color=colour(name), alpha=0.35)
        if top1["std"] is not None:
            mean, std = 100 * top1["mean"], 100 * top1["std"]
            ax.errorbar(x + 0.16, mean, yerr=std, fmt="none", capsize=7, elinewidth=1.6, color="#222222")
        offsets = np.linspace(-0.14, 0.02, len(values)) if len(values) > 1 else np.zeros(1)
        ax.scatter(x + offsets, values, s=28, color=colour(name), edgecolor="white", linewidth=0.7, zorder=3)
    chance = 100 / num_classes
    ax.axhline(chance, color="#555555", linewidth=1, linestyle=":")
    ax.text(len(names) - 0.52, chance, "chance", va="bottom", ha="right", fontsize=8, color="#555555")
    ax.set_xticks(range(len(names)), names, parse_math=False)
    if sum(map(len, names)) > LETTERS:
        ax.tick_params("x", rotation=30)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("top-1 accuracy, %")
    clips = max(arm["clips"] for arm in arms.values())
    caption = (
        "One point a seed, the bar is their mean, the whisker one sample standard deviation each way. Arms whose "
        f"points mix cannot be told apart. Each run was tested on {clips} clips: one clip is {100 / clips:.2f} points."
    )
    return figure, "Accuracy of the arms", caption


def _reward(history: pd.DataFrame) -> tuple[Figure, str, str]:
    figure, (top, bottom) = _figure(4.8, rows=2)
    window, step = max(1, min(50, len(history) // 10)), history["step"]
    top.plot(step, history["reward"], color=FAINT, linewidth=0.9, label="reward")
    top.plot(step, history["reward"].rolling(window, min_periods=1).mean(), color=STRONG, label=f"mean of {window}")
    top.axhline(0, color="#555555", linewidth=0.8)
    top.set_ylabel("reward")
    bottom.plot(step, history["val_loss"], color=STRONG, linewidth=1.1, label="validation loss")
    bottom.plot(step, history["baseline"], color=LINE, linewidth=1.4, label="baseline")
    bottom.set_ylabel("loss")
    bottom.set_xlabel("step of the Selector's training")
    for ax in (top, bottom):
        _legend(ax)
    caption = (
        "The reward is the baseline (a moving mean of the validation loss) minus the validation loss after training on "
        "the chosen pairs: above zero, the choice did better than the last few. A Selector that learns lifts the mean "
        "reward and lowers the loss. Each episode begins at the same start of the classifier, so the loss does not "
        "fall for any other reason than the choice."
    )
    return figure, "Reward, baseline and validation loss", caption


def _selection(history: pd.DataFrame) -> tuple[Figure, str, str]:
    figure, (ax,) = _figure(2.9)
    share = history["num_selected"] / history["num_pairs"]
    ax.plot(history["step"], 100 * share, color=FAINT, linewidth=0.9, label="share of pairs selected")
    ax.plot(history["step"], 100 * history["mean_omega"], color=STRONG, label="mean score ω")
    ax.set_ylim(0, 100)
    ax.set_ylabel("%")
    ax.set_xlabel("step of the Selector's training")
    _legend(ax)
    caption = (
        "The share selected is drawn from the scores and should scatter around their mean. Scores that run to 0 or "
        "100 % mean that the Selector has stopped exploring; a line that stays flat at 50 % that it has not begun."
    )
    return figure, "Scores and share selected during training", caption


def _scores(shown: Selection) -> tuple[Figure, str, str]:
    figure, (ax,) = _figure(3.2)
    histogram, summary = shown.histogram, shown.summary
    assert histogram is not None and summary is not None
    edges = np.append(histogram["left"].to_numpy(), histogram["right"].iloc[-1])
    ax.stairs(histogram["count"], edges, fill=True, color=FAINT, label="all candidates")
    counts, _ = np.histogram(shown.pairs["score"], bins=edges)
    ax.stairs(counts, edges, fill=True, color=STRONG, label=shown.arm)
    threshold = f"threshold {summary['threshold']:.3f}"
    ax.axvline(summary["threshold"], color=LINE, linewidth=1.4, linestyle="--", label=threshold)
    ax.set_xlim(float(edges[0]), float(edges[-1]))
    ax.set_xlabel("score ω")
    ax.set_ylabel("pairs")
    _legend(ax)
    caption = (
        f"All candidate pairs by score, seed {shown.seed}; the threshold is the lowest score that was kept. A wide or "
        "two-humped shape means that pairs are told apart; one narrow peak that the choice is close to chance."
    )
    return figure, "Score distribution", caption


def _wrong_labels(truth: Json) -> tuple[Figure, str, str]:
    figure, (ax,) = _figure(3.0)
    found = {name: auc for name, auc in truth["selector/auc_wrong_label_by_class"].items() if auc is not None}
    # Bars grow from chance: what is below it is worse than drawing lots.
    ax.bar(range(len(found)), [auc - 0.5 for auc in found.values()], bottom=0.5, width=0.5, color=STRONG, alpha=0.6)
    ax.axhline(0.5, color="#555555", linewidth=1, label="chance", linestyle=":")
    mean = truth["selector/auc_wrong_label_in_class"]
    if mean is not None:
        ax.axhline(mean, color=LINE, linewidth=1.4, linestyle="--", label=f"mean {mean:.2f}")
    names = [name if len(found) <= NAMED_CLASSES else "" for name in found]
    ax.set_xticks(range(len(found)), names, rotation=30 if len(found) > 8 else 0, parse_math=False)
    ax.set_ylim(0, 1)
    ax.set_ylabel("AUC")
    _legend(ax)
    caption = (
        "How often, among the pairs of a class, one whose foreground has a right label scores above one whose "
        f"foreground has a wrong one. {truth['selector/wrong_label_clips']} clips with a wrong label are behind all "
        "bars together, so a class's own bar rests on a handful of clips."
    )
    return figure, "Wrong labels found, by class", caption


def _training(curves: pd.DataFrame, order: Sequence[str], colour: Colour) -> tuple[Figure, str, str]:
    figure, (ax,) = _figure(3.2)
    losses = curves.groupby(["arm", "seed", "epoch"])["loss"].mean()
    for arm in sorted(curves["arm"].unique(), key=order.index):
        by_seed = losses.loc[arm].unstack("seed")
        ax.plot(by_seed.index, by_seed, color=colour(arm), linewidth=0.7, alpha=0.45)
        mean = by_seed.mean(axis=1)
        ax.plot(mean.index, mean, color=colour(arm), linewidth=1.9, marker=".", label=arm)
    ax.set_xlabel("epoch")
    ax.set_ylabel("training loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(ax)
    caption = (
        "Thick: the mean over seeds; thin: one seed. Every curve should fall and flatten. Arms whose "
        "labels are mixed stay above the others, for a mixed label cannot be fitted to zero: compare no levels."
    )
    return figure, "Training loss of the classifiers", caption


def _confusion(predictions: pd.DataFrame, arm: str, classes: tuple[str, ...]) -> tuple[Figure, str, str]:
    rows, size = predictions[predictions["arm"] == arm], len(classes)
    counts = np.zeros((size, size))
    np.add.at(counts, (rows["label"].to_numpy(), rows["predicted"].to_numpy()), 1)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=max(1.0, float(shares.max())))
    figure.colorbar(image, ax=ax, shrink=0.7, label="% of the true class")
    if size <= NAMED_CLASSES:
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
        ax.set_xticks(range(size), names, rotation=90, fontsize=8, parse_math=False)
        ax.set_yticks(range(size), names, fontsize=8, parse_math=False)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    caption = (
        f"Test clips of the arm {arm}, all seeds together: the row is the true class, the column what was predicted. "
        "A dark diagonal is good; a dark cell off it names two classes that are taken for each other."
    )
    return figure, "Confusion of the best arm", caption
