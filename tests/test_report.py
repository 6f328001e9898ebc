import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.errors import StageError
from l2a_ray.outputs.report import write_report
from l2a_ray.outputs.report.page import verdict
from l2a_ray.outputs.report.sheets import draw_sheet
from l2a_ray.outputs.report.tables import Json, compare, read_run, spread, summarise
from l2a_ray.outputs.report.truth import auc, auc_by_class, mark_wrong
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import FAILED_COLUMNS, INDEX_DTYPES, ClipStore, StoredClip, write_clip, write_index

CLASSES = ("jump", "wave $x$ & <b>", "run")
ODD = 'a"<b>.mp4'
QUESTION = "Does the Selector find the bad clips?"
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
        write_clip(root / "data", clip_id, clip, {"kept": "yes"})
        where = (height, width, float(masks_THW.mean()), float(masks_THW.mean()), "")
        split = ("train", "val", "test")[n // 2]
        path = str(root.absolute().parent / "<videos>" / f"{n}.mp4")
        rows.append((clip_id, path, CLASSES[n % 3], n % 3, split, str(n), 30, 25.0, *where, "0", 1, 1))
    index = pd.DataFrame(rows, columns=list(INDEX_DTYPES)).astype(INDEX_DTYPES)
    failed = [("ffclip", ODD, "jump", 0, "train", "no video stream", "Convert it anew", 0, 0)] if failures else []
    write_index(root, "data", CLASSES, index, pd.DataFrame(failed, columns=list(FAILED_COLUMNS)))
    return ClipStore(root)


def make_results(run: Path, top1: dict[str, list[float]]) -> None:
    """Evaluate and train folders of some arms; every run predicts its last test clip wrong."""
    results, predictions = [], []
    for arm, values in top1.items():
        for seed, value in enumerate(values):
            results.append((arm, seed, value, min(1.0, value + 0.2), 1.5 - value, 2))
            predictions += [(arm, seed, "04clip", 1, 1, 0.9), (arm, seed, "05clip", 2, 0, 0.6)]
            history = pd.DataFrame({"epoch": [0, 1], "step": [10, 20], "loss": [1.1, 0.7 - value / 2]})
            write(
                history.assign(learning_rate=0.1, clips_per_s=50.0 + seed, wait_share=0.1),
                run,
                f"train/{arm}-{seed}/history",
            )
    write(pd.DataFrame(results, columns=["arm", "seed", "top1", "top5", "loss", "clips"]), run, "evaluate/metrics")
    columns = ["arm", "seed", "id", "label", "predicted", "probability"]
    write(pd.DataFrame(predictions, columns=columns), run, "evaluate/predictions")


def make_selection(run: Path) -> None:
    """The match, train-selector and select folders."""
    neighbours = pd.DataFrame({"class_name": ["run", "jump"], "neighbour": ["jump", "run"], "similarity": [0.5, 0.5]})
    write(neighbours, run, "match/neighbours")
    step = np.arange(20)
    history = pd.DataFrame({"step": step, "iteration": step // 10, "reward": step / 100 - 0.1, "baseline": 1.0})
    history = history.assign(val_loss=1.1 - step / 100, val_accuracy=0.5, num_selected=8, num_pairs=16, mean_omega=0.5)
    history = history.assign(seconds_composite=0.1, seconds_train=0.2, seconds_validate=0.1, env_runners_lost=0)
    write(history, run, "train-selector/history")
    pairs = pd.DataFrame({"background": ["01clip", "02clip"], "background_label": [1, 2]})
    for name, front, scores in (
        ("selected", (0, 1), [0.9, 0.8]),
        ("random", (0, 3), [0.6, 0.4]),
        ("worst", (3, 1), [0.2, 0.1]),
    ):
        pairs = pairs.assign(foreground=[f"{n:02x}clip" for n in front], foreground_label=[n % 3 for n in front])
        write(pairs.assign(score=np.array(scores, np.float32)), run, f"select/{name}")
    left = np.arange(50) / 50
    write(pd.DataFrame({"left": left, "right": left + 0.02, "count": np.arange(50)}), run, "select/histogram")
    (run / "select/summary.json").write_text(json.dumps({"candidates": 16, "budget": 2, "threshold": 0.8}))


def write(table: pd.DataFrame, run: Path, name: str) -> None:
    path = run / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def make_truth(run: Path) -> None:
    """Clip 3 has a wrong label; what is said of the test split is not to be read."""
    rows = [("0.mp4", "train", ""), ("1.mp4", "train", "lost"), ("3.mp4", "train", "wrong_label")]
    rows.append(("1.mp4", "test", "wrong_label"))
    write(pd.DataFrame(rows, columns=["path", "split", "bad"]), run, "<videos>/truth")
    (run / "config.yaml").write_text(f"composite:\n  alpha: 2.0\ndata:\n  root: {run.absolute()}/<videos>\n")


def make_whole(run: Path) -> Path:
    make_selection(run)
    make_results(run, TOP1)
    make_truth(run)
    (run / "environment.json").write_text(json.dumps({"commit": "abc123", "versions": {"ray": "2.60.0"}}))
    (run / "notes.json").write_text(json.dumps(["split 2 shares a <source> video"]))
    return run


def report(run: Path) -> tuple[Json, str]:
    metrics = write_report(run, make_store(run / "prepare"), run / "report")
    assert json.loads((run / "report/metrics.json").read_text()) == metrics
    return metrics, (run / "report/index.html").read_text()


def numbers(run: Path) -> Json:
    return summarise(read_run(run), make_store(run / "prepare"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json, str]:
    """A run with all stages, reported once: its folder, metrics and page. Tests only read it."""
    run = make_whole(tmp_path_factory.mktemp("whole") / "run <1>")
    (run / "report/plots").mkdir(parents=True)
    (run / "report/plots/of_an_older_report.png").touch()
    return run, *report(run)


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
    about = compare(pd.DataFrame(rows, columns=columns))
    assert about is not None and about["best"] == "random"
    assert about["against"]["real"]["mean"] == pytest.approx(0.055)
    assert not about["against"]["real"]["clear"]  # 12.706 * 0.00707 / sqrt(2) = 0.0635 > 0.055
    assert about["against"]["real"]["interval95"] == pytest.approx(0.063531, rel=1e-4)
    about = compare(pd.DataFrame([*rows, ("real", 2, 0.4), ("random", 2, 0.452)], columns=columns))
    assert about is not None and about["against"]["real"]["clear"]


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


def test_a_lost_actor_and_the_background_are_no_wrong_label() -> None:
    index = pd.DataFrame({"id": ["a", "b", "c"], "path": ["/v/a", "/v/b", "/v/c"]})
    truth = pd.DataFrame({"path": ["/v/b", "/v/c"], "bad": ["wrong_label", "lost"]})
    pairs = pd.DataFrame({"foreground": ["a", "b", "c"], "background": ["b", "a", "b"]})
    assert mark_wrong(pairs, truth, index)["wrong"].tolist() == [False, True, False]


@pytest.mark.parametrize("truth", [None, b"PAR1 not really", "other columns", "no wrong label"])
def test_without_truth_there_is_no_section(tmp_path: Path, truth: bytes | str | None) -> None:
    make_selection(tmp_path)
    make_truth(tmp_path)
    path = tmp_path / "<videos>/truth.parquet"
    if truth is None:
        path.unlink()
    elif isinstance(truth, bytes):
        path.write_bytes(truth)
    else:
        table = pd.read_parquet(path)
        table = table[["path"]] if truth == "other columns" else table[table["bad"] != "wrong_label"]
        write(table, tmp_path, "<videos>/truth")
    metrics, page = report(tmp_path)
    assert metrics["truth"] == {} and QUESTION not in page and "wrong_labels" not in page


def test_clocks_are_kept_apart(tmp_path: Path) -> None:
    make_selection(tmp_path)
    first = numbers(tmp_path)
    history = pd.read_parquet(tmp_path / "train-selector/history.parquet")
    write(history.assign(seconds_train=9.0), tmp_path, "train-selector/history")
    second = numbers(tmp_path)
    assert first.pop("timing") != second.pop("timing")
    assert first == second


def test_pictures_are_there_and_not_blank(whole: tuple[Path, Json, str]) -> None:
    found = {path.stem: path for path in (whole[0] / "report").glob("*/*.png")}
    plots = {"accuracy", "reward", "selection", "scores", "wrong_labels", "training", "confusion"}
    assert set(found) == plots | {"best", "worst"}
    for path in found.values():
        image = cv2.imread(str(path))
        assert image is not None and image.shape[1] > 600, path
        assert image.std() > 5, path


def test_page_needs_nothing_else_and_escapes(whole: tuple[Path, Json, str]) -> None:
    page = whole[2]
    assert "http" not in page
    assert page.count("<img ") == 9
    assert all(target.startswith("data:image/png;base64,") for target in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "<b>.mp4" not in page and "a&#34;&lt;b&gt;.mp4" in page
    for text in ("run &lt;1&gt;", "a &lt;source&gt; video", "/&lt;videos&gt;", "wave $x$ &amp; &lt;b&gt;"):
        assert text in page
    assert "versions.ray" in page and "no video stream" in page and "Convert it anew" in page


def test_only_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "prepare", failures=False)
    metrics = write_report(tmp_path, store, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert metrics["arms"] == {} and metrics["comparison"] is None
    for stage in ("evaluate", "train-selector", "select", "train", "match"):
        assert f"stage {stage} was not run" in page
    assert "every video was prepared" in page and "<img " not in page


def test_only_the_real_arm_with_one_seed(tmp_path: Path) -> None:
    make_results(tmp_path, {"real": [0.3]})
    metrics, page = report(tmp_path)
    assert metrics["comparison"] is None and metrics["arms"]["real"]["classifier/top1"]["std"] is None
    assert "There is nothing to compare it with" in page and "stage select was not run" in page


@pytest.mark.parametrize(
    ("top1", "words"),
    [
        ({"real": [0.3], "random": [0.4]}, "One seed says nothing about spread"),
        ({"real": [0.3, 0.4], "random": [0.4, 0.35]}, "does not allow to say that it is better than real"),
    ],
)
def test_verdict_does_not_claim_too_much(tmp_path: Path, top1: dict[str, list[float]], words: str) -> None:
    make_results(tmp_path, top1)
    assert words in verdict(numbers(tmp_path))


def test_a_diverged_run_shows(tmp_path: Path) -> None:
    make_results(tmp_path, {"real": [0.3, 0.4]})
    results = pd.read_parquet(tmp_path / "evaluate/metrics.parquet")
    write(results.assign(loss=[1.0, np.nan]), tmp_path, "evaluate/metrics")
    loss = numbers(tmp_path)["arms"]["real"]["classifier/loss"]
    assert loss == {"mean": None, "std": None, "interval95": None, "n": 2, "values": {"0": 1.0, "1": None}}


def test_damaged_file_is_named(tmp_path: Path) -> None:
    make_selection(tmp_path)
    (tmp_path / "select/selected.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StageError, match=r"selected\.parquet: damaged .* run that stage again"):
        read_run(tmp_path)


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
