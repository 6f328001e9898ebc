"""The report of a few-shot run: ``metrics.json``, pictures, and one page that needs no other file."""

from collections.abc import Mapping, Sequence

from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config.arms import OTHER_COLOURS, SHIPPED
from l2a_ray.fewshot.outcome import Cell, Json, Measured, table
from l2a_ray.fewshot.settings import PAIRED
from l2a_ray.outputs.report.figures import Picture, legend, new_figure, save
from l2a_ray.outputs.report.page import environment
from l2a_ray.outputs.report.sheets import ROWS, draw_sheet
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, write_bytes, write_json

COLOURS = {"none": SHIPPED["real"].colour, "copies": OTHER_COLOURS[0]} | {
    arm: SHIPPED[arm].colour for arm in ("random", "selected")
}
STYLES = ("-", "--", ":", "-.")


def write_page(
    name: str,
    metrics: Json,
    measured: Mapping[Cell, Measured],
    notes: Sequence[str],
    store: ClipStore,
    composite: CompositeSettings,
    out: AnyPath,
) -> None:
    """Write the report, in place of an older one.

    Args:
        name: of the run.
        metrics: as :func:`l2a_ray.fewshot.outcome.summarise` makes them.
        measured: what they are of.
        notes: sentences that a reader must know.
        store: the clips.
        composite: how the pairs are composited.
        out: folder to write into.

    Raises:
        StorageError: it cannot be written, or a clip cannot be read.
    """
    write_json(out / "metrics.json", metrics)
    pictures = [_curves(learner, metrics, out) for learner in dict.fromkeys(row["learner"] for row in metrics["rows"])]
    pictures += _pairs(measured, store, composite, out)
    head, *body = table(metrics)
    page = (
        environment("l2a_ray.fewshot")
        .get_template("fewshot.html.j2")
        .render(name=name, metrics=metrics, notes=notes, head=head, body=body, pictures=pictures)
    )
    write_bytes(out / "index.html", page.encode())


def _curves(learner: str, metrics: Json, out: AnyPath) -> Picture:
    """Draw accuracy against shots."""
    figure, (ax,) = new_figure(3.6)
    lines: dict[tuple[str, int], list[Json]] = {}
    for row in metrics["rows"]:
        if row["learner"] == learner:
            lines.setdefault((row["arm"], row["k"]), []).append(row)
    ks = sorted({k for _, k in lines if k})
    for (arm, k), rows in lines.items():
        rows.sort(key=lambda row: row["shot"])
        ax.errorbar(
            [row["shot"] for row in rows],
            [100 * row["accuracy"] for row in rows],
            yerr=[100 * (row["interval95"] or 0) for row in rows],
            color=COLOURS[arm],
            linestyle=STYLES[ks.index(k) % len(STYLES)] if k else "-",
            marker="o",
            markersize=4,
            capsize=3,
            label=Cell("trx", 0, rows[0]["arm"], k).label,
        )
    ax.set_xticks(sorted({row["shot"] for row in metrics["rows"]}))
    ax.set_xlabel("shots")
    ax.set_ylabel("accuracy, %")
    legend(ax)
    path = out / "plots" / f"{learner}.png"
    save(figure, path)
    caption = f"Means over {metrics['episodes']} episodes, with the 95 % interval over these. {metrics['features']}."
    return Picture(path, f"Accuracy against shots: {learner}", caption)


def _pairs(
    measured: Mapping[Cell, Measured], store: ClipStore, composite: CompositeSettings, out: AnyPath
) -> list[Picture]:
    """Draw what the first episode's supports are set before: of each arm, with the most shots and the fewest added."""
    pictures = []
    for arm in PAIRED:
        cells = [cell for cell, one in measured.items() if cell.arm == arm and one.first is not None and len(one.first)]
        if cells:
            cell = max(cells, key=lambda cell: (cell.shot, -cell.k))
            first = measured[cell].first
            assert first is not None
            path = out / "sheets" / f"{arm}.png"
            save(draw_sheet(first.head(ROWS), store, composite), path)
            caption = (
                f"Episode 0 of {cell.shot} shots: the first {min(ROWS, len(first))} of its {len(first)} composites."
            )
            pictures.append(Picture(path, f"Pairs of an episode: {arm}", caption))
    return pictures
