"""mmdet's detectors and mmaction2's recognizers, with their own configs, made small, and random weights."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from l2a_ray.classifier.network import check_input, save_network
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings
from l2a_ray.classifier.step import make_optimizer, train_step
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.errors import MissingPackageError, SettingError
from l2a_ray.prepare.segment import SegmentSettings
from l2a_ray.prepare.segment.base import Found
from l2a_ray.runtime import openmmlab

MASK_RCNN = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
STEPS = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type="LoadImageFromFile"), dict(type="Resize", scale=(128, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True), dict(type="PackDetInputs")]))
"""
SMALL_RCNN = f"""
_base_ = "mmdet::{MASK_RCNN}"
model = dict(
    backbone=dict(depth=18, init_cfg=None), neck=dict(in_channels=[64, 128, 256, 512]),
    roi_head=dict(bbox_head=dict(fc_out_channels=32), mask_head=dict(num_convs=1, conv_out_channels=32)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)))
{STEPS}"""
TSN = """
_base_ = "mmaction::recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb.py"
model = dict(backbone=dict(depth=18), cls_head=dict(in_channels=512))
"""
TSM = """
_base_ = "mmaction::recognition/tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb.py"
model = dict(backbone=dict(depth=18, num_segments=4), cls_head=dict(in_channels=512, num_segments=4))
"""
SLOWONLY = """
_base_ = "mmaction::recognition/slowonly/slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb.py"
model = dict(backbone=dict(depth=18), cls_head=dict(in_channels=512))
"""
RECOGNIZERS = [TSN, TSM, SLOWONLY]
Write = Callable[[str], str]


@pytest.fixture
def mm() -> None:
    if importlib.util.find_spec("mmdet") is None or importlib.util.find_spec("mmaction") is None:
        pytest.skip("the extra openmmlab is not installed: make openmmlab (docs/openmmlab.md)")
    openmmlab.ready("mmdet")
    openmmlab.ready("mmaction")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> str:
        path = tmp_path / f"config{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return str(path)

    return written


def clips(frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (2, frames, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def frames(count: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8)


def recognizer(config: str, weights: str | None = None) -> NetworkSettings:
    return NetworkSettings(name="mmaction2", config=config, weights=weights)


def test_a_missing_package_is_named_with_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    openmmlab.ready.cache_clear()
    for name in ("mmcv", "mmdet.models", "mmaction.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="make openmmlab"):
        build_network(recognizer("recognition/tsn.py"), 3)
    with pytest.raises(MissingPackageError, match=r"requirements-openmmlab\.lock"):
        from l2a_ray.prepare.segment.mmdet import MMDetDetector

        MMDetDetector(MASK_RCNN, None)


def test_settings_without_a_config_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^config=None: must name mmaction2's config"):
        NetworkSettings(name="mmaction2")
    with pytest.raises(SettingError, match=r"^config='tsn\.py': must name mmaction2's config"):
        NetworkSettings(name="r3d_18", config="tsn.py")
    with pytest.raises(SettingError, match=r"^config=None: must name mmdet's config"):
        SegmentSettings(kind="mmdet", checkpoint="weights.pth")
    with pytest.raises(SettingError, match=r"^checkpoint=None: must name the file"):
        SegmentSettings(kind="mmdet", config=MASK_RCNN)


def check(found: Found, classes: tuple[str, ...]) -> None:
    count = len(found.score_N)
    assert found.class_N.shape == (count,) and set(found.class_N) <= set(classes)
    assert found.box_N4.shape == (count, 4) and found.box_N4.dtype == found.score_N.dtype == np.float32
    assert found.mask_NHW.shape == (count, 60, 80) and found.mask_NHW.dtype == np.bool_
    assert found.score_N.min() >= 0 and found.score_N.max() <= 1
    assert (found.box_N4[:, :2] <= found.box_N4[:, 2:]).all()
    assert (found.box_N4 >= 0).all() and (found.box_N4 <= [80, 60, 80, 60]).all()


@pytest.mark.usefixtures("mm")
def test_mask_rcnn_gives_the_objects_of_each_frame(write: Write) -> None:
    from mmdet.datasets import CocoDataset

    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    torch.manual_seed(0)
    detector = MMDetDetector(write(SMALL_RCNN), None, "cpu")
    together = detector(frames())
    assert [len(found.score_N) for found in together] == [5, 5, 5]
    for i, found in enumerate(together):
        check(found, CocoDataset.METAINFO["classes"])
        alone = detector(frames()[i : i + 1])[0]
        assert (alone.class_N == found.class_N).all()
        np.testing.assert_allclose(alone.box_N4, found.box_N4, atol=1e-3)
        # What lies under a mask lies within its box, but for the half pixel at the border.
        rows, columns = np.nonzero(found.mask_NHW[0])
        left, top, right, bottom = found.box_N4[0]
        assert left - 1 <= columns.min() and columns.max() <= right + 1
        assert top - 1 <= rows.min() and rows.max() <= bottom + 1


@pytest.mark.usefixtures("mm")
def test_nothing_found_is_no_object(write: Write) -> None:
    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    # With random weights no pixel is surer than 0.1. SOLO's labels are floats where there are none.
    solo = "model = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))"
    detector = MMDetDetector(write(f'_base_ = "mmdet::solo/solo_r50_fpn_1x_coco.py"\n{solo}\n{STEPS}'), None, "cpu")
    for found in detector(frames(2)):
        assert len(found.class_N) == len(found.score_N) == len(found.box_N4) == 0
        assert found.mask_NHW.shape == (0, 60, 80)


@pytest.mark.usefixtures("mm")
def test_frames_reach_the_model_as_rgb(write: Write) -> None:
    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    detector = MMDetDetector(write(SMALL_RCNN), None, "cpu")
    seen: list[torch.Tensor] = []
    detector._model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    detector(np.full((1, 60, 80, 3), (200, 100, 50), dtype=np.uint8))
    means, stds = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # of ImageNet, RGB
    np.testing.assert_allclose(seen[0][0, :, 10, 10], (np.array([200, 100, 50]) - means) / stds, rtol=1e-5)


@pytest.mark.usefixtures("mm")
def test_a_checkpoint_brings_weights_and_classes(write: Write, tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    config, path = write(SMALL_RCNN), str(tmp_path / "epoch_1.pth")
    torch.manual_seed(0)
    trained = MMDetDetector(config, None, "cpu")
    names = tuple(f"kind {i}" for i in range(80))
    record = {"loss": HistoryBuffer([0.5, 0.25], [1, 1])}
    meta = {"dataset_meta": {"classes": names}, "epoch": 1, "ap": np.float64(0.3), "old": np.arange(3)}
    state = {f"module.{name}": value for name, value in trained._model.state_dict().items()}
    torch.save({"meta": meta, "state_dict": state, "message_hub": {"log_scalars": record}}, path)
    loaded = MMDetDetector(config, path, "cpu")
    for theirs, ours in zip(trained(frames()), loaded(frames()), strict=True):
        assert set(ours.class_N) <= set(names)
        np.testing.assert_array_equal(theirs.box_N4, ours.box_N4)
        np.testing.assert_array_equal(theirs.mask_NHW, ours.mask_NHW)


class _Reaching:
    """Pickled as a call of getattr that would reach into a module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (np.ndarray, "__globals__")


@pytest.mark.usefixtures("mm")
def test_unfit_checkpoints_are_refused(write: Write, tmp_path: Path) -> None:
    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    config, path = write(SMALL_RCNN), tmp_path / "weights.pth"
    for content, reason in [
        ({"state_dict": {"fc.weight": torch.zeros(2)}}, "lacks .* tensors of the config's model"),
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(2)}}, "does not fit the config: size mismatch"),
        ({"state_dict": 3}, "must hold a state dict"),
        (nn.Linear(2, 2), "holds more than weights and is not unpickled .*torch.nn"),
        ({"state_dict": {}, "meta": _Reaching()}, "not unpickled .*__globals__"),
    ]:
        torch.save(content, path)
        with pytest.raises(SettingError, match=reason) as error:
            MMDetDetector(config, str(path), "cpu")
        assert error.value.field == "segment.checkpoint"
    with pytest.raises(SettingError, match="cannot be read as a checkpoint"):
        MMDetDetector(config, str(tmp_path / "absent.pth"), "cpu")


@pytest.mark.usefixtures("mm")
def test_unfit_detector_configs_are_refused(write: Write) -> None:
    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    boxes_only = f'_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"\n{STEPS}'
    for text, reason in [(boxes_only, "finds no masks of single objects"), ("1 / 0", "ZeroDivisionError"),
                         ('model = dict(type="NoSuchModel")', "cannot be built")]:  # fmt: skip
        with pytest.raises(SettingError, match=reason):
            MMDetDetector(write(text), None, "cpu")
    with pytest.raises(SettingError, match=r"absent\.py.*nor is it one of mmdet's own configs"):
        MMDetDetector("absent.py", None)


@pytest.mark.usefixtures("mm")
def test_stand_in_ops_are_torchvisions() -> None:
    from mmcv.ops import nms, roi_align
    from torchvision.ops import roi_align as expected_roi_align

    ops = sys.modules["mmcv._ext"]
    if not isinstance(ops, openmmlab._Ops):
        pytest.skip("mmcv is compiled here: its own ops are in use")
    # Three pixels wide to their last pixel: the intersection over union is 1/2 with the pixel counted, 1/3 without.
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]]), torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]
    features = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rois = torch.tensor([[0.0, 1.5, 2, 6, 7]])
    pooled = roi_align(features, rois, (3, 3), 0.5, 2, "avg", True)
    expected = expected_roi_align(features, rois, (3, 3), 0.5, 2, aligned=True)
    torch.testing.assert_close(pooled, expected)
    grads = [torch.autograd.grad(result.square().sum(), features)[0] for result in (pooled, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].any()
    with pytest.raises(MissingPackageError, match=r"needs mmcv's op carafe_forward.*Compile mmcv"):
        ops.carafe_forward(1, 2)


@pytest.mark.usefixtures("mm")
@pytest.mark.parametrize("text", RECOGNIZERS, ids=["tsn", "tsm", "slowonly"])
def test_recognizers_train_by_our_step(write: Write, text: str) -> None:
    torch.manual_seed(0)
    network = build_network(recognizer(write(text)), 5)
    features = network.eval().features(clips())
    assert features.shape == (2, 512) == (2, network.feature_size)
    torch.testing.assert_close(network(clips()), network.head(features))
    pooled = network.feature_map(clips())
    assert pooled.shape[:3] == (2, 512, 4)
    torch.testing.assert_close(pooled.mean((2, 3, 4)), features)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = make_optimizer(network, ClassifierSettings(learning_rate=0.01))
    losses = [train_step(network, optimizer, clips(), torch.eye(5)[:2]) for _ in range(2)]
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert {"head.weight", next(name for name in before if "conv1" in name)} <= moved
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("mm")
@pytest.mark.parametrize("text", RECOGNIZERS, ids=["tsn", "tsm", "slowonly"])
def test_mmactions_checkpoints_give_mmactions_logits(write: Write, tmp_path: Path, text: str) -> None:
    config, path = write(text), str(tmp_path / "best.pth")
    settings = openmmlab.read_config("mmaction", config, "config")
    settings.model.cls_head.num_classes = 3
    theirs: Any = openmmlab.build_model("mmaction", settings, config, "config").eval()
    torch.save({"meta": {"epoch": np.int64(3)}, "state_dict": theirs.state_dict()}, path)
    ours = build_network(recognizer(config, path), 3).eval()
    # mmaction2's own way: a list of clips, (segments, C, H, W) or (views, C, T, H, W), through its preprocessor.
    shaped = [clip.permute(0, 3, 1, 2) if text != SLOWONLY else clip.permute(3, 0, 1, 2)[None] for clip in clips()]
    data = theirs.data_preprocessor({"inputs": shaped, "data_samples": None})
    with torch.inference_mode():
        expected = theirs(data["inputs"], stage="head")
        torch.testing.assert_close(ours(clips()), expected, rtol=1e-3, atol=1e-4)
        assert build_network(recognizer(config, path), 4).eval()(clips()).shape == (2, 4)  # the head starts anew


@pytest.mark.usefixtures("mm")
def test_trained_recognizers_are_kept_as_safetensors(write: Write, tmp_path: Path) -> None:
    settings, path = recognizer(write(SLOWONLY)), tmp_path / "model.safetensors"
    trained = build_network(settings, 3)
    save_network(path, trained)
    for loaded in (load_network(path, settings, 3), build_network(recognizer(str(settings.config), str(path)), 3)):
        assert torch.equal(loaded.eval()(clips()), trained.eval()(clips()))


@pytest.mark.usefixtures("mm")
def test_unfit_recognizers_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is a RecognizerOmni: must be a Recognizer2D"):
        build_network(recognizer("recognition/omnisource/slowonly_r50_8xb16-8x8x1-256e_imagenet-kinetics400-rgb.py"), 3)
    with pytest.raises(SettingError, match="TRNHead with 7 linear layers"):
        build_network(recognizer("recognition/trn/trn_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv1-rgb.py"), 3)
    tsm = build_network(recognizer(write(TSM)), 3)
    check_input(tsm, "mmaction2", 4, 32)
    with pytest.raises(SettingError, match=r"makes \(2, 512\) of 1 clips.*decode\.frames"):
        check_input(tsm, "mmaction2", 8, 32)
    torch.save({"state_dict": {"backbone.conv1.conv.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(SettingError, match="not a state dict of mmaction2"):
        build_network(recognizer(write(TSM), str(tmp_path / "other.pth")), 3)
