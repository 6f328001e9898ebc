"""The setting `data.limit`: a small data set of the same kind."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from test_pipeline import settings

from l2a_ray.errors import SettingError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.videos.catalog import Catalog, _draw_some, read_catalog
from l2a_ray.videos.layouts import Found
from l2a_ray.videos.settings import DataSettings

SIZES = {"run": 12, "jump": 4}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        for name, count in SIZES.items():
            (tmp_path / "videos" / part / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "videos" / part / name / f"{number:02}.mp4").touch()
    return tmp_path / "videos"


def read(root: Path, limit: int | None, seed: int = 0) -> Catalog:
    return read_catalog(DataSettings(root=str(root), val_fraction=0.25, limit=limit, seed=seed))


def parts(catalog: Catalog) -> dict[str, str]:
    return {video.id: video.split for video in catalog.videos}


def test_each_class_and_part_has_at_most_so_many_clips(root: Path) -> None:
    catalog = read(root, 3)
    counts = Counter((video.class_name, video.split) for video in catalog.videos)
    assert counts == {
        ("run", "train"): 3, ("run", "val"): 3, ("run", "test"): 3,
        ("jump", "train"): 3, ("jump", "val"): 1, ("jump", "test"): 3,
    }  # fmt: skip
    assert catalog.classes == ("jump", "run")
    assert [video.path for video in catalog.videos] == sorted(video.path for video in catalog.videos)
    assert "data.limit 3 a class and part keeps 16 of 32 clips" in catalog.notes


def test_clips_are_of_the_parts_that_all_clips_are_of_and_a_larger_limit_keeps_them(root: Path) -> None:
    some, more, every = (parts(read(root, limit)) for limit in (2, 4, None))
    assert some.items() < more.items() < every.items()


def test_of_clips_without_labels_no_class_is_counted(root: Path) -> None:
    """Of `run` there are three times as many, and that is what they are drawn by."""
    about = DataSettings(root=str(root), val_fraction=0.25, limit=2, labelled_share=0.3)
    without, kept = read_catalog(about), read_catalog(replace(about, unlabelled="keep"))
    hidden = [video for video in kept.videos if video.split == "unlabelled"]
    assert len(hidden) == 2 * len(SIZES) and parts(without).items() < parts(kept).items()
    renamed = {"run": "jump", "jump": "run"}
    other = [Found(v.path, renamed[v.class_name], "unlabelled", v.group) for v in hidden]
    mine = [Found(v.path, v.class_name, "unlabelled", v.group) for v in hidden]
    assert [clip.path for clip in _draw_some(mine, 1, 0)] == [clip.path for clip in _draw_some(other, 1, 0)]


def test_they_are_drawn_by_the_seed(root: Path) -> None:
    assert parts(read(root, 2)) == parts(read(root, 2))
    drawn = [{video.path for video in read(root, 2, seed).videos if video.split == "test"} for seed in range(3)]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]


def test_a_limit_that_limits_nothing_draws_nothing(root: Path) -> None:
    assert read(root, 12).videos == read(root, None).videos


def test_another_limit_is_another_data_set_of_the_same_clips(tmp_path: Path) -> None:
    few, many, every = (Pipeline(settings(tmp_path, **{"data.limit": limit})).prepare for limit in (2, 4, None))
    assert len({stage.key({}) for stage in (few, many, every)}) == 3
    assert few.clips.key == every.clips.key
    assert "data.limit" not in every.uses()


def test_an_impossible_limit_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^limit=0: must be at least 1"):
        DataSettings(limit=0)
