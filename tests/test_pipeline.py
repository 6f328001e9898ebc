"""Which results a change of settings makes anew; found from the keys alone, nothing is made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from l2a_ray.config import load
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SelectorFileError, SettingError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import RECORD, closure
from l2a_ray.storage.files import write_json

ROOT = Path(__file__).parents[1]


def settings(folder: Path, **changes: Any) -> Settings:
    return load(ROOT / "configs/demo.yaml", **{"runs": str(folder), "seeds": [0, 1]} | changes)


def keys(chosen: Settings) -> dict[str, str | None]:
    """Return the key of every stage of a run whose clips are there."""
    pipeline = Pipeline(chosen)
    results = pipeline.results
    record = {"complete": True, "content": f"clips of split {chosen.data.split}", "files": {}}
    write_json(results.store / "prepare" / str(results.key(pipeline.prepare)) / RECORD, record)
    return {stage.title: results.key(stage) for stage in closure(pipeline.all("evaluate"))}


def changed(folder: Path, **changes: Any) -> set[str]:
    """Return the stages that a change of settings makes anew, those of seed 1 left out."""
    before, after = keys(settings(folder)), keys(settings(folder, **changes))
    return {title for title, key in after.items() if before.get(title) != key and not title.endswith("-1")}


LAST = {"train/selected-0", "evaluate/selected-0"}
SELECTION = {"train-selector-0", "select-0", *LAST}
MIXED = {"train/random-0", "evaluate/random-0"}


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({"composite.feather": 1.0}, {"warm-start-0", "describe-0", *SELECTION, *MIXED}),
        ({"classifier.epochs": 31}, {*LAST, *MIXED, "train/real-0", "evaluate/real-0"}),
        ({"env.pairs": 32}, SELECTION),
        ({"selector.learning_rate": 1e-3}, SELECTION),
        ({"select.budget": 0.4}, {"select-0", "draw-0", *LAST, *MIXED}),
        ({"warm_start.classifier.epochs": 31}, {"warm-start-0", "describe-0", *SELECTION}),
        ({"match.min_foreground": 0.1}, {"match-0", "warm-start-0", "describe-0", "draw-0", *SELECTION, *MIXED}),
        ({"arms": ["selected", "real"]}, set()),
        ({"seeds": [0, 1, 7]}, set()),
        ({"name": "other"}, set()),
        # How it is made, and what another kind would need.
        ({"workers.count": 1, "workers.threads": 1, "selector.checkpoint_every": 2}, set()),
        ({"segment.gpus_per_worker": 1.0, "segment.detect.batch_size": 2, "segment.weights": "other.pth"}, set()),
        ({"tracking.wandb": None, "preview.pairs": 3, "export.crf": 20, "runtime.object_store_gib": 1.0}, set()),
    ],
)
def test_a_change_makes_anew_what_depends_on_it_and_nothing_else(
    tmp_path: Path, changes: dict[str, Any], anew: set[str]
) -> None:
    found = {title for title in changed(tmp_path, **changes) if not title.endswith("-7")}
    assert found == anew


def test_a_warm_start_of_real_clips_depends_on_no_composite(tmp_path: Path) -> None:
    real = {"warm_start.pairs": "none"}
    one, other = (keys(settings(tmp_path, **real, **more)) for more in ({}, {"composite.feather": 1.0}))
    assert one["warm-start-0"] == other["warm-start-0"] != keys(settings(tmp_path))["warm-start-0"]
    assert one["train-selector-0"] != other["train-selector-0"]


def test_data_sets_of_other_folders_are_not_taken_for_each_other(tmp_path: Path) -> None:
    one, other = (Pipeline(settings(tmp_path, **{"data.root": root})) for root in ("here", "there"))
    assert one.results.key(one.prepare) != other.results.key(other.prepare)
    assert one.prepare.clips.key == other.prepare.clips.key


def test_other_pixels_are_other_clips_and_everything_after_them_is_made_anew(tmp_path: Path) -> None:
    before, after = (Pipeline(settings(tmp_path, **{"decode.size": size})).prepare for size in (56, 64))
    assert before.clips.key != after.clips.key
    assert (
        before.clips.key
        == Pipeline(settings(tmp_path, **{"data.split": 1, "data.val_fraction": 0.3})).prepare.clips.key
    )


def test_repetitions_share_the_clips_and_nothing_that_is_drawn(tmp_path: Path) -> None:
    found = keys(settings(tmp_path))
    drawn = {title.removesuffix("-0") for title in found if title.endswith("-0")}
    assert {title.removesuffix("-1") for title in found if title.endswith("-1")} == drawn
    assert all(found[f"{title}-0"] != found[f"{title}-1"] for title in drawn)


def test_real_clips_alone_need_no_pairs_and_drawn_pairs_no_selector(tmp_path: Path) -> None:
    real = closure(Pipeline(settings(tmp_path, arms=["real"])).all("evaluate"))
    assert {stage.name for stage in real} == {"prepare", "train", "evaluate"}
    drawn = closure(Pipeline(settings(tmp_path, arms=["real", "random"])).all("evaluate"))
    assert {stage.name for stage in drawn} == {"prepare", "match", "draw", "train", "evaluate"}
    agreement = {"arms": {"real": None, "agreement": {"pairs": "agreement"}}}
    names = {stage.name for stage in closure(Pipeline(settings(tmp_path, **agreement)).all("evaluate"))}
    assert "describe" in names and "train-selector" not in names


def test_arms_of_equal_settings_share_their_classifier(tmp_path: Path) -> None:
    chosen = settings(tmp_path, arms={"a": {"pairs": "random"}, "b": {"pairs": "random", "label": "the same"}})
    pipeline = Pipeline(chosen)
    keys(chosen)
    assert pipeline.results.key(pipeline.train("a", 0)) == pipeline.results.key(pipeline.train("b", 0))


def test_an_arm_of_its_own_composites_differs_in_its_classifier_alone(tmp_path: Path) -> None:
    arms = {"selected": None, "boxes": {"pairs": "selector", "composite": {"region": "boxes", "mix_labels": False}}}
    found = keys(settings(tmp_path, arms=arms))
    assert found["train/selected-0"] != found["train/boxes-0"]
    assert found["select-0"] == keys(settings(tmp_path))["select-0"]


def test_an_arm_of_its_own_share_differs_in_its_classifier_alone(tmp_path: Path) -> None:
    own = {"pairs": "selector", "composite_mode": "add", "composite_share": 0.25, "composite_weight": 0.5}
    chosen = settings(tmp_path, arms={"selected": None, "fewer": own})
    found = keys(chosen)
    assert found["train/selected-0"] == keys(settings(tmp_path))["train/selected-0"] != found["train/fewer-0"]
    pipeline = Pipeline(chosen)
    pair = [pipeline.train(arm, 0) for arm in chosen.arms_by_name]
    assert pair[0].pairs is pair[1].pairs
    assert pair[1].classifier.added_composites == round(0.25 * chosen.classifier.batch_size)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (
            {"mine": {"pairs": "random", "composite_share": 2.0}},
            "arms.mine.composite_share=2.0: must be between 0 and 1",
        ),
        ({"mine": None}, "arms.mine=None: has no definition. Shipped are real, random, selected"),
        ({"mine": {"pairs": "lucky"}}, r"arms.mine.pairs='lucky': must be one of none, random"),
        ({"mine": {"pairs": "file"}}, "arms.mine.file=None: must name a table"),
        ({"mine": {"selector": "runs/other"}}, "arms.mine.selector='runs/other': goes with pairs=selector alone"),
        ([], "must name an arm"),
        (["../up"], "an arm's name must be made of letters"),
        ({"mine": {"pairs": "file", "file": "no.parquet"}}, "arms.mine.file='no.parquet': there is no such file"),
        ({"worst": {"pairs": "random"}}, "arms=.worst.: is what preview and report call other pairs"),
        ({"mine": {"pairs": "random", "method": "magic"}}, "method='magic'"),
    ],
)
def test_arms_that_cannot_work_are_refused_by_name(tmp_path: Path, arms: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Pipeline(settings(tmp_path, arms=arms)).all("evaluate")


def test_a_selector_that_is_not_there_is_named(tmp_path: Path) -> None:
    chosen = settings(tmp_path, arms={"other": {"pairs": "selector", "selector": str(tmp_path / "nowhere")}})
    with pytest.raises(SelectorFileError, match="nowhere"):
        Pipeline(chosen).all("select")


def test_settings_are_written_as_they_are_read(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    assert replace(chosen) == chosen
    (tmp_path / "config.yaml").write_text(__import__("yaml").safe_dump(chosen.plain()))
    again = load(tmp_path / "config.yaml")
    assert again.plain() == chosen.plain()
