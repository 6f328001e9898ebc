"""The run folder: what belongs to a run, which stages are complete, and with which settings they were made."""

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from l2a_ray.errors import StageError
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes, write_json
from l2a_ray.storage.lock import hold

logger = logging.getLogger(__name__)
RECORD = "stage.json"
# How a result is come by, not what it is: these may change between the start of a run and its resumption.
NEUTRAL = frozenset(
    {
        "classifier.checkpoint_every",
        "classifier.cpus_per_worker",
        "classifier.gpus_per_worker",
        "classifier.max_failures",
        "data.max_failures",
        "segment.gpus_per_worker",
        "selector.checkpoint_every",
        "selector.gpus_per_env_runner",
        "selector.gpus_per_learner",
        "selector.learners",
        "selector.max_failures",
    }
)
PACKAGES = ("l2a-ray", "ray", "torch", "torchvision", "numpy", "av", "opencv-python-headless", "gymnasium")
Plain = Mapping[str, Any]


class RunFolder:
    """``runs/<name>/``: the resolved settings, the environment, and one folder a stage.

    A stage's ``stage.json`` says what it is made with and, last of all, that it is complete. (That the folder is there
    cannot mean it: object stores cannot rename one that is filled elsewhere.)

    Args:
        path: the run's folder; made when something is written.
        settings: the resolved settings of this run.
        seed: the seed of this run.
    """

    def __init__(self, path: AnyPath, settings: Plain, seed: int) -> None:
        self.path, self.settings, self.seed = path, settings, seed

    def describe(self) -> None:
        """Write ``config.yaml`` and ``environment.json``, which say how this run was made."""
        write_bytes(self.path / "config.yaml", yaml.safe_dump(_plain(self.settings), sort_keys=False).encode())
        write_json(self.path / "environment.json", _environment(self.seed))

    def held(self) -> AbstractContextManager[None]:
        """Keep other processes from running stages in it: :func:`l2a_ray.storage.lock.hold`."""
        return hold(self.path)

    def folder(self, stage: str) -> AnyPath:
        """Return the folder of a complete stage.

        Raises:
            StageError: the stage has not been run, or not to its end.
        """
        if not self.has(stage):
            raise StageError(
                f"{self.path}: `{stage}` has not been run. Run `l2a {stage}` first, or `l2a run` for all stages"
            )
        return self.path / stage

    def has(self, stage: str) -> bool:
        """Return whether a stage is complete."""
        return bool((_record(self.path / stage) or {}).get("complete"))

    def stage(
        self, name: str, settings: Plain, work: Callable[[AnyPath], None], extent: Plain | None = None
    ) -> AnyPath:
        """Do a stage's work unless it is complete; go on inside it if it was interrupted.

        Args:
            name: the stage, which is its folder's name too.
            settings: all that its result depends on; a result made with others is refused, never mixed.
            work: fills the folder it is given; called again, it does what is missing.
            extent: what may grow between runs (arms and seeds, say): if it changed, work goes on in the same folder.

        Returns:
            The complete folder.

        Raises:
            StageError: what is there was made with other settings.
        """
        folder, record = self.path / name, _plain({"settings": dict(settings), "extent": dict(extent or {})})
        if found := claim(folder, settings):
            if found.get("complete") and found["extent"] == record["extent"]:
                logger.info("%s: complete, nothing to do", name)
                return folder
            logger.info("%s: going on where it stopped", name)
        self.describe()  # not before: settings that are refused are not those of this run
        write_json(folder / RECORD, record | {"complete": False})
        work(folder)
        write_json(folder / RECORD, record | {"complete": True})
        return folder


def claim(folder: AnyPath, settings: Plain) -> dict[str, Any] | None:
    """Record what the content of a folder is made with; what was made with other settings is refused, never mixed.

    Returns:
        The record that is there, or None where this is the first.

    Raises:
        StageError: what is there was made with other settings; the message says which.
    """
    wanted, found = _plain(settings), _record(folder)
    if found is None:
        write_json(folder / RECORD, {"settings": wanted, "extent": {}, "complete": False})
        return None
    for key in sorted(wanted.keys() | found["settings"].keys()):
        old, new = found["settings"].get(key), wanted.get(key)
        if old != new:
            raise StageError(
                f"{folder}: made with {key}={old}, now {key}={new} is asked for. Choose another run name (--name), "
                "or delete this folder and those of the stages after it to make them again"
            )
    return found


def _record(folder: AnyPath) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(read_bytes(folder / RECORD))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record


def _plain(settings: Plain) -> Any:
    """Return settings as JSON knows them: YAML's safe writer refuses tuples."""
    return json.loads(json.dumps(settings))


def flatten(settings: Plain, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def decisive(settings: Plain) -> dict[str, Any]:
    """Return nested settings with dotted names, without what only says how a result is come by."""
    return {key: value for key, value in flatten(settings).items() if key not in NEUTRAL}


def _environment(seed: int) -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "commit": _commit(),
        "hardware": {"cpus": os.cpu_count(), "machine": platform.machine(), "memory_gib": round(memory, 1)},
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "seed": seed,
        "system": platform.system(),
    }


def _commit() -> str | None:
    """Return the commit that this code was checked out at; None if it was installed from elsewhere."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
