"""A table as files: ``results.parquet``, ``table.csv``, ``table.md`` and ``index.html``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from l2a_ray.experiments.grid import RUNS, Cell, Grid
from l2a_ray.experiments.outcome import Entry, Measured, as_frame
from l2a_ray.experiments.plots import draw
from l2a_ray.experiments.published import of_columns
from l2a_ray.outputs.report.page import DASH, environment
from l2a_ray.outputs.report.scene_sheet import TITLES
from l2a_ray.outputs.report.spread import Json
from l2a_ray.storage.files import AnyPath, write_bytes

MARK = "*"
"""Beside a published number whose conditions were others."""


def write_table(
    grid: Grid,
    entries: Sequence[Entry],
    found: Mapping[Cell, Measured],
    failed: Mapping[Cell, str],
    folder: AnyPath,
) -> None:
    """Write the files of a table in place of older ones, each whole.

    Args:
        grid: the table.
        entries: its rows, column after column.
        found: the finished cells' numbers.
        failed: why cells could not be made.
        folder: of the table.

    Raises:
        StorageError: it cannot be written.
    """
    rows = [found[cell] for cell in grid.cells if cell in found]
    write_bytes(folder / "results.parquet", as_frame(rows).to_parquet(index=False))
    write_bytes(folder / "table.csv", _csv(entries).to_csv(index=False).encode())
    parts = [_part(grid, entries, column) for column in grid.definition.columns]
    notes = _notes(grid, len(rows), len(failed))
    write_bytes(folder / "table.md", _markdown(grid, parts, notes).encode())
    page = (
        environment("l2a_ray.experiments")
        .get_template("table.html.j2")
        .render(
            name=grid.settings.name,
            notes=notes,
            parts=parts,
            pictures=draw(grid, entries, folder / "plots"),
            failed=[(cell.title, cause) for cell, cause in failed.items()],
            runs=[_run(cells, folder) for cells in _runs(grid)],
        )
    )
    write_bytes(folder / "index.html", page.encode())


def tell(entries: Sequence[Entry], against: str | None) -> list[str]:
    """Return a line a row of the table."""
    lines = []
    for entry in entries:
        difference = entry.over.get("top1")
        lead = f", {_points(difference)} to {against}" if difference else ""
        about = f"{_percent(entry.values.get('top1'))} (n = {_count(entry)}){lead}"
        lines.append(f"{', '.join(filter(None, (entry.row, entry.column)))}: {about}")
    return lines


@dataclass(frozen=True)
class Part:
    """A column of the table, as it is shown: a table of its own.

    Args:
        column: its name.
        head: titles.
        body: a row of text by title.
        notes: what differs from the published numbers' conditions, and where these stand.
    """

    column: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def _part(grid: Grid, entries: Sequence[Entry], column: str) -> Part:
    about, paper = grid.definition, of_columns(grid.definition).get(column)
    theirs = paper is not None and about.against in paper.rows
    own = [entry for entry in entries if entry.column == column]
    others = [name for name in TITLES if any(f"top1_{name}" in entry.values for entry in own)]
    head = ["row", "top-1, %", "n"]
    if about.against:
        head.append(f"over {about.against}, points")
    if paper:
        head += ["published, %", *([f"over {about.against}, there"] if theirs else [])]
    head += [f"{TITLES[name]}{', lower is better' if name == 'still' else ''}, %" for name in others]
    body = []
    for entry in own:
        texts = [entry.row, _percent(entry.values.get("top1")), _count(entry)]
        if about.against:
            texts.append(_points(entry.over.get("top1")))
        if paper:
            number = DASH if entry.published is None else f"{100 * entry.published:.1f}{MARK if entry.differs else ''}"
            there = DASH if entry.published_over is None else f"{100 * entry.published_over:+.1f}"
            texts += [number, *([there] if theirs else [])]
        body.append((*texts, *(_percent(entry.values.get(f"top1_{name}")) for name in others)))
    notes = []
    if paper:
        differing: dict[tuple[str, ...], list[str]] = {}
        for entry in own:
            if entry.differs:
                differing.setdefault(entry.differs, []).append(entry.row)
        notes.append(f"Published: {paper.source}.")
        for differs, rows in differing.items():
            who = "" if len(differing) == 1 else f" ({', '.join(rows)})"
            notes.append(f"{MARK} Under other conditions{who}: {'; '.join(differs)}.")
    return Part(column, tuple(head), tuple(body), tuple(notes))


def _notes(grid: Grid, done: int, failed: int) -> list[str]:
    repetitions = list(dict.fromkeys(cell.repetition for cell in grid.cells))
    rest = len(grid.cells) - done - failed
    state = f"{done} of {len(grid.cells)} cells are finished, {failed} failed and {rest} are still to be made."
    about = (
        "Mean and sample standard deviation over n repetitions, of the test clips; differences repetition by "
        "repetition, with the half-width of their 95 % interval (Student's t), which is clear if it leaves out zero."
    )
    return [state, f"Repetitions: {'; '.join(repetitions)}.", about, *(f"Note: {note}." for note in grid.notes)]


def _markdown(grid: Grid, parts: Sequence[Part], notes: Sequence[str]) -> str:
    lines = [f"# {grid.settings.name}", ""]
    for part in parts:
        lines += [f"## {part.column}", ""] if part.column else []
        lines += [_line(part.head), _line(["---"] * len(part.head)), *map(_line, part.body), ""]
        lines += [line for note in part.notes for line in (note.replace(MARK, f"\\{MARK}"), "")]
    return "\n".join([*lines, *(line for note in notes for line in (note, ""))])


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def _csv(entries: Sequence[Entry]) -> pd.DataFrame:
    """Return the table as numbers; accuracies and their differences are in [0, 1]."""
    rows = []
    for entry in entries:
        row: dict[str, Any] = {"row": entry.row, "column": entry.column, "n": entry.n}
        row |= {"missing": entry.missing, "failed": len(entry.failed)}
        row |= {"published": entry.published, "conditions_differ": "; ".join(entry.differs)}
        for name, value in entry.values.items():
            over = entry.over.get(name) or {}
            row |= {name: value["mean"], f"{name}_std": value["std"], f"{name}_interval95": value["interval95"]}
            row |= {f"{name}_over": over.get("mean"), f"{name}_over_interval95": over.get("interval95")}
        rows.append(row)
    return pd.DataFrame(rows)


def _percent(value: Json | None) -> str:
    if value is None or value["mean"] != value["mean"]:  # a set that no clip is in has NaN
        return DASH
    return f"{100 * value['mean']:.1f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.1f}")


def _points(difference: Json | None) -> str:
    if difference is None:
        return DASH
    interval = difference["interval95"]
    told = "" if interval is None else f" ± {100 * interval:.1f}{', clear' if difference['clear'] else ''}"
    return f"{100 * difference['mean']:+.1f}{told}"


def _count(entry: Entry) -> str:
    parts = [str(entry.n), f"{len(entry.failed)} failed" if entry.failed else ""]
    return ", ".join(filter(None, [*parts, f"{entry.missing} missing" if entry.missing else ""]))


def _runs(grid: Grid) -> list[list[Cell]]:
    """Return the cells of each run."""
    runs: dict[str, list[Cell]] = {}
    for cell in grid.cells:
        runs.setdefault(cell.pipeline.settings.name, []).append(cell)
    return list(runs.values())


def _run(cells: Sequence[Cell], folder: AnyPath) -> Json:
    """Return what the page says of a run: where it lies, if it is there, and what is special about it."""
    first = cells[0]
    place = f"{RUNS}/{first.pipeline.settings.name}"
    files = {"report": f"{place}/report/index.html", "settings": f"{place}/config.yaml"}
    changes = {**first.changes, **{name: value for name, value in first.over.items() if name != "seed"}}
    return {
        "label": first.label,
        "changes": ", ".join(f"{name}: {value}" for name, value in changes.items()),
        "links": {name: file for name, file in files.items() if (folder / file).is_file()},
    }
