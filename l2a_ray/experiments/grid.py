"""The cells of a table: each a row, a column and a repetition, with the pipeline that makes it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from itertools import product
from typing import Any, get_args, get_type_hints

from l2a_ray.config.arms import SHIPPED, Arm
from l2a_ray.config.building import build
from l2a_ray.config.loading import Layers
from l2a_ray.config.settings import Settings
from l2a_ray.errors import ConfigError, SettingError
from l2a_ray.experiments.definition import Changes, Definition, wrong
from l2a_ray.fields import plain
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stage import Stage, definition, flatten
from l2a_ray.storage.files import AnyPath

RUNS = "runs"
"""Folder of a table that holds the runs of its cells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A number of a table, to be measured.

    Args:
        row: its name.
        column: its name; empty where the table has but one.
        over: what tells the repetition from others: values by dotted names, and ``seed``.
        pipeline: of the run that it is part of, which has all its seeds.
        arm: the run's only one.
        changes: in what the run differs from the base and from what all have in common, but for the repetition.
    """

    row: str
    column: str
    over: Mapping[str, Any]
    pipeline: Pipeline
    arm: str
    changes: Changes

    @cached_property
    def result(self) -> Stage:
        """The stage that measures it."""
        return self.pipeline.evaluate(self.arm, self.over["seed"])

    @property
    def repetition(self) -> str:
        """What its repetition is called, as ``data.split=1, seed=0``."""
        return ", ".join(f"{name}={value}" for name, value in self.over.items())

    @property
    def label(self) -> str:
        """Its row and column."""
        return ", ".join(filter(None, (self.row, self.column)))

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.label}, {self.repetition}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """All cells of a table.

    Args:
        definition: the table file.
        settings: of the base, with what all cells share.
        cells: repetition after repetition, so that a whole table is there early; then by column and row.
        notes: what a user should know of the table file.
    """

    definition: Definition
    settings: Settings
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


def expand(about: Definition, overrides: Mapping[str, Any], folder: AnyPath) -> Grid:
    """Lay out a table.

    Args:
        about: the table file.
        overrides: settings of the command line, nested or by dotted names; they count more than base and common.
        folder: of the table; its cells' runs lie in there.

    Raises:
        ConfigError: the file names no setting, a value that cannot work, or the same setting in two places; or two
            repetitions are the same.
    """
    given = flatten(overrides)
    _check_places(about, given)
    layers = Layers(*about.base)
    shared = {name: value for name, value in about.common.items() if name != "arm"} | given
    common = _read(about, layers, {"name": about.name} | shared, "base and common")
    base = _build(about, common, "base and common")

    def read(where: str, changes: Changes) -> Changes:
        """Return changes with the values that the settings would have; each is read once, however many cells it has."""
        own = {name: value for name, value in changes.items() if name not in ("arm", "seed")}
        found = _read(about, layers, shared | own, where) if own else {}
        return {name: _at(found, name) for name in map(_whole, own)}

    columns = {name: read(f"column `{name}`", changes) for name, changes in about.columns.items()}
    rows = {name: read(f"row `{name}`", changes) for name, changes in about.rows.items()}
    seeds = given.get("seeds", about.over.get("seed", base.seeds))
    over = {**about.over, "seed": _read(about, layers, shared | {"seeds": seeds}, "over.seed")["seeds"]}
    arms = {row: _arm(about, row, base) for row in about.rows}
    fixed = {"runs": str(folder.absolute() / RUNS), "store": str(base.store_folder), "seeds": over["seed"]}
    pipelines: dict[str, Pipeline] = {}
    cells = []
    for values in product(*over.values()):
        repetition = dict(zip(over, values, strict=True))
        outer = {name: value for name, value in repetition.items() if name != "seed"}
        varied = ", ".join(f"{name}={value}" for name, value in outer.items())
        of_outer: Changes | None = None
        for (column, of_column), (row, of_row) in product(about.columns.items(), about.rows.items()):
            run = slug("-".join([*filter(None, (column, row)), *(f"{n.split('.')[-1]}{v}" for n, v in outer.items())]))
            arm = slug(row)
            if run not in pipelines:
                of_outer = read(varied, outer) if of_outer is None else of_outer
                # Which pairs a preview shows is said by arms of the base, which are not here.
                changes = {**columns[column], **rows[row], **of_outer, "preview.which": [], **fixed}
                changes |= {"name": run, "arms": {arm: plain(arms[row])}}
                where = ", ".join(filter(None, (f"row `{row}`", column, varied)))
                pipelines[run] = Pipeline(_build(about, _changed(common, changes), where))
            told = {**of_column, **of_row}
            cells.append(Cell(row=row, column=column, over=repetition, pipeline=pipelines[run], arm=arm, changes=told))
    _check_folders(about, cells)
    notes = (*_idle(about, base), *_same(about, cells))
    return Grid(definition=about, settings=base, cells=tuple(cells), notes=notes)


def slug(name: str) -> str:
    """Return a name as folders and arms may have it."""
    return re.sub(r"^[^\w]+|[^\w]+$", "", re.sub(r"[^\w.+-]+", "-", name))


def _changed(values: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Return nested values with changes, by dotted names; what is given stays as it is."""
    found = dict(values)
    for name, value in changes.items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place[part] = dict(place.get(part) or {})
            place = place[part]
        place[last] = value
    return found


def _whole(name: str) -> str:
    """Return the setting that a dotted name lies in: one that is a mapping is replaced as a whole."""
    kind: Any = Settings
    path = name.split(".")
    for number, part in enumerate(path, start=1):
        hint = get_type_hints(kind).get(part)
        inner = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        if inner is None:
            return ".".join(path[:number])
        kind = inner
    return name


def _at(values: Mapping[str, Any], name: str) -> Any:
    """Return a nested value by its dotted name."""
    for part in name.split("."):
        values = values[part]
    return values


def _read(about: Definition, layers: Layers, changes: Changes, where: str) -> dict[str, Any]:
    try:
        return layers.read(_changed({}, changes))
    except ConfigError as error:
        raise wrong(about.path, where, str(error)) from error


def _build(about: Definition, values: Mapping[str, Any], where: str) -> Settings:
    try:
        return build(Settings, values)
    except SettingError as error:
        raise wrong(about.path, where, str(error)) from error


def _arm(about: Definition, row: str, base: Settings) -> Arm:
    """Return the arm of a row, as the row, the table or the base define it."""
    owner = f"rows.{row}" if "arm" in about.rows[row] else "common"
    named = about.rows[row].get("arm", about.common.get("arm"))
    known = dict(SHIPPED) | base.arms_by_name
    if named is None:
        reason = f"names no arm: add `arm: selected` to it or to `common`; there are {', '.join(known)}"
        raise wrong(about.path, f"rows.{row}", reason)
    if isinstance(named, str) and named in known:
        return known[named]
    if not isinstance(named, Mapping):
        reason = f"must be one of {', '.join(known)}, or the settings of one, as {{pairs: random}}, and not {named!r}"
        raise wrong(about.path, f"{owner}.arm", reason)
    try:
        return build(Arm, named, f"{owner}.arm")
    except SettingError as error:
        raise wrong(about.path, f"{owner}.arm", str(error)) from error


def _check_places(about: Definition, given: Changes) -> None:
    """Refuse a setting that two axes, or the command line and an axis, set."""
    for name in ("arms", "config"):
        if name in given or any(key.startswith(f"{name}.") for key in given):
            raise ConfigError(
                f"--{name}: {about.path} says it of all its rows. Change that file; --only ROW makes some rows"
            )
    axes = {f"rows.{name}": changes for name, changes in about.rows.items()}
    axes |= {f"columns.{name}": changes for name, changes in about.columns.items()} | {"over": about.over}
    kinds = [*axes.items(), ("the command line", {name: value for name, value in given.items() if name != "seeds"})]
    for number, (one, first) in enumerate(kinds):
        for other, second in kinds[number + 1 :]:
            if one.partition(".")[0] == other.partition(".")[0]:
                continue
            for name, twin in product(first, second):
                if name == twin or name.startswith(f"{twin}.") or twin.startswith(f"{name}."):
                    raise wrong(about.path, f"{one}.{name}", f"is set by {other} too. Keep one of the two")


def _check_folders(about: Definition, cells: list[Cell]) -> None:
    """Refuse rows and columns whose names differ in nothing that a folder's name can have."""
    owners: dict[str, Cell] = {}
    for cell in cells:
        name = cell.pipeline.settings.name
        other = owners.setdefault(name, cell)
        if (other.row, other.column) != (cell.row, cell.column):
            raise wrong(about.path, f"`{other.title}` and `{cell.title}`", f"would share the folder {name}. Rename one")


def _idle(about: Definition, base: Settings) -> Iterator[str]:
    """Tell of rows that set nothing but what is so already."""
    now = flatten(base.plain())
    for row, changes in about.rows.items():
        if changes and all(name in now and now[name] == plain(value) for name, value in changes.items()):
            yield f"row {row} sets {', '.join(changes)} to what it is already"


def _same(about: Definition, cells: list[Cell]) -> Iterator[str]:
    """Tell of rows and columns that are the same run.

    Raises:
        ConfigError: repetitions of a row are, which would be counted as several.
    """
    owners: dict[str, Cell] = {}
    told = set()
    for cell in cells:
        other = owners.setdefault(definition(cell.result), cell)
        labels = (other.row, other.column), (cell.row, cell.column)
        if other is not cell and labels[0] == labels[1]:
            reason = f"repetitions {other.repetition} and {cell.repetition} of row `{cell.row}` are the same run"
            raise wrong(about.path, "over", f"{reason}: a setting that changes nothing is no repetition")
        if other is not cell and labels not in told:
            told.add(labels)
            names = " and ".join(", ".join(filter(None, label)) for label in labels)
            yield f"{names} are the same run, which is made once"
