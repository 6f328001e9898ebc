"""Tests of l2a_ray.prepare.segment."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from l2a_ray.errors import SettingError, VideoError
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.segment.base import people
from l2a_ray.prepare.segment.motion import MotionSettings
from l2a_ray.videos.decode import Clip, DecodeSettings, decode

MOTION = build_segmenter(SegmentSettings(kind="motion"))


def make_clip(frames_THWC: NDArray[np.uint8], path: str = "videos/walk/a b.mp4", frame_count: int = 20) -> Clip:
    indices_T = np.linspace(0, frame_count - 1, len(frames_THWC)).round().astype(np.int64)
    return Clip(path, frames_THWC, indices_T, frame_count, 12.0)


def moving_blob(pan: float, frames: int = 8) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A dark disc that crosses a cluttered, noisy scene while the camera moves by ``pan`` pixels; and the disc."""
    rng = np.random.default_rng(0)
    scene_HWC = np.full((92, 136, 3), 150, dtype=np.uint8)
    for corner in rng.integers(0, (128, 84), (60, 2)):
        cv2.rectangle(scene_HWC, corner.tolist(), (corner + 8).tolist(), rng.integers(80, 240, 3).tolist(), cv2.FILLED)
    frames_THWC = np.empty((frames, 72, 96, 3), dtype=np.uint8)
    masks_THW = np.empty((frames, 72, 96), dtype=np.bool_)
    for t in range(frames):
        left, top = 20 + pan * t / 7, 10 - 0.4 * pan * t / 7
        view = cv2.warpAffine(scene_HWC, np.array([[1, 0, -left], [0, 1, -top]]), (96, 72)).astype(np.float32)
        disc_HW = cv2.circle(np.zeros((72, 96), dtype=np.uint8), (22 + 7 * t, 36), 10, 1, cv2.FILLED)
        view[disc_HW == 1] = (20, 20, 40)
        frames_THWC[t] = np.clip(view + rng.normal(0, 2, view.shape), 0, 255)
        masks_THW[t] = disc_HW == 1
    return frames_THWC, masks_THW


def mean_iou(found_THW: NDArray[np.bool_], true_THW: NDArray[np.bool_]) -> float:
    common = (found_THW & true_THW).sum(axis=(1, 2))
    return float(np.mean(common / np.maximum((found_THW | true_THW).sum(axis=(1, 2)), 1)))


def test_planes_unite_the_instances_of_a_frame() -> None:
    mask_NHW = np.zeros((4, 6, 8), dtype=np.bool_)
    mask_NHW[0, 1, 1] = mask_NHW[0, 3, 2] = True
    mask_NHW[1, 0, 5:7] = True
    mask_NHW[2, 5, 7] = True
    instances = people(mask_NHW, np.array([0, 0, 2, 2]), np.ones(4, dtype=np.float32), 3)
    planes = replace(instances, class_N=np.array(["person", "horse", "person", "person"])).planes()
    assert (planes.objects == np.stack([mask_NHW[0] | mask_NHW[1], np.zeros((6, 8)), mask_NHW[2]])).all()
    assert (planes.people[0] == mask_NHW[0]).all()
    boxes_HW = np.zeros((6, 8), dtype=np.bool_)
    boxes_HW[1:4, 1:3] = True
    assert (planes.people_boxes[0] == boxes_HW).all()
    boxes_HW[0, 5:7] = True
    assert (planes.boxes[0] == boxes_HW).all()
    assert not planes.boxes[1].any()


@pytest.mark.parametrize("pan", [0, 8, -8, 20])
def test_motion_finds_what_moves_before_a_still_or_panned_scene(pan: float) -> None:
    frames_THWC, masks_THW = moving_blob(pan)
    instances = MOTION(make_clip(frames_THWC))
    assert mean_iou(instances.planes().objects, masks_THW) > 0.85
    assert (instances.frame_N == np.arange(8)).all()  # one instance a frame: no specks
    assert ((instances.score_N > 0.5) & (instances.score_N < 1)).all()
    assert (instances.class_N == "person").all()


def test_motion_is_not_led_by_an_actor_on_a_plain_scene() -> None:
    frames_THWC, masks_THW = moving_blob(0)
    frames_THWC[~masks_THW] = 128
    cv2.line(frames_THWC[0], (0, 0), (95, 0), (100, 100, 100))
    assert mean_iou(MOTION(make_clip(frames_THWC)).planes().objects, masks_THW) > 0.85


@pytest.mark.parametrize("shape", [(8, 72, 96), (1, 72, 96), (2, 16, 16), (8, 2, 40), (3, 160, 16)])
def test_nothing_moves_nothing_found(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    frame_HWC = rng.integers(20, 235, (*shape[1:], 3), dtype=np.uint8)
    frames_THWC = np.repeat(frame_HWC[None], shape[0], axis=0) + rng.integers(0, 5, (*shape, 3), dtype=np.uint8)
    instances = MOTION(make_clip(frames_THWC))
    assert instances.mask_NHW.shape == (0, *shape[1:])
    assert instances.frame_N.dtype == np.int64
    assert instances.planes().objects.shape == shape
    assert not instances.planes().boxes.any()


def test_motion_thresholds_come_from_the_settings() -> None:
    frames_THWC, _ = moving_blob(0)
    for motion in (MotionSettings(contrast=255), MotionSettings(min_area=0.2)):
        assert len(build_segmenter(SegmentSettings(kind="motion", motion=motion))(make_clip(frames_THWC)).frame_N) == 0


@pytest.mark.parametrize("form", ["packed", "npz", "npy", "images", "beside"])
def test_precomputed_masks_of_every_form(form: str, tmp_path: Path) -> None:
    masks_THW = np.random.default_rng(0).random((20, 30, 43)) < 0.3
    masks_THW[0] = False
    write_masks(tmp_path / ("a b" if form == "beside" else "walk/a b"), form, masks_THW)
    clip = make_clip(np.zeros((8, 60, 86, 3), dtype=np.uint8))
    instances = build_segmenter(SegmentSettings(kind="precomputed", masks=str(tmp_path)))(clip)
    expected_THW = masks_THW[clip.indices_T].repeat(2, axis=1).repeat(2, axis=2)
    planes = instances.planes()
    assert (planes.objects == expected_THW).all()
    assert (planes.people == expected_THW).all()
    assert (instances.frame_N == np.arange(1, 8)).all()  # the first mask is empty


def write_masks(stem: Path, form: str, masks_THW: NDArray[np.bool_]) -> None:
    stem.parent.mkdir(exist_ok=True)
    if form == "packed":
        np.savez(f"{stem}.npz", mask=np.packbits(masks_THW, axis=-1), shape=np.array(masks_THW.shape))
    elif form == "npz":
        np.savez_compressed(f"{stem}.npz", masks_THW)
    elif form == "images":
        stem.mkdir()
        for i, mask_HW in enumerate(masks_THW):
            cv2.imwrite(str(stem / f"{i:05d}.png"), mask_HW * np.uint8(255))
    else:
        np.save(f"{stem}.npy", masks_THW.astype(np.uint8))


def test_unusable_masks_are_refused_with_cause(tmp_path: Path) -> None:
    clip = make_clip(np.zeros((8, 60, 86, 3), dtype=np.uint8))
    segment = build_segmenter(SegmentSettings(kind="precomputed", masks=str(tmp_path)))
    with pytest.raises(VideoError, match=r"no masks in .*walk/a b"):
        segment(clip)
    good_THW = np.ones((20, 30, 43), dtype=np.uint8)
    path = tmp_path / "a b.npz"
    bad: list[tuple[dict[str, object], str]] = [
        ({"mask": good_THW[1:]}, "are of 19 frames, the video has 20"),
        ({"mask": good_THW[..., :30]}, "another aspect"),
        ({"mask": good_THW[..., :0]}, "another aspect"),
        ({"mask": good_THW.astype(np.float32)}, "float32"),
        ({"mask": good_THW[0]}, "time, height, width"),
        ({"mask": good_THW, "shape": np.array([20, 30, 43])}, "not bit-packed"),
        ({"mask": good_THW, "shape": np.array(20)}, "not bit-packed"),
        ({"mask": np.array([good_THW, None], dtype=object)}, "cannot be read"),
        ({"a": good_THW, "b": good_THW}, "'a', 'b'"),
    ]
    for arrays, cause in bad:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(VideoError, match=cause):
            segment(clip)
    for content in (b"", b"not an archive", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(VideoError, match="cannot be read"):
            segment(clip)


def test_unusable_images_are_refused_with_cause(tmp_path: Path) -> None:
    write_masks(tmp_path / "a b", "images", np.ones((20, 30, 43), dtype=np.bool_))
    clip = make_clip(np.zeros((8, 60, 86, 3), dtype=np.uint8))
    segment = build_segmenter(SegmentSettings(kind="precomputed", masks=str(tmp_path)))
    first = tmp_path / "a b" / "00000.png"
    cv2.imwrite(str(first), np.zeros((31, 43), dtype=np.uint8))
    with pytest.raises(VideoError, match="different sizes"):
        segment(clip)
    first.write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"unreadable image, 00000\.png"):
        segment(clip)
    first.unlink()
    with pytest.raises(VideoError, match="are of 19 frames"):
        segment(clip)


def test_bad_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^masks=None"):
        build_segmenter(SegmentSettings(kind="precomputed"))
    with pytest.raises(SettingError, match=r"^kind='sam'.*auto, maskrcnn, mmdet, precomputed, people, motion"):
        SegmentSettings(kind="sam")  # type: ignore[arg-type]
    for field, value in {"contrast": 0, "noise": -1.0, "min_area": 1.5, "min_share": float("nan")}.items():
        with pytest.raises(SettingError, match=rf"^{field}="):
            MotionSettings(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"^masks=.*no such folder"):
        build_segmenter(SegmentSettings(kind="precomputed", masks=str(tmp_path / "absent")))


@pytest.mark.data
def test_jhmdb_masks_and_motion_on_a_real_clip(jhmdb: Path) -> None:
    video = sorted((jhmdb / "videos" / "climb_stairs").glob("*.mp4"))[0]
    clip = decode(str(video), DecodeSettings())
    planes = build_segmenter(SegmentSettings(kind="precomputed", masks=str(jhmdb / "masks")))(clip).planes()
    packed = np.load(jhmdb / "masks" / "climb_stairs" / f"{video.stem}.npz")
    true_THW = np.unpackbits(packed["mask"], axis=-1)[..., :160].reshape(packed["shape"])[clip.indices_T]
    assert planes.objects.shape == clip.frames_THWC.shape[:3]
    assert np.allclose(planes.objects.mean(axis=(1, 2)), true_THW.mean(axis=(1, 2)), atol=0.005)
    assert mean_iou(MOTION(clip).planes().objects, planes.objects) > 0.1
