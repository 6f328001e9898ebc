"""``l2a table``: all cells of a table made, those that are there left alone, and a page that grows with them."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2a_ray.errors import L2AError, SettingError
from l2a_ray.experiments.definition import read_definition
from l2a_ray.experiments.grid import Cell, Grid, expand
from l2a_ray.experiments.making import look, make_cells, time_left, without_videos
from l2a_ray.experiments.outcome import Measured, measured, summarise
from l2a_ray.experiments.page import tell, write_table
from l2a_ray.experiments.published import of_columns
from l2a_ray.pipeline import commands
from l2a_ray.pipeline.housekeeping import time_text
from l2a_ray.storage.files import AnyPath, as_path, write_json

logger = logging.getLogger(__name__)


def table(
    file: str,
    overrides: Mapping[str, Any],
    tables: str = "tables",
    only: Sequence[str] = (),
    dry_run: bool = False,
    reports: bool = False,
    at_once: int | None = None,
) -> bool:
    """Make what is missing of a table, and write ``<tables>/<name>/`` anew whenever cells have ended.

    Args:
        file: the table file.
        overrides: settings that count more than those of the file's base and what all cells share.
        tables: folder of all tables.
        only: rows whose cells are made; none named: all. What is there of the others is shown.
        dry_run: say what is there and what would be made, and end.
        reports: write the report of each run that the table is made of.
        at_once: how many results are made at the same time; None: as many as a cluster has room for now.

    Returns:
        Whether no cell has failed.

    Raises:
        ConfigError: the file or the overrides cannot work.
        SettingError: ``only`` names no row, or ``at_once`` is no number of results.
        StageError: a result that is there is damaged.
    """
    if at_once is not None and at_once < 1:
        raise SettingError("at-once", at_once, "must be at least 1")
    grid, wanted, folder = _lay_out(file, overrides, tables, only)
    about = grid.definition
    if dry_run:
        _tell_work(grid, wanted)
        return True
    since, state = time.monotonic(), State(grid, wanted, folder)
    try:
        make_cells(state.begin(), state.tell, state.ended, at_once)
    finally:
        state.write()
    if reports:
        _report(state)
        state.write()
    for line in tell(state.entries, about.against):
        logger.info("%s", line)
    logger.info("table: %s, after %s: %s", state.progress(), time_text(time.monotonic() - since), folder / "index.html")
    for cause in dict.fromkeys(state.failed.values()):
        cells = "; ".join(cell.title for cell in state.failed if state.failed[cell] == cause)
        logger.warning("table: failed: %s: %s", cells, cause)
    return not state.failed


def plan(file: str, overrides: Mapping[str, Any], tables: str = "tables", only: Sequence[str] = ()) -> None:
    """Say what the missing cells of a table will cost (``<tables>/<name>/plan.json``); nothing of it is made.

    Args:
        file: the table file.
        overrides: as of :func:`table`.
        tables: folder of all tables.
        only: rows that are planned; none named: all.

    Raises:
        L2AError: as of :func:`table`; or as the stages' work, on a sample of the data.
    """
    from l2a_ray.experiments.cost import plan_cells
    from l2a_ray.planning.plan import tell as tell_plan

    _, wanted, folder = _lay_out(file, overrides, tables, only)
    lost = without_videos(wanted)
    for cause in dict.fromkeys(lost.values()):
        logger.warning("plan: some cells cannot be made and are left out: %s", cause)
    missing = [cell for cell in wanted if cell not in lost and measured(cell) is None]
    logger.info("plan: %d of %d cells are to be made", len(missing), len(wanted))
    if not missing:
        return
    found = plan_cells(missing, folder)
    write_json(folder / "plan.json", found)
    for line in tell_plan(found):
        logger.info("%s", line)
    logger.info("plan: %s", folder / "plan.json")


def _lay_out(
    file: str, overrides: Mapping[str, Any], tables: str, only: Sequence[str]
) -> tuple[Grid, list[Cell], AnyPath]:
    """Return a table, those of its cells that are wanted, and its folder."""
    about = read_definition(Path(file))
    of_columns(about)
    if unknown := [row for row in only if row not in about.rows]:
        raise SettingError("only", unknown[0], f"must be one of the table's rows: {', '.join(about.rows)}")
    folder = as_path(tables) / str(overrides.get("name", about.name))
    grid = expand(about, overrides, folder)
    for note in grid.notes:
        logger.warning("table: %s", note)
    return grid, [cell for cell in grid.cells if not only or cell.row in only], folder


@dataclass
class State:
    """What has become of the cells.

    Args:
        grid: the table.
        wanted: the cells that are to be made.
        folder: of the table.
    """

    grid: Grid
    wanted: Sequence[Cell]
    folder: AnyPath
    found: dict[Cell, Measured] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)

    def begin(self) -> list[Cell]:
        """Look at what is there; return the cells that are to be made, finished ones too: their runs must know them."""
        for cell in self.grid.cells:
            self._look(cell)
        self.failed |= without_videos(self.wanted)
        for cause in dict.fromkeys(self.failed.values()):
            logger.warning("table: some cells cannot be made: %s", cause)
        self.write()
        return [cell for cell in self.wanted if cell not in self.failed]

    def tell(self, running: Sequence[Cell], what: str, at_once: int) -> None:
        """Say how far the table is, and what was begun or has ended."""
        logger.info("table: %s; %s", self.progress(len(running), at_once), what)

    def ended(self, cells: Mapping[Cell, str | None]) -> None:
        """Take note of cells that are finished or failed, and show the table as it is now."""
        new = [cell for cell in cells if cell not in self.found]
        for cell, cause in cells.items():
            if cause is None:
                self._look(cell)
            else:
                self.failed[cell] = cause
                logger.warning("table: %s failed: %s", cell.title, cause)
        if new:
            self.write()

    def write(self) -> None:
        """Write the table's files."""
        self.entries = summarise(self.grid, self.found, self.failed)
        write_table(self.grid, self.entries, self.found, self.failed, self.folder)

    def _look(self, cell: Cell) -> None:
        numbers = measured(cell)
        if numbers is not None:
            self.found[cell] = numbers

    def progress(self, running: int = 0, at_once: int = 1) -> str:
        """Return how many cells are done, running, waiting and failed, and how long the rest may take."""
        done, failed = (sum(cell in part for cell in self.wanted) for part in (self.found, self.failed))
        rest = len(self.wanted) - done - failed
        counts = f"{done} of {len(self.wanted)} cells done, {running} running, {rest - running} waiting"
        if not rest:
            return f"{counts}, {failed} failed"
        return f"{counts}, {failed} failed; time left: {time_left(look(self.wanted), at_once)}"


def _tell_work(grid: Grid, cells: Sequence[Cell]) -> None:
    """Say which cells are there, what would be made for the others, and how long the like took."""
    for row in grid.definition.rows:
        for column in grid.definition.columns:
            own = [cell for cell in cells if (cell.row, cell.column) == (row, column)]
            missing = [cell.repetition for cell in own if measured(cell) is None]
            state = f"to be made: {'; '.join(missing)}" if missing else "nothing to be made"
            if own:
                there = len(own) - len(missing)
                logger.info("%s: %d of %d cells there, %s", own[0].label, there, len(own), state)
    work = look(cells)
    for name, one in work.items():
        took = "" if one.seconds is None else f", {time_text(one.seconds)} each so far"
        shared = f" for {one.uses} cells" if one.uses > one.results else ""
        logger.info("  %-20s %3d to be made of %d%s%s", name, one.missing, one.results, shared, took)
    logger.info("time, as long as the like took: %s; `l2a plan %s` measures", time_left(work), grid.definition.path)


def _report(state: State) -> None:
    """Write the report of each run that has a finished cell."""
    for pipeline in {cell.pipeline: None for cell in state.found}:
        try:
            commands.report(pipeline.settings)
        except L2AError as error:
            logger.warning("table: no report of %s: %s", pipeline.settings.name, error)
