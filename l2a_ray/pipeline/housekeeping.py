"""What lies in a store, which runs need it, and deleting what none does."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2a_ray.errors import StageError
from l2a_ray.pipeline.results import RECORD
from l2a_ray.storage.files import AnyPath, read_bytes, remove_folder
from l2a_ray.storage.lock import hold
from l2a_ray.storage.run import read_stages, users

logger = logging.getLogger(__name__)
CLIPS = "clips"


@dataclass(frozen=True)
class Stored:
    """A folder of the store.

    Args:
        folder: where it lies.
        stage: the stage's name, or ``clips``.
        complete: whether it is a complete result.
        size: bytes.
        age: seconds since it was begun; never below 0, whatever the clock has done since.
        needed_by: names of the runs that are made of it.
    """

    folder: AnyPath
    stage: str
    complete: bool
    size: int
    age: float
    needed_by: tuple[str, ...]


def list_store(store: AnyPath) -> list[Stored]:
    """List what is in a store, and who needs it.

    Raises:
        StageError: the record of a run is damaged, so nobody knows what that run needs.
    """
    needed: dict[str, set[str]] = {}
    for run in users(store):
        for part in read_stages(run).values():
            for entry in part.values():
                for place in (f"{entry['stage']}/{entry['key']}", *entry["keeps"]):
                    needed.setdefault(place, set()).add(run.name)
    return [_stored(folder, needed) for folder in _folders(store)]


def clean(store: AnyPath, delete: bool) -> int:
    """Say what no run needs; delete it if told to. Returns the bytes of it."""
    for run in users(store):
        if not run.is_dir():
            logger.info("clean: the run %s is gone; nothing is kept for it", run)
    idle = [one for one in list_store(store) if not one.needed_by]
    for one in idle:
        if delete:
            try:
                with hold(one.folder):  # a run that has just begun it keeps it
                    pass
            except StageError as error:
                logger.info("clean: kept %s/%s: %s", one.stage, one.folder.name, error)
                continue
            remove_folder(one.folder)
        state = "" if one.complete else ", half done"
        logger.info("clean: %s %s/%s, %s%s", "deleted" if delete else "no run needs", one.stage, one.folder.name,
                    size_text(one.size), state)  # fmt: skip
    total = sum(one.size for one in idle)
    if not idle:
        logger.info("clean: every result in %s is needed by a run", store)
    elif not delete:
        logger.info("clean: %s in all; `l2a clean --delete` deletes them", size_text(total))
    return total


def tell_runs(runs: AnyPath, store: AnyPath) -> None:
    """List the runs of a folder: their results, how old and how large these are."""
    there = {f"{one.stage}/{one.folder.name}": one for one in list_store(store)}
    folders = sorted(path.parent for path in runs.glob("*/stages.json"))
    if not folders:
        logger.info("runs: there is no run in %s", runs)
    for folder in folders:
        parts = read_stages(folder)
        logger.info("%s", folder.name)
        for state in ("current", "begun"):
            for title, entry in parts.get(state, {}).items():
                one = there.get(f"{entry['stage']}/{entry['key']}")
                about = "not in the store" if one is None else f"{size_text(one.size)}, {age_text(one.age)} old"
                half = ", half done" if one is not None and not one.complete else ""
                logger.info("  %-28s %s  %s%s", title, entry["key"], about, half)


def size_text(size: float) -> str:
    """Return a size in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def time_text(seconds: float) -> str:
    """Return how long something takes in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def age_text(seconds: float) -> str:
    """Return a time in words."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _folders(store: AnyPath) -> Iterator[AnyPath]:
    stages: list[AnyPath] = list(store.iterdir()) if store.is_dir() else []
    for stage in sorted(stages, key=str):
        if stage.is_dir() and stage.name != "runs":
            yield from sorted((path for path in stage.iterdir() if path.is_dir()), key=str)


def _stored(folder: AnyPath, needed: dict[str, set[str]]) -> Stored:
    record = _record(folder)
    stage = folder.parent.name
    return Stored(
        folder=folder,
        stage=stage,
        complete=stage == CLIPS or bool(record.get("complete")),
        size=sum(_size(path) for path in folder.rglob("*")),
        age=max(0.0, time.time() - _began(folder, record)),
        needed_by=tuple(sorted(needed.get(f"{stage}/{folder.name}", ()))),
    )


def _record(folder: AnyPath) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(folder / RECORD))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _began(folder: AnyPath, record: dict[str, Any]) -> float:
    if "started" in record:
        return datetime.fromisoformat(record["started"]).replace(tzinfo=UTC).timestamp()
    return folder.stat().st_mtime if isinstance(folder, Path) else time.time()


def _size(path: AnyPath) -> int:
    try:
        return int(path.stat().st_size) if path.is_file() else 0
    except FileNotFoundError:
        return 0  # just gone
