"""One process at a time in a folder, on this machine or on others that see the same folder or object store."""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from upath import UPath

from l2a_ray.errors import StageError, StorageError
from l2a_ray.storage.files import AnyPath, read_bytes, write_json

logger = logging.getLogger(__name__)
OWNER = ".owner.json"
BEAT = 10.0
"""Seconds after which the holder of an object store's folder says again that it lives."""


def hold(folder: AnyPath) -> AbstractContextManager[None]:
    """Keep other processes from working in a folder; entering raises.

    On file systems the lock is the operating system's: it ends with the process that holds it, however that ends.
    Object stores have no locks. There the holder rewrites an object every ``BEAT`` seconds, and one that has not been
    rewritten for three beats is taken over: its process is gone, or has been cut off from the store as long.

    Raises:
        StageError: another process holds it; the message says who.
        StorageError: the folder cannot be written.
    """
    return _hold_local(folder) if isinstance(folder, Path) else _hold_remote(folder)


@contextmanager
def _hold_local(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise _held(folder) from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}). Name another --runs") from error
    try:
        write_json(folder / OWNER, _about())
        yield
    finally:
        lock.release()


@contextmanager
def _hold_remote(folder: UPath) -> Iterator[None]:
    owner, about = folder / OWNER, _about() | {"token": uuid.uuid4().hex}
    _wait_for_dead_holder(folder)
    done = threading.Event()
    _create(owner, about)

    def ours() -> bool:
        return bool(json.loads(read_bytes(owner))["token"] == about["token"])

    def beat() -> None:
        while not done.wait(BEAT):
            try:
                if not ours():
                    return
                write_json(owner, about | {"beat": time.time()})
            except (OSError, ValueError, StorageError):
                continue  # the run's own reads and writes will tell of a store that stays away

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        try:
            if ours():  # not if another has taken over
                owner.unlink(missing_ok=True)
        except Exception as error:  # what the run itself ends with matters more; the beats have stopped, which suffices
            logger.warning("%s: cannot be given back at once (%s); the next command waits for it", folder, error)


def _wait_for_dead_holder(folder: UPath) -> None:
    """Return once nobody holds the folder, or whoever did is gone."""
    owner = folder / OWNER
    try:
        before = read_bytes(owner)
    except FileNotFoundError:
        return
    except OSError as error:
        cause = error.strerror or error
        raise StorageError(f"{folder}: cannot be read ({cause}). Check the URI and the access") from error
    deadline = time.monotonic() + 3 * BEAT
    while time.monotonic() < deadline:
        time.sleep(BEAT / 4)
        try:
            if read_bytes(owner) != before:
                raise _held(folder)
        except FileNotFoundError:
            return  # it has just ended
    owner.unlink(missing_ok=True)


def _create(owner: UPath, about: dict[str, object]) -> None:
    """Write the owner's object unless it is there: of two who come at the same moment, one gets in."""
    try:
        owner.fs.pipe_file(owner.path, json.dumps(about).encode(), mode="create")
    except FileExistsError as error:
        raise _held(owner.parent) from error
    except Exception as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise StorageError(f"{owner.parent}: cannot be written ({reason}). Check the URI and the access") from error


def _about() -> dict[str, object]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": platform.node(), "process": os.getpid(), "since": since}


def _held(folder: AnyPath) -> StageError:
    try:
        about = json.loads(read_bytes(folder / OWNER))
    except (OSError, ValueError):
        about = {}
    who = ", ".join(f"{key} {about[key]}" for key in ("host", "process", "since") if key in about) or "unknown"
    reason = f"{folder}: another process is at work in it ({who})"
    return StageError(f"{reason}. Wait for it, stop it, or choose another run name (--name)")
