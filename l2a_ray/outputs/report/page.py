"""The page: everything about a run in one HTML file that needs nothing else."""

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import PurePath

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.mixes import pasted
from l2a_ray.deploy.choose import tell
from l2a_ray.outputs.report.by_class import CONFUSED, baseline
from l2a_ray.outputs.report.disagreement_sheet import draw_disagreements
from l2a_ray.outputs.report.figures import NAMED_CLASSES, Picture
from l2a_ray.outputs.report.mask_pictures import draw_masks
from l2a_ray.outputs.report.masks import look_at_masks
from l2a_ray.outputs.report.plots import best_arm, draw_plots
from l2a_ray.outputs.report.scene_sheet import TITLES, draw_scenes
from l2a_ray.outputs.report.sheets import draw_sheets
from l2a_ray.outputs.report.spread import Json
from l2a_ray.outputs.report.tables import PARTS, RunTables, summarise
from l2a_ray.outputs.report.variety import collapsed
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.learned import tell as learned
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes, write_json

DASH = "\N{EN DASH}"


def write_report(tables: RunTables, store: ClipStore, composite: CompositeSettings, out: AnyPath) -> Json:
    """Report on a run: ``metrics.json``, ``plots/``, ``sheets/`` and a self-contained ``index.html`` in ``out``.

    Parts whose stage was not run are left out, and the page says so.

    Args:
        tables: what the run is made of.
        store: its clips.
        composite: how the pairs on the contact sheets are composited, unless their arm says otherwise; it says which
            masks are looked at.
        out: folder to write into.

    Returns:
        The content of ``metrics.json``.

    Raises:
        StorageError: a clip cannot be read, or the report cannot be written.
    """
    plane = pasted(composite)
    masks = look_at_masks(store, plane)
    metrics = summarise(tables, store, masks, composite)
    write_json(out / "metrics.json", metrics)
    for old in (*out.glob("plots/*.png"), *out.glob("sheets/*.png")):
        old.unlink()
    pictures = draw_plots(tables, metrics, store.classes, out / "plots")
    pictures |= draw_masks(masks, metrics["masks"], store, plane, out)
    pictures |= draw_disagreements(metrics, store, out / "sheets")
    pictures |= draw_scenes(tables.predictions, store, out / "sheets")
    if shown := next(iter(tables.scored), None):
        own = tables.arms[shown.arm].composite or composite
        pictures |= draw_sheets(shown.pairs, shown.worst, store, own, out / "sheets")
    page = render(tables, metrics, store, pictures)
    write_bytes(out / "index.html", page.encode())
    return metrics


def environment(package: str = "l2a_ray.outputs.report") -> Environment:
    """Return jinja2's environment for the templates in a package; it escapes what it is given."""
    made = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "number": number, "data_uri": data_uri}
    return made


def render(tables: RunTables, metrics: Json, store: ClipStore, pictures: dict[str, Picture]) -> str:
    """Return the page as HTML. Whatever comes from a user's files is escaped."""
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            name=tables.name,
            metrics=metrics,
            verdict=verdict(metrics),
            recommended=[] if tables.recommendation is None else tell(tables.recommendation),
            learned=[f"Selector {seed}: {line}." for seed, found in tables.learned.items() for line in learned(found)],
            arms=list(metrics["arms"]),
            best=best_arm(metrics) if metrics["arms"] else None,
            sets={name: title for name, title in TITLES.items() if name in metrics["sets"]},
            baseline=baseline(tables.arms),
            collapsed=few_clips(tables, metrics),
            meaning={name: arm.label for name, arm in tables.arms.items()},
            parts=PARTS,
            confused=_confused(metrics["arms"]) if len(store.classes) > NAMED_CLASSES else [],
            disagreed=_disagreed(metrics["disagreements"], store),
            per_class=_per_class(tables.real_predictions, metrics, store.classes),
            failed=store.failed.to_dict("records"),
            pictures=pictures,
            tables=tables,
            made=[_origin(record) for record in tables.made],
        )
    )


def few_clips(tables: RunTables, metrics: Json) -> list[str]:
    """Say which arms' pairs use far fewer clips than random pairs do."""
    random = next((name for name in metrics["variety"] if tables.arms[name].pairs == "random"), None)
    return collapsed(metrics["variety"], random)


def _origin(record: Json) -> Json:
    """Return what the page says of how a result was made; several processes made it if it was interrupted."""

    def each(describe: Callable[[Json], str]) -> str:
        return ", then ".join(dict.fromkeys(describe(by) for by in record["made_by"]))

    started = datetime.fromisoformat(record["started"]).astimezone(UTC)
    return {name: record[name] for name in ("title", "key", "seconds", "together")} | {
        "started": f"{started:%Y-%m-%d %H:%M:%S}",
        "code": each(_code),
        "hardware": each(lambda by: _hardware(**by["hardware"])),
        "versions": each(lambda by: ", ".join(f"{name} {version}" for name, version in _versions(by).items())),
    }


def _code(by: Json) -> str:
    """Return the commit, as short as git does it by default or longer, or the digest of the code."""
    commit, dash, state = (by["commit"] or "").partition("-")
    return f"{commit[:12]}{dash}{state}" if commit else f"digest {by['code']}"


def _hardware(cpus: int, memory_gib: float, machine: str, gpus: Sequence[str] | None) -> str:
    return ", ".join([f"{cpus} CPUs", f"{memory_gib:g} GiB", machine, *(gpus or ())])


def _versions(by: Json) -> Json:
    return {"python": by["python"]} | {name: version for name, version in by["packages"].items() if version}


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
    leads = [f"{_points(against[arm])} above {arm}" for arm in against]
    unclear = [arm for arm in against if not against[arm]["clear"]]
    lead = f"Best is {best}: top-1 {percent(top1)} over {', '.join([_seeds(n), *leads])}."
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


def _confused(arms: Json) -> list[Json]:
    """Return the classes that any arm takes for each other most, with the share in each arm that names them."""
    rows: dict[tuple[str, str], Json] = {}
    for arm, about in arms.items():
        for pair in about.get("confused", ()):
            rows.setdefault((pair["true"], pair["predicted"]), {})[arm] = pair["share"]
    most = sorted(rows, key=lambda pair: -max(rows[pair].values()))[:CONFUSED]
    return [{"true": true, "predicted": predicted, "arms": rows[true, predicted]} for true, predicted in most]


def _disagreed(disagreements: Json, store: ClipStore) -> list[Json]:
    """Return a row a clip that arms disagree on, with the name of its file."""
    clips = disagreements.get("disagreements/widest", [])
    table = store.columns("id", "path")
    paths = table[table["id"].isin([clip["id"] for clip in clips])].set_index("id")["path"]
    return [clip | {"file": PurePath(paths[clip["id"]]).name} for clip in clips]


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
