"""The run folder: the settings of a run, and the names of the results in the store that it is made of."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from l2a_ray.errors import StageError
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, write_bytes, write_json

CONFIG, STAGES = "config.yaml", "stages.json"
USERS = "runs"
StageEntry = dict[str, Any]
"""What a run knows of a result: stage, version, key, uses, reads, settings, content."""
_OLD = ("prepare/store.json", "match/stage.json", "train-selector/stage.json", "select/stage.json", "train/stage.json")


@dataclass(frozen=True)
class RunFolder:
    """``runs/<name>/``: ``config.yaml``, ``stages.json``, and what people look at (report, preview).

    ``stages.json`` has two parts: ``current``, the results of the last commands that ended well, and ``begun``, those
    of commands that did not, which no other run may need but whose work is not to be lost. ``results/`` has links to
    the results, where the file system has links.

    Args:
        path: the run's folder; made when something is written.
        settings: the resolved settings, plain.
        store: the folder of the results.
    """

    path: AnyPath
    settings: Mapping[str, Any]
    store: AnyPath

    def stages(self) -> dict[str, StageEntry]:
        """Return the results that the run is made of, by the titles of the stages."""
        return read_stages(self.path).get("current", {})

    def note(self, entries: Mapping[str, StageEntry]) -> None:
        """Remember results whose making has begun."""
        known = read_stages(self.path)
        self._write(known.get("current", {}), known.get("begun", {}) | dict(entries))

    def settle(self, entries: Mapping[str, StageEntry]) -> None:
        """Record that a command has ended well: its settings are now the run's, and these are its results."""
        known = read_stages(self.path)
        current = known.get("current", {}) | dict(entries)
        begun = {title: entry for title, entry in known.get("begun", {}).items() if title not in entries}
        self._write(current, begun)
        write_bytes(self.path / CONFIG, yaml.safe_dump(dict(self.settings), sort_keys=False).encode())

    def _write(self, current: Mapping[str, StageEntry], begun: Mapping[str, StageEntry]) -> None:
        local = isinstance(self.path, Path) and isinstance(self.store, Path)
        store = (
            os.path.relpath(str(self.store), str(self.path)) if local else str(self.store)
        )  # so that both may be moved
        write_json(self.path / STAGES, {"store": store, "current": dict(current), "begun": dict(begun)})

    def link(self, places: Mapping[str, AnyPath]) -> None:
        """Lay links to results below ``results/``, for people; there are none in object stores."""
        for title, place in places.items():
            link = self.path / "results" / title
            if isinstance(link, Path) and isinstance(place, Path):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(place, link.parent))

    def register(self) -> None:
        """Tell the store that this run uses it: what no run uses can be deleted from it."""
        path = str(self.path)
        name = hashlib.blake2b(path.encode(), digest_size=8).hexdigest()
        write_json(self.store / USERS / f"{name}.json", {"run": path})

    def old_stages(self) -> list[str]:
        """Return the folders in which releases before 0.2 kept the results of a run, if there are any."""
        return [name.partition("/")[0] for name in _OLD if (self.path / name).is_file()]


def read_stages(run: AnyPath) -> dict[str, dict[str, StageEntry]]:
    """Return the parts of a run's ``stages.json``; nothing where there is none.

    Raises:
        StageError: it is damaged.
    """
    path = run / STAGES
    try:
        found = json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise StageError(f"{path}: damaged ({error}). Delete it: the next command finds the results again") from error
    return {part: dict(found[part]) for part in ("current", "begun")}


def find_result(run: AnyPath, stage: str, seed: int | None = None) -> AnyPath:
    """Return the folder of a result that a run is made of.

    Args:
        run: the run's folder.
        stage: name of a stage that each repetition has, as ``train-selector``.
        seed: of the repetition; None: of the first one that the run names.

    Raises:
        StageError: the run has no such result.
    """
    titles = read_stages(run).get("current", {})
    found = [entry for entry in titles.values() if entry["stage"] == stage]
    wanted = [entry for entry in found if seed is None or entry["settings"]["seed"] == seed]
    if not wanted:
        seeds = ", ".join(str(entry["settings"]["seed"]) for entry in found)
        there = f"there are those of the seeds {seeds}" if found else f"run `l2a {stage}` for it first"
        raise StageError(f"{run}: no result of {stage}{'' if seed is None else f' of seed {seed}'}; {there}")
    place: str = json.loads(read_bytes(run / STAGES))["store"]
    store = as_path(place) if "://" in place else as_path(os.path.normpath(str(run.absolute() / place)))
    return store / stage / str(wanted[0]["key"])


def users(store: AnyPath) -> Iterator[AnyPath]:
    """Yield the folders of the runs that have used a store, those that are gone too, and of all runs beside it.

    The latter because a store that was moved together with its runs knows them by their old places.
    """
    recorded = (as_path(json.loads(read_bytes(path))["run"]) for path in (store / USERS).glob("*.json"))
    beside = (path.parent for path in store.parent.glob(f"*/{STAGES}"))
    yield from sorted({*recorded, *beside}, key=str)
