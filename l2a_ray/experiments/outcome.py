"""What a table has come to: the cells' numbers, and means, spreads and paired differences over the repetitions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from l2a_ray.composites.scenes import REAL
from l2a_ray.experiments.grid import Cell, Grid
from l2a_ray.experiments.published import Published, differences, of_columns
from l2a_ray.outputs.report.spread import Json, over, spread
from l2a_ray.storage.files import read_table

MEASURES = ("top1", "top5", "loss")
Measured = Mapping[str, Any]
"""What was measured of a cell: its row, column and repetition, each measure, and where the result lies."""


def measured(cell: Cell) -> Measured | None:
    """Read the numbers of a cell; None if it is not finished.

    Measures of the test clips as they are have plain names, those of another set end with it, as ``top1_scenes``.

    Raises:
        StageError: its result is damaged.
    """
    results = cell.pipeline.results
    if not results.is_complete(cell.result):
        return None
    folder = results.folder(cell.result)
    found: dict[str, Any] = {"row": cell.row, "column": cell.column, **cell.over}
    for one in read_table(folder / "metrics.parquet").to_dict("records"):
        ending = "" if one["set"] == REAL else f"_{one['set']}"
        found |= {f"{name}{ending}": value for name, value in one.items() if name != "set"}
    return found | {"run": cell.pipeline.settings.name, "key": folder.name, "folder": str(folder)}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of a table in one column.

    Args:
        row: its name.
        column: its name.
        cells: how many it has.
        failed: cause by repetition, of those that could not be made.
        values: by measure mean, spread and n over its finished cells, as ``spread`` of the report has them.
        over: by measure the difference from the row that the table names, repetition by repetition; None without one.
        published: the number of a paper, in [0, 1].
        published_over: its difference from the paper's own number of that row.
        differs: in what conditions ours was measured otherwise.
    """

    row: str
    column: str
    cells: int
    failed: Mapping[str, str]
    values: Mapping[str, Json]
    over: Mapping[str, Json | None]
    published: float | None
    published_over: float | None
    differs: tuple[str, ...]

    @property
    def n(self) -> int:
        """How many of its cells are finished."""
        return int(self.values["top1"]["n"]) if self.values else 0

    @property
    def missing(self) -> int:
        """How many of its cells have neither been made nor failed."""
        return self.cells - self.n - len(self.failed)


def as_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """Return a row a finished cell; measures that a cell does not have are empty there."""
    frame = pd.DataFrame([dict(one) for one in found])
    for name in frame.columns:  # a file's column has values of one kind; those of a setting may be of several
        kinds = set(map(type, frame[name]))
        if (len(kinds) > 1 and not kinds <= {int, float}) or kinds & {list, dict}:
            frame[name] = frame[name].map(str)
    return frame


def summarise(grid: Grid, found: Mapping[Cell, Measured], failed: Mapping[Cell, str]) -> list[Entry]:
    """Return the rows of a table, column after column.

    Raises:
        ConfigError: a column names published numbers that are not there.
    """
    papers = of_columns(grid.definition)
    return [entry for column in grid.definition.columns for entry in _column(grid, column, papers, found, failed)]


def _column(
    grid: Grid,
    column: str,
    papers: Mapping[str, Published],
    found: Mapping[Cell, Measured],
    failed: Mapping[Cell, str],
) -> Iterator[Entry]:
    about = grid.definition
    cells = [cell for cell in grid.cells if cell.column == column]
    frame = as_frame([{"repetition": cell.repetition, **found[cell]} for cell in cells if cell in found])
    names = [name for name in frame.columns if name.partition("_")[0] in MEASURES]
    # A row a repetition, a column a row of the table.
    tables = {name: frame.pivot(index="repetition", columns="row", values=name) for name in names}
    numbers = {row: round(number / 100, 6) for row, number in papers[column].rows.items()} if column in papers else {}
    for row, changes in about.rows.items():
        own = [cell for cell in cells if cell.row == row]
        there = [cell.repetition for cell in own if cell in found]
        published, base = numbers.get(row), numbers.get(about.against or "")
        told = differences(papers[column], own[0].pipeline.settings, changes) if published is not None else []
        yield Entry(
            row=row,
            column=column,
            cells=len(own),
            failed={cell.repetition: failed[cell] for cell in own if cell in failed},
            values={name: spread(table.loc[there, row]) for name, table in tables.items()} if there else {},
            over={name: _over(table, row, about.against) for name, table in tables.items()},
            published=published,
            published_over=None if published is None or base is None or row == about.against else published - base,
            differs=tuple(told),
        )


def _over(table: pd.DataFrame, row: str, against: str | None) -> Json | None:
    if against is None or row == against or not {row, against} <= set(table.columns):
        return None
    return over(table, row, against)
