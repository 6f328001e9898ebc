"""Tests of l2a_ray.prepare.segment.choose and of what a run makes of it."""

import logging
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

from l2a_ray.config import load
from l2a_ray.errors import SettingError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter, choose
from l2a_ray.prepare.segment.choose import choose as chosen
from l2a_ray.prepare.segment.settings import DEFAULT_WEIGHTS

FILE = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's downloads, empty; there is no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(choose, "urlopen", _unreachable)
    return Path(torch.hub.get_dir()) / "checkpoints"


def _unreachable(*arguments: object, **options: object) -> None:
    raise URLError("no network")


def test_the_address_is_torchvisions() -> None:
    assert MaskRCNN_ResNet50_FPN_V2_Weights[DEFAULT_WEIGHTS].url == choose.WEIGHTS_URL


def auto(**given: Any) -> SegmentSettings:
    return SegmentSettings(kind="auto", **given)


def put_masks(root: Path) -> None:
    (root / "masks/walk").mkdir(parents=True)
    np.save(root / "masks/walk/a.npy", np.zeros((2, 4, 4), np.bool_))


def put_weights(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(b"")


def test_where_nothing_is_there_people_are_looked_for(tmp_path: Path) -> None:
    settings, reason = chosen(auto(), str(tmp_path))
    assert settings == SegmentSettings(kind="people")
    assert "no mask in" in reason and "Mask R-CNN" in reason and "no GPU is reserved" in reason


def test_masks_beside_the_videos_come_first(tmp_path: Path, cache: Path) -> None:
    put_masks(tmp_path)
    put_weights(cache)
    settings, reason = chosen(auto(gpus_per_worker=1), str(tmp_path))
    assert settings == SegmentSettings(kind="precomputed", masks=str(tmp_path / "masks"))
    assert reason == f"there are masks in {tmp_path / 'masks'}"


def test_a_class_that_is_called_masks_is_none(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.mp4").write_bytes(b"")
    assert chosen(auto(), str(tmp_path))[0].kind == "people"


def test_what_is_named_is_taken(tmp_path: Path) -> None:
    settings, reason = chosen(auto(masks="elsewhere"), str(tmp_path))
    assert (settings.kind, settings.masks) == ("precomputed", "elsewhere") and "segment.masks" in reason
    settings, reason = chosen(auto(weights="mine.pth"), str(tmp_path))
    assert (settings.kind, settings.weights) == ("maskrcnn", "mine.pth") and "segment.weights" in reason


def test_weights_that_were_fetched_before_are_used(tmp_path: Path, cache: Path) -> None:
    put_weights(cache)
    settings, reason = chosen(auto(), str(tmp_path))
    assert settings == SegmentSettings(kind="maskrcnn") and str(cache / FILE) in reason


def test_weights_are_fetched_for_a_gpu_where_there_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, reason = chosen(auto(gpus_per_worker=0.5), str(tmp_path))
    assert settings == SegmentSettings(kind="people", gpus_per_worker=0) and "does not answer" in reason
    monkeypatch.setattr(choose, "_answers", lambda url: url.endswith(FILE))
    settings, reason = chosen(auto(gpus_per_worker=0.5), str(tmp_path))
    assert settings == SegmentSettings(kind="maskrcnn", gpus_per_worker=0.5) and "a GPU is reserved" in reason


@pytest.mark.parametrize("kind", ["motion", "people", "maskrcnn"])
def test_a_kind_that_is_named_stays(kind: Any, tmp_path: Path) -> None:
    put_masks(tmp_path)
    settings = SegmentSettings(kind=kind, gpus_per_worker=1)
    assert chosen(settings, str(tmp_path)) == (settings, "")


def test_auto_is_no_segmenter() -> None:
    with pytest.raises(SettingError, match=r"^kind='auto'"):
        build_segmenter(auto())


def pipeline(root: Path, **changes: Any) -> Pipeline:
    return Pipeline(load(**{"name": "a", "runs": str(root / "runs"), "data.root": str(root)} | changes))


def test_results_are_those_of_the_kind_that_is_chosen(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {kind: pipeline(tmp_path, **{"segment.kind": kind}).prepare for kind in ("people", "maskrcnn")}
    with caplog.at_level(logging.INFO):
        found = pipeline(tmp_path).prepare
    assert [record.message.split(",")[0] for record in caplog.records] == ["segment: people"]
    assert found.clips.key == kinds["people"].clips.key and found.key({}) == kinds["people"].key({})
    put_weights(cache)  # later: other clips, in another folder
    after = pipeline(tmp_path).prepare
    assert after.clips.key == kinds["maskrcnn"].clips.key != found.clips.key
    assert after.key({}) == kinds["maskrcnn"].key({}) != found.key({})
