"""What is sent to those who watch."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from l2a_ray.errors import SettingError
from l2a_ray.runtime.tracking import Tracker, TrackingSettings


def read(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("selector/reward")]


def test_tensorboard_reads_what_was_sent_and_a_resumed_run_supersedes(tmp_path: Path) -> None:
    first = Tracker(tmp_path, TrackingSettings(), "run", {}, 0)
    for step in (10, 20, 30):
        first.log(step, {"selector/reward": step / 8})
    first.close()
    assert read(tmp_path) == [(10, 1.25), (20, 2.5), (30, 3.75)]
    resumed = Tracker(tmp_path, TrackingSettings(), "run", {}, 20)
    resumed.log(20, {"selector/reward": 7.0})
    resumed.close()
    assert read(tmp_path) == [(10, 1.25), (20, 7.0)]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_listener_that_is_not_installed_is_refused_before_any_work(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2a_ray.runtime.tracking.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=rf"^{package}='there'.*pip install {package}"):
        TrackingSettings(**{package: "there"})
