"""What a network of images says of each frame, kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from test_samples import FRAMES, make_store

from l2a_ray.classifier import teacher
from l2a_ray.classifier.framewise import FramewiseNetwork
from l2a_ray.classifier.imagenet import packaged_weights
from l2a_ray.classifier.settings import TeacherSettings
from l2a_ray.classifier.teacher import Teacher, write_probabilities
from l2a_ray.errors import SettingError, StageError, StorageError
from l2a_ray.prepare.store import ClipStore

CROP = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 5)


@pytest.fixture(autouse=True)
def two_clips_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "PART", 2)


@pytest.fixture(scope="module")
def taught(store: ClipStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teach")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "PART", 2)
        write_probabilities(store, TeacherSettings(crop=CROP), out)
    return out


def test_each_frame_has_what_timm_says_of_it_as_a_picture(store: ClipStore, taught: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(packaged_weights("tf_efficientnet_lite0"))
    ids = store.index["id"].tolist()
    found = Teacher(taught).of(ids)
    assert found.shape == (5, FRAMES, 1000) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=2), 1, atol=1e-6)
    for clip_id, probabilities in zip(ids, found, strict=True):
        frames = torch.from_numpy(store.read(clip_id).frames_THWC)
        side = (frames.shape[1] - CROP) // 2
        pixels = frames[:, side : side + CROP, side : side + CROP].permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            expected = model((pixels - 127) / 128).softmax(dim=1)
        np.testing.assert_allclose(probabilities, expected.numpy(), rtol=2e-3, atol=1e-6)  # float16 keeps 11 bits
    assert sorted(path.name for path in taught.iterdir()) == [
        "clips.parquet",
        *(f"probabilities-0000{part}.safetensors" for part in range(3)),
    ]


def test_clips_are_found_in_any_order_and_more_than_once(store: ClipStore, taught: Path) -> None:
    ids = store.index["id"].tolist()
    whole, some = Teacher(taught).of(ids), Teacher(taught).of([ids[4], ids[0], ids[4]])
    np.testing.assert_array_equal(some, whole[[4, 0, 4]])
    with pytest.raises(StageError, match=r"has not seen clip beef: .*`l2a teach`"):
        Teacher(taught).of([ids[0], "beef"])


def test_what_is_there_is_not_computed_again(
    store: ClipStore, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop loses no more than the file in work."""
    done = "probabilities-00000.safetensors"
    (tmp_path / done).write_bytes((taught / done).read_bytes())
    asked: list[int] = []
    say = FramewiseNetwork.frame_logits

    def counted(network: FramewiseNetwork, clips: torch.Tensor) -> torch.Tensor:
        asked.append(len(clips))
        return say(network, clips)

    monkeypatch.setattr(FramewiseNetwork, "frame_logits", counted)
    write_probabilities(store, TeacherSettings(crop=CROP), tmp_path)
    assert asked == [2, 1]
    ids = store.index["id"].tolist()
    np.testing.assert_array_equal(Teacher(tmp_path).of(ids), Teacher(taught).of(ids))


def test_what_is_missing_or_damaged_is_named(store: ClipStore, taught: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"clips\.parquet.*`l2a teach`"):
        Teacher(tmp_path)
    for path in taught.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "probabilities-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    ids = store.index["id"].tolist()
    Teacher(tmp_path).of(ids[:2])
    with pytest.raises(StorageError, match=r"probabilities-00001.*made anew"):
        Teacher(tmp_path).of(ids[2:3])


def test_a_teacher_has_the_classes_of_its_weights(store: ClipStore, tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    path = tmp_path / "seven.safetensors"
    safetensors.torch.save_file(state, path)
    settings = TeacherSettings(backbone="resnet18", weights=str(path), crop=CROP)
    write_probabilities(store, settings, tmp_path / "out")
    assert Teacher(tmp_path / "out").of(store.index["id"].tolist()[:1]).shape == (1, FRAMES, 7)
    safetensors.torch.save_file({name: value for name, value in state.items() if not name.startswith("fc.")}, path)
    with pytest.raises(SettingError, match=r"teacher\.weights=.*has no head of resnet18"):
        write_probabilities(store, settings, tmp_path / "other")
    with pytest.raises(SettingError, match=r"teacher\.backbone='resnet1'.*resnet18"):
        write_probabilities(store, replace(settings, backbone="resnet1"), tmp_path / "other")
    with pytest.raises(SettingError, match=r"teacher\.crop=99: must be at most"):
        write_probabilities(store, replace(TeacherSettings(), crop=99), tmp_path / "other")
    with pytest.raises(SettingError, match=r"crop=0"):
        TeacherSettings(crop=0)
