"""Each video is prepared once, whatever happens in between, and a bad one never stops the others."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from test_decode import gray, noise, write_video

from l2a_ray.errors import DatasetError, SettingError, StageError, StorageError
from l2a_ray.prepare.inpaint.fill import InpaintSettings, build_inpainter
from l2a_ray.prepare.job import PrepareSettings, prepare, prepare_or_fail
from l2a_ray.prepare.segment import SegmentSettings
from l2a_ray.prepare.segment.base import Instances, people
from l2a_ray.prepare.segment.motion import MotionSegmenter, MotionSettings
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    NO_BACKGROUND,
    NO_FOREGROUND,
    ClipStore,
    clip_path,
    write_index,
)
from l2a_ray.videos.catalog import Catalog, DataSettings, Video, read_catalog
from l2a_ray.videos.decode import Clip, DecodeSettings
from l2a_ray.videos.generate import GenerateSettings, generate

# Ray Data warns of its own use of its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

SETTINGS = PrepareSettings(decode=DecodeSettings(frames=4, size=32), segment=SegmentSettings(kind="motion"))
INPAINTER = build_inpainter(SETTINGS.inpaint)
GENERATE = GenerateSettings(width=48, height=40, frames=8, train_per_class=2, test_per_class=1)
ODD_NAMES = ('it\'s a "wäve" 100%d.mp4', "波 -f.mp4", "a:b?c#d.mp4")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """18 good videos of six classes; one class has a `val` folder too, so that nothing is drawn."""
    root = tmp_path / "videos"
    generate(root, GENERATE, 0)
    shutil.copytree(root / "test" / "walk", root / "val" / "walk")
    return root


def catalog(root: Path) -> Catalog:
    return read_catalog(DataSettings(root=str(root)), 0)


def times(store: ClipStore) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.data.rglob("*") if path.is_file()}


# --- without Ray


def test_segmentation_and_inpainting_run_once_a_video(videos: Path, tmp_path: Path) -> None:
    segmented, inpainted = Counter[str](), list[int]()
    segmenter = MotionSegmenter(MotionSettings())

    def counting_segmenter(clip: Clip) -> Instances:
        segmented[clip.path] += 1
        return segmenter(clip)

    def counting_inpainter(frames: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
        inpainted.append(len(frames))
        return INPAINTER(frames, masks)

    found = catalog(videos)
    tools = counting_segmenter, counting_inpainter
    rows = [prepare_or_fail(video, SETTINGS, *tools, tmp_path / "data") for video in found.videos]
    assert segmented == Counter(video.path for video in found.videos) and inpainted == [4] * len(found.videos)
    assert [row["id"] for row in rows] == [video.id for video in found.videos]
    assert all(INDEX_DTYPES.keys() == row.keys() for row in rows)


def test_unforeseen_failure_of_one_video_is_its_own(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gray(6))
    video = Video("ab" * 8, str(path), "walk", 0, "train", "a")

    def broken(clip: Clip) -> Instances:
        raise RuntimeError("no such operator")

    row = prepare_or_fail(video, SETTINGS, broken, INPAINTER, tmp_path / "data")
    assert row["cause"] == "RuntimeError: no such operator" and row["advice"]
    assert set(row) >= set(FAILED_COLUMNS) and not (tmp_path / "data").exists()


@pytest.mark.parametrize(("everything", "remark"), [(False, NO_FOREGROUND), (True, NO_BACKGROUND)])
def test_a_mask_of_nothing_or_everything_is_remarked(everything: bool, remark: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(6))
    video = Video("ab" * 8, str(path), "walk", 0, "train", "a")

    def segmenter(clip: Clip) -> Instances:
        masks = np.ones(clip.frames_THWC.shape[:3], dtype=np.bool_)[: None if everything else 0]
        return people(masks, np.arange(len(masks)), np.ones(len(masks), np.float32), len(clip.frames_THWC))

    row = prepare_or_fail(video, SETTINGS, segmenter, INPAINTER, tmp_path / "data")
    assert (row["remark"], row["foreground_ratio"], row["people_ratio"]) == (remark, everything, everything)
    write_index(tmp_path, "data", ("walk",), pd.DataFrame([row]), pd.DataFrame(columns=list(FAILED_COLUMNS)))
    stored = ClipStore(tmp_path).read(video.id)
    np.testing.assert_array_equal(stored.background_THWC, stored.frames_THWC)


def test_missing_inpainter_is_told_before_any_work(videos: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, inpaint=InpaintSettings(kind="torchscript", model=str(tmp_path / "gone.pt")))
    with pytest.raises(SettingError, match=r"inpaint\.model=.*no such file"):
        prepare(catalog(videos), settings, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (replace(SETTINGS, decode=DecodeSettings(frames=8, size=32)), r"decode\.frames"),
        (replace(SETTINGS, inpaint=InpaintSettings(dilate=3)), r"inpaint\.dilate"),
        (
            replace(SETTINGS, segment=SegmentSettings(kind="motion", motion=MotionSettings(noise=3))),
            r"segment\.motion\.noise",
        ),
    ],
)
def test_other_settings_are_refused_by_name(videos: Path, tmp_path: Path, changed: PrepareSettings, named: str) -> None:
    empty = Catalog(classes=(), videos=(), notes=())
    prepare(empty, SETTINGS, tmp_path / "store")
    with pytest.raises(StageError, match=f"made with {named}=.*now {named}=.*another run name"):
        prepare(catalog(videos), changed, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*.safetensors"))


# --- through Ray


@pytest.mark.ray
def test_only_what_is_missing_is_done(videos: Path, tmp_path: Path, session: None) -> None:
    found = catalog(videos)
    store = prepare(found, SETTINGS, tmp_path / "store")
    first, index = times(store), store.index
    assert len(first) == len(found.videos) + 1  # and settings.json
    assert index["id"].tolist() == sorted(video.id for video in found.videos)
    assert index.dtypes.astype(str).to_dict() == INDEX_DTYPES and store.failed.empty
    assert (index["frame_count"] == 8).all() and (index["height"] == 32).all() and (index["rate"] == 12).all()
    assert store.read(index["id"][0]).frames_THWC.shape == (4, 32, index["width"][0], 3)

    again = prepare(found, SETTINGS, tmp_path / "store")
    assert times(again) == first and again.index.equals(index)

    deleted = found.videos[3].id
    clip_path(store.data, deleted).unlink()
    assert changed(first, prepare(found, SETTINGS, tmp_path / "store")) == {deleted}

    # A run that was killed has no index: what it did is told by the clips alone.
    before = times(store)
    (tmp_path / "store" / "store.json").unlink()
    clip_path(store.data, found.videos[5].id).write_bytes(b"half of a clip")
    again = prepare(found, SETTINGS, tmp_path / "store")
    assert changed(before, again) == {found.videos[5].id} and again.index.equals(index)

    before = times(store)
    shutil.copyfile(found.videos[0].path, found.videos[1].path)
    again = prepare(found, SETTINGS, tmp_path / "store")
    assert changed(before, again) == {found.videos[1].id}
    one, other = (again.index.set_index("id").loc[video.id] for video in found.videos[:2])
    assert one["source_hash"] == other["source_hash"]


def changed(before: dict[str, int], store: ClipStore) -> set[str]:
    after = times(store)
    assert before.keys() == after.keys()
    return {Path(name).stem for name, time in after.items() if time != before[name]}


@pytest.mark.ray
def test_bad_videos_are_recorded_and_the_others_prepared(videos: Path, tmp_path: Path, session: None) -> None:
    good = {video.path for video in catalog(videos).videos}
    folder = videos / "train" / "kick"
    for name in ODD_NAMES:
        shutil.copyfile(min(folder.glob("clip*.mp4")), folder / name)
    causes = spoil(folder)
    store = prepare(catalog(videos), SETTINGS, tmp_path / "store")
    failed = store.failed.set_index("path")
    assert list(store.failed) == list(FAILED_COLUMNS) and failed["advice"].str.len().min() > 0
    assert {Path(path).name for path in failed.index} == set(causes)
    for name, cause in causes.items():
        assert cause in failed["cause"][str(folder / name)], name
    assert set(store.index["path"]) == good | {str(folder / name) for name in ODD_NAMES}
    for clip_id in store.index["id"]:
        assert store.read(clip_id).frames_THWC.shape[:2] == (4, 32)


def spoil(folder: Path) -> dict[str, str]:
    """Write bad files; return what must be said of each."""
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 100)
    content = write_video(folder / "cut.mp4", noise(40), options={"movflags": "faststart"}).read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    write_audio(folder / "audio.mp4")
    write_video(folder / "one.mp4", gray(1))
    write_video(folder / "strip.avi", gray(3, 4000, 2), codec="mjpeg")
    (folder / "link.mp4").symlink_to("gone.mp4")
    (folder / "folder.mp4").mkdir()
    return {
        "empty.mp4": "empty file",
        "text.mp4": "of another kind",
        "cut.mp4": "of 40 frames could be decoded",
        "audio.mp4": "no video stream in it",
        "one.mp4": "it holds 1 frame",
        "strip.avi": "4000 x 2 pixels",
        "link.mp4": "dangling link to gone.mp4",
        "folder.mp4": "a directory, not a file",
    }


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.ray
def test_class_that_lost_all_its_videos_ends_the_stage(videos: Path, tmp_path: Path, session: None) -> None:
    for path in (videos / "train" / "kick").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"class 'kick': see failed\.parquet"):
        prepare(catalog(videos), SETTINGS, tmp_path / "store")
    failed = pd.read_parquet(tmp_path / "store" / "failed.parquet")
    assert failed["cause"].tolist() == ["empty file"] * 2


@pytest.mark.ray
def test_store_that_cannot_be_written_ends_the_stage(videos: Path, tmp_path: Path, session: None) -> None:
    found = catalog(videos)
    blocked = clip_path(tmp_path / "store" / "data", found.videos[0].id).parent
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=f"{blocked}.*cannot be written"):
        prepare(found, SETTINGS, tmp_path / "store")
