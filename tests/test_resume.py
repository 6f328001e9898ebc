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

from l2a_ray.videos.generate import GenerateSettings, generate

CONFIG = """
arms: real,random,selected
data: {layout: folder, val_fraction: 0.25}
decode: {frames: 4, size: 32}
segment: {kind: motion}
match: {kind: random}
env: {pairs: 8}
selector: {steps: 160, steps_per_update: 4, steps_per_iteration: 16, checkpoint_every: 1, hidden: [16], labels: one_hot}
select: {budget: 0.5}
classifier: {network: {name: small3d, width: 4}, epochs: 12, batch_size: 4, crop: 28, workers: 0}
"""


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    arguments = ["run", "--config", "run.yaml", "--data.root", "videos", "--name", name]
    command = [sys.executable, "-m", "l2a_ray", *arguments]
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
    (tmp_path / "run.yaml").write_text(CONFIG)
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
