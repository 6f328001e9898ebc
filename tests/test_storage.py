"""Videos, clip store and run folder in an object store: a real S3 server, slow or failing, and the same results."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import s3fs
import safetensors.numpy
from helpers import SMALL_RUN, SMALL_VIDEOS

from l2a_ray.errors import MissingPackageError, StageError, StorageError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import (
    as_path,
    from_relative,
    header_metadata,
    open_file,
    open_new,
    open_parquet,
    read_bytes,
    read_group,
    read_table,
    relative_name,
    remove_folder,
    write_bytes,
)
from l2a_ray.storage.lock import hold
from l2a_ray.storage.run import find_result
from l2a_ray.videos.generate import generate

BUCKET = "s3://bucket"
CLIPS, RECORDS = "store/clips/*/*/*.safetensors", "store/*/*/stage.json"


class Server(NamedTuple):
    process: subprocess.Popen[str]
    files: s3fs.S3FileSystem

    def turn(self) -> None:
        """Let it go, or come back."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, delay: float = 0, fail_every: int = 0) -> Iterator[Server]:
    script = Path(__file__).with_name("s3_server.py")
    command = [sys.executable, str(script), str(delay), str(fail_every)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdin is not None
        port = int(server.stdout.readline())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.mkdir("bucket")
        try:
            yield Server(server, store)
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.kill()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    with s3_server(monkeypatch) as server:
        yield server.files


def l2a(folder: Path, command: str, root: str, runs: str, status: int = 0) -> str:
    (folder / "run.yaml").write_text(SMALL_RUN)
    arguments = ["--config", "run.yaml", "--data.root", root, "--runs", runs, "--name", "a"]
    whole = [sys.executable, "-m", "l2a_ray", command, *arguments]
    done = subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=800)
    assert done.returncode == status, done.stderr[-5000:]
    return done.stderr


@pytest.mark.ray
def test_clips_and_pairs_from_a_slow_and_failing_store_are_those_from_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    with s3_server(monkeypatch, delay=0.02, fail_every=20) as (_, store):
        store.put(str(tmp_path / "videos"), "bucket/videos", recursive=True)
        for root, runs in (("videos", "runs"), (f"{BUCKET}/videos", f"{BUCKET}/runs")):
            l2a(tmp_path, "match", root, runs)
        nearby, elsewhere = tmp_path / "runs/a", as_path(f"{BUCKET}/runs/a")
        assert (
            read_bytes(find_result(elsewhere, "match") / "pairs.parquet")
            == (find_result(nearby, "match") / "pairs.parquet").read_bytes()
        )
        clips = list((tmp_path / "runs").glob(CLIPS))
        for path in clips:
            arrays = safetensors.numpy.load(path.read_bytes())
            theirs = safetensors.numpy.load(store.cat_file(f"bucket/{path.relative_to(tmp_path)}"))
            assert all((arrays[name] == theirs[name]).all() for name in arrays)
        assert len(clips) == len(store.glob(f"bucket/runs/{CLIPS}")) == 60
        # Names with `..` lead nowhere in an object store: the way to the clips is found by name alone.
        here, there = (ClipStore(find_result(run, "prepare")) for run in (nearby, elsewhere))
        assert there.content == here.content
        clip_id = here.index["id"][0]
        for part, array in here.read_parts(clip_id, ("frames", "people")).items():
            np.testing.assert_array_equal(there.read_parts(clip_id, (part,))[part], array)


@pytest.mark.slow
@pytest.mark.parametrize(("delay", "fail_every"), [(0.05, 0), (0, 20)], ids=["slow", "failing"])
def test_a_whole_run_in_a_store_ends_as_one_in_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay: float, fail_every: int
) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    l2a(tmp_path, "run", "videos", "runs")
    before = sorted(path.name for path in tmp_path.iterdir())
    with s3_server(monkeypatch, delay, fail_every) as (_, store):
        store.put(str(tmp_path / "videos"), "bucket/videos", recursive=True)
        l2a(tmp_path, "run", f"{BUCKET}/videos", f"{BUCKET}/runs")
        local = json.loads((tmp_path / "runs/a/report/metrics.json").read_bytes())
        remote = json.loads(store.cat_file("bucket/runs/a/report/metrics.json"))
        del local["timing"], remote["timing"]
        assert remote == local
        assert b"</html>" in store.cat_file("bucket/runs/a/report/index.html")
        assert store.glob("bucket/runs/store/train-selector/*/tensorboard/events*")

        made = [store.glob(f"bucket/runs/{what}", detail=True) for what in (CLIPS, RECORDS)]
        assert "evaluate/selected-0: complete, nothing to do" in l2a(
            tmp_path, "run", f"{BUCKET}/videos", f"{BUCKET}/runs"
        )
        again = [store.glob(f"bucket/runs/{what}", detail=True) for what in (CLIPS, RECORDS)]
        assert again == made, "what was complete was made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "a URI was taken for a path"


@pytest.mark.slow
def test_a_store_that_vanishes_in_mid_run_costs_nothing_that_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    l2a(tmp_path, "run", "videos", "runs")
    with s3_server(monkeypatch) as server:
        server.files.put(str(tmp_path / "videos"), "bucket/videos", recursive=True)
        for what, least in ((CLIPS, 10), ("store/warm-start/*/model.safetensors", 1)):
            with ThreadPoolExecutor(1) as pool:
                run = pool.submit(l2a, tmp_path, "run", f"{BUCKET}/videos", f"{BUCKET}/runs", status=2)
                while len(server.files.glob(f"bucket/runs/{what}")) < least:
                    assert not run.done(), run.result()
                    time.sleep(0.2)
                server.turn()
                told = run.result()
                server.turn()
            assert "s3://bucket/" in told and "Traceback" not in told, told
        made = server.files.glob(f"bucket/runs/{CLIPS}", detail=True)
        l2a(tmp_path, "run", f"{BUCKET}/videos", f"{BUCKET}/runs")
        assert len(made) == 60 and server.files.glob(f"bucket/runs/{CLIPS}", detail=True) == made
        local = json.loads((tmp_path / "runs/a/report/metrics.json").read_bytes())
        remote = json.loads(server.files.cat_file("bucket/runs/a/report/metrics.json"))
        del local["timing"], remote["timing"]
        assert remote == local


@pytest.mark.ray
def test_a_full_disk_is_told_and_with_more_room_the_same_command_goes_on(tmp_path: Path) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    (tmp_path / "run.yaml").write_text(SMALL_RUN)
    (tmp_path / "runs").mkdir()
    prepare = f"{sys.executable} -m l2a_ray prepare --config run.yaml --data.root videos --name a"
    # Of its own name space, so that nobody else sees the small disk, and any user may mount it.
    script = f"""
        mount -t tmpfs -o size=400k tmpfs runs || exit 77
        {prepare} 2> full.txt; echo $? > full.status; find runs -name '*.safetensors' | sort > full.clips
        mount -o remount,size=64m runs
        {prepare} 2> room.txt; echo $? > room.status; find runs -name '*.safetensors' | sort > room.clips
    """
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], cwd=tmp_path, timeout=400)
    if done.returncode == 77 or not (tmp_path / "full.txt").exists():
        pytest.skip("this system lets no user mount a small disk")
    told, went_on = (tmp_path / "full.txt").read_text(), (tmp_path / "room.txt").read_text()
    assert (tmp_path / "full.status").read_text() == "2\n" and (tmp_path / "room.status").read_text() == "0\n", went_on
    assert "No space left on device" in told and "Traceback" not in told, told
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("full.clips", "room.clips"))
    assert 0 < len(before) < len(after) == 60 and set(before) < set(after)
    assert f"60 videos, {len(before)} already done" in went_on


# --- the parts


def test_what_a_setting_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_path("runs") == Path("runs") and as_path(f"file://{tmp_path}") == tmp_path
    assert as_path("~/runs") == Path.home() / "runs"
    assert str(as_path("s3://bucket/a") / "b") == "s3://bucket/a/b"
    with pytest.raises(StorageError, match="nonsense://a: no such kind of storage"):
        as_path("nonsense://a")
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda name: __import__("package_that_is_not_there"))
    with pytest.raises(MissingPackageError, match=r"s3://bucket/a: .*package_that_is_not_there"):
        as_path("s3://bucket/a")


@pytest.mark.parametrize(
    ("path", "start", "name"),
    [
        ("/a/store/clips/k", "/a/runs/x/prepare", "../../../store/clips/k"),
        ("s3://bucket/store/clips/k", "s3://bucket/runs/x", "../../store/clips/k"),
        ("s3://one/clips", "s3://other/runs", "../../one/clips"),
        ("s3://bucket/clips", "/a/runs", "s3://bucket/clips"),
        ("/a/clips", "s3://bucket/runs", "file:///a/clips"),
    ],
)
def test_one_folder_is_named_from_another_and_found_again(path: str, start: str, name: str) -> None:
    assert relative_name(as_path(path), as_path(start)) == name
    assert str(from_relative(name, as_path(start))) == path


def test_a_file_written_bit_by_bit_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a"
    with open_new(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(KeyError), open_new(path) as file:
        file.write(b"half of the ne")
        raise KeyError("a mistake in between")
    with pytest.raises(StorageError, match=rf"{path}: cannot be written \(No space left"), open_new(path) as file:
        raise OSError(errno.ENOSPC, "")
    assert path.read_bytes() == b"old" and [found.name for found in path.parent.iterdir()] == ["a"]


def test_of_a_table_that_was_read_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a thread of Arrow still held when Python ends, it would let go of with an abort."""
    path = as_path("memory://tables/a.parquet")
    table = pd.DataFrame({"id": [f"{i:016x}" for i in range(60)], "x": range(60)})
    write_bytes(path, table.to_parquet(row_group_size=20))
    readers = set[int]()

    class Content(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr("l2a_ray.storage.files.io.BytesIO", Content)
    monkeypatch.setattr("l2a_ray.storage.files.open_file", lambda path: Content(read_bytes(path)))
    assert read_table(path, ["x"])["x"].tolist() == list(range(60))
    assert read_group(open_parquet(path), 1)["x"].to_pylist() == list(range(20, 40))
    assert readers == {threading.get_ident()}
    with pytest.raises(pa.ArrowInvalid, match="no column 'y'"):
        read_table(path, ["x", "y"])


def test_a_store_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch):
        path = as_path(f"{BUCKET}/a/b")
        write_bytes(path, b"1")
    with pytest.raises(OSError, match="bucket/a/b"):
        read_bytes(path)
    with pytest.raises(StorageError, match=r"s3://bucket/a/b: cannot be written .* same command goes on"):
        write_bytes(path, b"2")


def test_a_missing_bucket_is_told(store: s3fs.S3FileSystem) -> None:
    with pytest.raises(StorageError, match=r"s3://nowhere/a: cannot be written"):
        write_bytes(as_path("s3://nowhere/a"), b"1")
    with pytest.raises(StorageError, match=r"s3://nowhere/runs: cannot be "), hold(as_path("s3://nowhere/runs")):
        pass


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.001])
def test_metadata_are_read_without_the_tensors(tmp_path: Path, kept: float) -> None:
    content = safetensors.numpy.save({"a": np.zeros(10_000, np.uint8)}, {"id": "7"})
    (tmp_path / "a").write_bytes(content[: int(kept * len(content))])
    with open_file(tmp_path / "a") as file:
        if kept == 1:
            assert header_metadata(file) == {"id": "7"}
            return
        with pytest.raises(ValueError, match=r"should have|Expecting value|Unterminated|delimiter"):
            header_metadata(file)


def test_folder_in_a_store_is_one_holders_at_a_time(store: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2a_ray.storage.lock.BEAT", 1.0)  # three of them must not pass on a busy machine between two
    folder = as_path(f"{BUCKET}/runs/a")
    with (
        hold(folder),
        pytest.raises(StageError, match=rf"bucket/runs/a: another process is at work in it \(host .*{os.getpid()}"),
        hold(folder),
    ):
        pass
    with hold(folder):
        pass  # whoever ends leaves it free
    write_bytes(folder / ".owner.json", b'{"host": "gone", "token": "x"}')
    with hold(folder):
        pass  # whoever is gone is noticed by the beats that do not come
    with hold(folder):
        write_bytes(folder / ".owner.json", b'{"token": "of another, who took over"}')
    assert (folder / ".owner.json").exists(), "it is theirs now"
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()
