"""A table file: which rows, columns and repetitions a table has, each as a thin set of differences from a base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2a_ray.config import WITHOUT_CONFIG
from l2a_ray.config.loading import read_yaml
from l2a_ray.errors import ConfigError
from l2a_ray.pipeline.stage import flatten

Changes = Mapping[str, Any]
"""Values by the dotted names of settings; of rows and of what they have in common, ``arm`` too."""
KEYS = ("name", "base", "common", "against", "published", "over", "columns", "rows")
NOT_HERE = {
    "name": "the table's runs are named by their rows and columns",
    "runs": "name the folder of the base's runs on the command line",
    "store": "name it on the command line",
    "seeds": "write the repetitions as `over: {seed: [0, 1, 2]}`",
    "arms": "a row names its arm as `arm: selected` or `arm: {pairs: random}`",
}
"""Settings that a table's rows and columns cannot have, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a table file says.

    Args:
        path: of the file.
        name: of the table.
        base: config files that are layered.
        common: differences that all cells share.
        rows: differences by the name of the row.
        columns: differences by the name of the column; one without name and differences where the file has none.
        over: values by the dotted name of a setting, or ``seed``; the repetitions are their product.
        against: row that differences are taken from.
        published: by column, a name in the file of published numbers.
    """

    path: Path
    name: str
    base: tuple[Path, ...]
    common: Changes
    rows: Mapping[str, Changes]
    columns: Mapping[str, Changes]
    over: Mapping[str, Sequence[Any]]
    against: str | None
    published: Mapping[str, str]


def read_definition(path: Path) -> Definition:
    """Read a table file.

    Raises:
        ConfigError: it cannot be read, or says what no table can be made of; the message names file and key.
    """
    plain = read_yaml(path)
    if not isinstance(plain, Mapping):
        raise wrong(path, "the file", f"must be a mapping of some of {', '.join(KEYS)}")
    for key in plain:
        if key not in KEYS:
            raise wrong(path, f"`{key}`", f"no such part of a table; there are {', '.join(KEYS)}")
    rows = _axis(path, "rows", plain.get("rows"))
    if not rows:
        raise wrong(path, "rows", "must name a row, as `random: {arm: random}`")
    columns = _axis(path, "columns", plain.get("columns", {"": None}))
    own = {name: column.pop("published") for name, column in columns.items() if "published" in column}
    table = dict.fromkeys(columns, plain["published"]) if plain.get("published") else {}
    if misplaced := [name for name, column in columns.items() if "arm" in column]:
        raise wrong(path, f"columns.{misplaced[0]}.arm", "an arm belongs to a row, or to `common`")
    against = plain.get("against")
    if against is not None and str(against) not in rows:
        raise wrong(path, f"against: {against}", f"must be one of the rows: {', '.join(rows)}")
    return Definition(
        path=path,
        name=str(plain.get("name", path.stem)),
        base=_base(path, plain.get("base")),
        common=_changes(path, "common", plain.get("common")),
        rows=rows,
        columns=columns,
        over=_over(path, plain.get("over")),
        against=None if against is None else str(against),
        published=table | own,
    )


def wrong(path: Path, where: str, reason: str) -> ConfigError:
    """Return the complaint about a place in a table file."""
    return ConfigError(f"{path}: {where}: {reason}. docs/tables.md has the form of such a file")


def _base(path: Path, given: Any) -> tuple[Path, ...]:
    if given is None:
        return (WITHOUT_CONFIG,)
    files = tuple(path.parent / str(name) for name in (given if isinstance(given, list) else [given]))
    for file in files:
        if not file.is_file():
            raise wrong(path, f"base: {file}", "there is no such file; paths begin at the table file's folder")
    return files


def _axis(path: Path, key: str, given: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(given, Mapping):
        raise wrong(path, key, "must be a mapping of names to differences, as `boxes: {composite.region: boxes}`")
    return {str(name): dict(_changes(path, f"{key}.{name}", changes)) for name, changes in given.items()}


def _changes(path: Path, where: str, given: Any) -> Changes:
    """Return differences by dotted names; an arm stays whole."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise wrong(path, where, f"must hold settings, as {{composite.region: boxes}}, and not {given!r}")
    plain = {str(name): value for name, value in given.items()}
    arm = {"arm": plain.pop("arm")} if "arm" in plain else {}
    found = flatten(plain)
    for name in found:
        if reason := NOT_HERE.get(name.partition(".")[0]):
            raise wrong(path, f"{where}.{name}", reason)
    return arm | found


def _over(path: Path, given: Any) -> dict[str, list[Any]]:
    found = _changes(path, "over", given)
    for name, values in found.items():
        if name == "arm":
            raise wrong(path, "over.arm", "arms are compared as rows")
        if not isinstance(values, list) or not values:
            raise wrong(path, f"over.{name}", "must be a list of values, as [0, 1, 2]")
        if any(value in values[:number] for number, value in enumerate(values)):
            raise wrong(path, f"over.{name}", f"has a value twice: {values}. Each repetition counts once")
    return dict(found)
