"""A folder is one process's at a time: others are refused or wait, and who loses it is told."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from upath import UPath

from l2a_ray.errors import StageError
from l2a_ray.storage import lock
from l2a_ray.storage.files import read_bytes, write_bytes
from l2a_ray.storage.lock import OWNER, hold

HOLDER = """
import sys, pathlib
from l2a_ray.storage.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process


@pytest.fixture
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> UPath:
    """A folder of an object store, in memory, whose holders are quick."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    return UPath(f"memory://{request.node.name}")


def test_who_comes_second_is_refused(tmp_path: Path) -> None:
    with (
        held_by_another(tmp_path) as other,
        pytest.raises(StageError, match=rf"process {other.pid}, since .* another run name"),
        hold(tmp_path),
    ):
        pass


@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_who_waits_is_told_of_the_holder_and_gets_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.01)
    told = list[str]()
    with held_by_another(tmp_path) as other:

        def wait(message: str) -> None:
            told.append(message)
            if end == "ends":
                other.communicate(b"\n")
            else:
                other.kill()

        with hold(tmp_path, wait) as held:
            held.check()
            assert not held.lost()
    assert len(told) == 1 and f"process {other.pid}," in told[0]


def test_who_waits_for_an_object_stores_folder_gets_it(remote: UPath) -> None:
    told, waiting = list[str](), threading.Event()

    def wait(message: str) -> None:
        told.append(message)
        waiting.set()

    def second() -> None:
        with hold(remote, wait) as held:
            held.check()

    thread = threading.Thread(target=second)
    with hold(remote):
        thread.start()
        assert waiting.wait(60)
    thread.join(60)
    assert not thread.is_alive() and len(told) == 1 and "host " in told[0]
    assert not (remote / OWNER).exists()


def test_who_is_taken_over_is_told_and_leaves_the_folder_to_the_other(
    remote: UPath, caplog: pytest.LogCaptureFixture
) -> None:
    with hold(remote) as held:
        held.check()
        write_bytes(remote / OWNER, b'{"token": "another\'s", "host": "elsewhere", "process": 7}')
        while not held.lost():
            pass
        with pytest.raises(StageError, match=r"taken it over \(host elsewhere, process 7\).*Stop the other"):
            held.check()
    assert "host elsewhere, process 7" in caplog.text
    assert (remote / OWNER).exists(), "it is theirs now"


def test_a_holder_whose_object_was_removed_is_told(remote: UPath) -> None:
    with hold(remote) as held:
        (remote / OWNER).unlink()
        while not held.lost():
            pass
    assert not (remote / OWNER).exists()


def test_of_two_who_find_the_same_holder_dead_one_gets_the_folder(
    remote: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(remote / OWNER, b'{"token": "dead"}')
    create, theirs = lock._create, json.dumps({"token": "another's", "host": "elsewhere"}).encode()

    def late(owner: UPath, about: dict[str, object]) -> None:
        create(owner, about)
        write_bytes(owner, theirs)  # the other removes this one's object for the dead one's, and writes its own

    monkeypatch.setattr(lock, "_create", late)
    with pytest.raises(StageError, match="another process is at work in it \\(host elsewhere"), hold(remote):
        pass
    assert read_bytes(remote / OWNER) == theirs
