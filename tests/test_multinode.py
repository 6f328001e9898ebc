"""Several nodes: Ray's own multi-node test cluster on this machine, every stage, and nodes that go away."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml
from helpers import SMALL_RUN, SMALL_VIDEOS
from ray.cluster_utils import Cluster

from l2a_ray.videos.generate import generate

CLIPS = "clips/*/*/*.safetensors"


# One CPU a node: the classifier's worker has one node, its samples are made on another, and env runners have one each.
@contextmanager
def nodes(count: int, **resources: Any) -> Iterator[Cluster]:
    """A head without CPUs, as in cluster.yaml, and some workers."""
    # Ray notes the newest cluster of a machine there, which other sessions must not take for theirs.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory("", "l2a", ignore_cleanup_errors=True) as at,
    ):
        patch.setenv("RAY_TMPDIR", at)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(count):
            made.add_node(**resources)
        yield made
        made.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with nodes(3, num_cpus=1) as made:
        yield made


def start(folder: Path, name: str, address: str | None) -> subprocess.Popen[bytes]:
    longer = ["--selector.env_runners", "2", "--classifier.epochs", "40"]
    command = [sys.executable, "-m", "l2a_ray", "run", "--config", "run.yaml", "--runs", name, "--name", "a"]
    command += longer
    environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def wait_for(seen: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while not seen():
        assert process.poll() is None, f"ended before:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"never got there:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)


def metrics(folder: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / name / "a" / "report" / "metrics.json").read_bytes())
    del found["timing"]
    return found


@pytest.mark.slow
def test_a_run_on_nodes_that_go_away_ends_as_one_on_a_single_machine(tmp_path: Path, cluster: Cluster) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    (tmp_path / "run.yaml").write_text(SMALL_RUN)
    store, log = tmp_path / "cluster" / "store", tmp_path / "cluster.log"
    driver = start(tmp_path, "cluster", cluster.address)

    def lose_a_node() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(num_cpus=1)

    wait_for(lambda: len(list(store.glob(CLIPS))) > 5, driver, log)
    finished = {path: path.stat().st_mtime_ns for path in store.glob(CLIPS)}
    lose_a_node()
    wait_for(lambda: any(store.glob("train/*/checkpoint.safetensors")), driver, log)
    for _ in range(2):  # of three: the classifier's own, or the one that makes its samples, is among them
        lose_a_node()
    assert driver.wait(600) == 0, log.read_text()[-5000:]
    assert finished == {path: path.stat().st_mtime_ns for path in finished}, "a finished clip was made again"
    assert len(list(store.glob(CLIPS))) == 60

    assert start(tmp_path, "single", None).wait(600) == 0, (tmp_path / "single.log").read_text()[-5000:]
    assert metrics(tmp_path, "cluster") == metrics(tmp_path, "single")


# --- a table whose cells are made at the same time


@pytest.fixture
def gpus() -> Iterator[Cluster]:
    """The GPUs are made up."""
    with nodes(4, num_cpus=2, num_gpus=1) as made:
        yield made


def start_table(folder: Path, name: str, address: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "l2a_ray", "table", "small.yaml", "--runs", name, "--tables", f"{name}/tables"]
    with (folder / f"{name}.log").open("ab") as log:
        environment = os.environ | {"RAY_ADDRESS": address}
        return subprocess.Popen([*command, *options], cwd=folder, env=environment, stdout=log, stderr=log)


def spans(store: Path) -> list[tuple[float, float]]:
    """Return when the work on each classifier began and ended."""
    found = []
    for path in store.glob("train/*/stage.json"):
        about = json.loads(path.read_text())
        found.append((pd.Timestamp(about["started"]).timestamp(), path.stat().st_mtime))
    return found


@pytest.mark.slow
def test_four_cells_train_at_a_time_and_come_to_what_they_come_to_one_after_the_other(
    tmp_path: Path, gpus: Cluster
) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    (tmp_path / "run.yaml").write_text(SMALL_RUN.replace("arms: [real, selected]\n", ""))
    table = {
        "base": "run.yaml",
        "over": {"seed": [0, 1]},
        "common": {"workers": {"gpus": 1}},
        "rows": {"real": {"arm": "real"}, "random": {"arm": "random"}},  # none waits for a Selector
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(table))
    log, store = tmp_path / "beside.log", tmp_path / "beside" / "store"

    driver = start_table(tmp_path, "beside", gpus.address)
    wait_for(lambda: len(list(store.glob("train/*/stage.json"))) > 1, driver, log)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 130, log.read_text()[-3000:]
    ray.init(gpus.address, log_to_driver=False)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU") != 4:  # type: ignore[no-untyped-call]
        assert time.monotonic() < deadline, "what was interrupted still holds GPUs"
        time.sleep(0.5)
    ray.shutdown()

    assert start_table(tmp_path, "beside", gpus.address).wait(600) == 0, log.read_text()[-5000:]
    found = spans(store)
    assert len(found) == 4 and max(began for began, _ in found) < min(ended for _, ended in found)
    assert "4 of 4 cells done, 0 running, 0 waiting, 0 failed" in log.read_text()
    assert not list((tmp_path / "beside").rglob(".scratch*")), "something was left in the runs' folders"

    again = start_table(tmp_path, "single", gpus.address, "--at-once", "1")
    assert again.wait(600) == 0, (tmp_path / "single.log").read_text()[-5000:]
    beside, single = (
        pd.read_parquet(tmp_path / f"{name}/tables/small/results.parquet") for name in ("beside", "single")
    )
    same = [name for name in single if name != "folder"]
    pd.testing.assert_frame_equal(beside[same], single[same])
