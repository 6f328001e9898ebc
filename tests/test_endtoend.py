"""Whole commands on one small run: what a change makes anew, what a failure leaves, what a run can be asked."""

import html
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import SMALL_RUN, SMALL_VIDEOS

from l2a_ray import load_classifier
from l2a_ray.cli import main
from l2a_ray.config import load
from l2a_ray.fields import plain
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stage import Stage
from l2a_ray.selector.file import load_selector, save_selector
from l2a_ray.selector.learned import carries_signal, read_learned
from l2a_ray.storage.run import read_stages
from l2a_ray.videos.generate import generate

# RLlib warns of its own use of deprecated settings.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
ROOT = Path(__file__).parents[1]
# Classifiers are trained in the command's own process: Ray Train's takes half a minute to start.
MORE = """
seeds: [0, 1]
arms: [real, random, selected]
workers: {count: 0}
"""


@dataclass(frozen=True)
class House:
    """A folder with videos, `run.yaml` and the runs made of them."""

    folder: Path
    runs: Path

    def command(self, stage: str, **changes: Any) -> list[str]:
        options = {"name": "a", "runs": str(self.runs), "data.root": str(self.folder / "videos")} | changes
        refresh = options.pop("refresh", False)
        given = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
        return [stage, "--config", str(self.folder / "run.yaml"), *given, *(["--refresh"] if refresh else [])]

    def pipeline(self, **changes: Any) -> Pipeline:
        options = {"name": "a", "runs": str(self.runs), "data.root": str(self.folder / "videos")} | changes
        return Pipeline(load(self.folder / "run.yaml", **options))

    def result(self, stage: Stage) -> Path:
        return Path(str(self.pipeline().results.folder(stage)))

    def made(self) -> dict[Path, int]:
        """When each result was recorded and each clip written."""
        store = self.runs / "store"
        return {path: path.stat().st_mtime_ns for path in (*store.glob("*/*/stage.json"), *store.glob("clips/*/*/*"))}

    def makes(self, stage: str, **changes: Any) -> dict[str, int]:
        """Run a command; return how many results of each stage it made, and how many clips."""
        before = self.made()
        main(self.command(stage, **changes))
        new = [path for path, time in self.made().items() if before.get(path) != time]
        return dict(Counter("clip" if path.suffix == ".safetensors" else path.parent.parent.name for path in new))

    def refuses(self, capsys: pytest.CaptureFixture[str], stage: str, **changes: Any) -> str:
        """Run a command that must end with status 2; return what it says."""
        with pytest.raises(SystemExit) as ended:
            main(self.command(stage, **changes))
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "l2a: error: " in said and "Traceback" not in said
        return said

    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / "a" / "report" / "metrics.json").read_text())
        return {name: value for name, value in found.items() if name != "timing"}


@pytest.fixture(scope="module")
def house(session: None, tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    generate(folder / "videos", SMALL_VIDEOS, 0)
    (folder / "run.yaml").write_text(SMALL_RUN.replace("arms: [real, selected]\n", "") + MORE)
    made = House(folder, folder / "runs")
    assert made.makes("run") == {"clip": 60, "prepare": 1, "match": 2, "warm-start": 2, "describe": 2, "draw": 2,
        "train-selector": 2, "select": 2, "train": 6, "evaluate": 6, "validate": 6, "recommend": 1}  # fmt: skip
    return made


@pytest.fixture
def copy(house: House, tmp_path: Path) -> Iterator[House]:
    """The same runs moved to a folder that a test may spoil: where they were before is nothing."""
    shutil.copytree(house.runs, tmp_path / "runs", symlinks=True)
    away = house.runs.rename(house.folder / "away")
    try:
        yield House(house.folder, tmp_path / "runs")
    finally:
        away.rename(house.runs)


# --- what a change makes anew

SILENT = """
import sys
from l2a_ray.cli import main
main(sys.argv[1:])
assert not {"ray", "torch"} & sys.modules.keys(), "imported"
"""


@pytest.mark.parametrize("stage", ["prepare", "match", "train-selector", "select", "train", "evaluate"])
def test_a_complete_stage_says_so_without_ray_and_pytorch(house: House, stage: str) -> None:
    before = house.made()
    command = [sys.executable, "-c", SILENT, *house.command(stage)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "complete, nothing to do" in done.stderr
    assert house.made() == before


@pytest.mark.parametrize(
    ("stage", "changes", "made"),
    [
        ("run", {}, {}),
        ("run", {"seeds": [0]}, {"recommend": 1}),
        ("run", {"arms": ["selected", "real"]}, {"recommend": 1}),
        ("evaluate", {"composite.feather": 1.0, "arms": ["real", "random"], "seeds": [0]}, {"train": 1, "evaluate": 1}),
        ("evaluate", {"classifier.epochs": 3, "seeds": [0]}, {"train": 3, "evaluate": 3}),
        ("evaluate", {"arms": ["real"], "seeds": [0, 1, 2]}, {"train": 1, "evaluate": 1}),
        ("evaluate", {"arms": {"real": None, "boxes": {"pairs": "random", "composite": {"region": "boxes"}}}},
         {"train": 2, "evaluate": 2}),
        ("match", {"data.seed": 1, "seeds": [0]}, {"prepare": 1, "match": 1}),
        ("prepare", {"decode.size": 28}, {"prepare": 1, "clip": 60}),
        ("match", {"segment.gpus_per_worker": 0.5, "segment.weights": "COCO_V2", "select.gpus": 0.5}, {}),
    ],
)  # fmt: skip
def test_a_change_makes_only_what_depends_on_it(
    house: House, stage: str, changes: dict[str, Any], made: dict[str, int]
) -> None:
    assert house.makes(stage, **{"name": "b"} | changes) == made


def test_moved_runs_and_videos_are_found_again(copy: House, tmp_path: Path) -> None:
    assert copy.makes("run") == {}
    shutil.copytree(copy.folder / "videos", tmp_path / "videos")
    assert copy.makes("run", **{"data.root": str(tmp_path / "videos")}) == {"prepare": 1}, "looked at, once"


def test_videos_of_another_folder_are_other_videos(house: House, tmp_path: Path) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 1)
    other = {"data.root": str(tmp_path / "videos"), "name": "b"}
    assert house.makes("prepare", **other) == {"prepare": 1, "clip": 60}
    assert house.makes("prepare") == house.makes("prepare", **other) == {}


# --- a repetition draws all anew that comes after the split


def test_repetitions_differ_in_pairs_selector_and_classifiers(house: House) -> None:
    pipeline = house.pipeline()
    files: dict[str, tuple[Callable[[int], Stage], str]] = {
        "match": (pipeline.match, "pairs.parquet"),
        "draw": (pipeline.draw, "random.parquet"),
        "warm start": (pipeline.warm_start, "model.safetensors"),
        "selector": (pipeline.train_selector, "selector.safetensors"),
        "selection": (pipeline.select, "selected.parquet"),
        "real": (lambda seed: pipeline.train("real", seed), "model.safetensors"),
        "selected": (lambda seed: pipeline.train("selected", seed), "model.safetensors"),
    }
    for what, (stage, name) in files.items():
        one, other = ((house.result(stage(seed)) / name).read_bytes() for seed in (0, 1))
        assert one != other, f"{what}: the repetitions are the same"


def test_a_run_ends_with_a_classifier_that_says_of_test_videos_what_evaluate_said(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = house.runs / "a" / "model"
    about = load_classifier(model).about
    page = (house.runs / "a" / "report" / "index.html").read_text()
    assert all(html.escape(line) in page for line in about["why"])
    assert about["recommendation"]["clips"] == 12 and house.metrics()["recommendation"] == about["recommendation"]
    out = tmp_path / "predictions.csv"
    main(["predict", "--model", str(model), "--top", "1", "--out", str(out), str(house.folder / "videos" / "test")])
    assert len(capsys.readouterr().out.splitlines()) == 12
    found = pd.read_csv(out).set_index("video")
    pipeline = house.pipeline()
    index = pd.read_parquet(house.result(pipeline.prepare) / "index.parquet").set_index("id")
    said = pd.read_parquet(house.result(pipeline.evaluate(about["arm"], about["seed"])) / "predictions.parquet")
    assert set(said["set"]) == {"real", "scenes", "stripes", "still"}
    said = said[said["set"] == "real"]
    paths = index.loc[said["id"], "path"]
    assert found.loc[paths, "class"].tolist() == [about["classes"][label] for label in said["predicted"]]
    np.testing.assert_allclose(found.loc[paths, "probability"], said["probability"], rtol=0, atol=1e-6)


def test_the_recommended_arm_is_trained_once_more_if_asked(copy: House) -> None:
    before = load_classifier(copy.runs / "a" / "model").about
    assert copy.makes("recommend", **{"recommend.retrain": True}) == {"train": 1}
    after = load_classifier(copy.runs / "a" / "model").about
    assert [about["trained_on"] for about in (before, after)] == ["train", "train+val"]
    assert after["recommendation"] == before["recommendation"] and after["digest"] != before["digest"]
    assert copy.makes("recommend") == {}
    assert load_classifier(copy.runs / "a" / "model").about == before


def test_validation_clips_given_back_are_trained_on(house: House) -> None:
    changes = {"classifier.train_on": "train+val", "arms": ["real"], "seeds": [0], "name": "b"}
    assert house.makes("train", **changes) == {"train": 1}
    steps = [
        pd.read_parquet(house.result(pipeline.train("real", 0)) / "history.parquet")["step"].max()
        for pipeline in (house.pipeline(), house.pipeline(**changes))
    ]
    clips = pd.read_parquet(house.result(house.pipeline().prepare) / "index.parquet")["split"].value_counts()
    assert steps == [2 * clips["train"] // 4, 2 * (clips["train"] + clips["val"]) // 4]  # 2 epochs, batches of 4


# --- arms


def test_where_the_reward_means_nothing_random_pairs_stand_in_for_the_selected(house: House) -> None:
    """Six clips of six classes judge here: two halves of them agree on nothing surely."""
    pipeline = house.pipeline(**{"select.without_signal": "random"})
    assert house.makes("select", **{"select.without_signal": "random"}) == {"select": 2}, (
        "what is drawn is drawn already"
    )
    for seed in (0, 1):
        assert carries_signal(read_learned(house.result(pipeline.train_selector(seed)))) is False
        chosen, scored = (house.result(made.select(seed)) for made in (pipeline, house.pipeline()))
        kept, best = (pd.read_parquet(folder / "selected.parquet") for folder in (chosen, scored))
        drawn = pd.read_parquet(house.result(pipeline.draw(seed)) / "random.parquet")
        pd.testing.assert_frame_equal(kept[drawn.columns], drawn)
        assert not kept.equals(best) and json.loads((chosen / "summary.json").read_text())["by_chance"]


def test_clips_without_labels_are_learned_by_the_methods_that_can(house: House) -> None:
    arms = {
        "supervised": {"pairs": "none"},
        "fixmatch": {"pairs": "none", "method": "fixmatch", "semi": {"mu": 1, "threshold": 0.2}},
        "videossl": {"pairs": "none", "method": "videossl"},
    }
    few = {"name": "semi", "seeds": [0], "arms": arms, "data.labelled_share": 0.5}
    # Each clip is there; the teacher is asked for the one arm that learns its opinions.
    assert house.makes("train", **few, **{"data.unlabelled": "keep"}) == {"prepare": 1, "teach": 1, "train": 3}
    pipeline = house.pipeline(**few, **{"data.unlabelled": "keep"})
    histories = {arm: pd.read_parquet(house.result(pipeline.train(arm, 0)) / "history.parquet") for arm in arms}
    assert "kept_share" not in histories["supervised"] and histories["fixmatch"]["kept_share"].gt(0).any()
    # Where the result is an average of weights, those that were trained are tested beside it.
    assert house.makes("evaluate", **few, **{"data.unlabelled": "keep"}) == {"evaluate": 3}
    tested = {arm: house.result(pipeline.evaluate(arm, 0)) for arm in arms}
    assert [arm for arm, folder in tested.items() if (folder / "student").exists()] == ["fixmatch"]
    average, student = (
        pd.read_parquet(folder / "predictions.parquet")
        for folder in (tested["fixmatch"], tested["fixmatch"] / "student")
    )
    assert student["set"].unique().tolist() == ["real"], "as they are alone"
    average = average[average["set"] == "real"]
    assert average["id"].tolist() == student["id"].tolist()
    assert average["probability"].tolist() != student["probability"].tolist()
    # To a method that learns from labels alone it is the same whether the other clips are there.
    alone = few | {"name": "few", "arms": {"supervised": arms["supervised"]}}
    assert house.makes("train", **alone) == {"prepare": 1, "train": 1}
    weights = [
        (house.result(made.train("supervised", 0)) / "model.safetensors").read_bytes()
        for made in (pipeline, house.pipeline(**alone))
    ]
    assert weights[0] == weights[1]


def test_clips_with_pseudo_labels_are_paired_and_learned(house: House) -> None:
    arms = {"labelled": {"pairs": "none", "pseudo_labels": False}, "kept": {"pairs": "none"}, "random": None}
    few = {"name": "pseudo", "seeds": [0], "arms": arms, "data.labelled_share": 0.5, "data.unlabelled": "keep"}
    few |= {"classifier.steps": 15, "warm_start.pairs": "none"}
    plain = {"name": "plain", "arms": {"random": None}}
    house.makes("train", **few | plain)
    # What is kept by nobody's guess is found again: all is as if there were no pseudo-labels.
    none = few | plain | {"name": "none", "pseudo": {"rounds": 1, "threshold": 1.01}}
    assert house.makes("train", **none) == {"warm-start": 1, "pseudo-label": 1}
    kept = few | {"pseudo": {"rounds": 2, "keep_share": 0.5}}
    made = {"warm-start": 1, "pseudo-label": 2, "match": 1, "draw": 1, "train": 3, "evaluate": 3, "validate": 3}
    assert house.makes("run", **kept) == made | {"recommend": 1}
    pipeline = house.pipeline(**kept)
    guesses = pd.read_parquet(house.result(pipeline.clips(0)) / "guesses.parquet")
    pairs = pd.read_parquet(house.result(pipeline.match(0)) / "pairs.parquet")
    ids = set(guesses.loc[guesses["kept"], "id"])
    assert len(ids) == round(0.5 * len(guesses)) and ids & {*pairs["foreground"]} and ids & {*pairs["background"]}
    labels = guesses.set_index("id")["label"]
    mine = pairs[pairs["foreground"].isin(ids)]
    assert (mine["foreground_label"].to_numpy() == labels[mine["foreground"]].to_numpy()).all()
    steps = {
        arm: pd.read_parquet(house.result(pipeline.train(arm, 0)) / "history.parquet")["step"].tolist() for arm in arms
    }
    assert steps["labelled"][-1] == 15 and len(steps["labelled"]) > len(steps["kept"]), "as long, of fewer clips"
    report = house.runs / "pseudo" / "report"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["pseudo"]["pseudo/kept"] == len(ids) == metrics["data"]["data/clips_pseudo"]
    right = (guesses["label"] == guesses["truth"])[guesses["kept"]]
    assert metrics["pseudo"]["pseudo/precision"] == pytest.approx(right.mean())
    assert "Clips without labels" in (report / "index.html").read_text() and (report / "plots/guesses.png").is_file()


def test_pairs_may_come_from_anywhere(house: House) -> None:
    pairs, mine = house.result(house.pipeline().select(0)) / "selected.parquet", house.folder / "mine.parquet"
    columns = ["foreground", "background"]
    pd.read_parquet(pairs)[columns].to_parquet(mine)
    arms = {
        "agreement": {"pairs": "agreement", "label": "what the Selector is told"},
        "oracle": {"pairs": "oracle"},
        "other": {"pairs": "selector", "selector": str(house.runs / "a")},
        "mine": {"pairs": "file", "file": str(mine)},
    }
    changes = {"name": "arms", "seeds": [0], "arms": arms}
    # A Selector finds in its own clips what it was trained on, so `other` and `mine` are the run's own pairs.
    made = {"select-by-agreement": 1, "draw-sound": 1, "select-by-other": 1, "train": 4, "evaluate": 4}
    made |= {"validate": 4, "recommend": 1}
    assert house.makes("run", **changes) == made
    pipeline = house.pipeline(**changes)
    other = pipeline.pairs("other", 0)
    assert other is not None
    pd.testing.assert_frame_equal(
        pd.read_parquet(house.result(other) / "selected.parquet")[columns], pd.read_parquet(pairs)[columns]
    )
    models = [house.result(pipeline.train(arm, 0)) / "model.safetensors" for arm in ("other", "mine")]
    assert models[0].read_bytes() == models[1].read_bytes()
    told = json.loads((house.runs / "arms" / "report" / "metrics.json").read_text())
    assert told["arms"].keys() == arms.keys()
    assert "what the Selector is told" in (house.runs / "arms" / "report" / "index.html").read_text()


def test_a_selector_of_other_features_is_refused(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_selector(house.result(house.pipeline().train_selector(0)))
    save_selector(tmp_path, replace(trained, agreement=not trained.agreement))
    arms = {"other": {"pairs": "selector", "selector": str(tmp_path)}}
    said = house.refuses(capsys, "run", name="of-other-features", seeds=[0], arms=arms)
    assert "trained with" in said and "features a clip, its backbone makes" in said
    assert not (house.runs / "of-other-features" / "report").exists()


# --- failures


def test_a_command_that_fails_leaves_the_finished_run_as_it_was(
    copy: House, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> list[bytes | str]:
        files = [path for path in sorted((copy.runs / "a").rglob("*")) if path.is_file() and path.name != "stages.json"]
        return [json.dumps(read_stages(copy.runs / "a")["current"]), *(path.read_bytes() for path in files)]

    before, numbers = state(), copy.metrics()
    said = copy.refuses(capsys, "run", **{"classifier.learning_rate": 1e30, "arms": ["real"], "seeds": [0]})
    assert "classifier.learning_rate" in said
    copy.refuses(capsys, "run", **{"composite.feather": 99})
    copy.refuses(capsys, "run", **{"data.root": str(copy.folder / "nowhere")})
    assert state() == before
    main(copy.command("report"))
    assert copy.metrics() == numbers


def test_a_video_that_fails_today_and_works_tomorrow(
    copy: House, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    shutil.copytree(copy.folder / "videos", tmp_path / "videos")
    changes = {"data.root": str(tmp_path / "videos"), "name": "b", "seeds": [0]}
    bad = next(tmp_path.glob("videos/train/*/*.mp4"))
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    pipeline = copy.pipeline(**changes)

    assert copy.makes("match", **changes) == {"prepare": 1, "match": 1}
    failed = pd.read_parquet(copy.result(pipeline.prepare) / "failed.parquet")
    assert [Path(path).name for path in failed["path"]] == [bad.name]

    bad.write_bytes(content + b"\0\0\0\x08free")  # works, and is another file than the one whose clip is there
    assert copy.makes("match", **changes) == {}, "complete is complete"
    assert copy.makes("prepare", **changes | {"refresh": True}) == {"prepare": 1, "clip": 1}
    caplog.clear()
    assert copy.makes("match", **changes) == {"match": 1}
    assert "match-0: to be made anew: prepare is another" in caplog.messages

    (tmp_path / "videos").rename(tmp_path / "away")
    assert copy.makes("match", **changes) == {}
    copy.refuses(capsys, "prepare", **changes | {"refresh": True})
    (tmp_path / "away").rename(tmp_path / "videos")
    assert copy.makes("match", **changes) == {}, "what could not be looked at again is still complete"


def test_a_damaged_result_is_named_and_made_again_when_it_is_deleted(
    copy: House, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = copy.pipeline()
    evaluation = copy.result(pipeline.evaluate("real", 0))
    (evaluation / "stage.json").write_text('{"stage": "eva')
    assert f"{evaluation / 'stage.json'}: damaged" in copy.refuses(capsys, "run")
    shutil.rmtree(evaluation)
    other = copy.result(pipeline.evaluate("real", 1))
    (other / "metrics.parquet").write_bytes(b"half")
    assert "metrics.parquet is missing or not as it was written" in copy.refuses(capsys, "run")
    shutil.rmtree(other)
    numbers = copy.metrics()
    assert copy.makes("run") == {"evaluate": 2}
    assert copy.metrics() == numbers


def test_a_store_of_another_format_is_refused_and_left_alone(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store.json").write_text('{"format": 99}')
    said = house.refuses(capsys, "run", store=str(tmp_path), name="b")
    assert "format 99" in said and "name another --store" in said
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


# --- looking and cleaning up


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_runs_tells_results_ages_and_sizes(copy: House, told: pytest.LogCaptureFixture) -> None:
    record = copy.result(copy.pipeline().train("real", 0)) / "stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"started": "2199-01-01T00:00:00+00:00"}))
    main(["runs", "--runs", str(copy.runs)])
    lines = told.text
    assert "train-selector-1" in lines and "KiB" in lines and "prepare" in lines
    key = copy.pipeline().results.key(copy.pipeline().train("real", 0))
    assert f"{key}  " in lines and "0 s old" in lines, "a clock that went backwards"


HOLD = """
import sys
from pathlib import Path
from l2a_ray.storage.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def at_work() -> Iterator[Any]:
    """Keeps a folder as a process at work in it does."""
    processes = []

    def work_in(folder: Path) -> None:
        command, environment = [sys.executable, "-c", HOLD, str(folder)], os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"

    yield work_in
    for process in processes:
        process.communicate()


def test_clean_deletes_what_no_run_needs_when_told_to(
    copy: House, told: pytest.LogCaptureFixture, at_work: Any
) -> None:
    store = copy.runs / "store"
    for run in copy.runs.iterdir():
        if run.name not in ("a", "store"):
            shutil.rmtree(run)
    needed = {path for part in read_stages(copy.runs / "a").values() for entry in part.values()
              for path in (f"{entry['stage']}/{entry['key']}", *entry["keeps"])}  # fmt: skip
    begun = store / "train" / "of-a-run-in-progress"
    shutil.copytree(copy.result(copy.pipeline().train("real", 0)), begun)
    (begun / "stage.json").write_text('{"complete": false}')
    copy.pipeline().results.run.note({"train/mine-0": {"stage": "train", "key": begun.name, "keeps": []}})
    busy = store / "train" / "at-work"
    at_work(busy)
    extra = store / "evaluate" / "of-nobody"
    extra.mkdir()

    def there() -> set[str]:
        return {f"{path.parent.name}/{path.name}" for path in store.glob("*/*") if path.is_dir()}

    before = there()
    main(["clean", "--runs", str(copy.runs)])
    assert there() == before and "no run needs evaluate/of-nobody" in told.text
    main(["clean", "--runs", str(copy.runs), "--delete"])
    assert there() == needed | {"train/of-a-run-in-progress", "train/at-work"}
    assert "kept train/at-work" in told.text and "another process is at work in it" in told.text
    assert copy.makes("run") == {}

    shutil.rmtree(copy.runs / "a")
    main(["clean", "--runs", str(copy.runs), "--delete"])
    assert there() == {"train/at-work"}


# --- what a run can be asked


@pytest.mark.filterwarnings("ignore:.*infinity.*:UserWarning")
def test_the_environment_of_a_run_steps(house: House) -> None:
    env = gymnasium.make("l2a/PairSelection-v0", run=str(house.runs / "a"), seed=1)
    env.reset(seed=0)
    assert env.action_space.shape is not None
    _, reward, *_ = env.step(np.ones(env.action_space.shape, dtype=env.action_space.dtype))
    assert np.isfinite(float(reward))
    check_env(env.unwrapped, skip_render_check=True)


def test_a_result_tells_what_it_was_made_with(house: House) -> None:
    pipeline = house.pipeline()
    stages: dict[Stage, int | None] = {
        pipeline.prepare: None, pipeline.train_selector(1): 1, pipeline.evaluate("real", 1): None
    }  # fmt: skip
    for stage, seed in stages.items():
        record = json.loads((house.result(stage) / "stage.json").read_text())
        (by,) = record["made_by"]
        assert by["code"] and by["packages"]["ray"] and by["python"] and by["hardware"]["cpus"] and by["seed"] == seed
        assert record["seconds"] > 0 and record["started"] and record["key"] == pipeline.results.key(stage)
        assert record["settings"] == plain(stage.settings()) and record["complete"]
