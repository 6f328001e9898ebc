"""Catalogues and splits of folders made here (empty files serve: nothing is decoded), and of J-HMDB."""

import shutil
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from l2a_ray.errors import DatasetError, LeakError, SettingError
from l2a_ray.videos.catalog import Catalog, DataSettings, read_catalog
from l2a_ray.videos.layouts import Part, source_video
from l2a_ray.videos.splits import ROLES, draw_groups, may, refuse_others


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root: Path, seed: int = 0, **settings: object) -> Catalog:
    return read_catalog(DataSettings(root=str(root), seed=seed, **settings))  # type: ignore[arg-type]


def groups(catalog: Catalog, part: str) -> set[str]:
    return {video.group for video in catalog.videos if video.split == part}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes of 20 clips; each UCF group of 4 is one source video."""
    for name in ("run", "jump"):
        touch(tmp_path / "flat", *(f"{name}/v_{name}_g{g:02}_c{c:02}.avi" for g in range(5) for c in range(4)))
    return tmp_path / "flat"


def test_flat_folder_is_split_by_class_and_source(flat: Path) -> None:
    catalog = read(flat, test_fraction=0.2, val_fraction=0.25)
    assert catalog.classes == ("jump", "run")
    counts = Counter((video.class_name, video.split) for video in catalog.videos)
    for name in catalog.classes:
        assert (counts[name, "test"], counts[name, "val"], counts[name, "train"]) == (4, 4, 12)
    parts = [groups(catalog, part) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert all(video.label == catalog.classes.index(video.class_name) for video in catalog.videos)
    assert not any("share" in note for note in catalog.notes)


def test_a_share_of_the_labels_is_drawn_by_class_and_source_and_the_other_parts_stay(flat: Path) -> None:
    whole, kept, left_out = (
        read(flat, 3, **changes)
        for changes in ({}, {"labelled_share": 0.5, "unlabelled": "keep"}, {"labelled_share": 0.5})
    )
    counts = Counter((video.class_name, video.split) for video in kept.videos)
    for name in kept.classes:  # of the 16 that are not for the test, half lose their labels; D_val is cut of the others
        assert (counts[name, "unlabelled"], counts[name, "train"] + counts[name, "val"]) == (8, 8)
        assert counts[name, "train"] and counts[name, "val"]
    assert groups(kept, "test") == groups(whole, "test")
    parts = [groups(kept, part) for part in get_args(Part)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert left_out.videos == tuple(video for video in kept.videos if video.split != "unlabelled")
    assert "training clips left out as unlabelled (data.labelled_share): 16" in left_out.notes


def test_a_class_keeps_a_label_however_small_the_share(flat: Path) -> None:
    counts = Counter((video.class_name, video.split) for video in read(flat, labelled_share=0.01).videos)
    assert all(counts[name, "train"] for name in ("run", "jump"))


def test_split_depends_on_the_seed_and_ids_on_the_path_below_the_root(flat: Path, tmp_path: Path) -> None:
    shutil.copytree(flat, tmp_path / "elsewhere")
    here, away, other = read(flat, 3), read(tmp_path / "elsewhere", 3), read(flat, 4)
    assert [(video.id, video.split) for video in here.videos] == [(video.id, video.split) for video in away.videos]
    assert [video.split for video in here.videos] != [video.split for video in other.videos]
    assert all(len(video.id) == 16 and Path(video.path).is_file() for video in here.videos)
    assert len({video.id for video in here.videos}) == 40


def test_published_parts_are_kept_and_val_is_cut_from_train(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("test", 6)):
        touch(tmp_path, *(f"{part}/{name}/clip_{i}.mp4" for name in "ab" for i in range(count)))
    touch(tmp_path, "truth.parquet", "spare/c/x.mp4")
    catalog = read(tmp_path)
    assert Counter(video.split for video in catalog.videos) == {"train": 16, "val": 4, "test": 12}
    assert all(f"/{'test' if video.split == 'test' else 'train'}/" in video.path for video in catalog.videos)
    assert "folders beside train left out: spare" in catalog.notes
    touch(tmp_path, "validation/a/x.mp4", "validation/b/y.MP4")
    assert Counter(video.split for video in read(tmp_path).videos) == {"train": 20, "val": 2, "test": 12}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{i}.mp4" for name in ("train", "jump") for i in range(5)))
    assert read(tmp_path).classes == ("jump", "train")


def test_broken_and_odd_files_stay_and_others_are_counted(flat: Path) -> None:
    odd = ['it\'s a "wäve".mp4', "波.WEBM", "text.mp4"]
    touch(flat, *(f"run/{name}" for name in odd), "run/notes.txt", "run/._v.avi", "run/.hidden.mp4", "stray.mp4")
    (flat / "run/folder.mp4").mkdir()
    (flat / "run/link.mp4").symlink_to("gone")
    catalog = read(flat)
    names = {Path(video.path).name for video in catalog.videos}
    assert {*odd, "folder.mp4", "link.mp4"} < names and len(names) == 45
    assert "files left out because they have no video extension: 1" in catalog.notes
    assert "files left out because they lie outside the class folders: 1" in catalog.notes


@pytest.mark.parametrize(
    ("stem", "class_name", "source"),
    [
        ("v_Archery_g01_c07", "Archery", "v_Archery_g01"),
        ("BATMAN_BEGINS_wave_u_nm_np1_fr_goo_1", "wave", "BATMAN_BEGINS"),
        ("BATMAN_BEGINS_stand_f_cm_np2_le_bad_12", "stand", "BATMAN_BEGINS"),
        ("snap_clap_(x)_HARD_clap_u_nm_np1_fr_bad_0", "clap", "snap"),
        ("Golf_brush_hair_u_nm_np1_fr_med_0", "brush hair", "Golf_brush_hair"),
        ("clip_0012", "wave", None),
    ],
)
def test_source_videos(stem: str, class_name: str, source: str | None) -> None:
    assert source_video(stem, class_name) == source


def test_labels_file_gives_the_order_and_leaves_the_rest_out(flat: Path, tmp_path: Path) -> None:
    touch(flat, "skip/a.mp4")
    labels = tmp_path / "labels.txt"
    labels.write_text("run\n\njump\n")
    catalog = read(flat, labels=str(labels))
    assert catalog.classes == ("run", "jump") and {video.label for video in catalog.videos} == {0, 1}
    assert "classes left out, not named in labels.txt: skip" in catalog.notes
    labels.write_text("run\njumps\nzzz\n")
    with pytest.raises(DatasetError, match=r"are not there: jumps \(did you mean jump\?\), zzz"):
        read(flat, labels=str(labels))
    labels.write_text("run\nrun\n")
    with pytest.raises(DatasetError, match="names classes twice: run"):
        read(flat, labels=str(labels))
    with pytest.raises(SettingError, match=r"^labels=.*cannot be read"):
        read(flat, labels=str(tmp_path / "none.txt"))


def test_unusable_folders_are_refused(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^root=.*is not a folder"):
        read(tmp_path / "none")
    with pytest.raises(SettingError, match=r"^root='': must name the folder that holds the videos"):
        read_catalog(DataSettings())
    touch(tmp_path, "one/a/x.mp4")
    with pytest.raises(DatasetError, match="holds fewer than 2 classes"):
        read(tmp_path / "one")
    (flat / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"classes with no video in .*: empty\."):
        read(flat)
    (flat / "empty").rmdir()
    touch(flat, "tiny/v_tiny_g01_c01.avi", "tiny/v_tiny_g01_c02.avi")
    with pytest.raises(DatasetError, match="class 'tiny' is too small to be cut: its 2 clips"):
        read(flat)


def test_class_seen_only_in_test_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{name}/{i}.mp4" for name in "ab" for i in range(5)), "test/a/x.mp4", "test/c/x.mp4")
    with pytest.raises(DatasetError, match=r"classes with no training video in .*: c\."):
        read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("val_fraction", 1.0), ("val_fraction", 0.0), ("test_fraction", -0.1), ("split", 4), ("layout", "ucf")],
)
def test_impossible_settings(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"^{field}={value!r}: must be"):
        DataSettings(**{field: value})  # type: ignore[arg-type]


def test_groups_are_drawn_whole_across_classes() -> None:
    """A film cut into clips of several classes goes to one side; barred groups and the last clips stay."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        names = rng.choice(["a", "b", "c"], size=60).tolist()
        sources = rng.integers(0, 25, size=60).astype(str).tolist()
        drawn = draw_groups(names, sources, 0.3, rng, barred={"0", "1"})
        inside = Counter(name for name, source in zip(names, sources, strict=True) if source in drawn)
        assert not drawn & {"0", "1"}
        for name, total in Counter(names).items():
            assert 0 < inside[name] < total and abs(inside[name] - 0.3 * total) <= 6


def test_test_clips_are_refused() -> None:
    index = pd.DataFrame({"id": ["a", "b", "c", "d"], "split": ["train", "val", "test", "test"]})
    assert set(ROLES) == set(get_args(Part)) and may(index["split"], "test").tolist() == [False, False, True, True]
    refuse_others(["a", "b"], index, "train", "the training")
    refuse_others(iter(["a"]), index, "pair", "the pairs")
    refuse_others(["b"], index, "validate", "D_val")
    for role in ("train", "pair", "validate"):
        with pytest.raises(LeakError, match=r"\d clips in D_val, for example [abc]"):
            refuse_others(iter(["a", "b", "c"]), index, role, "D_val")
        with pytest.raises(LeakError, match=r"1 clips in D_val, for example c \(a test clip\)"):
            refuse_others({"train": ["a", "c"], "pair": ["a", "c"]}.get(role, ["b", "c"]), index, role, "D_val")
    with pytest.raises(LeakError, match=r"for example b \(a val clip\), .* only train and pseudo clips are"):
        refuse_others(["a", "b"], index, "pair", "the pairs")
    with pytest.raises(LeakError, match=r"for example x \(no clip of this store\)"):
        refuse_others(["x"], index, "pair", "the pairs")


def make_jhmdb(root: Path) -> None:
    for name in ("golf", "jump"):
        clips = [f"t{i}_{name}_f_cm_np1_fr_med_{i}" for i in range(6)]
        touch(root, *(f"videos/{name}/{clip}.mp4" for clip in clips))
        (root / "splits").mkdir(exist_ok=True)
        lines = [f"{clip}.avi {1 + (i > 3)}\n" for i, clip in enumerate(clips)]
        (root / f"splits/{name}_test_split2.txt").write_text("".join(lines))


def test_jhmdb_layout_reports_missing_unnamed_and_shared_clips(tmp_path: Path) -> None:
    make_jhmdb(tmp_path)
    (tmp_path / "videos/golf/t0_golf_f_cm_np1_fr_med_0.mp4").unlink()
    touch(tmp_path, "videos/golf/extra.mp4", "videos/walk/x.mp4")
    with (tmp_path / "splits/jump_test_split2.txt").open("a") as file:
        file.write("t5_jump_f_cm_np1_fr_med_9.avi 1\n")
    catalog = read(tmp_path, layout="jhmdb", split=2)
    assert Counter(video.split for video in catalog.videos) == {"train": 7, "val": 2, "test": 4}
    missing = {Path(video.path).name for video in catalog.videos if not Path(video.path).exists()}
    assert missing == {"t0_golf_f_cm_np1_fr_med_0.avi", "t5_jump_f_cm_np1_fr_med_9.avi"}
    text = "\n".join(catalog.notes)
    assert "files left out because they are not named in the split: 1" in text
    assert "named in the split but missing: 2, the first is golf/t0_golf" in text
    assert "folders without a split file left out: walk" in text
    assert "test and train parts share the source 't5' (jump)" in text
    assert not groups(catalog, "val") & (groups(catalog, "train") | groups(catalog, "test"))


def test_jhmdb_layout_refusals(tmp_path: Path) -> None:
    make_jhmdb(tmp_path)
    with pytest.raises(DatasetError, match=r"is not laid out as J-HMDB: .*_test_split1\.txt"):
        read(tmp_path, layout="jhmdb", split=1)
    (tmp_path / "splits/golf_test_split2.txt").write_text("a.avi 1\nb.avi\n")
    with pytest.raises(DatasetError, match=r"golf_test_split2\.txt, line 2: must be"):
        read(tmp_path, layout="jhmdb", split=2)


@pytest.mark.data
@pytest.mark.parametrize(("split", "train", "test", "shared"), [(1, 660, 268, 0), (2, 658, 270, 1), (3, 663, 265, 1)])
def test_jhmdb_itself(jhmdb: Path, split: int, train: int, test: int, shared: int) -> None:
    catalog = read(jhmdb, layout="jhmdb", split=split)
    counts = Counter(video.split for video in catalog.videos)
    assert len(catalog.classes) == 21 and len({video.id for video in catalog.videos}) == 928
    assert (counts["train"] + counts["val"], counts["test"]) == (train, test)
    assert 0.17 * train < counts["val"] < 0.23 * train
    assert {video.class_name for video in catalog.videos if video.split == "val"} == set(catalog.classes)
    assert not groups(catalog, "val") & (groups(catalog, "train") | groups(catalog, "test"))
    assert sum("share the source 'boom_snap' (clap)" in note for note in catalog.notes) == shared
