"""What a run will cost: the arithmetic by hand, and a plan that really measures."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from helpers import SMALL_RUN, SMALL_VIDEOS
from test_pipeline import settings

from l2a_ray.config import load
from l2a_ray.errors import SettingError
from l2a_ray.pairs.match import Pools, candidate_pairs
from l2a_ray.pairs.settings import MatchSettings
from l2a_ray.pipeline import commands, stages
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import closure
from l2a_ray.pipeline.stage import Stage
from l2a_ray.planning.counts import Counts, Line, count_pairs, fit
from l2a_ray.planning.plan import estimate, memory, tell
from l2a_ray.planning.sample import Measured, Sample, sample_settings
from l2a_ray.planning.settings import PlanSettings
from l2a_ray.videos.generate import generate

NEIGHBOURS = np.array([1, 2, 0])
COUNTS = Counts(train=100, val=20, test=50, pairs=1000)


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        ((2, 7.0), (4, 11.0), Line(3.0, 2.0)),
        ((2, 7.0), (4, 6.0), Line(7.0, 0.0)),  # not measurable
        ((2, 7.0), (2, 8.0), Line(8.0, 0.0)),  # no larger: the run itself is as small
        ((2, 1.0), (4, 6.0), Line(0.0, 1.5)),  # nothing takes less than no time
    ],
)
def test_a_line_through_two_measurements(first: tuple[float, float], second: tuple[float, float], line: Line) -> None:
    assert fit(first, second) == line
    assert line.at(10) == line.fixed + 10 * line.slope


@pytest.mark.parametrize("kind", ["semantic", "random", "same_class"])
def test_pairs_are_counted_as_they_are_made(kind: Literal["semantic", "random", "same_class"]) -> None:
    train, labels = [4, 2, 3], np.repeat([0, 1, 2], [4, 2, 3])
    index = pd.DataFrame({"id": [f"{i:016x}" for i in range(9)], "label": labels})
    index = index.assign(split="train", foreground_ratio=0.5, foreground_frames=1.0, remark="")
    neighbours = NEIGHBOURS if kind == "semantic" else None
    tables = candidate_pairs(Pools(index, "abc", MatchSettings(kind=kind)), neighbours, 0)
    assert count_pairs(np.array(train), kind, neighbours) == sum(table.num_rows for table in tables)


def every(folder: Path, **changes: Any) -> dict[str, Stage]:
    """The stages of a run, one of each name."""
    about = {"pairs": "selector", "selector": None}
    arms = {"real": None, "random": None, "selected": about, "agreement": {"pairs": "agreement"}}
    chosen = settings(folder, arms=arms, seeds=[0], **changes)
    pipeline = Pipeline(chosen)
    return {stage.name: stage for stage in closure([*pipeline.all("evaluate"), pipeline.export])}


def test_what_costs_grow_with(tmp_path: Path) -> None:
    found = {name: round(stage.size(COUNTS)) for name, stage in every(tmp_path).items()}
    assert found == {
        "prepare": 170,
        "match": 1000,
        "warm-start": 30 * 7 * 16,  # epochs, steps of 16
        "describe": 120,
        "train-selector": 1600 + 1000,  # steps of 64 pairs: each of the pairs is met, and composited once
        "select": 1000,
        "select-by-agreement": 1000,
        "draw": 1000,
        "train": 30 * 7 * 16,
        "evaluate": 5 * 50,  # as they are, before two scenes, before stripes, still
        "export": 1000,
    }
    for held_out, made in ((0.0, 2528), (0.25, 4991)):  # of 2560 drawn and selected, or of 5120 drawn
        few = every(tmp_path, **{"selector.steps": 80, "env.held_out": held_out})["train-selector"]
        assert few.size(replace(COUNTS, pairs=10**6)) == pytest.approx(80 + made, abs=1)
    whole = every(tmp_path, **{"env.tune": "all", "classifier.train_on": "train+val"})
    assert whole["train-selector"].size(COUNTS) == 1600 * (64 + 20)
    assert whole["train"].size(COUNTS) == 30 * 8 * 16
    assert whole["warm-start"].size(COUNTS) == found["warm-start"]


def test_every_stage_says_what_its_cost_grows_with() -> None:
    concrete = [kind for _, kind in inspect.getmembers(stages, inspect.isclass) if issubclass(kind, Stage)]
    assert [kind.__name__ for kind in concrete if hasattr(kind, "name") and kind.size is Stage.size] == []


def test_a_sample_is_a_share_of_the_run(tmp_path: Path) -> None:
    chosen = replace(settings(tmp_path), plan=PlanSettings(clips_per_class=3, steps=8, iterations=1))
    some = replace(COUNTS, train=36)
    sample = sample_settings(chosen, some, 2, tmp_path / "there")
    # 16 steps are 5.3 epochs of 3
    assert (sample.data.limit, sample.classifier.epochs, sample.warm_start.classifier.epochs) == (6, 6, 6)
    assert (sample.selector.steps, sample.seeds, sample.store_folder) == (160, [0], tmp_path / "there" / "store")
    whole = replace(chosen, plan=PlanSettings(clips_per_class=3, steps=1000, iterations=100))
    whole = sample_settings(replace(whole, data=replace(chosen.data, limit=2)), some, 1, tmp_path)
    assert (whole.data.limit, whole.classifier.epochs, whole.selector.steps) == (2, 30, 1600)


def test_a_plan_by_hand(tmp_path: Path) -> None:
    chosen = settings(tmp_path, arms=["real"], **{"workers.count": 2, "workers.gpus": 0.5})
    pipeline = Pipeline(chosen)  # of two seeds
    targets = pipeline.all("evaluate")
    needed = [stage for stage in closure(targets) if stage is not pipeline.prepare]

    def sample(times: int, *results: Measured) -> Sample:
        return Sample(start=5.0, cpus=4, gpus=2, failed=0, peak=0, values=0, results=results)

    first = sample(1, Measured("prepare", 1, 1, 1), Measured("train", 100, 3.0, 70), Measured("evaluate", 10, 2.0, 50))
    second = sample(2, Measured("prepare", 2, 2, 2), Measured("train", 300, 5.0, 70), Measured("evaluate", 20, 4.0, 60))
    plan = estimate(closure(targets), needed, COUNTS, first, second)
    samples = 30 * 7 * 16
    train = 2 * (2.0 + 0.01 * samples)
    assert plan["stages"]["prepare"]["wall_s"] == 0 and plan["stages"]["prepare"]["missing"] == 0
    assert plan["stages"]["train"]["wall_s"] == pytest.approx(train)
    assert plan["stages"]["evaluate"]["wall_s"] == pytest.approx(2 * 0.2 * 5 * 50)
    assert plan["total"]["wall_s"] == pytest.approx(train + 100 + 5)
    assert plan["stages"]["train"]["cpu_hours"] == pytest.approx(4 * train / 3600)
    assert plan["total"]["gpu_hours"] == pytest.approx(2 * train / 3600), "to evaluate, no GPU is reserved"
    assert plan["total"]["storage_bytes"] == pytest.approx(2 * 70 + 2 * (40 + 5 * 50))
    assert plan["pairs"] == 0, "nothing is made of them"


def test_memory_at_full_size(tmp_path: Path) -> None:
    chosen = settings(tmp_path, **{"select.budget": 0.5, "selector.hidden": [32, 8], "env.candidates": 400})
    found = memory(chosen, COUNTS, 10)
    assert found["clips' vectors, in each process that reads them"] == 120 * 10 * 4
    assert found["halves of the Selector's first layer, at most"] == 2 * 120 * 32 * 4
    assert found["candidates of an env runner"] == 400 * (8 + 40)
    assert found["pairs kept while they are scored"] == 2 * 12 * 500
    assert found["a training's schedule"] == 16 * 170 + 4 * 100 + 12 * 500
    assert "candidates of an env runner" not in memory(chosen, COUNTS, 0), "without a Selector there is none"


@pytest.mark.parametrize("name", ["clips_per_class", "steps", "iterations"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}=0: must be at least 1"):
        PlanSettings(**{name: 0})


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A run folder in which nothing was done but planning."""
    folder = tmp_path_factory.mktemp("plan")
    generate(folder / "videos", SMALL_VIDEOS, 0)
    (folder / "run.yaml").write_text(SMALL_RUN)
    chosen = load(
        folder / "run.yaml",
        **{
            "name": "x",
            "runs": str(folder / "runs"),
            "data.root": str(folder / "videos"),
            "segment.gpus_per_worker": 1.0,
            "workers.count": 0,
            "plan": {"clips_per_class": 1, "steps": 1, "iterations": 1},
        },
    )
    out = commands.plan(chosen)
    yield folder / "runs", json.loads(Path(str(out)).read_bytes())


@pytest.mark.ray
def test_a_plan_measures_every_stage(planned: tuple[Path, dict[str, Any]]) -> None:
    _, plan = planned
    names = ["prepare", "match", "warm-start", "describe", "train-selector", "select", "train", "evaluate", "validate"]
    assert sorted(plan["stages"]) == sorted([*names, "recommend"])
    for stage in plan["stages"].values():
        before, after = stage["measured"]
        assert after["size"] > before["size"] > 0 and min(before["seconds"], after["seconds"]) > 0
        assert stage["wall_s"] > 0 and stage["storage_bytes"] > 0
    assert plan["stages"]["train"]["missing"] == 2
    assert plan["clips"] == {"train": 36, "val": 12, "test": 12} and plan["pairs"] == 36 * 6
    told = "\n".join(tell(plan))
    assert "60 clips, 216 candidate pairs" in told and "train-selector" in told


@pytest.mark.ray
def test_gpus_that_are_not_there_are_said(planned: tuple[Path, dict[str, Any]]) -> None:
    import torch

    said = any("ASK FOR GPUs AND THERE ARE NONE" in sentence for sentence in planned[1]["assumptions"])
    assert said != torch.cuda.is_available()


@pytest.mark.ray
def test_nothing_of_the_run_is_made(planned: tuple[Path, dict[str, Any]]) -> None:
    runs, _ = planned
    assert [str(path.relative_to(runs)) for path in sorted(runs.rglob("*"))] == ["x", "x/plan.json"]
