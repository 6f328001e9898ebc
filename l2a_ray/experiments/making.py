"""Making the cells of a table: which go together, what is missing, and what becomes of one that fails."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from statistics import mean

from l2a_ray.errors import L2AError, owned_by
from l2a_ray.experiments.attempt import attempt
from l2a_ray.experiments.grid import Cell
from l2a_ray.pipeline.housekeeping import time_text
from l2a_ray.pipeline.results import Record, closure
from l2a_ray.pipeline.stage import Stage, definition
from l2a_ray.videos.catalog import read_catalog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What is there of a stage, and what is missing, over all cells.

    Args:
        results: how many different results the cells need.
        missing: how many of these are not complete.
        uses: how many there would be if cells shared none.
        seconds: what one took, by those that are complete; None if none is.
    """

    results: int
    missing: int
    uses: int
    seconds: float | None


def depth(stage: Stage) -> int:
    """Return how many stages come one after the other until a stage's result is there."""
    return 1 + max(map(depth, stage.reads().values()), default=0)


def look(cells: Sequence[Cell]) -> dict[str, Work]:
    """Return what is there and what is missing, by name of the stage, in the order of work."""
    known: dict[str, tuple[str, Record | None]] = {}
    uses, depths = Counter[str](), Counter[str]()
    for cell in cells:
        records = dict(cell.pipeline.results.records([cell.result]))
        for stage in closure([cell.result]):
            known.setdefault(definition(stage), (stage.name, records.get(stage)))
            uses[stage.name] += 1
            depths[stage.name] = max(depths[stage.name], depth(stage))
    found = {}
    for name in sorted(uses, key=depths.__getitem__):
        own = [record for stage, record in known.values() if stage == name]
        taken = [record["seconds"] / record["together"] for record in own if record is not None]
        found[name] = Work(len(own), len(own) - len(taken), uses[name], mean(taken) if taken else None)
    return found


def time_left(work: Mapping[str, Work], at_once: int = 1) -> str:
    """Say how long what is missing will take if it takes as long as the like did, so many results at a time."""
    missing = {name: one for name, one in work.items() if one.missing}
    unknown = [name for name, one in missing.items() if one.seconds is None]
    known = sum(one.missing * one.seconds for one in missing.values() if one.seconds is not None) / at_once
    if not unknown:
        return f"about {time_text(known)}"
    beside = f"about {time_text(known)} and what these take: " if known else "not known of "
    return f"{beside}{', '.join(unknown)}"


def without_videos(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Return, with the cause, the cells whose data set cannot be used, before hours are spent on others."""
    causes: dict[str, str | None] = {}
    for cell in cells:
        prepare = cell.pipeline.prepare
        key = definition(prepare)
        if key not in causes:
            causes[key] = None
            if not cell.pipeline.results.is_complete(prepare):
                try:
                    with owned_by("data"):
                        read_catalog(cell.pipeline.settings.data)
                except (L2AError, OSError) as error:
                    causes[key] = str(error)
    found = {cell: causes[definition(cell.pipeline.prepare)] for cell in cells}
    return {cell: cause for cell, cause in found.items() if cause is not None}


def make_cells(
    cells: Sequence[Cell],
    tell: Callable[[Sequence[Cell], str, int], None],
    ended: Callable[[Mapping[Cell, str | None]], None],
    at_once: int | None = None,
) -> None:
    """Make the results of cells; one that fails does not end it.

    What is made at the same time is said here and nowhere else: as many results as a cluster has room for, or one group
    of cells after the other.

    Args:
        cells: those whose results are wanted, finished or not.
        tell: is told of the cells at work, of what was begun or has ended, and how many results are made at a time.
        ended: is told of cells as they end: None, or why they failed.
        at_once: how many results are made at a time; None: as many as Ray has room for now.
    """
    with ExitStack() as stack:
        if any(stage.demands() for cell in cells for stage in cell.pipeline.results.needed([cell.result])):
            from l2a_ray.experiments.side_by_side import make_side_by_side, room_for_two
            from l2a_ray.runtime.session import ray_session

            stack.enter_context(ray_session(settings=cells[0].pipeline.settings.runtime))
            if at_once != 1 and (at_once or room_for_two(cells)):
                make_side_by_side(cells, at_once, tell, ended)
                return
        for group in groups(cells):
            missing = [cell for cell in group if not cell.pipeline.results.is_complete(cell.result)]
            if missing:
                rows = ", ".join(cell.label for cell in missing)
                tell(missing, f"now {missing[0].repetition}: {rows}", 1)
            if (cause := _attempt(group)) is not None and len(group) > 1:
                logger.warning("table: %s. Going on cell by cell", cause)
                for cell in group:
                    ended({cell: _attempt([cell])})
            else:
                ended(dict.fromkeys(group, cause))


def groups(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield cells that are made as the arms of one run are: of a repetition, if they share clips, machines and tests.

    What they share is made once, Ray Train starts once, and frozen backbones see a test clip once.
    """

    def shared(cell: Cell) -> tuple[str, ...]:
        settings = cell.pipeline.settings
        alike = settings.workers, settings.evaluate, settings.runtime
        return cell.repetition, cell.column, definition(cell.pipeline.prepare), *map(repr, alike)

    for _, group in groupby(cells, shared):
        yield list(group)


def _attempt(cells: Sequence[Cell]) -> str | None:
    return attempt([(cell.pipeline.results, [cell.result]) for cell in cells])
