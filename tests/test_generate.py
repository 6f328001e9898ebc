"""The demo's data: equal bytes from equal seeds, real H.264, and the shares that the settings state."""

import hashlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from l2a_ray.errors import SettingError, StageError
from l2a_ray.videos.generate import ACTIONS, SCENES, GenerateSettings, Plan, draw, generate, plan_videos

SMALL = GenerateSettings(width=48, height=36, frames=8, train_per_class=2, test_per_class=1)


def _digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*.mp4"))}


def _table(settings: GenerateSettings, seed: int) -> pd.DataFrame:
    return pd.DataFrame([vars(plan) for plan in plan_videos(settings, seed)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generate") / "demo"
    generate(path, SMALL, 3)
    return path


def test_same_seed_same_bytes_other_seed_other_bytes(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", SMALL, 3)
    generate(tmp_path / "other", SMALL, 4)
    assert _digests(tmp_path / "again") == _digests(root)
    assert not set(_digests(tmp_path / "other").values()) & set(_digests(root).values())


def test_files_are_h264_and_show_what_was_drawn(root: Path) -> None:
    truth = pd.read_parquet(root / "truth.parquet")
    assert sorted(_digests(root)) == sorted(truth.path) and len(truth) == 6 * (2 + 1)
    for number, plan in enumerate(plan_videos(SMALL, 3)):
        with av.open(str(root / plan.path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 12
            frames_THWC = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        drawn_THWC, _ = draw(plan, SMALL, np.random.default_rng([3, 1, number]))
        assert frames_THWC.shape == drawn_THWC.shape == (8, 36, 48, 3)
        assert np.abs(frames_THWC.astype(int) - drawn_THWC).mean() < 8


def test_a_whole_folder_is_left_alone_and_another_is_refused(root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate(root, SMALL, 3)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(StageError, match="was not made with these settings"):
        generate(root, SMALL, 4)
    with pytest.raises(StageError, match=r"no settings\.json"):
        generate(tmp_path, SMALL, 3)


def test_what_an_interrupted_run_left_is_not_mixed_in(root: Path, tmp_path: Path) -> None:
    left = tmp_path / "demo.partial" / "train" / "jump"
    left.mkdir(parents=True)
    (left / "clip_9999.mp4").write_bytes(b"half")
    generate(tmp_path / "demo", SMALL, 3)
    assert _digests(tmp_path / "demo") == _digests(root)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_shares_are_exact_in_every_class() -> None:
    table = _table(GenerateSettings(), 0)
    train = table[table.split == "train"]
    own = train.scene == train.true_class.map(dict(zip(ACTIONS, SCENES, strict=True)))
    for name in ACTIONS:
        rows = train.class_name == name
        assert (rows.sum(), own[rows].sum()) == (40, 36)
        assert train[rows].bad.value_counts().to_dict() == {"": 32, "wrong_label": 6, "lost": 2}
    assert ((table.true_class != table.class_name) == (table.bad == "wrong_label")).all()
    wrong = table[table.bad == "wrong_label"]
    following = dict(zip(ACTIONS, (*ACTIONS[1:], ACTIONS[0]), strict=True))
    assert (wrong.true_class == wrong.class_name.map(following)).all()


def test_the_test_set_is_clean_and_balanced_over_classes_and_scenes() -> None:
    table = _table(GenerateSettings(), 0)
    test = table[table.split == "test"]
    assert (test.bad == "").all() and (test.class_name.value_counts() == 20).all()
    assert (test.scene.value_counts() == 20).all()
    assert np.isin(pd.crosstab(test.class_name, test.scene).to_numpy(), (3, 4)).all()


def test_file_names_tell_nothing() -> None:
    table = _table(GenerateSettings(), 0)
    train = table[table.split == "train"]
    numbers = train.path.str[-8:-4].astype(int)
    assert sorted(numbers) == list(range(240)) and table.path.is_unique
    for name in ACTIONS:
        assert numbers[train.class_name == name].min() < 60 and numbers[train.class_name == name].max() > 180


@pytest.mark.parametrize("action", ACTIONS)
def test_the_actor_moves_on_and_stands_out_unless_lost(action: str) -> None:
    settings = GenerateSettings()
    frames, masks = {}, {}
    for bad in ("", "lost"):
        plan = Plan("", "train", action, action, "stripes", bad)
        frames[bad], masks[bad] = draw(plan, settings, np.random.default_rng(0))
    masks_THW = masks[""]
    assert np.array_equal(masks_THW, masks["lost"]) and 0.05 < masks_THW.mean() < 0.3
    columns = [np.flatnonzero(mask_HW.any(axis=0)).mean() for mask_HW in masks_THW[[0, -1]]]
    assert abs(columns[1] - columns[0]) > 0.3 * settings.height
    contrast = {bad: np.abs(frames[bad] - np.median(frames[bad], axis=0)).max(-1)[masks_THW] for bad in frames}
    assert np.median(contrast[""]) > 50 and np.quantile(contrast["lost"], 0.9) < 25


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 81), ("height", 8), ("frames", 0), ("rate", 0), ("test_per_class", 0), ("lost_share", 0.9)],
)
def test_impossible_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{field}={value}"):
        GenerateSettings(**{field: value})
