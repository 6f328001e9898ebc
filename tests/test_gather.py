"""What the report is told of a run: the results of its stages that are there, by arm and seed."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from finished import all_pairs, finish, finish_selection, place, small_run, without_scores

from l2a_ray.config.settings import Settings
from l2a_ray.errors import StageError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.commands import report
from l2a_ray.pipeline.gather import gather

ARMS = {"selected": None, "real": None, "drawn": {"pairs": "random"}}
LEFT_OUT = [("red", "foreground", "its masks are empty"), ("blue", "foreground", "no"), ("green", "background", "no")]


def make_run(root: Path, **changes: Any) -> Settings:
    """A run of two seeds whose last one is not done: of seed 9 there is nothing but the match and a draw."""
    settings, pipeline, store = small_run(root, **{"seeds": [4, 9], "arms": ARMS} | changes)
    table = all_pairs(store)
    left_out = pd.DataFrame(LEFT_OUT, columns=["class_name", "role", "reason"])
    finish(pipeline, pipeline.match(4), pairs=without_scores(table), left_out=left_out)
    for seed in settings.seeds:
        finish(pipeline, pipeline.draw(seed), random=without_scores(table[seed : seed + 20]))
    finish_selection(pipeline, "selected", 4, table)
    test = store.rows("test")
    predictions = test[["id", "label"]].assign(set="real", background="", predicted=test["label"], probability=0.5)
    for number, arm in enumerate(pipeline.arms):
        epochs = {"epoch": [0], "step": [5], "loss": [1.0], "clips_per_s": [9.0], "wait_share": [0.1]}
        finish(pipeline, pipeline.train(arm, 4), history=pd.DataFrame(epochs))
        score = {"set": ["real"], "top1": [0.5 - number / 10], "top5": [1.0], "loss": [1.0], "clips": [len(test)]}
        metrics = pd.DataFrame(score).assign(left_out=0)
        finish(pipeline, pipeline.evaluate(arm, 4), metrics=metrics, predictions=predictions)
    return settings


def test_what_is_there_is_told_by_arm_and_seed(tmp_path: Path) -> None:
    pipeline = Pipeline(make_run(tmp_path))
    found = gather(pipeline)
    assert found.results is not None and found.curves is not None and found.predictions is not None
    assert found.results[["arm", "seed", "top1"]].values.tolist() == [
        ["selected", 4, 0.5],
        ["real", 4, 0.4],
        ["drawn", 4, 0.3],
    ]
    assert found.curves["arm"].tolist() == list(ARMS) and set(found.predictions["seed"]) == {4}
    there = [(one.arm, one.seed, "score" in one.pairs) for one in found.selections]
    assert there == [("selected", 4, True), ("drawn", 4, False), ("drawn", 9, False)]
    assert [one.seed for one in found.scored] == [4]
    assert found.history is None and found.neighbours is None and found.notes == ["a note"]
    titles = [record["title"] for record in found.made]
    assert titles[0] == "prepare" and titles.count("match-0") == 1 and "evaluate/drawn-4" in titles
    assert not [title for title in titles if title.startswith(("train", "evaluate")) and title.endswith("9")]


def test_settings_are_those_of_the_command_and_not_of_a_file(tmp_path: Path) -> None:
    settings = make_run(tmp_path)
    settings.folder.mkdir(parents=True, exist_ok=True)
    (settings.folder / "config.yaml").write_text("not: what is shown")
    told = gather(Pipeline(settings)).config
    assert "not: what is shown" not in told and "seeds:\n- 4\n- 9\n" in told


def test_real_clips_alone_are_told_nothing_of_pairs(tmp_path: Path) -> None:
    """Though another run has matched the same clips."""
    settings = make_run(tmp_path)
    found = gather(Pipeline(replace(settings, arms=["real"], name="other")))
    assert found.left_out is None and found.selections == []


def test_the_closing_lines_name_the_classes_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = make_run(tmp_path)
    with caplog.at_level(logging.INFO):
        out = report(settings)
    line = "match: no clip of these classes can serve as foreground: red, blue; as background: green"
    assert [message for message in caplog.messages if message.startswith("match:")] == [f"{line}. The report says why"]
    assert "selected: 50.0 % of the test clips right" in caplog.messages
    page = (out / "index.html").read_text()
    assert "Classes left out of composites" in page and "its masks are empty" in page


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    settings = make_run(tmp_path)
    pipeline = Pipeline(settings)
    (place(pipeline, pipeline.evaluate("real", 4)) / "metrics.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StageError, match=r"metrics\.parquet is missing or not as it was written\. Delete this folder"):
        gather(Pipeline(settings))


def test_without_clips_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="prepare is not there with these settings"):
        report(Settings(name="run", runs=str(tmp_path)))
