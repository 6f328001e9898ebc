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

from l2a_ray.videos.generate import GenerateSettings, generate


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    # Long enough to be killed in the middle of each stage.
    longer = ["--arms", "real,random,selected", "--selector.steps", "160", "--classifier.epochs", "12"]
    command = [sys.executable, "-m", "l2a_ray", "run", "--config", "run.yaml", "--name", name, *longer]
    command += ["--classifier.workers", "0"]
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


def _metrics(run: Path) -> dict[str, object]:
    metrics: dict[str, object] = json.loads((run / "report" / "metrics.json").read_text())
    del metrics["timing"]
    return metrics


@pytest.mark.slow
def test_killed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    videos = GenerateSettings(train_per_class=12, test_per_class=2, wrong_label_share=0, lost_share=0)
    generate(tmp_path / "videos", videos, 0)
    (tmp_path / "run.yaml").write_text(SMALL_RUN)
    assert _start(tmp_path, "whole").wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]

    run = tmp_path / "runs" / "killed"
    moments: list[Callable[[], bool]] = [
        lambda: len(list((run / "prepare" / "data").glob("*/*.safetensors"))) > 10,
        lambda: (run / "train-selector" / "checkpoint.tar").exists(),
        lambda: (run / "train" / "random-0" / "checkpoint.safetensors").exists(),
    ]
    for moment in moments:
        _kill_when(_start(tmp_path, "killed"), moment, tmp_path / "killed.log")
    clips = {path: path.stat().st_mtime_ns for path in (run / "prepare" / "data").glob("*/*.safetensors")}
    finished = (run / "train" / "real-0" / "model.safetensors").stat().st_mtime_ns
    assert _start(tmp_path, "killed").wait() == 0, (tmp_path / "killed.log").read_text()[-3000:]

    assert clips == {path: path.stat().st_mtime_ns for path in clips}, "a finished clip was made again"
    assert finished == (run / "train" / "real-0" / "model.safetensors").stat().st_mtime_ns, "a model was trained again"
    whole = tmp_path / "runs" / "whole"
    for file in ("select/selected.parquet", "select/random.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(run / file), pd.read_parquet(whole / file))
    assert _metrics(run) == _metrics(whole)
