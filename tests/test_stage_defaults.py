"""Keys leave defaults out, so who changes a default raises the version of the stages that use it: a record tells.

`python tests/test_stage_defaults.py` (or `make docs`) writes the record anew, unless a version must be raised first.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest

from l2a_ray.fields import default_of, plain, setting
from l2a_ray.pipeline import stages
from l2a_ray.pipeline.stage import Stage
from l2a_ray.prepare.settings import MAKER, PrepareSettings

RECORD = Path(__file__).with_name("stage_defaults.json")
Record = dict[str, dict[str, Any]]


def defaults(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield, by dotted name, the defaults that `fields.relevant` leaves out of a key."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        parts = (hints[entry.name], *get_args(hints[entry.name]))
        kinds = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
        if entry.metadata.get("execution") or any(issubclass(part, Stage) for part in kinds):
            continue
        default = default_of(entry)
        if default is not MISSING and not is_dataclass(default):
            yield prefix + entry.name, plain(default)
        for part in kinds:
            yield from defaults(part, f"{prefix}{entry.name}.")


def entry_of(kind: type, version: int) -> dict[str, Any]:
    return {"version": version, "defaults": dict(sorted(defaults(kind)))}


def now() -> Record:
    """Return what the code says, by the name of each stage; "clips" are those of the store."""
    kinds = [kind for kind in vars(stages).values() if isinstance(kind, type) and issubclass(kind, Stage)]
    named = {kind.name: entry_of(kind, kind.version) for kind in kinds if "name" in vars(kind)}
    return {"clips": entry_of(PrepareSettings, MAKER)} | named


def to_raise(recorded: Record, found: Record) -> list[str]:
    """Return what is wrong: the changed defaults of stages whose version is as it was."""
    wrong = []
    for stage in recorded.keys() & found.keys():
        if recorded[stage]["version"] == found[stage]["version"]:
            before, after = recorded[stage]["defaults"], found[stage]["defaults"]
            changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
            where = "MAKER in l2a_ray/prepare/settings.py" if stage == "clips" else f"the version of the stage {stage}"
            wrong += [f"{name}: {before[name]} -> {after[name]}: raise {where}" for name in changed]
    return sorted(wrong)


def test_who_changes_a_default_raises_the_version() -> None:
    assert to_raise(json.loads(RECORD.read_text()), now()) == []


def test_the_record_is_what_the_code_says() -> None:
    assert json.loads(RECORD.read_text()) == now(), "write it anew: make docs"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    size: int = 3
    grease: Literal["oil", "fat"] = "oil"
    workers: int = setting(2, execution=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Build(Stage):
    seed: int
    before: Stage
    other: Stage | None
    wheel: Wheel
    spare: Wheel | None = None


def test_only_what_a_key_leaves_out_is_recorded() -> None:
    assert dict(defaults(Build)) == {
        "wheel.size": 3,
        "wheel.grease": "oil",
        "spare": None,
        "spare.size": 3,
        "spare.grease": "oil",
    }


@pytest.mark.parametrize(
    ("version", "after", "wrong"),
    [
        (1, {"size": 3}, []),
        (1, {"size": 3, "new": 0}, []),
        (1, {"size": 4}, ["size: 3 -> 4: raise the version of the stage build"]),
        (2, {"size": 4}, []),
        (1, {}, []),
    ],
    ids=[
        "nothing",
        "a new setting",
        "a changed default",
        "a changed default, the version raised",
        "a setting that went",
    ],
)
def test_changes_that_need_a_version(version: int, after: dict[str, Any], wrong: list[str]) -> None:
    before = {"build": {"version": 1, "defaults": {"size": 3}}}
    assert to_raise(before, {"build": {"version": version, "defaults": after}}) == wrong


def main() -> None:
    if RECORD.is_file() and (wrong := to_raise(json.loads(RECORD.read_text()), now())):
        raise SystemExit("\n".join(wrong))
    RECORD.write_text(json.dumps(now(), indent=1) + "\n")


if __name__ == "__main__":
    main()
