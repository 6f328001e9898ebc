"""What a run will cost: pairs counted as they will be made, and a plan made of real measurements."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError
from l2a_ray.pairs.match import Kind, MatchSettings, candidate_pairs
from l2a_ray.planning.plan import Costs, PlanSettings, count_pairs, estimate
from l2a_ray.prepare.segment import SegmentSettings
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.videos.catalog import Catalog, DataSettings, Video
from l2a_ray.videos.decode import DecodeSettings
from l2a_ray.videos.generate import GenerateSettings, generate

UNIT = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0.0) | {"cpus": 4.0, "gpus": 0.0})
NEIGHBOURS = np.array([1, 2, 0])


def catalog(train: tuple[int, ...] = (4, 2, 3), test: int = 5) -> Catalog:
    clips = [(label, "train") for label, count in enumerate(train) for _ in range(count)]
    clips += [(0, "test")] * test + [(0, "val")] * 2
    videos = [Video(f"{i:016x}", f"{i}.mp4", "abc"[label], label, part, "g") for i, (label, part) in enumerate(clips)]  # type: ignore[arg-type]
    return Catalog(("a", "b", "c"), tuple(videos), ())


@pytest.mark.parametrize("kind", ["semantic", "random", "same_class"])
def test_pairs_are_counted_as_they_are_made(kind: Kind) -> None:
    rows = [{"id": clip.id, "label": clip.label, "split": clip.split} for clip in catalog().videos]
    index = pd.DataFrame(rows).assign(foreground_ratio=0.5, remark="")
    neighbours = NEIGHBOURS if kind == "semantic" else None
    tables = candidate_pairs(index, ("a", "b", "c"), MatchSettings(kind=kind), neighbours, 0)
    assert count_pairs(np.array([4, 2, 3]), kind, neighbours) == sum(table.num_rows for table in tables)


def test_a_plan_by_hand() -> None:
    settings = Settings(
        name="x",
        arms="real,random",
        seeds=3,
        selector=SelectorSettings(algorithm="random"),
        classifier=ClassifierSettings(epochs=10, batch_size=4, composite_share=0.5, threads=2),
    )
    costs = replace(
        UNIT, clip=9.5, real=1.0, composite=3.0, step=2.0, fed_real=2.5, fed_mixed=2.5, predict=0.5, stream=3.0
    )
    plan = estimate(
        settings, catalog(), 1000, replace(costs, model_bytes=7, pair_bytes=2, clip_bytes=100, failed_share=0.5)
    )
    assert plan["clips"] == {"train": 9, "test": 5, "val": 2, "all": 16} and plan["pairs"] == 1000
    assert plan["stages"]["prepare"]["wall_s"] == pytest.approx(3 + 16 * 10 / 4)
    assert plan["stages"]["prepare"]["cpu_hours"] == pytest.approx(160 / 3600)
    # 3 x 10 epochs of 3 steps for each arm; a step is 2 s on 2 threads, and 4 samples of 1 or (1 + 3) / 2 s: 8 or 12 s,
    # on 4 CPUs 2 or 3. Beside its feed a step takes 2.5 s.
    work = 90 * (2 * 2 + 4) + 90 * (2 * 2 + 8)
    assert plan["stages"]["train"]["cpu_hours"] == pytest.approx(work / 3600)
    assert plan["stages"]["train"]["wall_s"] == pytest.approx(90 * 2.5 + 90 * 3 + 6 * 3 + 20)
    assert plan["stages"]["evaluate"]["wall_s"] == pytest.approx(6 * 5 * 0.5)
    assert plan["storage_bytes"] == {"clip_store": 800, "pairs": 2480, "models": 42, "checkpoints_at_most": 14}
    assert "train-selector" not in plan["stages"] and "select" in plan["stages"]
    assert plan["total"]["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in plan["stages"].values()))


def test_each_pair_is_composited_once_and_gpus_count() -> None:
    settings = Settings(name="x", classifier=ClassifierSettings(epochs=1, workers=2, gpus_per_worker=0.5))
    few = estimate(settings, catalog(), 10, replace(UNIT, composite=1.0))
    twice = estimate(settings, catalog(), 20, replace(UNIT, composite=1.0))
    more = twice["stages"]["train-selector"]["wall_s"] - few["stages"]["train-selector"]["wall_s"]
    assert more == pytest.approx(10, rel=1e-3)  # 4000 steps see all of 20 pairs
    slow = estimate(settings, catalog(), 10, replace(UNIT, fed_real=3600.0, fed_mixed=3600.0, gpus=1.0))
    assert slow["stages"]["train"]["gpu_hours"] == pytest.approx(3 * 2, rel=1e-2)  # 3 arms of 2 steps on 2 x half a GPU


@pytest.mark.parametrize(("name", "value"), [("seconds", 0), ("videos", 3)])
def test_impossible_settings_are_refused(name: str, value: int) -> None:
    with pytest.raises(SettingError, match=f"plan.{name}={value}"):
        PlanSettings(**{name: value})


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning")
def test_plan_measures_and_writes(tmp_path: Path) -> None:
    from l2a_ray.pipeline import stages

    generate(tmp_path / "videos", GenerateSettings(width=48, height=40, frames=8, train_per_class=3), 0)
    (tmp_path / "videos" / "train" / "kick" / "empty.mp4").touch()
    settings = Settings(
        name="x",
        runs=str(tmp_path / "runs"),
        data=DataSettings(root=str(tmp_path / "videos")),
        decode=DecodeSettings(frames=4, size=32),
        segment=SegmentSettings(kind="motion"),
        match=MatchSettings(kind="random"),
        selector=SelectorSettings(labels="one_hot", hidden=(16,), steps=160),
        classifier=ClassifierSettings(network=NetworkSettings(name="small3d", width=4), crop=24, workers=0),
        plan=PlanSettings(seconds=3, videos=400),
    )
    plan = json.loads(stages.plan(settings).read_text(encoding="utf-8"))
    assert set(plan["stages"]) == {"prepare", "match", "train-selector", "select", "train", "evaluate", "report"}
    measured = plan["measured"]
    assert all(measured[name] > 0 for name in measured if name not in ("gpus", "screen", "failed_share"))
    # 4 frames and backgrounds of 32 x 38 pixels, and masks of one bit.
    assert 2 * 4 * 32 * 38 * 3 < measured["clip_bytes"] < 1.5 * 2 * 4 * 32 * 38 * 3
    assert 0 <= measured["failed_share"] < 0.1 and plan["total"]["wall_s"] > 0
    assert [path.name for path in settings.folder.iterdir()] == ["plan.json"], "what was measured on is gone"
