"""The run folder: what belongs to a run, which stages are complete, and with which settings they were made."""

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from l2a_ray.errors import StageError, StorageError
from l2a_ray.files import write_bytes, write_json

logger = logging.getLogger(__name__)
RECORD = "stage.json"
# How a result is come by, not what it is: these may change between the start of a run and its resumption.
NEUTRAL = ("checkpoint_every", "max_failures", "gpus_per_worker", "cpus_per_worker", "gpus_per_env_runner")
PACKAGES = ("l2a-ray", "ray", "torch", "torchvision", "numpy", "av", "opencv-python-headless", "gymnasium")
Plain = Mapping[str, Any]


class RunFolder:
    """``runs/<name>/``: the resolved settings, the environment, and one folder a stage.

    A stage writes to ``.<stage>.partial`` and renames it when all is there: a folder that is present is complete.

    Args:
        path: the run's folder; made when something is written.
        settings: the resolved settings of this run.
        seed: the seed of this run.
    """

    def __init__(self, path: Path, settings: Plain, seed: int) -> None:
        self.path, self.settings, self.seed = path, settings, seed

    def describe(self) -> None:
        """Write ``config.yaml`` and ``environment.json``, which say how this run was made."""
        write_bytes(self.path / "config.yaml", yaml.safe_dump(_plain(self.settings), sort_keys=False).encode())
        write_json(self.path / "environment.json", _environment(self.seed))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes, on this machine or on others that share the folder, from running stages in it.

        The lock is the operating system's, so it ends with the process that holds it, however that ends.

        Raises:
            StageError: another process holds it; the message says who.
            StorageError: the folder cannot be written.
        """
        lock, owner = FileLock(self.path / ".lock", timeout=0, is_singleton=True), self.path / ".owner.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            about = json.loads(owner.read_text(encoding="utf-8")) if owner.is_file() else {}
            who = ", ".join(f"{key} {value}" for key, value in about.items()) or "unknown"
            reason = f"{self.path}: another process is at work in it ({who})"
            raise StageError(f"{reason}. Wait for it, stop it, or choose another run name (--name)") from error
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}). Name another --runs") from error
        try:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(owner, {"host": platform.node(), "process": os.getpid(), "since": since})
            yield
        finally:
            lock.release()

    def folder(self, stage: str) -> Path:
        """Return the folder of a complete stage.

        Raises:
            StageError: the stage has not been run.
        """
        if not (self.path / stage).is_dir():
            raise StageError(
                f"{self.path}: `{stage}` has not been run. Run `l2a {stage}` first, or `l2a run` for all stages"
            )
        return self.path / stage

    def stage(self, name: str, settings: Plain, work: Callable[[Path], None], extent: Plain | None = None) -> Path:
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
        record = json.loads(json.dumps({"settings": dict(settings), "extent": dict(extent or {})}))
        complete, partial = self.path / name, self.path / f".{name}.partial"
        if complete.is_dir():
            found = self._check(complete, record["settings"])
            if found["extent"] == record["extent"]:
                logger.info("%s: complete, nothing to do", name)
                return complete
            complete.rename(partial)
        elif (partial / RECORD).is_file():
            self._check(partial, record["settings"])
            logger.info("%s: going on where it stopped", name)
        self.describe()  # not before: settings that are refused are not those of this run
        write_json(partial / RECORD, record)
        work(partial)
        partial.rename(complete)
        return complete

    def claim(self, name: str, settings: Plain) -> Path:
        """Return a folder for files that no stage reads, which every call may add to; for one set of settings only.

        Raises:
            StageError: what is there was made with other settings.
        """
        folder, record = self.path / name, json.loads(json.dumps({"settings": dict(settings)}))
        if (folder / RECORD).is_file():
            self._check(folder, record["settings"])
        else:
            write_json(folder / RECORD, record)
        return folder

    def _check(self, folder: Path, settings: Plain) -> dict[str, Any]:
        """Return a stage's record, or refuse to use it under other settings."""
        found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        for key in sorted(settings.keys() | found["settings"].keys()):
            old, new = found["settings"].get(key), settings.get(key)
            if old != new:
                raise StageError(
                    f"{folder}: made with {key}={old}, now {key}={new} is asked for. Choose another run name (--name), "
                    "or delete this folder and those of the stages after it to make them again"
                )
        return found


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
    return {key: value for key, value in flatten(settings).items() if key.rpartition(".")[2] not in NEUTRAL}


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
