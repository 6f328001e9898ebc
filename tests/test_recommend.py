"""Which classifier a run recommends: known answers, never worse than real clips alone, and D_val alone decides."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from finished import finish, place, small_run
from helpers import CROP, NETWORK
from numpy.typing import NDArray

from l2a_ray import load_classifier
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.deploy.choose import Scores, paired_bootstrap, recommend, tell, without_scores
from l2a_ray.deploy.settings import RecommendSettings
from l2a_ray.errors import SettingError
from l2a_ray.pipeline import commands
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import closure
from l2a_ray.storage.run import read_stages

CLIPS = 100
CLASSIFIER = ClassifierSettings(network=NETWORK, crop=CROP)


def scores(*right: int, loss: float = 1.0, clips: int = CLIPS) -> Scores:
    """Of each seed the first so many clips right."""
    return Scores(np.arange(clips) < np.array(right)[:, None], np.full(len(right), loss))


def choose(arms: dict[str, Scores], sureness: float = 0.9, baseline: str | None = "real") -> dict[str, Any]:
    seeds, clips = next(iter(arms.values())).hits_SN.shape
    return recommend(arms, list(range(seeds)), [str(clip) for clip in range(clips)], baseline, sureness)


@pytest.mark.parametrize(
    ("right", "arm"),
    [
        ({"real": 50, "other": 70}, "other"),
        ({"real": 50, "other": 30}, "real"),
        ({"real": 50, "other": 50}, "real"),
        ({"real": 50, "other": 51}, "real"),  # e^-1 of the draws do not have the clip that differs
        ({"real": 50, "other": 60, "third": 75}, "third"),
        ({"other": 90, "real": 50, "third": 20}, "other"),
        ({"real": 50}, "real"),
    ],
)
def test_an_arm_is_recommended_where_it_is_surely_better(right: dict[str, int], arm: str) -> None:
    found = choose({name: scores(count) for name, count in right.items()})
    assert found["arm"] == arm and found["seed"] == 0
    assert tell(found)[-1].startswith(f"recommended: {arm}, seed 0: {right[arm]}.0 % of D_val right")


def test_sureness_is_a_setting() -> None:
    arms = {"real": scores(50), "other": scores(51)}
    better = choose(arms)["arms"]["other"]["against"]["better"]
    assert better == pytest.approx(1 - np.exp(-1) / 2, abs=0.02)
    assert choose(arms, 0.8)["arm"] == "other" and choose(arms, 0.85)["arm"] == "real"
    assert choose({"real": scores(50), "other": scores(50)}, 0.5)["arm"] == "real", "no gain at all"
    for wrong in (0.4, 1.0):
        with pytest.raises(SettingError, match=f"^sureness={wrong}: must be at least 0.5 and below 1"):
            RecommendSettings(sureness=wrong)


def test_of_the_arms_seeds_the_best_is_handed_over_and_equal_ones_are_told_apart_by_the_loss() -> None:
    assert choose({"real": scores(20, 20, 20), "other": scores(70, 90, 80)})["seed"] == 1
    equal = Scores(scores(70, 70).hits_SN, np.array([1.5, 0.5]))
    assert choose({"real": scores(20, 20), "other": equal})["seed"] == 1
    arms = {"real": scores(20), "a": scores(70, loss=2.0), "b": scores(70, loss=1.0)}
    assert choose(arms)["arm"] == "b"


def test_without_real_clips_the_best_is_taken_and_nothing_is_claimed() -> None:
    found = choose({"a": scores(30), "b": scores(40)}, baseline=None)
    assert found["arm"] == "b" and "against" not in found["arms"]["b"]
    assert tell(found) == [
        "recommended: b, seed 0: 40.0 % of D_val right, the most of all; no arm is of real clips alone, so whether "
        "composites help is not known"
    ]


def test_without_clips_to_choose_by_real_clips_alone_are_recommended() -> None:
    found = without_scores(["mixed", "real"], [3, 4], "real", 0.9)
    assert (found["arm"], found["seed"], found["clips"]) == ("real", 3, 0)
    assert "No clip of D_val is left to compare arms on" in tell(found)[0]
    assert without_scores(["a", "b"], [0], None, 0.9)["arm"] == "a"


def test_the_sentence_says_by_how_much_and_how_sure() -> None:
    lines = tell(choose({"real": scores(50, 50), "worse": scores(20, 20), "better": scores(80, 80)}))
    assert lines[0].startswith(
        "worse: -30.0 points over real on D_val, 95 % interval -39.0 to -21.0, 100 clips, 2 seeds: "
    )
    assert lines[0].endswith("1 % sure that it is better, not enough")
    assert lines[1].startswith("better: +30.0 points") and lines[1].endswith("99 % sure that it is better")
    assert lines[2] == "recommended: better, seed 0: 80.0 % of D_val right"


def test_an_arm_that_is_worse_is_seldom_recommended() -> None:
    """Of 48 clips, one seed: an arm that is right 10 points less often than real clips alone."""
    rng, recommended = np.random.default_rng(0), 0
    for _ in range(100):
        arms = {name: Scores(rng.random((1, 48)) < chance, np.ones(1)) for name, chance in (("real", 0.5), ("a", 0.4))}
        recommended += choose(arms)["arm"] == "a"
    assert recommended <= 3


# --- the bootstrap


def differences(rng: np.random.Generator, seeds: int, clips: int, mean: float = 0.0) -> NDArray[np.int64]:
    chances = [0.3 - mean / 2, 0.4, 0.3 + mean / 2]
    return rng.choice(np.array([-1, 0, 1]), p=chances, size=(seeds, clips))


def test_the_interval_is_that_of_the_mean() -> None:
    difference = differences(np.random.default_rng(0), 1, 400, 0.1)
    found = paired_bootstrap(difference, [str(clip) for clip in range(400)])
    half = 1.96 * difference.std() / np.sqrt(400)
    assert found["mean"] == pytest.approx(difference.mean())
    assert found["low"] == pytest.approx(difference.mean() - half, abs=0.006)
    assert found["high"] == pytest.approx(difference.mean() + half, abs=0.006)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [paired_bootstrap(differences(rng, 1, 60, 0.1), [str(clip) for clip in range(60)]) for _ in range(80)]
    assert 0.88 <= np.mean([one["low"] <= 0.1 <= one["high"] for one in found]) <= 0.99


def test_clips_of_one_source_count_as_one() -> None:
    """Ten copies of 20 clips know as much as the 20 clips."""
    few = differences(np.random.default_rng(1), 1, 20)
    sources = [str(clip) for clip in range(20)]
    once = paired_bootstrap(few, sources)
    copied = paired_bootstrap(np.tile(few, 10), sources * 10)
    assert copied == pytest.approx(once)
    alone = paired_bootstrap(np.tile(few, 10), [str(clip) for clip in range(200)])
    assert alone["high"] - alone["low"] < 0.5 * (once["high"] - once["low"])


def test_seeds_that_disagree_widen_the_interval() -> None:
    same = np.tile(differences(np.random.default_rng(2), 1, 50), (4, 1))
    split = same + np.array([[1], [1], [-1], [-1]])
    sources = [str(clip) for clip in range(50)]
    narrow, wide = paired_bootstrap(same, sources), paired_bootstrap(split, sources)
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_it_is_the_same_every_time_and_in_any_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    difference, sources = differences(np.random.default_rng(3), 2, 30), [str(clip) for clip in range(30)]
    assert paired_bootstrap(difference, sources) == paired_bootstrap(difference, sources)
    whole = paired_bootstrap(difference, sources)
    monkeypatch.setattr("l2a_ray.deploy.choose._AT_ONCE", 3000)
    assert paired_bootstrap(difference, sources) == pytest.approx(whole, abs=0.02)


# --- in a run


def trained_run(root: Path, **changes: Any) -> Pipeline:
    """A run of two arms and seeds whose classifiers have random weights and an expert's: `random` is right of red."""
    given = {"seeds": [0, 1], "arms": ["real", "random"], "classifier": CLASSIFIER} | changes
    _, pipeline, store = small_run(root, **given)
    for number, (seed, arm) in enumerate((seed, arm) for seed in pipeline.settings.seeds for arm in pipeline.arms):
        torch.manual_seed(number)
        stage = pipeline.train(arm, seed)
        finish_match(pipeline, seed)
        save_network(place(pipeline, stage) / "model.safetensors", build_network(NETWORK, len(store.classes)))
        finish(pipeline, stage)
    return pipeline


def finish_match(pipeline: Pipeline, seed: int) -> None:
    for stage in closure([pipeline.draw(seed)]):
        if not pipeline.results.is_complete(stage):
            finish(pipeline, stage)


def plant(pipeline: Pipeline, arm: str, seed: int, right: int) -> None:
    """Say of a classifier that it is right of so many clips of D_val."""
    store = pipeline.results.folder(pipeline.prepare)
    index = pd.read_parquet(str(store / "index.parquet"))
    clips = index[index["split"] == "val"]
    label = clips["label"].to_numpy()
    predicted = np.where(np.arange(len(clips)) < right, label, (label + 1) % 3)
    table = pd.DataFrame({"id": clips["id"], "label": label, "predicted": predicted, "probability": 0.5})
    metrics = pd.DataFrame([{"top1": right / len(clips), "top5": 1.0, "loss": 1.0, "clips": len(clips)}])
    finish(pipeline, pipeline.validate(arm, seed), predictions=table, metrics=metrics)


def content(pipeline: Pipeline) -> dict[str, Any]:
    folder = pipeline.results.folder(pipeline.recommend)
    return dict(json.loads((folder / "recommendation.json").read_bytes()))


def test_a_run_hands_over_the_classifier_that_validation_prefers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pipeline = trained_run(tmp_path)
    for seed, (real, mixed) in enumerate([(0, 5), (1, 6)]):
        plant(pipeline, "real", seed, real)
        plant(pipeline, "random", seed, mixed)
    out = commands.recommend(pipeline.settings)
    assert out == tmp_path / "run" / "model"
    found = load_classifier(out)
    expected = pipeline.results.folder(pipeline.train("random", 1)) / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == expected.read_bytes()
    assert found.classes == ("red", "green", "blue") and found.crop == CROP
    about = found.about
    assert (about["arm"], about["seed"], about["trained_on"]) == ("random", 1, "train")
    assert about["recommendation"] == content(pipeline) and about["made"]["title"] == "train/random-1"
    assert about["why"][0] in caplog.messages and about["why"][0].startswith("random: +83.3 points over real on D_val")
    assert caplog.messages[-1].startswith(f"model: {out}, trained on train")
    assert {"recommend", "validate/real-0"} <= read_stages(tmp_path / "run")["current"].keys()


def test_validation_is_kept_under_a_key_and_the_choice_follows_the_arms(tmp_path: Path) -> None:
    pipeline = trained_run(tmp_path)
    pipeline.results.make([pipeline.recommend])
    first = content(pipeline)
    assert first["clips"] == 6 and set(first["arms"]) == {"real", "random"}
    again = Pipeline(pipeline.settings)
    assert again.results.needed([again.recommend]) == []
    fewer = small_settings(pipeline, arms=["real"])
    assert [stage.title for stage in fewer.results.needed([fewer.recommend])] == ["recommend"]
    surer = small_settings(pipeline, recommend=RecommendSettings(sureness=0.99))
    assert [stage.title for stage in surer.results.needed([surer.recommend])] == ["recommend"]
    same = small_settings(pipeline, recommend=RecommendSettings(retrain=True))
    assert same.results.needed([same.recommend]) == []


def small_settings(pipeline: Pipeline, **changes: Any) -> Pipeline:
    return Pipeline(replace(pipeline.settings, **changes))


def test_test_clips_play_no_part(tmp_path: Path) -> None:
    """Whatever their labels are, and though their files be gone."""
    told = []
    for name in ("whole", "blind"):
        pipeline = trained_run(tmp_path / name)
        if name == "blind":
            folder = pipeline.results.folder(pipeline.prepare)
            index = pd.read_parquet(str(folder / "index.parquet"))
            test = index["split"] == "test"
            for clip in index.loc[test, "id"]:
                next(Path(str(folder)).glob(f"clips/*/{clip}-*")).unlink()
            index.loc[test, "label"] = (index.loc[test, "label"] + 1) % 3
            index.to_parquet(str(folder / "index.parquet"), index=False)
            pipeline = trained_run_again(pipeline)
        pipeline.results.make([pipeline.recommend])
        told.append(content(pipeline))
    assert told[0] == told[1] and told[0]["clips"] == 6


def trained_run_again(pipeline: Pipeline) -> Pipeline:
    """The same after the data set has changed: the same weights under the keys that follow from it."""
    old = {
        (arm, seed): (place(pipeline, pipeline.train(arm, seed)) / "model.safetensors").read_bytes()
        for seed in pipeline.settings.seeds
        for arm in pipeline.arms
    }
    finish(pipeline, pipeline.prepare)
    new = Pipeline(pipeline.settings)
    for (arm, seed), weights in old.items():
        finish_match(new, seed)
        stage = new.train(arm, seed)
        folder = place(new, stage)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(weights)
        finish(new, stage)
    return new


def test_where_validation_clips_were_learned_real_clips_alone_are_recommended(tmp_path: Path) -> None:
    pipeline = trained_run(tmp_path, classifier=replace(CLASSIFIER, train_on="train+val"), arms=["random", "real"])
    assert not any(stage.name == "validate" for stage in closure([pipeline.recommend]))
    about = load_classifier(commands.recommend(pipeline.settings)).about
    assert (about["arm"], about["seed"], about["trained_on"]) == ("real", 0, "train+val")
    assert "No clip of D_val is left" in about["why"][0]


def test_the_recommended_arm_is_trained_again_on_all_training_clips_if_asked(tmp_path: Path) -> None:
    pipeline = trained_run(tmp_path, recommend=RecommendSettings(retrain=True))
    plant_all(pipeline, real=1, random=6)
    again = pipeline.retrain("random", 0)
    assert again.title == "train/random@all-0" and again.classifier.train_on == "train+val"
    assert again.pairs is pipeline.train("random", 0).pairs
    torch.manual_seed(9)
    save_network(place(pipeline, again) / "model.safetensors", build_network(NETWORK, 3))
    finish(pipeline, again)
    out = commands.recommend(pipeline.settings)
    about = load_classifier(out).about
    assert (about["trained_on"], about["made"]["title"]) == ("train+val", "train/random@all-0")
    assert (out / "model.safetensors").read_bytes() == (place(pipeline, again) / "model.safetensors").read_bytes()
    assert "train/random@all-0" in read_stages(tmp_path / "run")["current"], "it is one of the run's: kept by clean"


def plant_all(pipeline: Pipeline, **right: int) -> None:
    for seed in pipeline.settings.seeds:
        for arm, count in right.items():
            plant(pipeline, arm, seed, count)
