"""Prometheus sees what happens: scraped from Ray's own endpoint, after real work."""

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from test_prepare import GENERATE, SETTINGS
from test_samples import make_store

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.prepare.job import prepare_clips
from l2a_ray.runtime import telemetry as metrics
from l2a_ray.runtime.session import ray_session
from l2a_ray.videos.catalog import DataSettings, read_catalog
from l2a_ray.videos.generate import generate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def scrape(expected: dict[str, float], patience: float = 60) -> dict[str, float]:
    """Return our numbers, added up over processes, each of which reports in its own time, or when time is up."""
    node = ray.nodes()[0]  # type: ignore[no-untyped-call]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    end = time.monotonic() + patience
    while time.monotonic() < end and found != expected:
        with urllib.request.urlopen(url) as answer:
            lines = re.findall(r"^(ray_l2a_\w+)\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
        found = {name: sum(float(value) for key, value in lines if key == name) for name, _ in lines}
        time.sleep(1)
    return found


@pytest.mark.ray
def test_dashboard_and_prometheus_see_what_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "l2a_ray")
    with ray_session():
        dashboard = re.search(r"Ray's dashboard: (http://\S+)", caplog.text)
        assert dashboard is not None
        with urllib.request.urlopen(dashboard[1]) as answer:
            assert b"Ray Dashboard" in answer.read()
        see_what_was_done(tmp_path)


def see_what_was_done(tmp_path: Path) -> None:
    generate(tmp_path / "videos", GENERATE, 0)
    (tmp_path / "videos" / "train" / "kick" / "empty.mp4").touch()
    catalog = read_catalog(DataSettings(root=str(tmp_path / "videos")))
    store = prepare_clips(catalog, SETTINGS, tmp_path / "clips", tmp_path / "store")
    clips = store.rows("train")["id"].to_list()

    @ray.remote
    def composite() -> None:
        loader = SampleLoader(store, CompositeSettings(), 32)
        for background in (clips[1], None, clips[2]):
            loader(Sample(clips[0], background), None)

    ray.get([composite.remote(), composite.remote()])
    metrics.show("l2a_selector_reward", -0.25)
    expected = {
        "ray_l2a_clips_prepared_total": len(store.index),
        "ray_l2a_clips_failed_total": 1,
        "ray_l2a_samples_composited_total": 4,
        "ray_l2a_selector_reward": -0.25,
    }
    assert scrape(expected) == expected


def test_without_ray_nothing_is_recorded_and_nothing_fails(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4)
    SampleLoader(store, CompositeSettings(), 24)(Sample("0000", "0001"), None)
    code = "import sys; from l2a_ray.runtime.telemetry import count; count('l2a_train_steps')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'ray' not in sys.modules"], check=True, cwd=PAGE.parents[1])


def test_page_names_each_metric() -> None:
    named = set(re.findall(r"^\| `(ray_l2a_\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {f"ray_{name}_total" for name in metrics.COUNTERS} | {f"ray_{name}" for name in metrics.GAUGES}
    asked = set(re.findall(r"ray_l2a_\w+", PAGE.read_text(encoding="utf-8")))
    assert asked == named
