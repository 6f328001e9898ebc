import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from finished import MADE_BY, record

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.config.arms import OTHER_COLOURS, SHIPPED, Arm
from l2a_ray.deploy.choose import Scores, recommend
from l2a_ray.outputs.report import write_report
from l2a_ray.outputs.report.guesses import summarise_guesses
from l2a_ray.outputs.report.masks import look_at_masks
from l2a_ray.outputs.report.page import verdict
from l2a_ray.outputs.report.sheets import draw_sheet
from l2a_ray.outputs.report.spread import Json, compare, mean_of, spread
from l2a_ray.outputs.report.tables import RunTables, Selection, summarise
from l2a_ray.outputs.report.truth import auc, auc_by_class
from l2a_ray.outputs.report.variety import collapsed, in_use, variety
from l2a_ray.pairs.truth import mark_wrong, read_truth, sound_clips
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    ClipStore,
    StoredClip,
    clip_path,
    write_clip,
    write_index,
)

CLASSES = ("jump", "wave $x$ & <b>", "run")
ODD = 'a"<b>.mp4'
MASKS = ["Frames with an actor", "Worst masks", "Best masks"]
QUESTION = "Do the scores find the bad clips?"
TOP1 = {"real": [0.2, 0.3, 0.4], "random": [0.3, 0.4, 0.5], "selected": [0.51, 0.6, 0.72]}


def make_store(root: Path, failures: bool = True) -> ClipStore:
    """Six clips of 4 frames in three classes, of two sizes, each with a bright square that moves."""
    rows = []
    for n in range(6):
        clip_id, height, width = f"{n:02x}clip", 32, 48 if n % 2 else 40
        masks_THW = np.zeros((4, height, width), dtype=np.bool_)
        for t in range(4):
            masks_THW[t, 8:20, 4 * t : 4 * t + 12] = True
        background_THWC = np.random.default_rng(n).integers(0, 128, (4, height, width, 3), dtype=np.uint8)
        frames_THWC = np.where(masks_THW[..., None], np.uint8(250), background_THWC)
        planes = Planes(masks_THW, masks_THW, masks_THW, masks_THW)
        clip = StoredClip(frames_THWC=frames_THWC, background_THWC=background_THWC, planes=planes)
        write_clip(clip_path(root / "clips", clip_id, "0"), clip, {"kept": "yes"})
        where = (height, width, *[float(masks_THW.mean())] * 2, 1.0, 1.0, "")
        split = ("train", "val", "test")[n // 2]
        path = str(root.absolute().parent / "<videos>" / f"{n}.mp4")
        rows.append((clip_id, path, CLASSES[n % 3], n % 3, split, str(n), 30, 25.0, *where, "0", 1, 1))
    index = pd.DataFrame(rows, columns=list(INDEX_DTYPES)).astype(INDEX_DTYPES)
    failed = [("ffclip", ODD, "jump", 0, "train", "no video stream", "Convert it anew", 0, 0)] if failures else []
    write_index(root, root / "clips", CLASSES, index, pd.DataFrame(failed, columns=list(FAILED_COLUMNS)))
    return ClipStore(root)


def tables(name: str = "run", arms: Mapping[str, Arm] = SHIPPED, **parts: Any) -> RunTables:
    """What a run of which nothing but the clips is there has come to; ``parts`` are there too."""
    stages = (
        "neighbours",
        "left_out",
        "guesses",
        "history",
        "curves",
        "results",
        "students",
        "predictions",
        "recommendation",
        "truth",
        "missing",
    )
    nothing: dict[str, Any] = dict.fromkeys(stages)
    nothing |= {"learned": {}, "selections": [], "config": "", "made": [], "notes": []}
    return RunTables(name=name, arms=arms, **(nothing | parts))


def evaluated(top1: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Training curves and results of some arms; every classifier predicts its last test clip wrong.

    Before the scene of clip 4, and before stripes, clip 5 alone is seen, and the accuracy is half of what it is else.
    """
    results, predictions, curves = [], [], []
    for arm, values in top1.items():
        for seed, value in enumerate(values):
            results.append((arm, seed, "real", value, min(1.0, value + 0.2), 1.5 - value, 2, 0))
            predictions += [
                (arm, seed, "real", "04clip", 1, "", 1, 0.9),
                (arm, seed, "real", "05clip", 2, "", 0, 0.6),
                (arm, seed, "scenes", "05clip", 2, "04clip", 1, 0.6),
            ]
            for name in ("scenes", "stripes", "still"):
                results.append((arm, seed, name, value / 2, 1.0, 1.0, 1, 1))
            predictions += [(arm, seed, name, "05clip", 2, "", 1, 0.6) for name in ("stripes", "still")]
            for epoch in (0, 1):
                curves.append((arm, seed, epoch, 10 * epoch, 1.1 - epoch * value, 0.1, 50.0 + seed, 0.1))
    columns = ["arm", "seed", "epoch", "step", "loss", "learning_rate", "clips_per_s", "wait_share"]
    return {
        "curves": pd.DataFrame(curves, columns=columns),
        "results": pd.DataFrame(results, columns=["arm", "seed", "set", "top1", "top5", "loss", "clips", "left_out"]),
        "predictions": pd.DataFrame(
            predictions, columns=["arm", "seed", "set", "id", "label", "background", "predicted", "probability"]
        ),
    }


def history(seed: int) -> pd.DataFrame:
    """Of a Selector's training; its rewards rise, and are higher the higher the seed."""
    step = np.arange(20)
    about = pd.DataFrame({"step": step, "iteration": step // 10, "reward": step / 100 - 0.1 + seed, "baseline": 1.0})
    about = about.assign(val_loss=1.1 - step / 100, val_accuracy=0.5, num_selected=8, num_pairs=16, mean_omega=0.5)
    about = about.assign(seconds_composite=0.1, seconds_train=0.2, seconds_validate=0.1, env_runners_lost=0)
    return about.assign(seed=seed)


def pairs(front: tuple[int, int], scores: list[float] | None = None) -> pd.DataFrame:
    """Two pairs of clips."""
    table = pd.DataFrame({"foreground": [f"{n:02x}clip" for n in front], "foreground_label": [n % 3 for n in front]})
    table = table.assign(background=["01clip", "02clip"], background_label=[1, 2])
    return table if scores is None else table.assign(score=np.array(scores, np.float32))


def scored_pairs(arm: str = "selected", seed: int = 0, threshold: float = 0.8) -> Selection:
    """What a Selector has left of a repetition: of the clips, number 3 scores lowest."""
    left = np.arange(50) / 50
    return Selection(
        arm=arm,
        seed=seed,
        pairs=pairs((0, 1), [0.9, 0.8]),
        sample=pairs((0, 3), [0.6, 0.4]),
        worst=pairs((3, 1), [0.2, 0.1]),
        histogram=pd.DataFrame({"left": left, "right": left + 0.02, "count": np.arange(50)}),
        summary={"candidates": 16, "budget": 2, "threshold": threshold, "by_chance": False},
    )


def drawn_pairs(arm: str = "random", seed: int = 0) -> Selection:
    return Selection(arm=arm, seed=seed, pairs=pairs((0, 3)))


def chosen() -> dict[str, Any]:
    """What `match`, `train-selector`, `draw` and `select` have left, of one repetition."""
    neighbours = pd.DataFrame({"class_name": ["run", "jump"], "neighbour": ["jump", "run"], "similarity": [0.5, 0.5]})
    left_out = pd.DataFrame(columns=["class_name", "role", "reason"])
    selections = [drawn_pairs(), scored_pairs()]
    return {"neighbours": neighbours, "left_out": left_out, "history": history(0), "selections": selections}


def make_truth(root: Path) -> pd.DataFrame | None:
    """Clip 3 has a wrong label; what is said of the test split is not to be read."""
    rows = [
        ("0.mp4", "train", "jump", ""),
        ("1.mp4", "train", CLASSES[1], "lost"),
        ("3.mp4", "train", "run", "wrong_label"),
    ]
    rows.append(("1.mp4", "test", "run", "wrong_label"))
    path = root / "<videos>/truth.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows, columns=["path", "split", "true_class", "bad"]).to_parquet(path)
    return read_truth(str(path.parent))


def make_guesses() -> pd.DataFrame:
    """Six clips without labels, of which three are kept, two of them rightly; of one the truth is not known."""
    columns = {"label": [0, 0, 1, 2, 2, 1], "kept": [True] * 3 + [False] * 3, "truth": [0, 1, 1, 2, -1, 0]}
    return pd.DataFrame({"seed": 0, "id": list("abcdef"), "confidence": 0.5} | columns)


def make_whole(root: Path) -> RunTables:
    """A run with all stages; its clips are those of ``make_store(root / "prepare")``."""
    made = [record("prepare"), record("match-0", code="c0de", commit=None)]
    notes = ["split 2 shares a <source> video"]
    parts: dict[str, Any] = {
        "config": "data:\n  root: /<videos>\n",
        "made": made,
        "notes": notes,
        "truth": make_truth(root),
        "guesses": make_guesses(),
    }
    tested = evaluated(TOP1)
    averaged = tested["results"]["arm"] == "random"
    parts["students"] = tested["results"][averaged].assign(top1=lambda rows: rows["top1"] / 2)
    return tables("run <1>", **chosen(), **tested, **parts)


def report(run: RunTables, root: Path) -> tuple[Json, str]:
    metrics = write_report(run, make_store(root / "prepare"), CompositeSettings(alpha=2.0), root / "report")
    assert json.loads((root / "report/metrics.json").read_text()) == metrics
    return metrics, (root / "report/index.html").read_text()


def numbers(run: RunTables, root: Path) -> Json:
    store = make_store(root / "prepare")
    return summarise(run, store, look_at_masks(store, "objects"), CompositeSettings())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json, str]:
    """A run with all stages, reported once: its folder, metrics and page. Tests only read it."""
    root = tmp_path_factory.mktemp("whole")
    (root / "report/plots").mkdir(parents=True)
    (root / "report/plots/of_an_older_report.png").touch()
    return root, *report(make_whole(root), root)


def test_pseudo_labels_are_counted_and_judged_where_the_truth_is_known(whole: tuple[Path, Json, str]) -> None:
    root, metrics, page = whole
    by_class = metrics["pseudo"]["pseudo/by_class"]
    assert metrics["pseudo"] == {
        "pseudo/by_class": by_class,
        "pseudo/clips": 6,
        "pseudo/kept": 3,
        "pseudo/kept_share": 0.5,
        "pseudo/precision": pytest.approx(2 / 3),
        "pseudo/accuracy": pytest.approx(3 / 5),
    }
    assert list(by_class.values()) == [
        {"guessed": 2, "kept": 2, "right": 1, "true": 2},
        {"guessed": 2, "kept": 1, "right": 1, "true": 2},
        {"guessed": 2, "kept": 0, "right": 0, "true": 1},
    ]
    assert "Clips without labels" in page and (root / "report/plots/guesses.png").is_file()
    unknown = summarise_guesses(make_guesses().assign(truth=-1), CLASSES)
    assert np.isnan(unknown["pseudo/precision"]) and unknown["pseudo/kept"] == 3


def test_variety_counts_clips_and_says_who_uses_few() -> None:
    index = pd.DataFrame({"id": ["a", "b", "c", "d"], "foreground_ratio": [0.1, 0.2, 0.3, 0.4], "people_ratio": 0.0})
    even = pd.DataFrame({"foreground": ["a", "b", "c", "d"] * 2, "background": ["a"] * 4 + ["b"] * 4})
    found = variety(even, index, CompositeSettings(alpha=1.0))
    assert found == {
        "pairs": 8,
        "foregrounds": 4,
        "foregrounds_in_use": 4.0,
        "backgrounds": 2,
        "backgrounds_in_use": 2.0,
        "lambda_low": pytest.approx(0.1),
        "lambda_median": pytest.approx(0.25),
        "lambda_high": pytest.approx(0.4),
    }
    assert in_use(pd.Series(["a"] * 3 + ["b"])) == pytest.approx(1 / (0.75**2 + 0.25**2))
    people = variety(even, index, CompositeSettings(objects="people"))
    assert people["lambda_high"] == 0
    for unlike in (
        CompositeSettings(mix_labels=False),
        CompositeSettings(kind="cutmix"),
        CompositeSettings(region="boxes"),
    ):
        assert "lambda_low" not in variety(even, index, unlike)
    few = variety(even.assign(foreground=["a"] * 7 + ["b"]), index, CompositeSettings())
    (said,) = collapsed({"random": found, "selected": few}, "random")
    assert said.startswith("selected: its pairs use foreground clips as if there were 1 of them, random pairs 4")
    assert not collapsed({"selected": few}, None) and not collapsed({"random": found, "other": found}, "random")


def test_spread_is_what_one_gets_by_hand() -> None:
    # Deviations -2, 0, 2 about 4: variance 8 / 2, and t(0.975, 2 degrees) = 4.30265.
    about = spread(pd.Series([2.0, 4.0, 6.0], index=[0, 1, 2]))
    assert (about["mean"], about["std"], about["n"]) == (4.0, 2.0, 3)
    assert about["interval95"] == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-5)
    assert about["values"] == {"0": 2.0, "1": 4.0, "2": 6.0}


def test_one_seed_has_no_spread() -> None:
    about = spread(pd.Series([0.5], index=[7]))
    assert (about["mean"], about["std"], about["interval95"], about["values"]) == (0.5, None, None, {"7": 0.5})


def test_comparison_pairs_the_seeds() -> None:
    """Each arm varies far more over seeds than the difference does, so seed by seed the lead becomes clear."""
    columns = ["arm", "seed", "top1"]
    rows = [("real", 0, 0.2), ("real", 1, 0.6), ("random", 0, 0.25), ("random", 1, 0.66)]
    order = ["real", "random"]
    about = compare(pd.DataFrame(rows, columns=columns), order)
    assert about is not None and about["best"] == "random"
    assert about["against"]["real"]["mean"] == pytest.approx(0.055)
    assert not about["against"]["real"]["clear"]  # 12.706 * 0.00707 / sqrt(2) = 0.0635 > 0.055
    assert about["against"]["real"]["interval95"] == pytest.approx(0.063531, rel=1e-4)
    about = compare(pd.DataFrame([*rows, ("real", 2, 0.4), ("random", 2, 0.452)], columns=columns), order)
    assert about is not None and about["against"]["real"]["clear"]


def test_the_page_tells_what_is_recommended_and_why(tmp_path: Path) -> None:
    found = recommend({"real": Scores(np.array([[True, False]]), np.ones(1))}, [0], ["a", "b"], "real", 0.9)
    metrics, page = report(tables(recommendation=found), tmp_path)
    assert metrics["recommendation"] == found
    assert "recommended: real, seed 0: 50.0 % of D_val right; there is no other arm" in page
    assert "recommended" not in report(tables(), tmp_path / "other")[1]


def test_metrics_of_a_whole_run(whole: tuple[Path, Json, str]) -> None:
    _, metrics, page = whole
    assert metrics["arms"]["real"]["classifier/top1"]["mean"] == pytest.approx(0.3)
    assert metrics["arms"]["real"]["classifier/top1"]["std"] == pytest.approx(0.1)
    assert metrics["arms"]["selected"]["per_class"] == {"jump": None, CLASSES[1]: 1.0, "run": 0.0}
    assert metrics["data"]["data/clips_prepared"] == 6
    assert metrics["data"]["data/failed_causes"] == {"no video stream": 1}
    assert metrics["select"] == pytest.approx(
        {
            "select/candidates": 16,
            "select/budget": 2,
            "select/threshold": 0.8,
            "select/by_chance": False,
            "select/share": 0.125,
            "select/mean_score_selected": 0.85,
            "select/mean_score_random": 0.5,
        }
    )
    assert metrics["selector"]["selector/steps"] == 20
    assert metrics["selector"]["selector/iterations"] == 2
    assert metrics["selector"]["selector/reward_last"] == pytest.approx((0.08 + 0.09) / 2)
    assert metrics["selector"]["selector/share_selected_last"] == 0.5
    assert [row["class_name"] for row in metrics["match"]["match/neighbours"]] == ["jump", "run"]
    assert metrics["timing"]["selector/seconds_train"] == pytest.approx(4.0)
    assert metrics["timing"]["selector/share_train"] == pytest.approx(0.5)
    assert metrics["timing"]["classifier/clips_per_s"] == pytest.approx(51.0)
    assert "Best is selected: top-1 61.0 % over 3 seeds" in page
    assert "The spread over seeds allows to say so" in page and page.count("<small>clear</small>") == 2


def test_sets_of_test_clips_of_a_whole_run(whole: tuple[Path, Json, str]) -> None:
    _, metrics, page = whole
    one_of_two = {"sets/clips": 1, "sets/left_out": 1}
    whole_set = {"sets/clips": 2, "sets/left_out": 0}
    assert metrics["sets"] == {"real": whole_set, "scenes": one_of_two, "stripes": one_of_two, "still": one_of_two}
    selected = metrics["arms"]["selected"]
    assert selected["classifier/top1_scenes"]["values"] == pytest.approx({"0": 0.255, "1": 0.3, "2": 0.36})
    # Half of 0.31, 0.3 and 0.32; and 4.30265 * 0.005 / sqrt(3).
    over = selected["over_real"]["scenes"]
    assert over["mean"] == pytest.approx(0.155) and over["interval95"] == pytest.approx(0.012421, rel=1e-4)
    assert over["clear"] and "over_real" not in metrics["arms"]["real"]
    assert "<small>+15.5 ± 1.2 to real, clear</small>" in page
    assert page.count("1 of 2 test clips are left out") == 3
    # As they are, all clips count, whatever the other sets hold.
    assert selected["clips"] == 2 and selected["per_class"][CLASSES[1]] == 1.0


def test_a_set_without_clips_has_no_numbers_and_says_so(tmp_path: Path) -> None:
    parts = evaluated({"real": [0.2, 0.4], "random": [0.3, 0.5]})
    results, predictions = parts["results"], parts["predictions"]
    results.loc[results["set"] == "scenes", ["top1", "top5", "loss", "clips", "left_out"]] = [np.nan] * 3 + [0, 2]
    run = tables(**parts | {"predictions": predictions[predictions["set"] != "scenes"]})
    metrics, page = report(run, tmp_path)
    assert metrics["arms"]["random"]["classifier/top1_scenes"]["mean"] is None
    assert metrics["arms"]["random"]["over_real"]["scenes"] is None
    assert "2 of 2 test clips are left out" in page and page.count("None is left, so there are no numbers.") == 1
    plain = {name: table[table["set"] == "real"] for name, table in parts.items() if name != "curves"}
    metrics, page = report(tables(**plain), tmp_path / "plain")
    assert list(metrics["sets"]) == ["real"] and "Does it look at the actor" not in page
    assert not (tmp_path / "plain/report/sheets/scenes.png").exists()


def test_truth_of_a_whole_run(whole: tuple[Path, Json, str]) -> None:
    _, metrics, page = whole
    assert metrics["truth"] == {
        "selector/auc_wrong_label": 1.0,
        "selector/auc_wrong_label_in_class": 1.0,
        "selector/auc_wrong_label_by_class": {"jump": 1.0, CLASSES[1]: None, "run": None},
        "selector/wrong_label_clips": 1,
        "select/share_wrong_label_random": 0.5,
        "select/share_wrong_label_selected": 0.0,
        "select/share_wrong_label_worst": 0.5,
    }
    assert QUESTION in page and "<dt>wrong labels, selected</dt><dd>0.0 %</dd>" in page


def test_auc_by_hand() -> None:
    # Right labels score 0.9, 0.5, 0.5, 0.1, wrong ones 0.5 and 0.2: (1 + 1/2 + 1/2 + 0 + 1 + 1 + 1 + 0) / 8.
    score, wrong = [0.9, 0.5, 0.2, 0.5, 0.5, 0.1], [False, False, True, True, False, False]
    assert auc(score, wrong) == pytest.approx(5 / 8)
    assert auc(-np.array(score), wrong) == pytest.approx(3 / 8)
    assert np.isnan(auc([0.1, 0.2], [False, False])) and np.isnan(auc([0.1, 0.2], [True, True]))


def test_auc_in_class_does_not_compare_classes() -> None:
    """Class 0 scores higher than class 1 throughout; in either the wrong label scores last. Class 2 has none."""
    pairs = pd.DataFrame({"foreground_label": [0, 0, 1, 1, 2], "score": [0.9, 0.8, 0.2, 0.1, 0.0]})
    pairs = pairs.assign(wrong=[False, True, False, True, False])
    by_class = auc_by_class(pairs)
    assert by_class.dropna().to_dict() == {0: 1.0, 1: 1.0} and by_class.index.tolist() == [0, 1, 2]
    # Class 0's wrong one lies above two of the three right ones, class 1's above one.
    assert auc(pairs["score"], pairs["wrong"]) == pytest.approx(3 / 6)


def test_a_label_is_wrong_where_the_actor_does_something_else() -> None:
    """As a lost actor and a wrong background do not; by the label in the pair, which may be a pseudo-label."""
    index = pd.DataFrame({"id": ["a", "b", "c"], "path": ["/v/a", "/v/b", "/v/c"], "class_name": ["run"] * 3})
    truth = pd.DataFrame({"path": ["/v/b", "/v/c"], "true_class": ["jump", "run"], "bad": ["wrong_label", "lost"]})
    pairs = pd.DataFrame({"foreground": ["a", "b", "c", "b", "c"], "background": ["b", "a", "b", "a", "a"]})
    pairs["foreground_label"] = [2, 2, 2, 0, 0]
    assert mark_wrong(pairs, truth, index, CLASSES)["wrong"].tolist() == [False, True, False, False, True]
    of_a_file = mark_wrong(pairs[["foreground", "background"]], truth, index.assign(label=2), CLASSES)
    assert of_a_file["wrong"].tolist() == [False, True, False, True, False]
    assert not sound_clips(truth, index)
    guessed = index.assign(class_name=["run", "jump", "jump"])
    assert sound_clips(truth, guessed) == {"b"}
    assert sound_clips(truth.assign(bad=""), index) == {"c"}


@pytest.mark.parametrize("truth", [None, b"PAR1 not really", "other columns", "no wrong label"])
def test_without_truth_there_is_no_section(tmp_path: Path, truth: bytes | str | None) -> None:
    make_truth(tmp_path)
    path = tmp_path / "<videos>/truth.parquet"
    if truth is None:
        path.unlink()
    elif isinstance(truth, bytes):
        path.write_bytes(truth)
    else:
        table = pd.read_parquet(path)
        table = table[["path"]] if truth == "other columns" else table[table["path"] != "3.mp4"]
        table.to_parquet(path)
    metrics, page = report(tables(**chosen(), truth=read_truth(str(path.parent))), tmp_path)
    assert metrics["truth"] == {} and QUESTION not in page and "wrong_labels" not in page


def test_clocks_are_kept_apart(tmp_path: Path) -> None:
    parts = chosen()
    first = numbers(tables(**parts), tmp_path)
    second = numbers(tables(**parts | {"history": parts["history"].assign(seconds_train=9.0)}), tmp_path)
    assert first.pop("timing") != second.pop("timing")
    assert first == second


def learned() -> dict[str, Any]:
    """Of a Selector of which part of D_val was held out: its history and what was said of it."""
    parts = ("val", "held_out")
    losses = {f"{part}_{name}": 1.6 for part in parts for name in ("all", "weighted", "none")}
    rows = history(0).assign(**losses, held_out_loss=1.55, omega_low=0.3, omega_high=0.8)
    about = {"against": "all", "kept_step": 10, "steps": 20, "difference": -0.032, "low": -0.048, "high": -0.016}
    about |= {"reference": 1.6, "none": 1.79, "omega_low": 0.31, "omega_high": 0.84, "sources": 12, "learned": True}
    signal = {"correlation": 0.6, "low": -0.1, "high": 0.8, "pairs": 9, "sources": 12}
    return {"history": rows, "learned": {0: about | {"signal": signal}}}


def test_the_page_says_whether_the_selector_learned(tmp_path: Path) -> None:
    metrics, page = report(tables(**chosen() | learned()), tmp_path)
    assert "ends 2 % below one on all pairs alike (95 % interval of the difference -3 to -1 %)" in page
    assert "scores from 0.31 to 0.84, kept as before step 10 of 20: it learned." in page
    assert "random pairs are the honest choice" in page and "Rewarding and held-out part of D_val" in page
    assert metrics["learned"]["0"]["kept_step"] == 10


def test_where_nothing_was_held_out_the_page_says_nothing_of_it(tmp_path: Path) -> None:
    metrics, page = report(tables(**chosen()), tmp_path)
    assert metrics["learned"] == {} and "held-out" not in page


# --- several repetitions


def test_what_each_seed_has_is_told_as_the_mean(tmp_path: Path) -> None:
    selections = [scored_pairs(seed=0, threshold=0.8), scored_pairs(seed=5, threshold=0.4)]
    selections[1] = replace(selections[1], sample=pairs((0, 3), [0.3, 0.5]), pairs=pairs((3, 3), [0.7, 0.6]))
    histories = pd.concat([history(0), history(5).assign(env_runners_lost=3)], ignore_index=True)
    run = tables(selections=selections, history=histories, truth=make_truth(tmp_path))
    metrics, page = report(run, tmp_path)
    assert metrics["select"]["select/threshold"] == pytest.approx(0.6)
    assert metrics["select"]["select/mean_score_selected"] == pytest.approx((0.85 + 0.65) / 2)
    assert metrics["select"]["select/mean_score_random"] == pytest.approx((0.5 + 0.4) / 2)
    assert metrics["select"]["select/candidates"] == 16, "equal values stay whole numbers"
    assert metrics["selector"]["selector/reward_last"] == pytest.approx((0.085 + 5.085) / 2)
    assert metrics["selector"]["selector/steps"] == 20 and metrics["selector"]["selector/env_runners_lost"] == 1.5
    assert metrics["truth"]["selector/auc_wrong_label"] == pytest.approx((1.0 + 0.0) / 2)
    assert metrics["truth"]["select/share_wrong_label_selected"] == pytest.approx((0.0 + 1.0) / 2)
    assert metrics["timing"]["selector/seconds_train"] == pytest.approx(2 * 20 * 0.2), "time is added up"
    assert "<dt>threshold</dt><dd>0.600</dd>" in page and "All candidate pairs by score, seed 0;" in page


def test_what_was_trained_is_told_beside_its_average(whole: tuple[Path, Json, str]) -> None:
    _, metrics, page = whole
    top1, of_student = (metrics["arms"]["random"][name]["values"] for name in ("classifier/top1", "student/top1"))
    assert of_student == {seed: value / 2 for seed, value in top1.items()} and len(top1) > 1
    assert "student/top1" not in metrics["arms"]["real"]
    assert page.count(f"weights of the last step: {50 * np.mean(list(top1.values())):.1f} % ± ") == 1


def test_means_are_of_each_number() -> None:
    rows = [{"a": 1, "b": {"x": 0.5, "y": None}}, {"a": 1, "b": {"x": 1.0, "y": None}}]
    assert mean_of(rows) == {"a": 1, "b": {"x": 0.75, "y": None}}
    assert mean_of([]) == {} and mean_of(rows[:1]) == rows[0]


def test_seeds_that_one_arm_lacks_are_left_out_of_the_comparison(tmp_path: Path) -> None:
    results = evaluated({"real": [0.2, 0.6, 0.9], "random": [0.3, 0.8]})
    metrics = numbers(tables(**results), tmp_path)
    # Their means are 0.567 and 0.55: real is the best, and by the seeds that both have it is not.
    assert metrics["comparison"]["best"] == "real"
    lead = metrics["comparison"]["against"]["random"]
    assert lead["values"] == pytest.approx({"0": -0.1, "1": -0.2}) and not lead["clear"]


# --- arms


ARMS = {
    "zeta": Arm(pairs="agreement", label="by <agreement>"),
    "my-own.2": Arm(pairs="random", colour="#009E73"),
    "selected": SHIPPED["selected"],
    "alpha": Arm(pairs="none"),
}


def test_arms_of_any_name_stand_in_the_order_given(tmp_path: Path) -> None:
    top1 = {"alpha": [0.2, 0.1], "my-own.2": [0.5, 0.6], "selected": [0.5, 0.6], "zeta": [0.1, 0.3]}
    selections = [scored_pairs("zeta"), drawn_pairs("my-own.2"), scored_pairs("selected", threshold=0.7)]
    run = tables(arms=ARMS, selections=selections, truth=make_truth(tmp_path), **evaluated(top1))
    metrics, page = report(run, tmp_path)
    assert list(metrics["arms"]) == list(ARMS)
    assert metrics["comparison"]["best"] == "my-own.2", "of equal ones the first"
    assert list(metrics["comparison"]["against"]) == ["zeta", "selected", "alpha"]
    words = re.search(r'class="verdict">(.*?)</p>', page)
    assert words is not None and words[1].startswith("Best is my-own.2: top-1 55.0 % over 2 seeds, ")
    assert re.findall(r"points above ([\w.-]*\w)", words[1]) == ["zeta", "selected", "alpha"]
    rows = re.findall(r"<tr[^>]*>\n<td>([^<]+)<small>([^<]*)</small>", page)
    told = [(name, arm.label.replace("<", "&lt;").replace(">", "&gt;")) for name, arm in ARMS.items()]
    assert rows == [*told, *told, *told[:3]], "in the tables of arms, of sets, and of arms with pairs"
    assert re.findall(r'<th class="n">(zeta|my-own.2|selected|alpha)</th>', page) == list(ARMS)
    # A Selector's scores are looked at rather than agreement's, and all arms are judged.
    assert metrics["select"]["select/threshold"] == 0.7 and "<dt>scored for</dt><dd>selected</dd>" in page
    shares = {name: metrics["truth"][f"select/share_wrong_label_{name}"] for name in ("zeta", "my-own.2", "selected")}
    assert shares == {"zeta": 0.0, "my-own.2": 0.5, "selected": 0.0}
    assert "<dt>wrong labels, my-own.2</dt><dd>50.0 %</dd>" in page


def test_each_arm_has_a_colour_of_its_own() -> None:
    """Green is the first of the other colours, and chosen for an arm; whoever has none gets another."""
    run = tables(arms=ARMS)
    colours = {name: run.colour(name) for name in ARMS}
    assert colours["my-own.2"] == "#009E73" and colours["selected"] == SHIPPED["selected"].colour
    assert (colours["zeta"], colours["alpha"]) == OTHER_COLOURS[1:3]
    many = tables(arms={str(number): Arm() for number in range(8)})
    assert [many.colour(name) for name in many.arms] == [*OTHER_COLOURS, *OTHER_COLOURS[:2]]


def test_the_plots_show_the_arms_in_their_colours(tmp_path: Path) -> None:
    arms = {"odd": Arm(pairs="random", colour="#ff00ff"), "selected": SHIPPED["selected"]}
    report(tables(arms=arms, **evaluated({"odd": [0.9, 0.8], "selected": [0.3, 0.4]})), tmp_path)
    for name in ("accuracy", "training"):
        image = cv2.imread(str(tmp_path / f"report/plots/{name}.png"))
        assert image is not None
        colours = (255, 0, 255), (0, 94, 213)
        places = [np.flatnonzero((image == colour).all(axis=2).any(axis=0)) for colour in colours]
        assert all(place.size for place in places), name
        if name == "accuracy":
            assert places[0].max() < places[1].min(), "from left to right"


def test_an_arm_of_its_own_composites_is_shown_in_them(tmp_path: Path) -> None:
    whole = {"paste": Arm(pairs="selector", composite=CompositeSettings(mix_labels=False))}
    for name, arms in (("own", whole), ("run", {"paste": Arm(pairs="selector")})):
        report(tables(arms=arms, selections=[scored_pairs("paste")]), tmp_path / name)
    sheets = [(tmp_path / name / "report/sheets/best.png").read_bytes() for name in ("own", "run")]
    assert sheets[0] != sheets[1]


# --- how it was made


def test_classes_without_composites_are_named(tmp_path: Path) -> None:
    rows = [(CLASSES[1], "foreground", "the masks <are> empty"), ("run", "background", "nothing is seen")]
    left_out = pd.DataFrame(rows, columns=["class_name", "role", "reason"])
    _, page = report(tables(left_out=left_out), tmp_path)
    section = page.split("Classes left out of composites")[1].split("<h2>")[0]
    assert "wave $x$ &amp; &lt;b&gt;</td><td>foreground</td><td>the masks &lt;are&gt; empty" in section
    assert "<td>run</td><td>background</td><td>nothing is seen" in section
    _, page = report(tables(left_out=left_out.head(0)), tmp_path)
    assert "Classes left out" not in page and "Scenes were not chosen by the names" in page


def test_each_stage_says_by_what_it_was_made(whole: tuple[Path, Json, str]) -> None:
    page = whole[2]
    table = page.split("<h3>Stages</h3>")[1].split("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", table)
    assert [row.split("</td>")[0] for row in rows] == ["prepare", "match-0"]
    for text in ("0123456789abcdef", "2026-01-02 03:04:05", "1.5", "abc123", "2 CPUs, 8 GiB, x86_64"):
        assert text in rows[0]
    assert "digest c0de" in rows[1]
    assert "python 3.11.9, ray 2.60.0</li>" in page and "av None" not in page


@pytest.mark.parametrize(
    ("second", "differ"),
    [
        ([MADE_BY], False),
        ([MADE_BY | {"hardware": MADE_BY["hardware"] | {"cpus": 64, "gpus": ["NVIDIA X"]}}], False),  # type: ignore[operator]
        ([MADE_BY | {"commit": "def456"}], True),
        ([MADE_BY | {"commit": "abc123-dirty"}], True),
        ([MADE_BY | {"commit": None, "code": "0ther"}], True),
        ([MADE_BY | {"commit": "def456"}, MADE_BY], True),  # begun by other code and finished by the same
    ],
)
def test_results_of_different_code_are_told_apart(tmp_path: Path, second: list[Json], differ: bool) -> None:
    made = [record("prepare"), record("match-0") | {"made_by": second}]
    _, page = report(tables(made=made), tmp_path)
    assert ("made by different states of the code" in page) == differ
    assert ("def456, then abc123" in page) == (len(second) > 1)


def test_settings_are_those_that_are_given(whole: tuple[Path, Json, str]) -> None:
    assert "<pre>data:\n  root: /&lt;videos&gt;\n</pre>" in whole[2]


# --- the page


def test_pictures_are_there_and_not_blank(whole: tuple[Path, Json, str]) -> None:
    found = {path.stem: path for path in (whole[0] / "report").glob("*/*.png")}
    plots = {"accuracy", "guesses", "reward", "selection", "scores", "wrong_labels", "training", "speed", "gain"}
    assert set(found) == plots | {"confusion", "actors", "best", "worst", "masks_best", "masks_worst", "scenes"}
    for path in found.values():
        image = cv2.imread(str(path))
        assert image is not None and image.shape[1] > 600, path
        assert image.std() > 5, path


def test_page_needs_nothing_else_and_escapes(whole: tuple[Path, Json, str]) -> None:
    page = whole[2]
    assert "http" not in page
    assert page.count("<img ") == 16
    assert all(target.startswith("data:image/png;base64,") for target in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "<b>.mp4" not in page and "a&#34;&lt;b&gt;.mp4" in page
    for text in ("run &lt;1&gt;", "a &lt;source&gt; video", "/&lt;videos&gt;", "wave $x$ &amp; &lt;b&gt;"):
        assert text in page
    assert "no video stream" in page and "Convert it anew" in page


def test_only_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "prepare", failures=False)
    metrics = write_report(tables(), store, CompositeSettings(), tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert metrics["arms"] == {} and metrics["comparison"] is None
    for stage in ("evaluate", "train-selector", "train", "match"):
        assert f"stage {stage} was not run" in page
    assert "No pairs were scored" in page
    assert "every video was prepared" in page
    assert re.findall(r'<img .*? alt="(.*?)">', page) == MASKS


def test_only_the_real_arm_with_one_seed(tmp_path: Path) -> None:
    metrics, page = report(tables(**evaluated({"real": [0.3]})), tmp_path)
    assert metrics["comparison"] is None and metrics["arms"]["real"]["classifier/top1"]["std"] is None
    assert "There is nothing to compare it with" in page and "No pairs were scored" in page


def test_arms_that_are_only_drawn_have_no_scores(tmp_path: Path) -> None:
    metrics, page = report(tables(selections=[drawn_pairs()], truth=make_truth(tmp_path)), tmp_path)
    assert metrics["select"] == metrics["truth"] == {} and "No pairs were scored" in page
    assert re.findall(r'<img .*? alt="(.*?)">', page) == MASKS


@pytest.mark.parametrize(
    ("top1", "words"),
    [
        ({"real": [0.3], "random": [0.4]}, "One seed says nothing about spread"),
        ({"real": [0.3, 0.4], "random": [0.4, 0.35]}, "does not allow to say that it is better than real"),
    ],
)
def test_verdict_does_not_claim_too_much(tmp_path: Path, top1: dict[str, list[float]], words: str) -> None:
    assert words in verdict(numbers(tables(**evaluated(top1)), tmp_path))


def test_a_diverged_run_shows(tmp_path: Path) -> None:
    parts = evaluated({"real": [0.3, 0.4]})
    parts["results"].loc[parts["results"]["set"] == "real", "loss"] = [1.0, np.nan]
    loss = numbers(tables(**parts), tmp_path)["arms"]["real"]["classifier/loss"]
    assert loss == {"mean": None, "std": None, "interval95": None, "n": 2, "values": {"0": 1.0, "1": None}}


def test_sheet_shows_the_composite_that_is_trained_on(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    pair = pd.DataFrame({"foreground": ["00clip"], "background": ["01clip"], "score": [0.75]})
    figure = draw_sheet(pair, store, CompositeSettings(alpha=2.0))
    # 12 x 12 of 32 x 48 pixels: gamma = 0.09375, and 1 - (1 - gamma)^2 = 0.1787.
    assert "jump  on  wave $x$ & <b>      ω 0.750      λ 0.18" in [text.get_text() for text in figure.axes[0].texts]
    foreground, mask, background, clean, *mixed = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    assert foreground.shape == background.shape == clean.shape == (32, 48, 3) and len(mixed) == 3
    inside = mask[..., 0] == 255
    assert inside.sum() == 144
    assert (mixed[1][inside] == 250).all() and (mixed[1][~inside] == clean[~inside]).all()
