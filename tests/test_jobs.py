"""Runs as Ray jobs, on a head started by `ray start`: their status, their logs, stopped and submitted again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from l2a_ray.storage.files import read_table
from l2a_ray.storage.run import find_result
from l2a_ray.videos.generate import GenerateSettings, generate

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CLIPS = "clips/*/*/*.safetensors"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Several heads may live on one machine. Tokens are off for all alike: a driver does not find a head's token by itself.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}
SMALL = """
seeds: [0]
decode: {frames: 4, size: 32}
env: {pairs: 8}
selector: {steps: 160, steps_per_update: 4, steps_per_iteration: 16, hidden: [16]}
classifier: &classifier {network: {name: small3d, width: 4}, epochs: 4, batch_size: 4, crop: 28}
warm_start: {classifier: *classifier}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(seen: Callable[[], bool], what: Callable[[], str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of its own ports and folder; ended by killing the group of processes that it started."""
    folder = tmp_path_factory.mktemp("r")  # short: Ray's sockets have paths of 107 characters at most
    dashboard, agent, client = free_ports(3)
    ports = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    ports += ["--port=0", f"--ray-client-server-port={client}"]
    limits = ["--num-cpus=2", "--object-store-memory=500000000", f"--object-spilling-directory={folder / 'spill'}"]
    command = [*RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}", *ports, *limits]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT)
    try:
        wait_for(lambda: "--block" in (folder / "head.log").read_text(), (folder / "head.log").read_text)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def job(verb: str, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*RAY, "job", verb, "--address", address, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=800)


def submit(address: str, name: str, arguments: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Submit `l2a run` as the documentation says, from the repository's root."""
    run = [sys.executable, "-m", "l2a_ray", "run", "--config", "configs/demo.yaml", *arguments]
    taken = ["--runtime-env", "configs/clusters/runtime_env.yaml", "--submission-id", name]
    return job("submit", address, *taken, *options, "--", *run)


def test_a_job_that_cannot_work_fails_and_says_why(address: str, tmp_path: Path) -> None:
    for name, arguments, said in (
        ("crop", ["--classifier.crop", "999", "--runs", str(tmp_path)], "classifier.crop=999: must be at most"),
        ("runs", ["--data.root", str(tmp_path)], "runs='runs': lies in this job's own copy"),
    ):
        done = submit(address, name, arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        assert said in job("logs", address, name).stdout and "failed" in job("status", address, name).stdout


def test_a_job_that_is_stopped_goes_on_when_submitted_again(address: str, tmp_path: Path) -> None:
    videos = GenerateSettings(train_per_class=24, test_per_class=2, wrong_label_share=0, lost_share=0)
    generate(tmp_path / "videos", videos, 0)
    (tmp_path / "small.yaml").write_text(SMALL)
    places = ["--config", str(tmp_path / "small.yaml"), "--data.root", str(tmp_path / "videos")]
    places += ["--runs", str(tmp_path / "runs"), "--name", "a"]
    run, store = tmp_path / "runs" / "a", tmp_path / "runs" / "store"

    assert submit(address, "first", places, "--no-wait").returncode == 0
    client = JobSubmissionClient(address)  # what `ray job stop` uses, without the seconds that a command takes to start
    wait_for(lambda: len(list(store.glob(CLIPS))) > 5, lambda: client.get_job_logs("first"))
    client.stop_job("first")
    wait_for(lambda: client.get_job_status("first").is_terminal(), lambda: client.get_job_logs("first"))
    assert client.get_job_status("first") == JobStatus.STOPPED
    made = {path: path.stat().st_mtime_ns for path in store.glob(CLIPS)}
    assert not list(store.glob("prepare/*/index.parquet")), "stopped too late to show anything"

    done = submit(address, "second", places)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished clip was made again"
    assert len(read_table(find_result(run, "prepare") / "index.parquet")) == 156
    arms = json.loads((run / "report" / "metrics.json").read_text())["arms"]
    assert set(arms) == {"real", "random", "selected"} and (run / "report" / "index.html").is_file()

    log = job("logs", address, "second").stdout
    assert re.search(rf"prepare: 156 videos, {len(made)} already done", log)
    for line in (
        "prepare: 156 clips, none lost",
        "% of the test clips right",
        f"report: {run / 'report' / 'index.html'}",
    ):
        assert line in log
    assert len(log.splitlines()) < 60 and "\r" not in log, "the log is for reading"
