"""Whatever reads from Ray Data leaves nothing of it behind, and a session ends after its executions."""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.data
from helpers import SMALL_RUN, SMALL_VIDEOS
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from test_samples import make_store

from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings, WorkerSettings
from l2a_ray.classifier.training import TrainingRun, train_classifiers
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config import load
from l2a_ray.errors import ClusterError, SettingError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.prepare.store import clip_path
from l2a_ray.runtime import session as sessions
from l2a_ray.runtime.streams import close_all, reading, threads
from l2a_ray.videos.catalog import read_catalog
from l2a_ray.videos.generate import generate

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")]
ROOT = Path(__file__).parents[1]


def rows(blocks: int = 200) -> Any:
    """A hundred rows a block; 200 blocks are far more than a test reads."""
    return ray.data.range(100 * blocks, override_num_blocks=blocks).map(lambda row: row).iter_rows()


def numbers(blocks: int = 200) -> Iterator[int]:
    with reading(rows(blocks)) as found:
        for row in found:
            yield row["id"]


@pytest.fixture
def slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)


def slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Ray Data's thread at Ray for longer than the 2 s that Ray Data waits for it, as a busy machine does."""
    step = StreamingExecutor._scheduling_loop_step

    def slow(self: StreamingExecutor, topology: Any) -> bool:
        going: bool = step(self, topology)
        worker: Any = ray._private.worker.global_worker
        core, begun = worker.core_worker, time.monotonic()
        while time.monotonic() < begun + (6 if self._shutdown else 0.2):
            core.get_current_node_id()  # after Ray's shutdown, this ends the process
            time.sleep(0.01)
        return going

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", slow)


def test_all_is_read_and_nothing_left(session: None) -> None:
    assert sorted(numbers(4)) == list(range(400))
    assert not threads()


def test_who_raises_leaves_nothing(session: None, slow_loop: None) -> None:
    with pytest.raises(ZeroDivisionError), reading(rows()) as found:
        next(found)
        raise ZeroDivisionError
    assert not threads()


def test_who_stops_early_leaves_nothing(session: None) -> None:
    for number in numbers():
        if number > 10:
            break
    assert not threads()


def test_an_error_of_a_task_leaves_nothing(session: None) -> None:
    failing = ray.data.range(100, override_num_blocks=20).map(lambda row: {"a": 1 // (row["id"] - 50)})
    with pytest.raises(Exception, match="ZeroDivisionError"), reading(failing.iter_rows()) as found:
        list(found)
    assert not threads()


def test_of_two_that_are_read_at_once_each_can_end_first(session: None) -> None:
    first, second = numbers(), numbers(4)
    assert isinstance(next(first), int) and isinstance(next(second), int)
    first.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(second)) == 399
    assert not threads()


def test_a_reader_that_is_garbage_in_a_thread_of_ray_data_is_closed_from_another(session: None) -> None:
    gc.disable()
    try:
        reader = numbers()
        next(reader)
        cycle: list[Any] = [reader]
        cycle.append(cycle)
        del reader, cycle
        collector = threading.Thread(target=gc.collect, name="iter_threaded")
        collector.start()
        collector.join()
        close_all()
        assert not threads()
    finally:
        gc.enable()


def test_training_that_fails_closes_its_feed(session: None, tmp_path: Path) -> None:
    store, network = make_store(tmp_path / "store", 24), NetworkSettings(name="small3d", width=4)
    settings = ClassifierSettings(network=network, epochs=100, batch_size=6, crop=24, learning_rate=1e30)
    run = TrainingRun(
        name="real-0",
        store=store.root,
        folder=tmp_path / "out",
        seed=0,
        pairs=None,
        composite=CompositeSettings(),
        settings=settings,
    )
    with pytest.raises(SettingError, match="learning_rate") as error:
        train_classifiers([run], WorkerSettings(count=0), tmp_path / "scratch")
    assert error.tb is not None and not threads(), "its traceback holds the reader"


COMMAND = """
import sys, time
import test_streams
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from l2a_ray.cli import main
if sys.argv[1] == "slow":
    import pytest
    test_streams.slow_down(pytest.MonkeyPatch())
for _ in range(int(sys.argv[2])):
    try:
        main(sys.argv[3:])
    except SystemExit as end:
        print("status", end.code, flush=True)
        status = end.code
sys.exit(status)
"""


def prepare_where_a_clip_cannot_be_written(folder: Path, *how: str) -> "subprocess.CompletedProcess[str]":
    generate(folder / "videos", SMALL_VIDEOS, 0)
    (folder / "run.yaml").write_text(SMALL_RUN)
    settings = load(
        folder / "run.yaml", name="a", **{"runs": str(folder / "runs"), "data.root": str(folder / "videos")}
    )
    videos = read_catalog(settings.data).videos
    clips = settings.store_folder / "clips" / Pipeline(settings).prepare.clips.key
    blocked = clip_path(clips, videos[0].id, "0").parent
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    places = [str(ROOT), str(ROOT / "tests"), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *how, "prepare", "--config", "run.yaml", "--name", "a"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_that_fails_in_mid_stream_says_why(tmp_path: Path) -> None:
    done = prepare_where_a_clip_cannot_be_written(tmp_path, "slow", "1")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "l2a: error: " in done.stderr and "cannot be written" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)  # Ray starts and ends fifty times
def test_a_command_that_fails_in_mid_stream_says_why_each_time(tmp_path: Path) -> None:
    done = prepare_where_a_clip_cannot_be_written(tmp_path, "as it is", "50")
    assert done.stdout.splitlines() == ["status 2"] * 50, done.stderr[-3000:]
    assert done.stderr.count("l2a: error: ") == 50


LEFT = """
import test_streams
from l2a_ray.runtime.session import own_ray
with own_ray(num_cpus=1, include_dashboard=False):
    left = test_streams.numbers()
    next(left)
assert not test_streams.threads()
print("ended")
"""


def test_a_session_ends_what_is_still_read(tmp_path: Path) -> None:
    places = [str(ROOT), str(ROOT / "tests"), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run([sys.executable, "-c", LEFT], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr[-3000:]


class Starting(ray._private.node.Node):
    """A Ray whose first processes run when the others time out."""

    def __init__(self, ended: list[object]) -> None:
        self.ended = ended
        raise RuntimeError("Timed out waiting for file gcs_server_port")

    def kill_all_processes(self, *arguments: object, **options: object) -> None:
        self.ended.append(self)


@pytest.mark.parametrize("failures", [0, 2, sessions.STARTS])
def test_a_ray_that_times_out_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    tried, ended = list[dict[str, Any]](), list[object]()

    def init(**options: Any) -> SimpleNamespace:
        tried.append(options)
        if len(tried) <= failures:
            Starting(ended)
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(sessions, "ray", SimpleNamespace(init=init, shutdown=lambda: None, _private=ray._private))
    if failures < sessions.STARTS:
        sessions._start({"num_cpus": 1})
    else:
        with pytest.raises(ClusterError, match=r"not started in 5 attempts \(Timed out .*busy"):
            sessions._start({"num_cpus": 1})
    assert len(tried) == min(failures + 1, sessions.STARTS) and len(ended) == failures
    assert all(options["address"] == "local" and options["num_cpus"] == 1 for options in tried)
    assert caplog.text.count("Timed out waiting") == failures


def test_other_failures_to_start_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[object]()

    def init(**options: Any) -> None:
        tried.append(options)
        raise ValueError("object_store_memory must be at least 75 MiB")

    monkeypatch.setattr(sessions, "ray", SimpleNamespace(init=init, shutdown=lambda: None, _private=ray._private))
    with pytest.raises(ValueError, match="75 MiB"):
        sessions._start({})
    assert len(tried) == 1
