"""The plots of the report: of the arms, the Selector and the choice of pairs here, of the classifiers beside."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from l2a_ray.outputs.report import class_plots
from l2a_ray.outputs.report.by_class import baseline, confusion
from l2a_ray.outputs.report.figures import FAINT, GREY, LINE, NAMED_CLASSES, STRONG, Picture, legend, new_figure, save
from l2a_ray.outputs.report.guesses import draw_guesses
from l2a_ray.outputs.report.spread import Json
from l2a_ray.outputs.report.tables import RunTables, Selection
from l2a_ray.selector.learned import WINDOW
from l2a_ray.storage.files import AnyPath

Colour = Callable[[str], str]
LETTERS = 70  # of tick labels that fit side by side


def draw_plots(tables: RunTables, metrics: Json, classes: tuple[str, ...], folder: AnyPath) -> dict[str, Picture]:
    """Draw every plot that the run has data for; returns them by file name without suffix."""
    drawn: dict[str, Picture] = {}

    def keep(name: str, figure: Figure, title: str, caption: str) -> None:
        drawn[name] = Picture(folder / f"{name}.png", title, caption)
        save(figure, drawn[name].path)

    if metrics["arms"]:
        keep("accuracy", *_accuracy(metrics["arms"], len(classes), tables.colour))
    if metrics["pseudo"]:
        keep("guesses", *draw_guesses(metrics["pseudo"]))
    if tables.history is not None:
        mean = tables.history.groupby("step", as_index=False).mean(numeric_only=True)
        keep("reward", *_reward(mean))
        keep("selection", *_selection(mean))
        if "held_out_loss" in tables.history:
            keep(
                "held_out",
                *_held_out(mean, [found["kept_step"] for found in tables.learned.values() if "kept_step" in found]),
            )
    if shown := next(iter(tables.scored), None):
        keep("scores", *_scores(shown))
    if metrics["truth"]:
        keep("wrong_labels", *_wrong_labels(metrics["truth"]))
    if tables.curves is not None:
        keep("training", *class_plots.training(tables.curves, list(tables.arms), tables.colour))
        keep("speed", *class_plots.speed(tables.curves, list(tables.arms), tables.colour))
    plain, arms = baseline(tables.arms), metrics["arms"]
    if plain and any(value for about in arms.values() for value in about.get("gain", {}).values()):
        keep("gain", *class_plots.gain(arms, plain, tables.colour))
    if tables.real_predictions is not None and arms and len(classes) <= NAMED_CLASSES:
        shares = {arm: confusion(tables.real_predictions, arm, len(classes)) for arm in arms}
        keep("confusion", *class_plots.confusions(shares, classes))
    return drawn


def best_arm(metrics: Json) -> str:
    """Return the arm of the highest mean top-1 accuracy, the first one where several are equal."""
    arms: Json = metrics["arms"]
    return max(arms, key=lambda arm: float(arms[arm]["classifier/top1"]["mean"]))


def _accuracy(arms: Json, num_classes: int, colour: Colour) -> tuple[Figure, str, str]:
    figure, (ax,) = new_figure(3.4)
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
    ax.axhline(chance, color=GREY, linewidth=1, linestyle=":")
    ax.text(len(names) - 0.52, chance, "chance", va="bottom", ha="right", fontsize=8, color=GREY)
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
    figure, (top, bottom) = new_figure(2.4, 2.4)
    window, step = max(1, min(50, len(history) // 10)), history["step"]
    top.plot(step, history["reward"], color=FAINT, linewidth=0.9, label="reward")
    top.plot(step, history["reward"].rolling(window, min_periods=1).mean(), color=STRONG, label=f"mean of {window}")
    top.axhline(0, color=GREY, linewidth=0.8)
    top.set_ylabel("reward")
    bottom.plot(step, history["val_loss"], color=STRONG, linewidth=1.1, label="validation loss")
    bottom.plot(step, history["baseline"], color=LINE, linewidth=1.4, label="baseline")
    bottom.set_ylabel("loss")
    bottom.set_xlabel("step of the Selector's training")
    for ax in (top, bottom):
        legend(ax)
    caption = (
        "The reward is the baseline (a moving mean of the validation loss) minus the validation loss after training on "
        "the chosen pairs: above zero, the choice did better than the last few. A Selector that learns lifts the mean "
        "reward and lowers the loss. Each episode begins at the same start of the classifier, so the loss does not "
        "fall for any other reason than the choice."
    )
    return figure, "Reward, baseline and validation loss", caption


def _held_out(history: pd.DataFrame, kept_steps: Sequence[int]) -> tuple[Figure, str, str]:
    """Of the mean of all seeds: loss after a step on the chosen pairs, all or none, on either part of D_val."""
    figure, axes = new_figure(2.4, 2.4)
    smooth = history.groupby("iteration").mean().rolling(WINDOW, min_periods=1).mean()
    last = history.groupby("iteration")["step"].max()
    for ax, part, title in zip(axes, ("val", "held_out"), ("rewarding part", "held-out part"), strict=True):
        ax.plot(last, smooth[f"{part}_loss"], color=FAINT, linewidth=1.4, label="pairs drawn by score")
        if f"{part}_all" in smooth:
            ax.plot(last, smooth[f"{part}_weighted"], color=STRONG, label="all pairs, weighted by score")
            ax.plot(last, smooth[f"{part}_all"], color=LINE, linewidth=1.4, linestyle="--", label="all pairs alike")
        ax.plot([], [], " ", label=f"no pair: {smooth[f'{part}_none'].iloc[0]:.3f}")
        for i, step in enumerate(kept_steps):
            ax.axvline(step, color=GREY, linewidth=1, linestyle=":", label="" if i else "kept")
        ax.set_ylabel(f"loss, {title}")
        legend(ax)
    axes[-1].set_xlabel("step of the Selector's training")
    caption = (
        f"Loss on both parts of D_val after a step of the classifier, means over the last {WINDOW} iterations. The "
        "reward is of the first part alone. A Selector that learns what is true of other clips too leads below the "
        "line of all pairs in both; one that learns its clips by heart in the first alone. Kept are the weights of the "
        "dotted line, where the held-out lead over all pairs is best."
    )
    return figure, "Rewarding and held-out part of D_val", caption


def _selection(history: pd.DataFrame) -> tuple[Figure, str, str]:
    figure, (ax,) = new_figure(2.9)
    share = history["num_selected"] / history["num_pairs"]
    ax.plot(history["step"], 100 * share, color=FAINT, linewidth=0.9, label="share of pairs selected")
    ax.plot(history["step"], 100 * history["mean_omega"], color=STRONG, label="mean score ω")
    ax.set_ylim(0, 100)
    ax.set_ylabel("%")
    ax.set_xlabel("step of the Selector's training")
    spread = ""
    if "omega_low" in history:
        low, high = 100 * history["omega_low"], 100 * history["omega_high"]
        ax.fill_between(history["step"], low, high, color=STRONG, alpha=0.15, linewidth=0, label="5 to 95 % of ω")
        spread = " The band holds nine in ten of a state's scores: it widens as pairs are told apart."
    legend(ax)
    caption = (
        "The share selected is drawn from the scores and should scatter around their mean. Scores that run to 0 or "
        "100 % mean that the Selector has stopped exploring; a line that stays flat at 50 % that it has not begun."
        + spread
    )
    return figure, "Scores and share selected during training", caption


def _scores(shown: Selection) -> tuple[Figure, str, str]:
    figure, (ax,) = new_figure(3.2)
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
    legend(ax)
    caption = (
        f"All candidate pairs by score, seed {shown.seed}; the threshold is the lowest score that was kept. A wide or "
        "two-humped shape means that pairs are told apart; one narrow peak that the choice is close to chance."
    )
    return figure, "Score distribution", caption


def _wrong_labels(truth: Json) -> tuple[Figure, str, str]:
    figure, (ax,) = new_figure(3.0)
    found = {name: auc for name, auc in truth["selector/auc_wrong_label_by_class"].items() if auc is not None}
    # Bars grow from chance: what is below it is worse than drawing lots.
    ax.bar(range(len(found)), [auc - 0.5 for auc in found.values()], bottom=0.5, width=0.5, color=STRONG, alpha=0.6)
    ax.axhline(0.5, color=GREY, linewidth=1, label="chance", linestyle=":")
    mean = truth["selector/auc_wrong_label_in_class"]
    if mean is not None:
        ax.axhline(mean, color=LINE, linewidth=1.4, linestyle="--", label=f"mean {mean:.2f}")
    names = [name if len(found) <= NAMED_CLASSES else "" for name in found]
    ax.set_xticks(range(len(found)), names, rotation=30 if len(found) > 8 else 0, parse_math=False)
    ax.set_ylim(0, 1)
    ax.set_ylabel("AUC")
    legend(ax)
    caption = (
        "How often, among the pairs of a class, one whose foreground has a right label scores above one whose "
        f"foreground has a wrong one. {truth['selector/wrong_label_clips']} clips with a wrong label are behind all "
        "bars together, so a class's own bar rests on a handful of clips."
    )
    return figure, "Wrong labels found, by class", caption
