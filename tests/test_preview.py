"""What one looks at before training: the pairs that are asked for, as they are trained on, on a page of their own."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from helpers import CLASSES, FRAMES, HEIGHT, WIDTH, small_store

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError, StageError, StorageError
from l2a_ray.outputs.preview import BAR, GAP, GREY, PreviewSettings, choose, side_by_side
from l2a_ray.outputs.report.sheets import view_pair
from l2a_ray.pipeline import stages
from l2a_ray.prepare.store import ClipStore, clip_path
from l2a_ray.storage.run import RunFolder

SCALE = 8  # 200 // 24: whole pixels


def make_run(root: Path, selected: bool = True) -> tuple[Settings, ClipStore, pd.DataFrame]:
    """A run whose `match` and, if asked for, `select` are complete."""
    run = root / "<run>"
    store = small_store(run / "prepare")
    train = store.rows("train")
    pairs = train.merge(train, how="cross", suffixes=("_f", "_b")).query("label_f != label_b")
    names = {"id_f": "foreground", "id_b": "background", "label_f": "foreground_label", "label_b": "background_label"}
    table = pairs.rename(columns=names)[list(names.values())].reset_index(drop=True)
    folder = RunFolder(run, {}, 0)
    table.to_parquet(str(folder.stage("match", {}, lambda out: None) / "pairs.parquet"), row_group_size=10)
    if selected:
        folder.stage("select", {}, lambda out: None)
        table["score"] = np.linspace(0.9, 0.1, len(table), dtype=np.float32)
        for name, rows in (("selected", table.head(20)), ("random", table[10:30]), ("worst", table[:-13:-1])):
            rows.to_parquet(run / "select" / f"{name}.parquet", index=False)
    return Settings(name="<run>", runs=str(root), preview=PreviewSettings(pairs=3)), store, table


def chosen(settings: Settings, **changed: object) -> dict[str, pd.DataFrame]:
    preview = replace(settings.preview, **changed)  # type: ignore[arg-type]
    return choose(RunFolder(settings.folder, {}, 0), preview)


def test_best_worst_and_random_pairs_are_chosen(tmp_path: Path) -> None:
    settings, _, table = make_run(tmp_path)
    found = chosen(settings)
    assert list(found) == ["selected", "random", "worst"]
    assert found["selected"]["score"].tolist() == table["score"][:3].tolist()
    assert found["worst"]["score"].tolist() == table["score"][:-4:-1].tolist()
    drawn = [tuple(chosen(settings, seed=seed)["random"]["score"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) <= set(table["score"][10:30])
    assert [len(rows) for rows in chosen(settings, pairs=999).values()] == [20, 20, 12]
    assert list(chosen(settings, which=" worst, candidates,")) == ["worst", "candidates"]


def test_candidates_are_drawn_where_nothing_is_selected_yet(tmp_path: Path) -> None:
    settings, _, table = make_run(tmp_path, selected=False)
    ends = ["foreground", "background"]
    found = chosen(settings, pairs=30)["candidates"]
    assert len(found[ends].drop_duplicates()) == 30 and len(found.merge(table, on=ends)) == 30
    out = Path(str(stages.preview(settings)))
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<video ") == 3 and "ω 0" not in page and "λ 0." in page
    with pytest.raises(StageError, match="Run `l2a select` first"):
        chosen(settings, which="selected")


def test_stage_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = Settings(name="run", runs=str(tmp_path))
    with pytest.raises(StageError, match="Run `l2a prepare` first"):
        stages.preview(settings)
    small_store(tmp_path / "run" / "prepare")
    with pytest.raises(StageError, match="Run `l2a match` first"):
        stages.preview(settings)


@pytest.mark.parametrize(
    ("field", "value"), [("pairs", 0), ("seed", -1), ("which", "best"), ("which", ","), ("which", "worst,auto")]
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"preview\.{field}={value!r}: must be"):
        PreviewSettings(**{field: value})  # type: ignore[arg-type]


def test_page_shows_every_pair_by_files_beside_it(tmp_path: Path) -> None:
    settings, store, table = make_run(tmp_path)
    (tmp_path / "<run>" / "preview" / "videos").mkdir(parents=True)
    (tmp_path / "<run>" / "preview" / "videos" / "old.mp4").touch()
    out = Path(str(stages.preview(settings)))
    page = (out / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.*")} - {"index.html"}
    assert set(links) == files and len(links) == len(files) == 9 + 3, "all links are relative and lead somewhere"
    assert "http" not in page and "<run>" not in page and "&lt;run&gt;" in page
    assert len(re.findall(r"<video controls loop muted [^>]*src=", page)) == 9
    first = table.iloc[0]
    assert f"{CLASSES[first['foreground_label']]} on {CLASSES[first['background_label']]}" in page
    view = view_pair(SampleLoader(store, settings.composite, 1), first["foreground"], first["background"])
    entry = page.split("<article>")[1]
    assert "ω 0.900" in entry and f"λ {view.weight:.2f}" in entry and 0 < view.weight < 1
    assert f"{100 * view.weight:.0f} % {CLASSES[first['foreground_label']]}" in entry
    for sheet in out.glob("sheets/*.png"):
        image = cv2.imread(str(sheet))
        assert image is not None and image.shape[1] > 600 and image.std() > 5


def test_video_shows_what_the_pair_is_made_of_undistorted(tmp_path: Path) -> None:
    settings, store, table = make_run(tmp_path)
    out = Path(str(stages.preview(settings)))
    with av.open(str(out / "videos" / "selected-001.mp4")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
    cell = WIDTH * SCALE + GAP
    assert frames.shape == (FRAMES, HEIGHT * SCALE + BAR, 5 * cell, 3)
    pair = table.iloc[0]
    front, back = store.read(pair["foreground"]), store.read(pair["background"])
    mask = front.planes.objects[..., None]
    mixed = np.where(mask, front.frames_THWC, back.background_THWC)
    whole = [front.frames_THWC, np.where(mask, 255, 0).repeat(3, 3), back.frames_THWC, back.background_THWC, mixed]
    for position, expected in enumerate(whole):
        left = position * cell + GAP // 2
        tile = frames[:, : HEIGHT * SCALE, left : left + WIDTH * SCALE]
        # Noise is the codec's worst case; from the middle of its 8 x 8 block each pixel comes back nearly as it was.
        centre = tile[:, SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
        assert np.abs(centre - expected).mean() < 12, position
        others = [np.abs(centre - other).mean() for other in whole if other is not expected]
        assert min(others) > 20, position


def test_small_clips_are_enlarged_by_whole_pixels_and_large_ones_left() -> None:
    clip = np.arange(2 * 30 * 70 * 3, dtype=np.uint8).reshape(2, 30, 70, 3)
    row = side_by_side([clip, clip[:, ::-1]])
    assert row.shape == (2, 60 + BAR, 2 * (140 + GAP), 3)
    np.testing.assert_array_equal(row[:, :60:2, 2:142:2], clip)
    np.testing.assert_array_equal(row[:, 1:60:2, 147:287:2], clip[:, ::-1])
    assert (row[:, 60:] == GREY).all()
    assert side_by_side([np.zeros((2, 128, 228, 3), np.uint8)]).shape == (2, 128 + BAR, 228 + GAP, 3)


def test_label_that_is_not_mixed_is_said(tmp_path: Path) -> None:
    settings, _, table = make_run(tmp_path)
    out = Path(str(stages.preview(replace(settings, composite=CompositeSettings(mix_labels=False)))))
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "composite.mix_labels=False" in page and f"Label: 100 % {CLASSES[table['foreground_label'][0]]}." in page


def test_damaged_clip_is_told_and_the_others_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, store, table = make_run(tmp_path)
    bad = table["background"][1]
    clip_path(store.data, bad).write_bytes(b"half of a clip")
    hit = int(((table["foreground"] == bad) | (table["background"] == bad))[:3].sum())
    with caplog.at_level(logging.WARNING):
        out = Path(str(stages.preview(replace(settings, preview=PreviewSettings(pairs=3, which="selected")))))
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 0 < hit < 3 and page.count("<video ") == len(list(out.glob("videos/*"))) == 3 - hit
    assert f"{hit} pairs, because a clip cannot be read" in page and f"{bad}.safetensors" in page
    assert caplog.text.count("not shown") == hit


@pytest.mark.parametrize("blocked", ["", "videos", "sheets"])
def test_folder_that_cannot_be_written_is_named(tmp_path: Path, blocked: str) -> None:
    settings, _, _ = make_run(tmp_path)
    path = tmp_path / "<run>" / "preview" / blocked
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(StorageError, match=f"preview/{blocked}.*cannot be written"):
        stages.preview(settings)
    assert not (tmp_path / "<run>" / "preview" / "index.html").exists()
