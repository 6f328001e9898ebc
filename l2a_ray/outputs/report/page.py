"""The page: everything about a run in one HTML file that needs nothing else."""

import base64
from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.outputs.report.plots import Picture, best_arm, draw_plots
from l2a_ray.outputs.report.sheets import draw_sheets
from l2a_ray.outputs.report.tables import PARTS, Json, RunTables, arm_order, read_run, summarise
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes, write_json

MEANING = {
    "real": "real clips only",
    "random": "with composites of randomly drawn pairs",
    "selected": "with composites of the pairs that the Selector kept",
}
DASH = "\N{EN DASH}"


def write_report(run: AnyPath, store: ClipStore, out: AnyPath) -> Json:
    """Report on a run: ``metrics.json``, ``plots/``, ``sheets/`` and a self-contained ``index.html`` in ``out``.

    Parts whose stage was not run are left out, and the page says so.

    Returns:
        The content of ``metrics.json``.

    Raises:
        StageError: a file of the run is damaged.
        StorageError: a clip cannot be read, or the report cannot be written.
    """
    tables = read_run(run)
    metrics = summarise(tables, store)
    write_json(out / "metrics.json", metrics)
    for old in (*out.glob("plots/*.png"), *out.glob("sheets/*.png")):
        old.unlink()
    composites = CompositeSettings(**((yaml.safe_load(tables.config) or {}).get("composite") or {}))
    pictures = draw_plots(tables, metrics, store.classes, out / "plots")
    pictures |= draw_sheets(tables.selected, tables.worst, store, composites, out / "sheets")
    page = render(run.absolute().name, tables, metrics, store, pictures)
    write_bytes(out / "index.html", page.encode())
    return metrics


def environment() -> Environment:
    """Return jinja2's environment for the templates beside this file; it escapes what it is given."""
    made = Environment(
        loader=PackageLoader("l2a_ray.outputs", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "number": number, "data_uri": data_uri}
    return made


def render(name: str, tables: RunTables, metrics: Json, store: ClipStore, pictures: dict[str, Picture]) -> str:
    """Return the page as HTML. Whatever comes from a user's files is escaped."""
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            name=name,
            metrics=metrics,
            verdict=verdict(metrics),
            arms=sorted(metrics["arms"], key=arm_order),
            best=best_arm(metrics) if metrics["arms"] else None,
            meaning=MEANING,
            parts=PARTS,
            per_class=_per_class(tables.predictions, metrics, store.classes),
            failed=store.failed.to_dict("records"),
            pictures=pictures,
            tables=tables,
            environment=dict(_flat(tables.environment)),
        )
    )


def verdict(metrics: Json) -> str:
    """Say in words which arm is best, by how much, and whether the spread over seeds allows to say so."""
    arms, comparison = metrics["arms"], metrics["comparison"]
    if not arms:
        return "No classifier was evaluated in this run."
    best = best_arm(metrics)
    top1, n = arms[best]["classifier/top1"]["mean"], arms[best]["n"]
    if not comparison:
        result = f"top-1 {percent(top1)} over {_seeds(n)}"
        return f"Only the arm {best} was trained: {result}. There is nothing to compare it with."
    against = comparison["against"]
    leads = [f"{_points(against[arm])} above {arm}" for arm in sorted(against, key=arm_order)]
    unclear = [arm for arm in sorted(against, key=arm_order) if not against[arm]["clear"]]
    lead = f"Best is {best}: top-1 {percent(top1)} over {_seeds(n)}, {' and '.join(leads)}."
    if n == 1:
        return f"{lead} One seed says nothing about spread: run more seeds before believing it."
    if unclear:
        return f"{lead} The spread over seeds does not allow to say that it is better than {' or '.join(unclear)}."
    return f"{lead} The spread over seeds allows to say so (95 % intervals of the paired differences)."


def _points(difference: Json) -> str:
    interval = difference["interval95"]
    return f"{100 * difference['mean']:.1f}{'' if interval is None else f' ± {100 * interval:.1f}'} points"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _per_class(predictions: pd.DataFrame | None, metrics: Json, classes: tuple[str, ...]) -> list[Json]:
    """Return a row a class: its number of test clips and its accuracy in each arm."""
    if predictions is None or not metrics["arms"]:
        return []
    clips = predictions.drop_duplicates("id")["label"].value_counts()
    accuracy = {arm: about["per_class"] for arm, about in metrics["arms"].items()}
    return [
        {"name": name, "clips": int(clips.get(label, 0))} | {"arms": {arm: accuracy[arm][name] for arm in accuracy}}
        for label, name in enumerate(classes)
    ]


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in [0, 1]; a dash where there is none."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number: integers in full, others to some digits, a dash where there is none."""
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def data_uri(picture: Picture) -> str:
    """Return a picture's file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(read_bytes(picture.path)).decode()


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings to dotted names."""
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        found += _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else [(f"{prefix}{key}", item)]
    return found
