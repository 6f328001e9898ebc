"""Killed at any stage and started again by the same command, a run ends as if it had never been stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers import SMALL_RUN

from l2a_ray.storage.files import read_table
from l2a_ray.storage.run import find_result
from l2a_ray.videos.generate import GenerateSettings, generate


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    # Long enough to be killed in the middle of each stage.
    longer = ["--arms", "[real,random,selected]", "--selector.steps", "160", "--classifier.epochs", "12"]
    command = [sys.executable, "-m", "l2a_ray", "run", "--config", "run.yaml", "--name", "a", "--runs", name, *longer]
    command += ["--workers.count", "0"]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def _kill_when(process: subprocess.Popen[bytes], seen: Callable[[], bool], log: Path) -> None:
    """Kill -9 as soon as ``seen`` says that the stage is in the middle of its work."""
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, f"ended before it could be killed:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"never got there:\n{log.read_text()[-3000:]}"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _finished(store: Path) -> dict[Path, object]:
    """Return when each clip and model was written, and when each complete result was begun."""
    files = (*store.glob("clips/*/*/*.safetensors"), *store.glob("train/*/model.safetensors"))
    records = {path: json.loads(path.read_text()) for path in store.glob("*/*/stage.json")}
    done = {path: record["started"] for path, record in records.items() if record["complete"]}
    return {path: path.stat().st_mtime_ns for path in files} | done


def _metrics(run: Path) -> dict[str, object]:
    metrics: dict[str, object] = json.loads((run / "report" / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.mark.ray
def test_killed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    videos = GenerateSettings(train_per_class=12, test_per_class=2, wrong_label_share=0, lost_share=0)
    generate(tmp_path / "videos", videos, 0)
    (tmp_path / "run.yaml").write_text(SMALL_RUN)
    uninterrupted = _start(tmp_path, "whole")

    store = tmp_path / "killed" / "store"
    moments = {
        "prepare": lambda: len(list(store.glob("clips/*/*/*.safetensors"))) > 10,
        "train-selector": lambda: any(store.glob("train-selector/*/checkpoint.safetensors")),
        "train": lambda: any(store.glob("train/*/model.safetensors")) and any(store.glob("train/*/checkpoint.*")),
    }
    for stage, moment in moments.items():
        before = _finished(store)
        _kill_when(_start(tmp_path, "killed"), moment, tmp_path / "killed.log")
        after = _finished(store)
        assert before.items() <= after.items(), "what was finished was made again"
        assert not any(path.parent.parent.name == stage for path in after if path.name == "stage.json"), (
            "killed too late"
        )
    assert _start(tmp_path, "killed").wait() == 0, (tmp_path / "killed.log").read_text()[-3000:]
    assert uninterrupted.wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]

    assert after.items() <= _finished(store).items(), "what was finished was made again"
    run, whole = tmp_path / "killed" / "a", tmp_path / "whole" / "a"
    for stage, table in (("select", "selected.parquet"), ("draw", "random.parquet")):
        ours, theirs = (read_table(find_result(place, stage) / table) for place in (run, whole))
        pd.testing.assert_frame_equal(ours, theirs)
    assert _metrics(run) == _metrics(whole)
