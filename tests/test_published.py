"""Data sets by their published lists: counts as published, files found by name, and what is missing is told."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_catalog import groups, read, touch
from test_decode import noise, write_video
from test_report import make_whole, numbers

from l2a_ray.cli import main
from l2a_ray.config.settings import Settings
from l2a_ray.errors import DatasetError, SettingError
from l2a_ray.pipeline.commands import prepare
from l2a_ray.prepare.segment import SegmentSettings
from l2a_ray.prepare.store import INDEX_DTYPES
from l2a_ray.videos.catalog import DataSettings, Video
from l2a_ray.videos.published import SETS, ListedClip, find_clips, kinetics_id, list_files, read_list

# Of VideoSSL's papers and repositories, and of the data sets' own pages.
OFFICIAL = [
    ("ucf101", 1, 9537, 3783, 101),
    ("ucf101", 2, 9586, 3734, 101),
    ("ucf101", 3, 9624, 3696, 101),
    ("hmdb51", 1, 3570, 1530, 51),
    ("hmdb51", 2, 3570, 1530, 51),
    ("hmdb51", 3, 3570, 1530, 51),
    ("kinetics100", 1, 85114, 4579, 100),
    ("kinetics400", 1, 0, 19906, 400),
]
LABELLED = [
    ("ucf101", {0.05: 476, 0.1: 953, 0.2: 1907, 0.5: 4768}, 9537),
    ("hmdb51", {0.4: 2094, 0.5: 2618, 0.6: 3141}, 5236),
    ("kinetics100", {0.05: 4209, 0.1: 8470, 0.2: 16985, 0.5: 42517}, 85114),
]


def counts(clips: list[ListedClip]) -> Counter[str]:
    return Counter(clip.part for clip in clips)


def lay_out(root: Path, clips: list[ListedClip], ending: str = ".avi") -> None:
    touch(root, *(f"{clip.class_name}/{clip.name}{ending}" for clip in clips))


def few(name: str, classes: int, each: int, **choice: float) -> list[ListedClip]:
    """Return some training and as many test clips of the first classes of a list."""
    listed = read_list(name, 1, choice.get("labelled_share", 1))
    chosen = sorted({clip.class_name for clip in listed})[:classes]
    by_part = (
        [c for c in listed if (c.class_name, c.part) == (k, p)][:each] for k in chosen for p in ("train", "test")
    )
    return [clip for clips in by_part for clip in clips]


@pytest.mark.parametrize(("name", "split", "train", "test", "classes"), OFFICIAL)
def test_lists_are_as_published(name: str, split: int, train: int, test: int, classes: int) -> None:
    listed = read_list(name, split, 1)
    assert counts(listed) == Counter(train=train, test=test)
    assert len({clip.class_name for clip in listed}) == classes
    assert len({SETS[name].key(clip.name) for clip in listed}) == train + test, "names tell all clips apart"


@pytest.mark.parametrize(("name", "shares", "whole"), LABELLED)
def test_labelled_shares_are_as_published(name: str, shares: dict[float, int], whole: int) -> None:
    assert SETS[name].shares == tuple(shares)
    tests = {clip for clip in read_list(name, 1, 1) if clip.part == "test"}
    for share, labelled in shares.items():
        listed = read_list(name, 1, share)
        parts = counts(listed)
        assert parts["train"] == labelled and labelled + parts["unlabelled"] == whole
        assert {clip for clip in listed if clip.part == "test"} == tests
        assert abs(labelled / whole - share) < 0.001


def test_kinetics_100_is_a_part_of_kinetics_400() -> None:
    whole, part = (read_list(f"kinetics{n}", 1, 1) for n in (400, 100))
    assert {clip for clip in part if clip.part == "test"} < set(whole)
    assert not {kinetics_id(c.name) for c in part if c.part == "train"} & {kinetics_id(c.name) for c in whole}


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of UCF101, as its archive unpacks."""
    root = tmp_path_factory.mktemp("ucf")
    lay_out(root / "UCF-101", read_list("ucf101", 1, 1))
    return root


def test_ucf101(ucf: Path) -> None:
    catalog = read(ucf, layout="ucf101")
    parts = Counter(video.split for video in catalog.videos)
    assert (parts["train"] + parts["val"], parts["test"]) == (9537, 3783)
    assert not catalog.missing and len(catalog.classes) == 101
    assert not groups(catalog, "val") & (groups(catalog, "train") | groups(catalog, "test"))
    assert "clips of the published list that are there: 13320 of 13320 (100.0%)" in catalog.notes
    assert {Path(video.path).parent.name for video in catalog.videos} == set(catalog.classes)


def test_class_without_a_labelled_clip_is_left_out_and_small_ones_stay_whole(ucf: Path) -> None:
    catalog = read(ucf, layout="ucf101", labelled_share=0.05)
    parts = Counter(video.split for video in catalog.videos)
    assert parts["train"] + parts["val"] == 476 and parts["test"] == 3783 - 39
    assert "CliffDiving" not in catalog.classes and len(catalog.classes) == 100
    text = "\n".join(catalog.notes)
    assert "classes left out, with 39 test clips, without a training video: CliffDiving" in text
    assert "left out as unlabelled (data.labelled_share): 9061" in text
    assert "too small to be cut, without a clip in val: BlowingCandles" in text
    trained = {video.class_name for video in catalog.videos if video.split == "train"}
    assert trained == set(catalog.classes)


def test_clips_without_labels_are_kept_if_asked_and_their_sources_told(ucf: Path) -> None:
    left_out, kept = (
        read(ucf, layout="ucf101", labelled_share=0.05, unlabelled=each) for each in ("leave_out", "keep")
    )
    labelled = [video for video in kept.videos if video.split != "unlabelled"]
    assert tuple(labelled) == left_out.videos, "what has a label is split as ever"
    others = {video.class_name for video in kept.videos if video.split == "unlabelled"}
    assert others == set(kept.classes) and "left out as unlabelled" not in "\n".join(kept.notes)
    assert "parts share" in "\n".join(kept.notes), "labelled and unlabelled clips of one source are a leak of the lists"


def test_hmdb51_labelled_lists_share_sources_with_the_test_part(tmp_path: Path) -> None:
    """The clips that VideoSSL adds to the official training part are cut from videos of the test part."""
    lay_out(tmp_path, read_list("hmdb51", 1, 0.4))
    notes = [note for note in read(tmp_path, layout="hmdb51", labelled_share=0.4).notes if "within a class" in note]
    assert len(notes) == 1 and "the published test and train parts share" in notes[0]
    lay_out(tmp_path, read_list("hmdb51", 1, 1))
    assert not any("within a class" in note for note in read(tmp_path, layout="hmdb51").notes)


def test_missing_clips_are_counted_and_named(tmp_path: Path) -> None:
    clips = few("hmdb51", 3, 10)
    lay_out(tmp_path, clips, ".webm")
    touch(tmp_path, "brush_hair/home_made.mp4", "brush_hair/notes.txt", f"copies/{clips[0].name}.mp4")
    catalog = read(tmp_path, layout="hmdb51")
    assert len(catalog.classes) == 3 and len(catalog.videos) == 60
    assert set(catalog.missing) == set(read_list("hmdb51", 1, 1)) - set(clips)
    text = "\n".join(catalog.notes)
    assert "that are there: 60 of 5100 (1.2%); the first that is not is brush_hair/" in text
    assert "not in the list of this split: 1" in text and "another file was taken for: 1" in text
    labels = tmp_path / "labels.txt"
    labels.write_text("cartwheel\nbrush_hair\n")
    chosen = read(tmp_path, layout="hmdb51", labels=str(labels))
    assert {clip.class_name for clip in chosen.missing} == set(chosen.classes) == {"cartwheel", "brush_hair"}
    assert len(chosen.missing) == 200 - 40  # each class has 70 training and 30 test clips
    labels.write_text("cartwheel\nwave\n")
    with pytest.raises(DatasetError, match="names classes that are not there: wave"):
        read(tmp_path, layout="hmdb51", labels=str(labels))


@pytest.mark.parametrize("ranged", [True, False], ids=["with the time range", "without"])
@pytest.mark.parametrize("pattern", ["train/{c}/{n}.mp4", "k100/{n}.mkv", "{n}.MP4"])
def test_kinetics_is_found_by_its_ids(tmp_path: Path, ranged: bool, pattern: str) -> None:
    clips = few("kinetics100", 4, 5)
    for clip in clips:
        name = clip.name if ranged else kinetics_id(clip.name)
        touch(tmp_path, pattern.format(c=clip.class_name.replace(" ", "_"), n=name))
    touch(tmp_path, "train/abseiling/deep/er/0wR5jVB-WPk.mp4", "train/abseiling/short_id.mp4")
    catalog = read(tmp_path, layout="kinetics100")
    assert Counter(video.split == "test" for video in catalog.videos) == {True: 20, False: 20}
    assert len(catalog.missing) == 89693 - 40
    assert any(note.startswith("classes left out, with 0 test clips") for note in catalog.notes)


def kinetics_400(root: Path) -> list[ListedClip]:
    """Two classes with odd names: 3 test clips each, and 4 training clips that no list names."""
    listed = read_list("kinetics400", 1, 1)
    names = ("passing American football (not in game)", "massaging person's head")
    tests = [clip for name in names for clip in [c for c in listed if c.class_name == name][:3]]
    touch(root, *(f"val/{clip.class_name}/{clip.name}.mp4" for clip in tests))
    folders = ("passing_American_football_-not_in_game-", "massaging persons head")
    touch(root, *(f"train/{folder}/{k}{i}-train_id.mp4" for k, folder in enumerate(folders) for i in range(4)))
    return tests


def test_kinetics_400_without_annotations_trains_on_class_folders(tmp_path: Path) -> None:
    tests = kinetics_400(tmp_path)
    touch(tmp_path, "val/massaging persons head/AAAAAAAAAAA.mp4", "train/no class/BBBBBBBBBBB.mp4")
    catalog = read(tmp_path, layout="kinetics400")
    assert catalog.classes == tuple(sorted({clip.class_name for clip in tests}))
    assert Counter(video.split == "test" for video in catalog.videos) == {True: 6, False: 8}
    assert not any("AAAAAAAAAAA" in video.path or "BBBBBBBBBBB" in video.path for video in catalog.videos)
    assert len(catalog.missing) == 19906 - 6
    assert any("no train.csv there" in note for note in catalog.notes)


@pytest.mark.parametrize("name", ["train.csv", "annotations/train.csv", "annotations/kinetics-400_train.csv"])
def test_kinetics_400_with_annotations(tmp_path: Path, name: str) -> None:
    """Flat training files are named by the annotations, which cannot bring a test clip into training."""
    tests = kinetics_400(tmp_path)
    held_out = kinetics_id(tests[0].name)
    ids = [*(f"flat{i:07}" for i in range(4)), "flat_is_gone"[:11], held_out]
    lines = [f"{tests[3 * (i % 2)].class_name},{name},5,15,train,0" for i, name in enumerate(ids)]
    touch(tmp_path, name, *(f"train/flat{i:07}_000005_000015.mp4" for i in range(4)))
    (tmp_path / name).write_text("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines]))
    catalog = read(tmp_path, layout="kinetics400")
    trained = {Path(video.path).stem for video in catalog.videos if video.split != "test"}
    assert trained == {f"flat{i:07}_000005_000015" for i in range(4)}
    missing = [clip for clip in catalog.missing if clip.part == "train"]
    assert missing == [ListedClip(tests[0].class_name, "flat_is_gon_000005_000015", "train")]
    assert any(note == f"the training part is named by {name}" for note in catalog.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,youtube_id,time_start,time_end\nacting in play,AAAAAAAAAAA,1,11\n", "no class of Kinetics-400"),
        ("a,b\n1,2\n", "cannot be read as Kinetics' annotations"),
        ("", "cannot be read as Kinetics' annotations"),
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, content: str, message: str) -> None:
    kinetics_400(tmp_path)
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DatasetError, match=rf"train\.csv: .*{message}"):
        read(tmp_path, layout="kinetics400")


def test_the_wrong_folder_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no video of the train and the test part of ucf101.*UCF-101/<Class>"):
        read(tmp_path, layout="ucf101")
    lay_out(tmp_path, [clip for clip in few("ucf101", 3, 5) if clip.part == "train"])
    with pytest.raises(DatasetError, match="no video of the test part of ucf101"):
        read(tmp_path, layout="ucf101")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "kinetics100", "split": 2}, r"^split=2: must be 1 for kinetics100"),
        (
            {"layout": "ucf101", "labelled_share": 0.3},
            r"^labelled_share=0\.3: must be 0\.05, 0\.1, 0\.2, 0\.5, 1 for",
        ),
        ({"layout": "ucf101", "split": 2, "labelled_share": 0.5}, r"must be 1 for split 2 of ucf101"),
        ({"layout": "kinetics400", "labelled_share": 0.5}, r"must be 1 for split 1 of kinetics400"),
        ({"layout": "folder", "labelled_share": 0.0}, r"^labelled_share=0\.0: must be above 0"),
        ({"layout": "jhmdb", "labelled_share": 1.5}, r"^labelled_share=1\.5: must be "),
    ],
)
def test_impossible_choices(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        DataSettings(**settings)  # type: ignore[arg-type]


def test_finding_takes_one_listing_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"train/{k}/{i:011}.mp4" for k in range(3) for i in range(20 * k, 20 * k + 20)), ".trash/x/y.mp4")

    def refuse(path: Path, **_: object) -> None:
        raise AssertionError(f"{path} was looked at")

    monkeypatch.setattr(Path, "stat", refuse)
    paths = list_files(tmp_path)
    search = find_clips([ListedClip("a", f"{i:011}_1_2", "train") for i in range(50, 70)], paths, kinetics_id)
    assert len(paths) == 60 and (len(search.found), len(search.missing), len(search.others)) == (10, 10, 50)


# --- prepare, its check, and the report


def test_prepare_names_what_is_missing_and_the_report_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path / "videos", few("hmdb51", 2, 6))

    def made(videos: list[Video], *_: object) -> tuple[dict[str, dict[str, object]], list[object]]:
        return {video.id: dict.fromkeys(INDEX_DTYPES, 0) | asdict(video) for video in videos}, []

    monkeypatch.setattr("l2a_ray.prepare.job._make", made)
    monkeypatch.setattr("l2a_ray.runtime.session.ray_session", lambda *_: nullcontext())
    data = DataSettings(root=str(tmp_path / "videos"), layout="hmdb51")
    out = prepare(Settings(name="a", runs=str(tmp_path), data=data, segment=SegmentSettings(kind="motion")))
    missing = pd.read_parquet(Path(str(out)) / "missing.parquet")
    assert list(missing.columns) == ["class_name", "name", "part"] and len(missing) == 5100 - 24

    run = replace(make_whole(tmp_path / "whole"), missing=missing.head(3))
    about = numbers(run, tmp_path / "whole")["data"]
    assert (about["data/clips_prepared"], about["data/clips_failed"], about["data/clips_missing"]) == (6, 1, 3)
    assert about["data/share_there"] == 0.7


def test_check_reads_headers_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    clips = few("hmdb51", 2, 6)
    for clip in clips:
        path = tmp_path / f"videos/{clip.class_name}/{clip.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, noise(6))
    first, second, third, fourth = (tmp_path / f"videos/{c.class_name}/{c.name}.mp4" for c in clips[:4])
    first.write_bytes(b"")
    second.write_bytes(np.random.default_rng(0).bytes(5000))
    third.unlink()
    write_video(fourth, noise(1))
    with caplog.at_level("INFO"):
        options = ["--data.layout", "hmdb51", "--data.root", str(tmp_path / "videos"), "--runs", str(tmp_path / "runs")]
        main(["prepare", "--check", "--name", "a", *options])
    table = pd.read_parquet(tmp_path / "runs/a/check.parquet").set_index("path")
    assert table.loc[str(first), "cause"] == "empty file"
    assert "cannot be opened as a video" in str(table.loc[str(second), "cause"])
    assert table.loc[clips[2].name, "cause"] == "missing"
    assert table.loc[str(fourth), "cause"] == "it holds 1 frame, motion needs 2"
    good = table[table["cause"] == ""]
    assert len(good) == 20 and set(good["frames"]) == {6} and set(good["width"]) == {64}
    text = caplog.text
    assert "5100 clips, 20 look usable" in text and "5077: missing" in text and "1: empty file" in text
    assert "20 usable ones have fewer than decode.frames=8" in text
    assert not (tmp_path / "runs/a/prepare").exists(), "nothing is prepared"
    for clip in clips:
        (tmp_path / f"videos/{clip.class_name}/{clip.name}.mp4").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        main(["prepare", "--check", "--name", "b", *options])
    assert caught.value.code == 2 and "not one video is usable" in capsys.readouterr().err


def test_only_prepare_has_a_check_and_it_is_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--name", "a", "--print_config"])
    assert "check:" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["match", "--name", "a", "--check"])
    assert caught.value.code == 2
