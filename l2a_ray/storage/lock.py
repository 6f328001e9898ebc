"""One process at a time in a folder, on this machine or on others that see the same folder or object store."""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
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
LOOK = 1.0
"""Seconds after which who waits for a folder of a file system looks again."""
Wait = Callable[[str], None]
"""Receives who holds a folder that is waited for."""


class Hold:
    """What :func:`hold` yields: says whether the folder is still this process's own.

    In object stores another process may have taken it over, after this one was cut off from the store for
    three beats. Whoever writes what others rely on calls :meth:`check` just before.
    """

    def __init__(self, folder: AnyPath) -> None:
        self._folder, self._lost = folder, threading.Event()

    def lost(self) -> bool:
        """Return whether another process has taken the folder over."""
        return self._lost.is_set()

    def check(self) -> None:
        """Go on only while the folder is this process's own.

        Raises:
            StageError: another process has taken it over.
        """
        if self.lost():
            raise StageError(
                f"{self._folder}: another process has taken it over ({_holder(self._folder)}), because this one could "
                f"not say for {3 * BEAT:g} s that it lives. Stop the other one, then the same command goes on"
            )

    def lose(self) -> None:
        """Say that another process has taken it over."""
        logger.error("%s: another process has taken it over (%s)", self._folder, _holder(self._folder))
        self._lost.set()


class _HeldError(StageError):
    """Another process holds the folder."""


def hold(folder: AnyPath, wait: Wait | None = None) -> AbstractContextManager[Hold]:
    """Keep other processes from working in a folder; entering raises, or waits.

    On file systems the lock is the operating system's: it ends with the process that holds it, however that ends.
    Object stores have no locks. There the holder rewrites an object every ``BEAT`` seconds, and one that has not been
    rewritten for three beats is taken over: its process is gone, or has been cut off from the store as long.

    Args:
        folder: made if it is not there.
        wait: if given, a folder that another process holds is waited for; each holder is reported once.

    Raises:
        StageError: another process holds it, and ``wait`` is not given; the message says who.
        StorageError: the folder cannot be written.
    """
    return _hold_local(folder, wait) if isinstance(folder, Path) else _hold_remote(folder, wait)


def _acquire(folder: AnyPath, attempt: Callable[[], object], wait: Wait | None, seconds: float) -> None:
    """Try until nobody else holds the folder, or raise who does."""
    reported = ""
    while True:
        try:
            attempt()
            return
        except _HeldError:
            if wait is None:
                raise
            if (holder := _holder(folder)) != reported:
                wait(f"{folder}: waiting until another process has ended its work in it ({holder})")
                reported = holder
            time.sleep(seconds)


@contextmanager
def _hold_local(folder: Path, wait: Wait | None) -> Iterator[Hold]:
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)

    def attempt() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise _held(folder) from error
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror}). Name another --runs") from error

    _acquire(folder, attempt, wait, LOOK)
    try:
        write_json(folder / OWNER, _about())
        yield Hold(folder)
    finally:
        lock.release()


@contextmanager
def _hold_remote(folder: UPath, wait: Wait | None) -> Iterator[Hold]:
    owner, about, held = folder / OWNER, _about() | {"token": uuid.uuid4().hex}, Hold(folder)

    def attempt() -> None:
        taken_over = _wait_for_dead_holder(folder)
        _create(owner, about)
        if taken_over:
            # Another may have found the same holder dead, and remove what it believes to be that one's: look again.
            time.sleep(BEAT / 4)
            if not _ours(owner, about):
                raise _held(folder)

    _acquire(folder, attempt, wait, BEAT / 4)
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(owner, about, held, done), daemon=True)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()
        try:
            if not held.lost() and _ours(owner, about):
                owner.unlink(missing_ok=True)
        except Exception as error:  # what the run itself ends with matters more; the beats have stopped, which suffices
            logger.warning("%s: cannot be given back at once (%s); the next command waits for it", folder, error)


def _beat(owner: UPath, about: dict[str, object], held: Hold, done: threading.Event) -> None:
    """Rewrite the owner's object until the work is done or the folder is another's."""
    while not done.wait(BEAT):
        try:
            if not _ours(owner, about):
                held.lose()
                return
            write_json(owner, about | {"beat": time.time()})
        except (OSError, StorageError):
            continue  # the run's own reads and writes will tell of a store that stays away


def _ours(owner: UPath, about: dict[str, object]) -> bool:
    """Return whether the owner's object is the one that this process wrote.

    Raises:
        OSError: the store does not answer.
    """
    try:
        return bool(json.loads(read_bytes(owner))["token"] == about["token"])
    except (FileNotFoundError, ValueError, KeyError):  # who takes over removes it first
        return False


def _wait_for_dead_holder(folder: UPath) -> bool:
    """Return once nobody holds the folder: whether its holder was found dead, and its object removed."""
    owner = folder / OWNER
    try:
        before = read_bytes(owner)
    except FileNotFoundError:
        return False
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
            return False  # it has just ended
    # Object stores remove whatever is there. A holder that comes back just now finds at its next beat that it has lost.
    owner.unlink(missing_ok=True)
    return True


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


def _holder(folder: AnyPath) -> str:
    """Return in words who holds the folder."""
    try:
        about = json.loads(read_bytes(folder / OWNER))
    except (OSError, ValueError):
        about = {}
    return ", ".join(f"{key} {about[key]}" for key in ("host", "process", "since") if key in about) or "unknown"


def _held(folder: AnyPath) -> _HeldError:
    reason = f"{folder}: another process is at work in it ({_holder(folder)})"
    return _HeldError(f"{reason}. Wait for it, stop it, or choose another run name (--name)")
