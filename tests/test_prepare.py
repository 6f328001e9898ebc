"""Each video is prepared once, whatever happens in between, and a bad one never stops the others."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from test_decode import gray, noise, write_video

from l2a_ray.errors import DatasetError, SettingError, StorageError
from l2a_ray.fields import relevant
from l2a_ray.prepare import clip as clip_module
from l2a_ray.prepare import finished, job, sources
from l2a_ray.prepare.clip import ClipMaker
from l2a_ray.prepare.inpaint.fill import Inpainter, InpaintSettings, build_inpainter
from l2a_ray.prepare.job import prepare_clips
from l2a_ray.prepare.segment import SegmentSettings, no_files
from l2a_ray.prepare.segment.base import Instances, Segmenter, people
from l2a_ray.prepare.segment.motion import MotionSegmenter, MotionSettings
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    NO_BACKGROUND,
    NO_FOREGROUND,
    ClipStore,
    Row,
    clip_path,
    write_index,
)
from l2a_ray.videos import decode as video_decoding
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
    return read_catalog(DataSettings(root=str(root)))


def times(clips: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in clips.rglob("*") if path.is_file()}


def maker(segmenter: Segmenter, inpainter: Inpainter, folder: Path) -> ClipMaker:
    return ClipMaker(SETTINGS, folder / "clips", folder / "attempts", segmenter, inpainter, no_files)


class Work:
    """Prepares in this process what would be sent to Ray, and says what was made and how often Ray was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.sessions = 0
        decode = video_decoding.decode

        def decoding(path: str, *rest: object) -> Clip:
            self.made.append(path)
            return decode(path, *rest)  # type: ignore[arg-type]

        def stream(videos: list[Video], settings: PrepareSettings, clips: Path, notes: Path) -> Iterator[Row]:
            tools = ClipMaker.build(settings, clips, notes)
            yield from map(tools.row, videos)

        monkeypatch.setattr(clip_module, "decode", decoding)
        monkeypatch.setattr(job, "_stream", stream)

    def need_ray(self) -> None:
        self.sessions += 1

    def __call__(
        self, found: Catalog, clips: Path, out: Path, settings: PrepareSettings = SETTINGS
    ) -> tuple[ClipStore, set[str]]:
        """Return the store, and the paths of the videos that were decoded for it."""
        self.made.clear()
        self.sessions = 0
        store = prepare_clips(found, settings, clips, out, self.need_ray)
        assert len(self.made) == len(set(self.made))
        return store, set(self.made)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


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
    tools = maker(counting_segmenter, counting_inpainter, tmp_path)
    rows = [tools.row(video) for video in found.videos]
    assert segmented == Counter(video.path for video in found.videos) and inpainted == [4] * len(found.videos)
    assert [row["id"] for row in rows] == [video.id for video in found.videos]
    assert all(INDEX_DTYPES.keys() == row.keys() for row in rows)
    # A clip that a process left behind before it died is not made again.
    again = [tools.row(video) for video in found.videos]
    one, other = (pd.DataFrame(table)[list(INDEX_DTYPES)].astype(INDEX_DTYPES) for table in (rows, again))
    assert one.equals(other) and len(inpainted) == len(rows)


def test_unforeseen_failure_of_one_video_is_its_own(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gray(6))
    video = Video("ab" * 8, str(path), "walk", 0, "train", "a")

    def broken(clip: Clip) -> Instances:
        raise RuntimeError("no such operator")

    row = maker(broken, INPAINTER, tmp_path).row(video)
    assert row["cause"] == "RuntimeError: no such operator" and row["advice"]
    assert set(row) >= set(FAILED_COLUMNS) and not (tmp_path / "clips").exists()


@pytest.mark.parametrize(("everything", "remark"), [(False, NO_FOREGROUND), (True, NO_BACKGROUND)])
def test_a_mask_of_nothing_or_everything_is_remarked(everything: bool, remark: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(6))
    video = Video("ab" * 8, str(path), "walk", 0, "train", "a")

    def segmenter(clip: Clip) -> Instances:
        masks = np.ones(clip.frames_THWC.shape[:3], dtype=np.bool_)[: None if everything else 0]
        return people(masks, np.arange(len(masks)), np.ones(len(masks), np.float32), len(clip.frames_THWC))

    row = maker(segmenter, INPAINTER, tmp_path).row(video)
    shares = {row[name] for name in ("foreground_ratio", "people_ratio", "foreground_frames", "people_frames")}
    assert (row["remark"], shares) == (remark, {float(everything)})
    empty = pd.DataFrame(columns=list(FAILED_COLUMNS))
    write_index(tmp_path / "out", tmp_path / "clips", ("walk",), pd.DataFrame([row]), empty)
    stored = ClipStore(tmp_path / "out").read(video.id)
    np.testing.assert_array_equal(stored.background_THWC, stored.frames_THWC)


def test_missing_inpainter_is_told_before_any_work(videos: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, inpaint=InpaintSettings(kind="torchscript", model=str(tmp_path / "gone.pt")))
    with pytest.raises(SettingError, match=r"inpaint\.model=.*no such file|model=.*no such file"):
        prepare_clips(catalog(videos), settings, tmp_path / "clips", tmp_path / "out")
    assert not (tmp_path / "out").exists()


OTHERS = [
    SETTINGS,
    replace(SETTINGS, max_failures=7),
    replace(SETTINGS, decode=DecodeSettings(frames=8, size=32)),
    replace(SETTINGS, inpaint=InpaintSettings(dilate=3)),
    replace(SETTINGS, segment=SegmentSettings(kind="motion", motion=MotionSettings(noise=3))),
    replace(SETTINGS, segment=SegmentSettings(kind="motion", gpus_per_worker=0.5)),
    replace(SETTINGS, segment=SegmentSettings(kind="precomputed", masks="here")),
    replace(SETTINGS, segment=SegmentSettings(kind="precomputed", masks="there")),
]


def test_the_key_follows_what_clips_depend_on() -> None:
    def uses(settings: PrepareSettings) -> list[object]:
        segment = replace(settings.segment, masks=None)
        return [relevant(part) for part in (settings.decode, segment, settings.inpaint)]

    for one in OTHERS:
        for other in OTHERS:
            assert (one.key == other.key) == (uses(one) == uses(other))
    keys = [settings.key for settings in OTHERS]
    assert keys[0] == keys[1] and len({*keys[1:5]}) == 4 and keys[6] == keys[7] != keys[0]
    assert PrepareSettings().key != keys[0]


# --- what is made, and what is not


def test_another_run_split_or_label_makes_no_clip_and_needs_no_ray(videos: Path, tmp_path: Path, work: Work) -> None:
    clips, found = tmp_path / "clips", catalog(videos)
    first, made = work(found, clips, tmp_path / "a")
    assert made == {video.path for video in found.videos} and work.sessions == 1
    before = times(clips)

    again, made = work(found, clips, tmp_path / "b")
    assert (made, work.sessions) == (set(), 0) and again.index.equals(first.index) and again.content == first.content

    turned = replace(
        found, videos=tuple(replace(v, split="test" if v.split == "train" else "train") for v in found.videos)
    )
    other, made = work(turned, clips, tmp_path / "c")
    assert (made, work.sessions) == (set(), 0) and other.content != first.content

    (tmp_path / "labels.txt").write_text("walk\nkick\n")
    few = read_catalog(DataSettings(root=str(videos), labels=str(tmp_path / "labels.txt")))
    fewer, made = work(few, clips, tmp_path / "d")
    assert (made, work.sessions) == (set(), 0) and fewer.classes == ("walk", "kick") and len(fewer.index) == 7
    assert set(fewer.index.loc[fewer.index["class_name"] == "kick", "label"]) == {1}
    for store in (first, other, fewer):
        assert store.read(few.videos[0].id).frames_THWC.shape[:2] == (4, 32)
    assert times(clips) == before


def test_other_content_under_the_same_name_has_a_clip_of_its_own(videos: Path, tmp_path: Path, work: Work) -> None:
    clips = tmp_path / "clips"
    one, _ = work(catalog(videos), clips, tmp_path / "a")
    shutil.copytree(videos, tmp_path / "elsewhere")  # the same, but for one video of the same size and time
    found = catalog(tmp_path / "elsewhere")
    changed = Path(found.videos[0].path)
    content, time = changed.read_bytes(), changed.stat().st_mtime_ns
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(changed, ns=(time, time))
    before = times(clips)
    other, made = work(found, clips, tmp_path / "b")
    assert made == {str(changed)} and before.items() <= times(clips).items()
    clip_id = found.videos[0].id
    assert one.path(clip_id) != other.path(clip_id) and one.path(clip_id).exists() and other.path(clip_id).exists()
    assert all(one.path(video.id) == other.path(video.id) for video in found.videos[1:])
    assert one.content != other.content


def test_a_moved_or_touched_video_is_read_but_not_made_again(
    videos: Path, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, hashed = tmp_path / "clips", list[str]()
    first, _ = work(catalog(videos), clips, tmp_path / "a")
    content_hash = sources.content_hash

    def hashing(video: str, *rest: object) -> str:
        hashed.append(video)
        return content_hash(video, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(finished, "content_hash", hashing)
    touched = catalog(videos).videos[2].path
    os.utime(touched)
    again, made = work(catalog(videos), clips, tmp_path / "a")
    assert (made, work.sessions, hashed) == (set(), 0, [touched]) and again.content == first.content
    work(catalog(videos), clips, tmp_path / "a")
    assert hashed == [touched], "the new time is known now"

    videos.rename(tmp_path / "moved")
    moved, made = work(catalog(tmp_path / "moved"), clips, tmp_path / "b")
    assert (made, work.sessions) == (set(), 0) and moved.content == first.content and len(hashed) == 20


def test_what_changed_is_made_again_and_what_is_damaged_too(videos: Path, tmp_path: Path, work: Work) -> None:
    clips, found = tmp_path / "clips", catalog(videos)
    store, _ = work(found, clips, tmp_path / "a")
    damaged, deleted = found.videos[3], found.videos[4]
    store.path(damaged.id).write_bytes(store.path(damaged.id).read_bytes()[:-1])
    store.path(deleted.id).unlink()
    again, made = work(found, clips, tmp_path / "a")
    assert made == {damaged.path, deleted.path} and again.index.equals(store.index)
    shutil.copyfile(found.videos[0].path, found.videos[1].path)
    again, made = work(found, clips, tmp_path / "a")
    assert made == {found.videos[1].path}
    one, other = (again.index.set_index("id").loc[video.id] for video in found.videos[:2])
    assert one["source_hash"] == other["source_hash"]


@pytest.mark.parametrize("suffix", [".npz", "/"])
def test_other_masks_make_another_clip(suffix: str, videos: Path, tmp_path: Path, work: Work) -> None:
    found, clips = catalog(videos), tmp_path / "clips"
    for video in found.videos:
        write_masks(tmp_path / "masks" / f"{Path(video.path).stem}{suffix}", rows=10)
    settings = replace(SETTINGS, segment=SegmentSettings(kind="precomputed", masks=str(tmp_path / "masks")))
    first, made = work(found, clips, tmp_path / "a", settings)
    assert len(made) == 19
    changed = {video.path for video in found.videos if Path(video.path).stem == Path(found.videos[0].path).stem}
    write_masks(tmp_path / "masks" / f"{Path(found.videos[0].path).stem}{suffix}", rows=20)
    second, made = work(found, clips, tmp_path / "b", settings)
    assert made == changed and all(first.path(video.id).exists() for video in found.videos)
    before, after = (store.read(found.videos[0].id).planes.objects.mean() for store in (first, second))
    assert after > 1.5 * before > 0


def write_masks(path: Path, rows: int) -> None:
    """Write eight masks whose upper rows are set."""
    masks = np.zeros((8, 40, 48), dtype=np.uint8)
    masks[:, :rows] = 255
    if path.suffix == ".npz":
        path.parent.mkdir(exist_ok=True)
        np.savez(path, mask=masks)
        return
    path.mkdir(parents=True, exist_ok=True)
    for t, mask in enumerate(masks):
        cv2.imwrite(str(path / f"{t:05}.png"), mask)


def test_a_video_that_failed_and_works_later_joins_the_others(videos: Path, tmp_path: Path, work: Work) -> None:
    clips, broken = tmp_path / "clips", Path(catalog(videos).videos[5].path)
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    first, _ = work(catalog(videos), clips, tmp_path / "a")
    assert first.failed["path"].tolist() == [str(broken)] and len(first.index) == 18
    broken.write_bytes(content)
    second, made = work(catalog(videos), clips, tmp_path / "a")
    assert made == {str(broken)} and second.failed.empty and len(second.index) == 19
    assert second.content != first.content


def test_a_source_that_is_away_keeps_its_clip_and_is_told(videos: Path, tmp_path: Path, work: Work) -> None:
    clips, found = tmp_path / "clips", catalog(videos)
    first, _ = work(found, clips, tmp_path / "a")
    for video in found.videos[:2]:
        Path(video.path).unlink()
    again, made = work(found, clips, tmp_path / "a")
    assert made == set() and work.sessions == 0
    assert again.content == first.content and again.index.equals(first.index) and again.failed.empty
    (note,) = json.loads((tmp_path / "a/notes.json").read_text())
    assert "cannot be found" in note and found.videos[0].path in note and ": 2;" in note
    # A run that never had them cannot have them.
    new, made = work(found, clips, tmp_path / "b")
    assert made == set() and len(new.index) == 17 and set(new.failed["cause"]) == {"missing"}


def test_masks_that_are_away_leave_their_clips(videos: Path, tmp_path: Path, work: Work) -> None:
    found, clips, masks = catalog(videos), tmp_path / "clips", tmp_path / "masks"
    for video in found.videos:
        write_masks(masks / f"{Path(video.path).stem}.npz", rows=10)
    settings = replace(SETTINGS, segment=SegmentSettings(kind="precomputed", masks=str(masks)))
    first, _ = work(found, clips, tmp_path / "a", settings)
    shutil.rmtree(masks)
    masks.mkdir()
    again, made = work(found, clips, tmp_path / "a", settings)
    assert made == set() and again.index.equals(first.index) and again.failed.empty


@pytest.mark.parametrize("listed", [True, False])
def test_an_emptied_folder_overwrites_nothing(listed: bool, videos: Path, tmp_path: Path, work: Work) -> None:
    found = catalog(videos)
    work(found, tmp_path / "clips", tmp_path / "a")
    before = {path: path.read_bytes() for path in tmp_path.glob("a/*")}
    shutil.rmtree(videos)
    empty = found if listed else replace(found, videos=())
    with pytest.raises(DatasetError, match=r"none of (19|0) videos can be found.*Is their storage there\?"):
        work(empty, tmp_path / "clips", tmp_path / "a")
    assert {path: path.read_bytes() for path in tmp_path.glob("a/*")} == before


def test_class_that_lost_all_its_videos_ends_the_stage(videos: Path, tmp_path: Path, work: Work) -> None:
    work(catalog(videos), tmp_path / "clips", tmp_path / "a")
    before = (tmp_path / "a/index.parquet").read_bytes()
    for path in (videos / "train" / "kick").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"training video for class 'kick': nothing could learn it\. See .*failed"):
        work(catalog(videos), tmp_path / "clips", tmp_path / "a")
    failed = pd.read_parquet(tmp_path / "a" / "failed.parquet")
    assert failed["cause"].tolist() == ["empty file"] * 2
    assert (tmp_path / "a/index.parquet").read_bytes() == before


# --- through Ray


@pytest.mark.ray
def test_only_what_is_missing_is_done(videos: Path, tmp_path: Path, session: None) -> None:
    found, clips = catalog(videos), tmp_path / "clips"
    store = prepare_clips(found, SETTINGS, clips, tmp_path / "out")
    first, index = times(clips), store.index
    assert set(first) == {store.path(video.id).name for video in found.videos}
    assert index["id"].tolist() == sorted(video.id for video in found.videos)
    assert index.dtypes.astype(str).to_dict() == INDEX_DTYPES and store.failed.empty
    assert (index["frame_count"] == 8).all() and (index["height"] == 32).all() and (index["rate"] == 12).all()
    assert store.read(index["id"][0]).frames_THWC.shape == (4, 32, index["width"][0], 3)

    # A run that was killed has no index: what it did is told by the clips alone.
    shutil.rmtree(tmp_path / "out")
    store.path(found.videos[5].id).write_bytes(b"half of a clip")
    again = prepare_clips(found, SETTINGS, clips, tmp_path / "out")
    after = times(clips)
    assert first.keys() == after.keys() and again.index.equals(index)
    assert {name.partition("-")[0] for name in after if after[name] != first[name]} == {found.videos[5].id}


@pytest.mark.ray
def test_bad_videos_are_recorded_and_the_others_prepared(videos: Path, tmp_path: Path, session: None) -> None:
    good = {video.path for video in catalog(videos).videos}
    folder = videos / "train" / "kick"
    for name in ODD_NAMES:
        shutil.copyfile(min(folder.glob("clip*.mp4")), folder / name)
    causes = spoil(folder)
    store = prepare_clips(catalog(videos), SETTINGS, tmp_path / "clips", tmp_path / "out")
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
def test_store_that_cannot_be_written_ends_the_stage(videos: Path, tmp_path: Path, session: None) -> None:
    found = catalog(videos)
    blocked = clip_path(tmp_path / "clips", found.videos[0].id, "").parent
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=f"{blocked}.*cannot be written"):
        prepare_clips(found, SETTINGS, tmp_path / "clips", tmp_path / "out")
