"""The tables that the stages of a run left behind, and the numbers of ``metrics.json`` made from them.

Metric names are namespaced by what they speak of, as in ``classifier/top1``. Accuracies and shares are in [0, 1]. What
is there for every seed is given as the mean over the seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd

from l2a_ray.composites.scenes import REAL
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config.arms import OTHER_COLOURS, Arm
from l2a_ray.outputs.report.by_class import baseline, confused, confusion, count_disagreements, disagreements, gains
from l2a_ray.outputs.report.guesses import summarise_guesses
from l2a_ray.outputs.report.masks import SHOWN, summarise_masks
from l2a_ray.outputs.report.spread import Json, compare, mean_of, over, spread
from l2a_ray.outputs.report.truth import judge
from l2a_ray.outputs.report.variety import variety
from l2a_ray.pairs.truth import mark_wrong
from l2a_ray.prepare.store import NO_BACKGROUND, NO_FOREGROUND, ClipStore
from l2a_ray.videos.layouts import Part

RESULTS = ("top1", "top5", "loss")
PARTS = ("composite", "train", "validate")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The pairs that an arm got in one repetition.

    Args:
        arm: its name.
        seed: of the repetition.
        pairs: columns foreground, background, foreground_label, background_label and, if they were scored, score, by
            falling score.
        sample: candidates drawn at random, with scores; this and what follows is None where nothing was scored.
        worst: the candidates of the lowest scores.
        histogram: left, right, count of all candidates' scores.
        summary: candidates, budget, threshold, by_chance.
    """

    arm: str
    seed: int
    pairs: pd.DataFrame
    sample: pd.DataFrame | None = None
    worst: pd.DataFrame | None = None
    histogram: pd.DataFrame | None = None
    summary: Json | None = None


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """What a run is made of; None, or nothing, where a stage was not run. Columns as the stages write them.

    Args:
        name: of the run.
        arms: the arms by name, in the order of a table.
        neighbours: class_name, neighbour, similarity.
        left_out: class_name, role, reason: classes that no composite shows.
        guesses: seed, id, label, confidence, kept, truth of the clips that might get a pseudo-label.
        history: the Selectors' training, one row a step, with the column seed.
        learned: by seed, whether the Selector learned, as ``l2a_ray.selector.learned`` describes it.
        selections: the pairs of each arm and seed.
        curves: the classifiers' training, with columns arm and seed.
        results: arm, seed, set, top1, top5, loss, clips, left_out: a row a set of test clips.
        students: as ``results``, of the networks whose average weights are an arm's result.
        predictions: arm, seed, set, id, label, background, predicted, probability.
        recommendation: which classifier is handed over, as ``l2a_ray.deploy.choose`` describes it.
        truth: path, true_class and bad of the training videos, if the data set tells.
        missing: class_name, name and part of the published clips that have no file.
        config: the settings, as YAML.
        made: of each result its record: title, key, started, seconds, together (made in that time) and made_by, one
            entry a process that worked on it.
        notes: what a user should know of the data.
    """

    name: str
    arms: Mapping[str, Arm]
    neighbours: pd.DataFrame | None
    left_out: pd.DataFrame | None
    guesses: pd.DataFrame | None
    history: pd.DataFrame | None
    learned: Mapping[int, Json]
    selections: Sequence[Selection]
    curves: pd.DataFrame | None
    results: pd.DataFrame | None
    students: pd.DataFrame | None
    predictions: pd.DataFrame | None
    recommendation: Json | None
    truth: pd.DataFrame | None
    missing: pd.DataFrame | None
    config: str
    made: Sequence[Json]
    notes: Sequence[str]

    @property
    def scored(self) -> Sequence[Selection]:
        """The selections of the arm whose scores are looked at."""
        return scored(self.selections, self.arms)

    @property
    def real_predictions(self) -> pd.DataFrame | None:
        """The predictions of the test clips as they are."""
        return None if self.predictions is None else self.predictions[self.predictions["set"] == REAL]

    def colour(self, arm: str) -> str:
        """Return the colour in which an arm is drawn in every plot."""
        chosen = {one.colour.lower() for one in self.arms.values()}
        free = [colour for colour in OTHER_COLOURS if colour not in chosen] or OTHER_COLOURS
        others = [name for name, one in self.arms.items() if not one.colour]
        return self.arms[arm].colour or free[others.index(arm) % len(free)]


def scored(selections: Sequence[Selection], arms: Mapping[str, Arm]) -> Sequence[Selection]:
    """Return the selections of the first arm that a Selector has scored or, without one, that anything has."""
    names = [one.arm for one in selections if one.summary is not None]
    first = next((name for name in names if arms[name].pairs == "selector"), next(iter(names), None))
    return [one for one in selections if one.arm == first]


def summarise(tables: RunTables, store: ClipStore, masks: pd.DataFrame, composite: CompositeSettings) -> Json:
    """Boil a run down to the content of ``metrics.json``.

    ``masks`` is what ``look_at_masks`` saw of the clips; ``composite`` is how pairs are composited by arms that do not
    say.

    Everything that a clock has touched is under the key ``timing``; the rest is equal for equal runs.
    """
    metrics: Json = {"data": _data(store, tables.missing), "match": {}, "selector": {}, "select": {}, "truth": {}}
    metrics["pseudo"] = {} if tables.guesses is None else summarise_guesses(tables.guesses, store.classes)
    metrics |= {"masks": summarise_masks(masks, store.classes), "arms": {}, "sets": {}, "disagreements": {}}
    metrics["comparison"] = None
    metrics["recommendation"] = tables.recommendation
    if tables.neighbours is not None:
        ordered = tables.neighbours.sort_values(["class_name", "similarity"], ascending=[True, False])
        metrics["match"] = {"match/neighbours": ordered.to_dict("records")}
    if tables.history is not None:
        metrics["selector"] = mean_of(_selector(rows) for _, rows in tables.history.groupby("seed"))
    metrics["learned"] = dict(tables.learned)
    if tables.scored:
        metrics["select"] = mean_of(_selection(one) for one in tables.scored)
    metrics["variety"] = _variety(tables, store, composite)
    if tables.truth is not None:
        metrics["truth"] = _truth(tables, tables.truth, store)
    if tables.results is not None:
        real = tables.results[tables.results["set"] == REAL]
        metrics["arms"] = _arms(real, tables.real_predictions, store.classes, tables.arms)
        if tables.students is not None:
            for arm, rows in tables.students[tables.students["set"] == REAL].groupby("arm"):
                metrics["arms"][arm]["student/top1"] = spread(rows.set_index("seed")["top1"])
        metrics["sets"] = _sets(tables.results, metrics["arms"], tables.arms)
        metrics["comparison"] = compare(real, list(tables.arms))
    if tables.real_predictions is not None:
        metrics["disagreements"] = _disagreements(tables.real_predictions, store, list(tables.arms))
    metrics["timing"] = _timing(tables)
    clean: Json = _finite(metrics)
    return clean


def _data(store: ClipStore, missing: pd.DataFrame | None) -> Json:
    counts = {f"data/clips_{split}": len(store.rows(split)) for split in get_args(Part)}
    causes = store.failed["cause"].value_counts().to_dict()
    totals: Json = {"data/classes": len(store.classes), "data/clips_prepared": len(store.index)}
    remarks = store.index["remark"].value_counts().to_dict()
    totals |= {"data/no_foreground": remarks.get(NO_FOREGROUND, 0), "data/no_background": remarks.get(NO_BACKGROUND, 0)}
    there, lost = len(store.index) + len(store.failed), 0 if missing is None else len(missing)
    totals |= {"data/clips_missing": lost, "data/share_there": there / max(1, there + lost)}
    return counts | totals | {"data/clips_failed": len(store.failed), "data/failed_causes": causes}


def _selector(history: pd.DataFrame) -> Json:
    """Describe the Selector's training by its first and its last tenth of steps."""
    history = history.sort_values("step").assign(share_selected=history["num_selected"] / history["num_pairs"])
    tenth = max(1, len(history) // 10)
    names = ("reward", "val_loss", "val_accuracy", "mean_omega", "share_selected")
    first, last = history.head(tenth), history.tail(tenth)
    metrics: Json = {f"selector/{name}_first": first[name].mean() for name in names}
    metrics |= {f"selector/{name}_last": last[name].mean() for name in names}
    metrics["selector/env_runners_lost"] = history["env_runners_lost"].max()
    return metrics | {"selector/steps": len(history), "selector/iterations": history["iteration"].nunique()}


def _selection(one: Selection) -> Json:
    summary = one.summary or {}
    metrics: Json = {f"select/{name}": summary[name] for name in ("candidates", "budget", "threshold", "by_chance")}
    metrics["select/share"] = summary["budget"] / summary["candidates"]
    metrics["select/mean_score_selected"] = one.pairs["score"].mean()
    if one.sample is not None:
        metrics["select/mean_score_random"] = one.sample["score"].mean()
    return metrics


def _variety(tables: RunTables, store: ClipStore, composite: CompositeSettings) -> Json:
    found: dict[str, list[Json]] = {}
    for one in tables.selections:
        own = tables.arms[one.arm].composite or composite
        found.setdefault(one.arm, []).append(variety(one.pairs, store.index, own))
    return {arm: mean_of(parts) for arm, parts in found.items()}


def _truth(tables: RunTables, truth: pd.DataFrame, store: ClipStore) -> Json:
    """Judge what was scored, and tell how many wrong labels the pairs of each arm have."""
    judged = [
        judge({"random": one.sample, "worst": one.worst}, truth, store.index, store.classes)
        for one in tables.scored
        if one.sample is not None and one.worst is not None
    ]
    shares: dict[str, list[float]] = {}
    for one in tables.selections:
        share = mark_wrong(one.pairs, truth, store.index, store.classes)["wrong"].mean()
        shares.setdefault(f"select/share_wrong_label_{one.arm}", []).append(float(share))
    found = mean_of(part for part in judged if part)
    return found | {name: float(np.mean(values)) for name, values in shares.items()} if found else {}


def _arms(
    results: pd.DataFrame, predictions: pd.DataFrame | None, classes: Sequence[str], order: Mapping[str, Arm]
) -> Json:
    arms: Json = {}
    for arm in [name for name in order if name in set(results["arm"])]:
        rows = results[results["arm"] == arm].sort_values("seed")
        about: Json = {f"classifier/{name}": spread(rows.set_index("seed")[name]) for name in RESULTS}
        arms[arm] = about | {"n": len(rows), "clips": int(rows["clips"].max())}
    if predictions is None:
        return arms
    hits, plain = predictions.assign(hit=predictions["label"] == predictions["predicted"]), baseline(order)
    for arm, about in arms.items():
        accuracy = hits[hits["arm"] == arm].groupby("label")["hit"].mean()
        about["per_class"] = {name: accuracy.get(label) for label, name in enumerate(classes)}
        about["confused"] = confused(confusion(predictions, arm, len(classes)), classes)
        if plain in arms and arm != plain:
            about["gain"] = gains(predictions, arm, plain, classes)
    return arms


def _sets(results: pd.DataFrame, arms: Json, order: Mapping[str, Arm]) -> Json:
    """Return what each set of test clips holds; tell each arm of ``arms`` how it does on them."""
    sets: Json = {}
    plain = baseline(order)
    for name, rows in results.groupby("set", sort=False):
        sets[str(name)] = {f"sets/{column}": int(rows[column].iloc[0]) for column in ("clips", "left_out")}
        top1 = rows.pivot(index="seed", columns="arm", values="top1")
        for arm, about in arms.items():
            if name != REAL:
                about[f"classifier/top1_{name}"] = spread(top1[arm].reindex(rows.loc[rows["arm"] == arm, "seed"]))
            if plain in arms and arm != plain:
                about.setdefault("over_real", {})[name] = over(top1, arm, str(plain))
    return sets


def _disagreements(predictions: pd.DataFrame, store: ClipStore, order: Sequence[str]) -> Json:
    """Say of which test clips the arms disagree; nothing if there is but one arm."""
    if predictions["arm"].nunique() < 2:
        return {}
    found = disagreements(predictions, order)
    names = {column: found[column].map(dict(enumerate(store.classes))) for column in ("label", "predicted")}
    return {
        "disagreements/clips": len(found),
        "disagreements/right_under": count_disagreements(predictions, order),
        "disagreements/widest": found.assign(**names).head(SHOWN).to_dict("records"),
    }


def _timing(tables: RunTables) -> Json:
    timing: Json = {}
    if tables.history is not None:
        seconds = {part: float(tables.history[f"seconds_{part}"].sum()) for part in PARTS}
        total = sum(seconds.values())
        timing |= {f"selector/seconds_{part}": value for part, value in seconds.items()}
        timing |= {f"selector/share_{part}": value / total if total else None for part, value in seconds.items()}
    if tables.curves is not None:
        timing |= {f"classifier/{name}": tables.curves[name].mean() for name in ("clips_per_s", "wait_share")}
    return timing


def _finite(value: Any) -> Any:
    """Make a value fit for JSON: NumPy scalars become Python's, what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
