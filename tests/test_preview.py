"""What one looks at before training: the pairs that are asked for, as they are trained on, on a page of their own."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from finished import all_pairs, finish, finish_selection, small_run, without_scores
from helpers import CLASSES, FRAMES, HEIGHT, WIDTH

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import ClipLoader
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError, StorageError
from l2a_ray.outputs.preview import BAR, GAP, GREY, Shown, side_by_side
from l2a_ray.outputs.report.sheets import view_pair
from l2a_ray.outputs.settings import PreviewSettings
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.commands import preview
from l2a_ray.pipeline.gather import choose_pairs
from l2a_ray.prepare.store import ClipStore

SCALE = 8  # 200 // 24: whole pixels
BOXES = CompositeSettings(region="boxes", mix_labels=False)
ARMS = {
    "real": None,
    "random": None,
    "selected": None,
    "boxes": {"pairs": "selector", "composite": {"region": "boxes", "mix_labels": False}, "label": "of <boxes>"},
}


def make_run(root: Path, selected: bool = True, **changes: Any) -> tuple[Settings, ClipStore, pd.DataFrame]:
    """A run whose `match` and, if asked for, `select` and `draw` are complete, of two repetitions."""
    preview = PreviewSettings(pairs=3)
    settings, pipeline, store = small_run(root, **{"name": "<run>", "preview": preview, "seeds": [3, 1]} | changes)
    table = all_pairs(store)
    for seed in settings.seeds:
        finish(pipeline, pipeline.match(seed), pairs=without_scores(table))
        if selected:
            finish(pipeline, pipeline.draw(seed), random=without_scores(table[10:30]))
            finish_selection(pipeline, "selected", seed, table[seed:].reset_index(drop=True))
    return settings, store, table


def chosen(settings: Settings, **changed: object) -> dict[str, Shown]:
    return choose_pairs(Pipeline(replace(settings, preview=replace(settings.preview, **changed))))  # type: ignore[arg-type]


def ends(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(pairs["foreground"], pairs["background"], strict=True))


def test_best_worst_and_random_pairs_of_the_first_repetition_are_chosen(tmp_path: Path) -> None:
    settings, _, table = make_run(tmp_path)
    found = {kind: shown.pairs for kind, shown in chosen(settings).items()}
    assert list(found) == ["random", "selected", "worst"]
    assert found["selected"]["score"].tolist() == table["score"][3:6].tolist()
    assert found["worst"]["score"].tolist() == table["score"][:-4:-1].tolist()
    drawn = [ends(chosen(settings, seed=seed)["random"].pairs) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) <= set(ends(table[10:30]))
    assert [len(shown.pairs) for shown in chosen(settings, pairs=999).values()] == [20, 20, 12]
    assert list(chosen(settings, which=["worst", "candidates", "worst"])) == ["worst", "candidates"]


def test_an_arm_is_shown_by_its_name_label_and_composites(tmp_path: Path) -> None:
    settings, _, table = make_run(tmp_path, arms=ARMS)
    found = chosen(settings)
    assert list(found) == ["random", "selected", "boxes", "worst"]
    assert ends(found["boxes"].pairs) == ends(found["selected"].pairs)
    assert [shown.composite == BOXES for shown in found.values()] == [False, False, True, False]
    assert found["boxes"].meaning == "Pairs of the arm boxes (of <boxes>), the best first."
    page = page_of(settings)
    assert "composite.region=boxes" in page and "of &lt;boxes&gt;" in page and '<h2 id="boxes">' in page
    section = page.split('<h2 id="boxes">')[1].split("<h2")[0]
    assert f"Label: 100 % {CLASSES[table['foreground_label'][3]]}." in section and "λ 1.00" in section


def test_candidates_are_drawn_where_nothing_is_selected_yet(tmp_path: Path) -> None:
    settings, _, table = make_run(tmp_path, selected=False)
    found = chosen(settings, pairs=30)["candidates"].pairs
    assert len(set(ends(found))) == 30 and set(ends(found)) <= set(ends(table))
    page = page_of(settings)
    assert page.count("<video ") == 3 and "ω 0" not in page and "λ 0." in page


@pytest.mark.parametrize("kind", ["selected", "worst", "real"])
def test_what_is_not_there_is_named_with_what_is(tmp_path: Path, kind: str) -> None:
    settings, _, _ = make_run(tmp_path, selected=False)
    with pytest.raises(
        SettingError, match=rf"^preview\.which='{kind}': not there\. There are candidates; `l2a select`"
    ):
        chosen(settings, which=[kind])


def test_kinds_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^preview\.which='best': must be some of real, random, selected, worst"):
        Settings(name="run", runs=str(tmp_path), preview=PreviewSettings(which=["worst", "best"]))


@pytest.mark.parametrize(("field", "value"), [("pairs", 0), ("seed", -1)])
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(f'{field}={value!r}')}: must be"):
        PreviewSettings(**{field: value})  # type: ignore[arg-type]


def page_of(settings: Settings) -> str:
    return (preview(settings) / "index.html").read_text(encoding="utf-8")


def test_page_shows_every_pair_by_files_beside_it(tmp_path: Path) -> None:
    settings, store, table = make_run(tmp_path)
    (tmp_path / "<run>" / "preview" / "videos").mkdir(parents=True)
    (tmp_path / "<run>" / "preview" / "videos" / "old.mp4").touch()
    out = Path(str(preview(settings)))
    page = (out / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.*")} - {"index.html"}
    assert set(links) == files and len(links) == len(files) == 9 + 3 + 2, "all links are relative and lead somewhere"
    assert "http" not in page and "<run>" not in page and "&lt;run&gt;" in page
    assert len(re.findall(r"<video controls loop muted [^>]*src=", page)) == 9
    best = table.iloc[3]
    entry = page.split('<h2 id="selected">')[1].split("<article>")[1]
    assert f"{CLASSES[best['foreground_label']]} on {CLASSES[best['background_label']]}" in entry
    view = view_pair(ClipLoader(store, settings.composite), best["foreground"], best["background"])
    assert f"ω {best['score']:.3f}" in entry and f"λ {view.weight:.2f}" in entry and 0 < view.weight < 1
    assert f"{100 * view.weight:.0f} % {CLASSES[best['foreground_label']]}" in entry
    for sheet in out.glob("sheets/*.png"):
        image = cv2.imread(str(sheet))
        assert image is not None and image.shape[1] > 600 and image.std() > 5


def test_video_shows_what_the_pair_is_made_of_undistorted(tmp_path: Path) -> None:
    settings, store, table = make_run(tmp_path)
    out = Path(str(preview(settings)))
    with av.open(str(out / "videos" / "selected-001.mp4")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
    cell = WIDTH * SCALE + GAP
    assert frames.shape == (FRAMES, HEIGHT * SCALE + BAR, 5 * cell, 3)
    pair = table.iloc[3]
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


def test_candidates_can_be_looked_at_in_other_composites(tmp_path: Path) -> None:
    settings, _, _ = make_run(tmp_path)
    looked = replace(settings, composite=BOXES, preview=PreviewSettings(pairs=2, which=["candidates"]))
    page = page_of(looked)
    assert page.count("composite.region=boxes") == 1 and page.count("Label: 100 % ") == page.count("<video ") == 2


def test_damaged_clip_is_told_and_the_others_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, store, table = make_run(tmp_path)
    bad = table["background"][4]
    store.path(bad).write_bytes(b"half of a clip")
    hit = int(((table["foreground"] == bad) | (table["background"] == bad))[3:6].sum())
    with caplog.at_level(logging.WARNING):
        out = Path(str(preview(replace(settings, preview=PreviewSettings(pairs=3, which=["selected"])))))
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 0 < hit < 3 and page.count("<video ") == len(list(out.glob("videos/*"))) == 3 - hit
    assert f"{hit} pairs, because a clip cannot be read" in page and f"{bad}-0.safetensors" in page
    assert caplog.text.count("not shown") == hit


@pytest.mark.parametrize("blocked", ["", "videos", "sheets"])
def test_folder_that_cannot_be_written_is_named(tmp_path: Path, blocked: str) -> None:
    settings, _, _ = make_run(tmp_path)
    path = tmp_path / "<run>" / "preview" / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(StorageError, match=f"preview/{blocked}.*cannot be written"):
        preview(settings)
    assert not (tmp_path / "<run>" / "preview" / "index.html").exists()
