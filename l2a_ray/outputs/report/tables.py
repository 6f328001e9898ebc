"""The tables that the stages of a run left behind, and the numbers of ``metrics.json`` made from them.

Metric names are namespaced by what they speak of, as in ``classifier/top1``. Accuracies and shares are in [0, 1].
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow
import yaml
from scipy.special import stdtrit

from l2a_ray.errors import StageError
from l2a_ray.outputs.report.truth import judge, read_truth
from l2a_ray.prepare.store import NO_BACKGROUND, NO_FOREGROUND, ClipStore
from l2a_ray.storage.files import AnyPath, read_bytes, read_table

Json = dict[str, Any]
RESULTS = ("top1", "top5", "loss")
PARTS = ("composite", "train", "validate")
ARMS = ("real", "random", "selected")


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """What a run folder holds; None where a stage was not run. Columns as the stages write them.

    Args:
        neighbours: class_name, neighbour, similarity.
        history: the Selector's training, one row a step.
        selected: the pairs kept, by falling score. ``random`` and ``worst`` have the same columns.
        histogram: left, right, count of all candidates' scores.
        summary: candidates, budget, threshold.
        curves: the classifiers' training, with columns arm and seed.
        results: arm, seed, top1, top5, loss, clips.
        predictions: arm, seed, id, label, predicted, probability.
        truth: path and bad of the training videos, if the data set tells.
        missing: class_name, name and part of the published clips that have no file.
    """

    neighbours: pd.DataFrame | None
    history: pd.DataFrame | None
    selected: pd.DataFrame | None
    random: pd.DataFrame | None
    worst: pd.DataFrame | None
    histogram: pd.DataFrame | None
    summary: Json | None
    curves: pd.DataFrame | None
    results: pd.DataFrame | None
    predictions: pd.DataFrame | None
    truth: pd.DataFrame | None
    missing: pd.DataFrame | None
    config: str
    environment: Json
    notes: tuple[str, ...]


def read_run(run: AnyPath) -> RunTables:
    """Read what there is of a run.

    Raises:
        StageError: a file is there but damaged.
    """
    config = _read(run / "config.yaml", _load_yaml) or ""
    data = (yaml.safe_load(config) or {}).get("data") or {}
    return RunTables(
        neighbours=_table(run / "match/neighbours.parquet"),
        history=_table(run / "train-selector/history.parquet"),
        selected=_table(run / "select/selected.parquet"),
        random=_table(run / "select/random.parquet"),
        worst=_table(run / "select/worst.parquet"),
        histogram=_table(run / "select/histogram.parquet"),
        summary=_read(run / "select/summary.json", _load_json),
        curves=_curves(run / "train"),
        results=_table(run / "evaluate/metrics.parquet"),
        predictions=_table(run / "evaluate/predictions.parquet"),
        truth=read_truth(data["root"]) if data.get("root") else None,
        missing=_table(run / "missing.parquet"),
        config=config,
        environment=_read(run / "environment.json", _load_json) or {},
        notes=tuple(_read(run / "notes.json", _load_json) or ()),
    )


def _load_json(path: AnyPath) -> Any:
    return json.loads(read_bytes(path))


def _load_yaml(path: AnyPath) -> str:
    text = read_bytes(path).decode()
    yaml.safe_load(text)
    return text


def _read(path: AnyPath, load: Callable[[AnyPath], Any]) -> Any:
    if not path.is_file():
        return None
    try:
        return load(path)
    except (OSError, ValueError, yaml.YAMLError, pyarrow.ArrowException) as error:
        raise StageError(f"{path}: damaged ({error}). Delete it with its folder and run that stage again") from error


def _table(path: AnyPath) -> pd.DataFrame | None:
    table: pd.DataFrame | None = _read(path, read_table)
    return table


def _curves(folder: AnyPath) -> pd.DataFrame | None:
    """Join the histories of all classifiers, ``train/<arm>-<seed>/history.parquet``."""
    found = []
    paths: list[AnyPath] = list(folder.glob("*/history.parquet"))
    for path in sorted(paths, key=str):
        name = re.fullmatch(r"(\w.*)-(\d+)", path.parent.name)
        table = _table(path)
        if name and table is not None:
            found.append(table.assign(arm=name[1], seed=int(name[2])))
    return pd.concat(found, ignore_index=True) if found else None


def summarise(tables: RunTables, store: ClipStore) -> Json:
    """Boil a run down to the content of ``metrics.json``.

    Everything that a clock has touched is under the key ``timing``; the rest is equal for equal runs.
    """
    metrics: Json = {"data": _data(store, tables.missing), "match": {}, "selector": {}, "select": {}, "truth": {}}
    metrics |= {"arms": {}, "comparison": None}
    if tables.neighbours is not None:
        ordered = tables.neighbours.sort_values(["class_name", "similarity"], ascending=[True, False])
        metrics["match"] = {"match/neighbours": ordered.to_dict("records")}
    if tables.history is not None:
        metrics["selector"] = _selector(tables.history)
    if tables.summary is not None:
        metrics["select"] = _selection(tables)
    if tables.truth is not None and tables.random is not None:
        scored = {"random": tables.random, "selected": tables.selected, "worst": tables.worst}
        known = {name: pairs for name, pairs in scored.items() if pairs is not None}
        metrics["truth"] = judge(known, tables.truth, store.index, store.classes)
    if tables.results is not None:
        metrics["arms"] = _arms(tables.results, tables.predictions, store.classes)
        metrics["comparison"] = compare(tables.results)
    metrics["timing"] = _timing(tables)
    clean: Json = _finite(metrics)
    return clean


def _data(store: ClipStore, missing: pd.DataFrame | None) -> Json:
    counts = {f"data/clips_{split}": len(store.rows(split)) for split in ("train", "val", "test")}
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


def _selection(tables: RunTables) -> Json:
    summary = tables.summary or {}
    metrics: Json = {f"select/{name}": summary[name] for name in ("candidates", "budget", "threshold")}
    metrics["select/share"] = summary["budget"] / summary["candidates"]
    for name, pairs in (("selected", tables.selected), ("random", tables.random)):
        if pairs is not None:
            metrics[f"select/mean_score_{name}"] = pairs["score"].mean()
    return metrics


def _arms(results: pd.DataFrame, predictions: pd.DataFrame | None, classes: tuple[str, ...]) -> Json:
    arms: Json = {}
    for arm, rows in results.sort_values("seed").groupby("arm"):
        about: Json = {f"classifier/{name}": spread(rows.set_index("seed")[name]) for name in RESULTS}
        arms[str(arm)] = about | {"n": len(rows), "clips": int(rows["clips"].max())}
    if predictions is not None:
        hits = predictions.assign(hit=predictions["label"] == predictions["predicted"])
        for arm, rows in hits.groupby("arm"):
            accuracy = rows.groupby("label")["hit"].mean()
            arms[str(arm)]["per_class"] = {name: accuracy.get(label) for label, name in enumerate(classes)}
    return arms


def spread(values: "pd.Series[float]") -> Json:
    """Return mean, sample standard deviation (n - 1), half-width of the 95 % interval of the mean, and the values.

    The interval is Student's t. One value has neither deviation nor interval.
    """
    n, several = len(values), len(values) > 1
    # A diverged run must show, not drop out of the mean.
    std = float(values.std(ddof=1, skipna=False)) if several else None
    interval = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if std is not None else None
    by_seed = {str(seed): float(value) for seed, value in values.items()}
    return {"mean": float(values.mean(skipna=False)), "std": std, "interval95": interval, "n": n, "values": by_seed}


def compare(results: pd.DataFrame) -> Json | None:
    """Set the best arm by mean top-1 against each other one.

    Runs of one seed share their initial weights and data split, so differences are taken seed by seed. ``clear`` says
    whether the 95 % interval of the difference leaves out zero.
    """
    top1 = results.pivot(index="seed", columns="arm", values="top1")
    names = sorted(top1.columns, key=arm_order)
    if len(names) < 2:
        return None
    means = top1.mean()
    best = max(names, key=lambda name: float(means[name]))
    against: Json = {}
    for name in names:
        difference = (top1[best] - top1[name]).dropna()
        if name == best or difference.empty:
            continue
        about = spread(difference)
        clear = about["interval95"] is not None and about["mean"] > about["interval95"]
        against[name] = about | {"clear": clear}
    return {"best": best, "against": against}


def arm_order(name: str) -> tuple[int, str]:
    """Sort key: the arms we know in the order of a table, then the others by name."""
    return (ARMS.index(name) if name in ARMS else len(ARMS)), name


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
