"""From detections in single frames to the masks of a clip."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from l2a_ray.errors import SettingError, VideoError
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.segment.base import Found
from l2a_ray.prepare.segment.detect import DetectorSegmenter, DetectSettings, without_specks
from l2a_ray.prepare.segment.maskrcnn import CLASSES, MaskRCNNDetector
from l2a_ray.videos.decode import Clip

HEIGHT, WIDTH = 24, 40
Box = tuple[str, float, tuple[int, int, int, int]]


class Script:
    """A detector that reads from the frames' first pixel which of the given frames it sees."""

    def __init__(self, frames: list[list[Box]], fits: int = 100) -> None:
        self.frames, self.fits, self.batches = frames, fits, list[int]()

    def __call__(self, frames_THWC: NDArray[np.uint8]) -> list[Found]:
        self.batches.append(len(frames_THWC))
        if len(frames_THWC) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [found(self.frames[number]) for number in frames_THWC[:, 0, 0, 0]]


def found(boxes: list[Box]) -> Found:
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), dtype=np.bool_)
    for mask_HW, (_, _, (left, top, right, bottom)) in zip(masks, boxes, strict=True):
        mask_HW[top:bottom, left:right] = True
    return Found(
        class_N=np.array([name for name, _, _ in boxes], dtype=np.str_),
        score_N=np.array([score for _, score, _ in boxes], dtype=np.float32),
        box_N4=np.array([box for _, _, box in boxes], dtype=np.float32).reshape(-1, 4),
        mask_NHW=masks,
    )


def clip(frames: int) -> Clip:
    frames_THWC = np.zeros((frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames_THWC[:, 0, 0, 0] = np.arange(frames)
    return Clip("a/b.mp4", frames_THWC, np.arange(frames), frames, 12.0)


def at(left: int, top: int = 4, name: str = "person", score: float = 0.9) -> Box:
    return name, score, (left, top, left + 10, top + 12)


def test_uncertain_detections_are_dropped_and_people_told_apart() -> None:
    frames = [[at(0), at(20, name="horse", score=0.5), at(28, score=0.49)], []]
    instances = DetectorSegmenter(Script(frames), DetectSettings())(clip(2))
    assert instances.class_N.tolist() == ["person", "horse"] and instances.frame_N.tolist() == [0, 0]
    planes = instances.planes()
    assert (planes.people == planes.people_boxes).all() and planes.people.sum() == 120
    assert planes.objects.sum() == 240 and not planes.objects[1].any()
    everything = DetectorSegmenter(Script(frames), DetectSettings(score=0))(clip(2))
    assert len(everything.score_N) == 3


def test_a_box_may_be_larger_than_its_mask() -> None:
    wide = found([at(4)])
    wide.box_N4[0] = (-2.5, 1.2, 15.1, 30)
    segmenter = DetectorSegmenter(lambda frames: [wide] * len(frames), DetectSettings())
    planes = segmenter(clip(1)).planes()
    expected = np.zeros((1, HEIGHT, WIDTH), dtype=np.bool_)
    expected[0, 1:, :16] = True
    assert (planes.boxes == expected).all() and planes.objects.sum() == 120


def test_nothing_found_is_no_error() -> None:
    instances = DetectorSegmenter(Script([[], [], []]), DetectSettings())(clip(3))
    assert instances.mask_NHW.shape == (0, HEIGHT, WIDTH)
    assert not instances.planes().boxes.any() and instances.planes().boxes.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("gap", [1, 2])
def test_what_drops_out_between_two_sightings_is_carried_through(gap: int) -> None:
    frames = [[at(4)], *([[]] * gap), [at(4 + gap + 1)]]
    instances = DetectorSegmenter(Script(frames), DetectSettings())(clip(gap + 2))
    order = np.argsort(instances.frame_N)
    assert instances.frame_N[order].tolist() == list(range(gap + 2))
    np.testing.assert_allclose(instances.box_N4[order, 0], 4 + np.arange(gap + 2))
    masks = instances.planes().people
    for t in range(gap + 2):  # the mask moves along with its box
        assert masks[t].sum() == 120 and masks[t, 4:16, 4 + t : 14 + t].all()


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([[at(4)], [], [], [], [at(6)]], "gone for too long"),
        ([[at(0)], [], [at(25)]], "somewhere else"),
        ([[at(4)], [], [at(5, name="dog")]], "something else"),
        ([[at(4)], [], []], "never seen again"),
        ([[at(4)], [at(5)], [at(6)]], "seen all the time"),
        ([[at(4)], [], [at(5, score=0.3)]], "not sure of the second"),
    ],
)
def test_nothing_is_made_up(frames: list[list[Box]], why: str) -> None:
    instances = DetectorSegmenter(Script(frames), DetectSettings())(clip(len(frames)))
    assert len(instances.frame_N) == sum(score >= 0.5 for boxes in frames for _, score, _ in boxes), why


def test_carrying_through_can_be_turned_off() -> None:
    segmenter = DetectorSegmenter(Script([[at(4)], [], [at(5)]]), DetectSettings(carry=0))
    assert segmenter(clip(3)).frame_N.tolist() == [0, 2]


def test_how_much_two_sightings_must_overlap_is_a_setting() -> None:
    def found(overlap: float) -> list[int]:
        segmenter = DetectorSegmenter(Script([[at(4)], [], [at(9)]]), DetectSettings(overlap=overlap))
        return sorted(segmenter(clip(3)).frame_N.tolist())

    assert (found(0.3), found(0.4)) == ([0, 1, 2], [0, 2]), "boxes 10 wide and 5 apart: 1/3 of both"


def test_two_objects_are_carried_through_apart() -> None:
    frames = [[at(0), at(25)], [at(1)], [at(2), at(27)]]
    planes = DetectorSegmenter(Script(frames), DetectSettings())(clip(3)).planes()
    assert planes.people[1].sum() == 240 and planes.people[1, 4:16, 26:36].all()


def test_specks_are_removed() -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[2:8, 2:8] = mask[15, 30] = mask[20:22, 20:22] = True
    clean = without_specks(mask, 4)
    assert clean.sum() == 40 and not clean[15, 30]
    assert not without_specks(mask, 37).any()
    tiny = [("person", 0.9, (3, 3, 4, 4))]
    assert len(DetectorSegmenter(Script([tiny]), DetectSettings(min_area=0.01))(clip(1)).frame_N) == 0


def test_a_batch_that_the_gpu_does_not_hold_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    script = Script([[at(t)] for t in range(9)], fits=2)
    segmenter = DetectorSegmenter(script, DetectSettings(batch_size=8))
    with caplog.at_level(logging.WARNING):
        assert segmenter(clip(9)).frame_N.tolist() == list(range(9))
    assert script.batches == [8, 4, 2, 2, 2, 2, 1]
    assert [record.message for record in caplog.records] == [
        f"segment: out of GPU memory, going on with {n} frames at once" for n in (4, 2)
    ]
    with pytest.raises(VideoError, match="does not hold one frame"):
        DetectorSegmenter(Script([[at(0)]], fits=0), DetectSettings())(clip(1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the real model, as a user would name them."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    path = tmp_path_factory.mktemp("weights") / "maskrcnn.pth"
    torch.save(model.state_dict(), path)
    return path


SMALL: dict[str, Any] = {"min_size": 64, "max_size": 128, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}


def test_mask_rcnn_gives_boxes_and_masks_in_the_frames_own_pixels(weights: Path) -> None:
    detector = MaskRCNNDetector(str(weights), 0.5, box_detections_per_img=5, **SMALL)
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    results = detector(frames)
    assert len(results) == 2
    for result in results:
        assert len(result.class_N) == 5 and set(result.class_N) <= set(CLASSES)
        assert result.mask_NHW.shape == (5, 48, 64) and result.mask_NHW.dtype == np.bool_
        assert result.box_N4.min() >= 0 and (result.box_N4.max(axis=0) <= [64, 48, 64, 48]).all()
        assert (np.diff(result.score_N) <= 0).all() and 0 <= result.score_N.min() <= result.score_N.max() <= 1
    again = detector(frames[1:])[0]
    np.testing.assert_allclose(again.box_N4, results[1].box_N4, atol=1e-3)
    assert CLASSES[1] == "person"


def test_what_counts_as_an_objects_pixel_is_a_setting(weights: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    covered = [MaskRCNNDetector(str(weights), mask, **SMALL)(frames)[0].mask_NHW.sum() for mask in (0.05, 0.5, 0.95)]
    assert covered[0] > covered[1] > covered[2]


def test_the_segmenter_maskrcnn_runs_mask_rcnn(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(MaskRCNNDetector, min_size=64, max_size=128)
    monkeypatch.setattr("l2a_ray.prepare.segment.maskrcnn.MaskRCNNDetector", quick)
    settings = SegmentSettings(weights=str(weights), detect=DetectSettings(score=1.0))
    assert len(build_segmenter(settings)(clip(1)).frame_N) == 0


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "cannot be read as weights"),
        (b"not a file of torch", "cannot be read as weights"),
        ({"conv.weight": torch.zeros(3)}, "is not a state dict of maskrcnn_resnet50_fpn_v2"),
        ({"model": {"conv.weight": torch.zeros(3)}}, "must hold a plain state dict"),
    ],
)
def test_weights_that_cannot_be_had_name_the_ways_out(content: Any, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(SettingError, match=cause) as caught:
        build_segmenter(SegmentSettings(weights=str(path)))
    for way in ("name a file here", "kind=precomputed", "kind=people", "kind=motion"):
        assert way in str(caught.value)


def test_no_network_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", _unreachable)
    with pytest.raises(SettingError, match=r"^weights='COCO_V1'.*cannot be downloaded.*Four ways out"):
        build_segmenter(SegmentSettings())


def _unreachable(*args: object, **kwargs: object) -> None:
    raise OSError("Network is unreachable")


@pytest.mark.parametrize(("name", "value"), [("score", 1.1), ("batch_size", 0), ("carry", -1), ("min_area", -0.1)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=rf"^{name}="):
        DetectSettings(**{name: value})  # type: ignore[arg-type]
