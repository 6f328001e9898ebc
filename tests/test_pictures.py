"""What the report's pictures of masks, classes and clips are drawn from, and that they can be drawn of any run."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from helpers import small_store
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from test_report import CLASSES, evaluated, make_store, report, tables

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.config.arms import Arm
from l2a_ray.outputs.report.by_class import baseline, confused, confusion, count_disagreements, disagreements, gains
from l2a_ray.outputs.report.class_plots import confusions, gain, training
from l2a_ray.outputs.report.clips import BRIGHT, ClipTile, draw_clips, middle_frame, outline
from l2a_ray.outputs.report.disagreement_sheet import draw_disagreements
from l2a_ray.outputs.report.mask_pictures import _actors, draw_masks
from l2a_ray.outputs.report.masks import BARE, SHOWN, look_at_masks, rank, summarise_masks, worst_and_best
from l2a_ray.outputs.report.tables import summarise
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


def store_of(root: Path, frames_with_actor: list[int], split: str = "train") -> ClipStore:
    """Clips of four 10 x 10 frames, of three classes in turn; a mask covers a fifth of each of the last few frames."""
    rows = []
    for number, count in enumerate(frames_with_actor):
        mask_THW = np.zeros((4, 10, 10), dtype=np.bool_)
        mask_THW[4 - count :, :2] = True
        grey_THWC = np.full((4, 10, 10, 3), 100, dtype=np.uint8)
        planes = Planes(mask_THW, ~mask_THW, mask_THW, mask_THW)
        write_clip(
            clip_path(root / "clips", f"{number:04x}", "0"), StoredClip(grey_THWC, grey_THWC, planes), {"k": "v"}
        )
        row = {"id": f"{number:04x}", "class_name": CLASSES[number % 3], "label": number % 3, "split": split}
        ratios = {"foreground_ratio": mask_THW.mean(), "people_ratio": 1 - mask_THW.mean()}
        ratios |= {"foreground_frames": mask_THW.any(axis=(1, 2)).mean(), "people_frames": 1.0}
        rows.append(dict.fromkeys(INDEX_DTYPES, 0) | row | ratios)
    index = pd.DataFrame(rows).astype(INDEX_DTYPES)
    write_index(root, root / "clips", CLASSES, index, pd.DataFrame(columns=list(FAILED_COLUMNS)))
    return ClipStore(root)


def seen(*clips: tuple[str, str, float, float]) -> pd.DataFrame:
    """What was seen of clips of this id, class, share of frames and area."""
    table = pd.DataFrame(clips, columns=["id", "class_name", "share", "area"])
    return table.assign(label=0)


def predicted(*rows: tuple[str, int, str, int, int]) -> pd.DataFrame:
    """Predictions of arm, seed, id, label and predicted class, each with probability 0.5."""
    return pd.DataFrame(rows, columns=["arm", "seed", "id", "label", "predicted"]).assign(probability=0.5)


# --- masks


def test_masks_are_measured_frame_by_frame(tmp_path: Path) -> None:
    store = store_of(tmp_path, [0, 1, 2, 3, 4])
    looked = look_at_masks(store, "objects").set_index("id")
    assert looked["share"].to_dict() == {f"{n:04x}": n / 4 for n in range(5)}
    assert looked["area"].dropna().tolist() == pytest.approx([0.2] * 4) and np.isnan(looked["area"]["0000"])
    numbers = summarise_masks(looked, CLASSES)
    assert numbers["masks/frames_with_actor"] == 0.5 and numbers["masks/clips_without_actor"] == 0.2
    by_class = numbers["masks/frames_with_actor_by_class"]
    assert by_class == {"jump": 0.375, CLASSES[1]: 0.625, "run": 0.5}
    people = look_at_masks(store, "people").set_index("id")
    assert people["share"].to_dict() == dict.fromkeys(looked.index, 1.0), "another plane, other masks"


def test_test_clips_and_clips_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    store = store_of(tmp_path, [4, 4, 0])
    store.path("0001").write_bytes(b"half of a clip")
    store.path("0002").unlink()
    looked = look_at_masks(store, "objects")
    assert set(draw_masks(looked, summarise_masks(looked, CLASSES), store, "objects", tmp_path)) == {
        "actors",
        "masks_best",
    }
    looked = look_at_masks(store_of(tmp_path / "test", [4, 4], split="test"), "objects")
    assert looked.empty and summarise_masks(looked, CLASSES) == {}
    assert draw_masks(looked, {}, store, "objects", tmp_path) == {}


def test_where_nothing_is_found_the_worst_are_shown_and_no_area_is_told(tmp_path: Path) -> None:
    store = store_of(tmp_path, [0, 0, 0])
    looked = look_at_masks(store, "objects")
    numbers = summarise_masks(looked, CLASSES)
    assert numbers["masks/frames_with_actor"] == 0 and numbers["masks/median_area"] is None
    assert set(draw_masks(looked, numbers, store, "objects", tmp_path)) == {"actors", "masks_worst"}


def test_masks_are_ranked_by_frames_then_by_how_unusual_their_area_is() -> None:
    looked = seen(
        ("usual", "jump", 1.0, 0.10),
        ("tiny", "jump", 1.0, 0.001),
        ("huge", "jump", 1.0, 0.9),
        ("half", "jump", 0.5, 0.10),
        ("none2", "jump", 0.0, np.nan),
        ("none1", "jump", 0.0, np.nan),
        ("none3", "run", 0.0, np.nan),
    )
    # The median area is 0.1: a hundredth is farther from it than nine times as much.
    assert rank(looked)["id"].tolist() == ["none1", "none3", "none2", "half", "tiny", "huge", "usual"]
    worst, best = worst_and_best(looked)
    assert worst["id"].tolist() == ["none1", "none3", "none2"] and best["id"].tolist() == [
        "usual",
        "huge",
        "tiny",
        "half",
    ]


def test_clips_without_any_mask_do_not_crowd_the_others_out() -> None:
    none = [(f"none{n:02}", "jump", 0.0, np.nan) for n in range(30)]
    poor = [(f"poor{n:02}", "run", 0.25, 0.1) for n in range(30)]
    worst, best = worst_and_best(seen(*none, *poor))
    assert worst["id"].str[:4].value_counts().to_dict() == {"none": BARE, "poor": SHOWN - BARE}
    assert worst["share"].is_monotonic_increasing and (best["share"] > 0).all() and len(best) == SHOWN
    worst, best = worst_and_best(seen(*none))
    assert len(worst) == SHOWN and best.empty
    worst, best = worst_and_best(seen(("only", "run", 1.0, 0.1)))
    assert worst.empty and best["id"].tolist() == ["only"]


def test_a_tile_shows_a_frame_that_has_a_mask_with_its_outline(tmp_path: Path) -> None:
    store = store_of(tmp_path, [1, 0])
    plain, outlined, bare = (
        middle_frame(store, "0000"),
        middle_frame(store, "0000", "objects"),
        middle_frame(store, "0001", "objects"),
    )
    assert plain is not None and outlined is not None and bare is not None
    assert (plain == 100).all() and (bare == 100).all()
    bright = (outlined == BRIGHT).all(axis=2)
    # The mask covers the upper fifth of the last frame alone.
    assert bright.any() and np.flatnonzero(bright.any(axis=1)).max() == pytest.approx(0.2 * len(plain), abs=6)
    store.path("0000").unlink()
    assert middle_frame(store, "0000") is None


def test_an_outline_follows_the_mask() -> None:
    frame_HWC, mask_HW = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.bool_)
    mask_HW[30:70, 40:60] = True
    bright = (outline(frame_HWC, mask_HW) == BRIGHT).all(axis=2)
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((30, 69, 40, 59), abs=2)
    assert not bright[35:65, 45:55].any() and not frame_HWC.any(), "the frame itself is left as it is"


def test_a_sheet_has_a_place_for_each_clip_of_any_shape() -> None:
    shapes = [(240, 240), (50, 240), (312, 100), (1, 240), (240, 240)]
    tiles = [ClipTile(np.zeros((*shape, 3), np.uint8), [("$x$", "#000000"), ("b", "#000000")]) for shape in shapes]
    figure = draw_clips(tiles)
    boxes = [image.get_extent() for image in figure.axes[0].images]
    assert len(boxes) == 5 and len(figure.axes[0].texts) == 10
    for number, (left, right, bottom, top) in enumerate(boxes):
        assert right - left == pytest.approx(shapes[number][1] / 120) and top - bottom == pytest.approx(
            shapes[number][0] / 120
        )
        assert all(
            right <= other[0] or left >= other[1] or bottom >= other[3] or top <= other[2] for other in boxes[:number]
        )


# --- classes


def test_confusion_is_the_share_of_each_true_class() -> None:
    rows = [("a", 0, "1", 0, 0), ("a", 0, "2", 0, 1), ("a", 1, "1", 0, 1), ("a", 1, "2", 0, 1), ("b", 0, "1", 0, 0)]
    shares = confusion(predicted(*rows, ("a", 0, "3", 1, 2)), "a", 3)
    np.testing.assert_array_equal(shares, [[0.25, 0.75, 0], [0, 0, 1], [np.nan] * 3])
    assert confused(shares, CLASSES) == [
        {"true": CLASSES[1], "predicted": "run", "share": 1.0},
        {"true": "jump", "predicted": CLASSES[1], "share": 0.75},
    ]


def test_gain_is_taken_seed_by_seed() -> None:
    # Of class 0, arm a has 1/2 and 2/2 right, plain 0/2 and 1/2; of class 1, one seed of a is missing.
    rows = [("a", 0, "1", 0, 0), ("a", 0, "2", 0, 1), ("a", 1, "1", 0, 0), ("a", 1, "2", 0, 0), ("a", 0, "3", 1, 1)]
    rows += [("p", 0, "1", 0, 1), ("p", 0, "2", 0, 1), ("p", 1, "1", 0, 0), ("p", 1, "2", 0, 1), ("p", 0, "3", 1, 0)]
    found = gains(predicted(*rows, ("p", 1, "3", 1, 0)), "a", "p", CLASSES)
    assert found["jump"]["values"] == {"0": 0.5, "1": 0.5} and found["jump"]["interval95"] == 0
    assert found[CLASSES[1]]["mean"] == 1 and found[CLASSES[1]]["interval95"] is None and found["run"] is None


def test_gains_are_over_the_arm_of_real_clips_by_whatever_name() -> None:
    assert baseline({"x": Arm(pairs="random"), "mine": Arm(pairs="none"), "real": Arm(pairs="none")}) == "mine"
    assert baseline({"real": Arm(pairs="random")}) is None


def test_arms_disagree_where_most_repetitions_do() -> None:
    rows = []
    for seed, a, b, c in ((0, 0, 1, 1), (1, 0, 2, 1), (2, 1, 2, 0)):  # predictions of clip 1, whose class is 0
        rows += [("a", seed, "1", 0, a), ("b", seed, "1", 0, b), ("c", seed, "1", 0, c)]
        rows += [(arm, seed, "2", 1, 1) for arm in "abc"]  # all right
        rows += [("a", seed, "3", 1, 1), ("b", seed, "3", 1, 1), ("c", seed, "3", 1, 2)]
    table = predicted(*rows)
    found = disagreements(table, ["c", "b", "a"]).to_dict("records")
    shares = {"right_share": 1.0, "wrong_share": 0.0}
    assert found[0] == {"id": "3", "label": 1, "right": "b", "wrong": "c", "predicted": 2} | shares
    shares = {"right_share": 2 / 3, "wrong_share": 0.0}
    assert found[1:] == [{"id": "1", "label": 0, "right": "a", "wrong": "b", "predicted": 2} | shares]
    counts = count_disagreements(table, ["a", "b", "c"])
    assert counts == {"a": {"b": 1, "c": 2}, "b": {"a": 0, "c": 1}, "c": {"a": 0, "b": 0}}


def test_half_of_the_repetitions_are_not_most() -> None:
    rows = [("a", 0, "1", 0, 0), ("a", 1, "1", 0, 1), ("b", 0, "1", 0, 1), ("b", 1, "1", 0, 1)]
    assert disagreements(predicted(*rows), ["a", "b"]).empty


# --- plots


def curves(epochs: int, seeds: int, **more: float) -> pd.DataFrame:
    rows = [("a", s, e, e, float(e + s)) for s in range(seeds) for e in range(1, epochs + 1)]
    return pd.DataFrame(rows, columns=["arm", "seed", "epoch", "step", "loss"]).assign(
        clips_per_s=1.0, wait_share=0.1, **more
    )


def test_training_shows_mean_and_spread_of_all_that_the_history_tells() -> None:
    figure, _, _ = training(curves(2, 3, val_accuracy=0.5), ["a"], lambda arm: "#0072b2")
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "val accuracy"], "speed has a plot of its own"
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2] and line.get_ydata().tolist() == [2.0, 3.0]  # type: ignore[union-attr]
    band = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices, dtype=np.float64)
    assert (band[:, 1].min(), band[:, 1].max()) == (1.0, 4.0)
    alone, _, _ = training(curves(1, 1), ["a"], lambda arm: "#0072b2")
    assert alone.axes[0].lines[0].get_ydata().tolist() == [1.0]  # type: ignore[union-attr]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_of_many_classes_those_that_differ_most_are_drawn() -> None:
    about = {f"c{n}": {"mean": n / 100, "interval95": None} for n in range(50)} | {"none": None}
    figure, title, caption = gain({"p": {}, "a": {"gain": about}}, "p", lambda arm: "#0072b2")
    assert labels(figure) == [f"c{n}" for n in range(49, 9, -1)]
    assert title == "Gain over p by class" and "The 40 classes that differ most" in caption


def test_confusion_has_a_matrix_an_arm() -> None:
    shares = {arm: np.full((3, 3), 1 / 3) for arm in ("one", "$two$", "three", "four")}
    shares["four"][1] = np.nan
    figure, _, _ = confusions(shares, CLASSES)
    assert [ax.get_title() for ax in figure.axes[:4]] == list(shares)
    assert [len(ax.texts) for ax in figure.axes[:4]] == [9, 9, 9, 6]


def test_actors_have_a_bar_a_class_the_least_at_the_top(tmp_path: Path) -> None:
    looked = look_at_masks(store_of(tmp_path, [4, 0, 1, 2]), "objects")
    figure, caption = _actors(looked, summarise_masks(looked, CLASSES))
    assert labels(figure) == [CLASSES[1], "run", "jump"] and "class by class, of 4 clips" in caption
    (bars,) = figure.axes[0].containers
    assert isinstance(bars, BarContainer) and [bar.get_width() for bar in bars] == [0.0, 25.0, 75.0]


# --- the page


def disagreeing() -> dict[str, Any]:
    """Two arms, of which each has one of the two test clips wrong."""
    parts = evaluated({"mine": [0.5, 0.5], "other": [0.5, 0.5]})
    rows = [("mine", seed, "04clip", 1, 1) for seed in (0, 1)] + [("other", seed, "04clip", 1, 0) for seed in (0, 1)]
    rows += [("mine", seed, "05clip", 2, 0) for seed in (0, 1)] + [("other", seed, "05clip", 2, 2) for seed in (0, 1)]
    others = parts["predictions"].query("set != 'real'")
    return parts | {"predictions": pd.concat([predicted(*rows).assign(set="real", background=""), others])}


ARMS = {"mine": Arm(pairs="none"), "other": Arm(pairs="random")}


def test_the_page_shows_what_the_arms_disagree_on(tmp_path: Path) -> None:
    metrics, page = report(tables(arms=ARMS, **disagreeing()), tmp_path)
    assert metrics["disagreements"]["disagreements/clips"] == 2
    first = metrics["disagreements"]["disagreements/widest"][0]
    assert (first["id"], first["label"], first["right"], first["predicted"]) == ("04clip", CLASSES[1], "mine", "jump")
    assert "<td>4.mp4</td><td>wave $x$ &amp; &lt;b&gt;</td><td>mine</td><td>other</td><td>jump</td>" in page
    image = cv2.imread(str(tmp_path / "report/sheets/disagreements.png"))
    assert image is not None and image.std() > 5
    assert metrics["arms"]["other"]["gain"]["run"]["mean"] == 1 and "gain" not in metrics["arms"]["mine"]
    assert "Gain over mine by class" in page


def test_a_clip_that_is_lost_is_left_off_the_sheet(tmp_path: Path) -> None:
    run, store = tables(arms=ARMS, **disagreeing()), make_store(tmp_path)
    metrics = summarise(run, store, look_at_masks(store, "objects"), CompositeSettings())
    widths = []
    for clip in ("04clip", "05clip"):
        (picture,) = draw_disagreements(metrics, store, tmp_path).values()
        image = cv2.imread(str(picture.path))
        assert image is not None
        widths.append(np.flatnonzero((image < 255).any(axis=(0, 2))).max())
        store.path(clip).unlink()
    assert widths[0] > widths[1] + 200, "one clip beside the other, then one alone"
    assert draw_disagreements(metrics, store, tmp_path) == {}


@pytest.mark.parametrize("arms", [{"only": Arm(pairs="none")}, {"a": Arm(pairs="random"), "b": Arm(pairs="random")}])
def test_without_real_clips_or_another_arm_there_is_no_gain(tmp_path: Path, arms: dict[str, Arm]) -> None:
    metrics, page = report(tables(arms=arms, **evaluated({arm: [0.5] for arm in arms})), tmp_path)
    assert "Gain over" not in page and "Confusion of each arm" in page
    assert ("Where the arms disagree" in page) == bool(metrics["disagreements"]) == (len(arms) > 1)


def test_of_many_classes_the_confused_ones_are_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("page", "plots"):
        monkeypatch.setattr(f"l2a_ray.outputs.report.{module}.NAMED_CLASSES", 2)
    _, page = report(tables(arms=ARMS, **disagreeing()), tmp_path)
    assert "Confusion of each arm" not in page
    table = page.split("Classes taken for each other most")[1].split("</table>")[0]
    assert "<td>wave $x$ &amp; &lt;b&gt;</td><td>jump</td>" in table and "<td>run</td><td>jump</td>" in table


def test_a_store_of_noise_can_be_drawn(tmp_path: Path) -> None:
    made = small_store(tmp_path)
    index = made.index.assign(foreground_ratio=0.3, foreground_frames=1.0)
    write_index(tmp_path, made.clips, made.classes, index, made.failed)
    store = ClipStore(tmp_path)
    looked = look_at_masks(store, "boxes")
    pictures = draw_masks(looked, summarise_masks(looked, store.classes), store, "boxes", tmp_path)
    assert set(pictures) == {"actors", "masks_worst", "masks_best"}
