import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.models.video
from torch import nn
from torchvision.models import WeightsEnum, get_model, list_models

from l2a_ray.classifier.network import MEAN, STD, Network, check_input, save_network
from l2a_ray.classifier.settings import NETWORKS, Name, NetworkSettings
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.errors import SettingError, StorageError

SMALL = NetworkSettings(name="small3d", width=4)


def clips(frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (2, frames, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(clips_BTHWC: torch.Tensor) -> torch.Tensor:
    return ((clips_BTHWC / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)


def test_the_list_of_networks_is_torchvisions() -> None:
    assert list(NETWORKS[1:-2]) == list_models(module=torchvision.models.video)


@pytest.mark.parametrize(("settings", "feature_size"), [(SMALL, 32), (NetworkSettings(name="r3d_18"), 512)])
def test_logits_are_the_head_of_the_features(settings: NetworkSettings, feature_size: int) -> None:
    network = build_network(settings, 5).eval()
    features = network.features(clips())
    assert features.shape == (2, feature_size) == (2, network.feature_size)
    assert network(clips()).shape == (2, 5)
    torch.testing.assert_close(network(clips()), network.head(features))


def test_pixels_are_normalised_as_torchvision_does() -> None:
    network = Network(nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()), 3, 2)
    torch.testing.assert_close(network.features(clips()), normalised(clips()).mean((2, 3, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "frames", "size"), [("r3d_18", 4, 32), ("s3d", 16, 224)])
def test_torchvisions_weights_give_torchvisions_logits(tmp_path: Path, name: Name, frames: int, size: int) -> None:
    theirs = get_model(name, weights=None, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build_network(NetworkSettings(name=name, weights=str(tmp_path / "weights.pth")), 3).eval()
    clip = clips(frames, size)[:1]
    with torch.inference_mode():
        torch.testing.assert_close(ours(clip), theirs(normalised(clip)), rtol=1e-3, atol=1e-4)


def test_head_of_other_classes_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = build_network(SMALL, 7)
    path = tmp_path / "model.safetensors"
    save_network(path, trained)
    with caplog.at_level(logging.WARNING):
        network = build_network(NetworkSettings(name="small3d", width=4, weights=str(path)), 3)
    assert "head has 7 classes" in caplog.text
    assert network(clips()).shape == (2, 3)
    torch.testing.assert_close(network.features(clips()), trained.features(clips()))


def test_trained_model_is_loaded_strictly(tmp_path: Path) -> None:
    trained, path = build_network(SMALL, 3), tmp_path / "model.safetensors"
    save_network(path, trained)
    loaded = load_network(path, SMALL, 3)
    assert torch.equal(loaded.eval()(clips()), trained.eval()(clips()))
    for settings, num_classes in [(SMALL, 4), (NetworkSettings(name="small3d", width=8), 3)]:
        with pytest.raises(StorageError, match="Train again, or name the network"):
            load_network(path, settings, num_classes)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        load_network(path, SMALL, 3)


def refused(weights: str | Path, reason: str, name: Name = "small3d") -> None:
    with pytest.raises(SettingError, match=reason) as error:
        build_network(NetworkSettings(name=name, width=4, weights=str(weights)), 3)
    assert error.value.field == "weights"


def test_unfit_weights_are_refused_with_advice(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_network(other, build_network(NetworkSettings(name="small3d", width=8), 3))
    refused(other, "not a state dict of small3d.*Name the network")
    torch.save({"state": {"epoch": 3}}, tmp_path / "nested.pt")
    refused(tmp_path / "nested.pt", "plain state dict")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")
    refused(tmp_path / "pickled.pth", "cannot be read as weights")
    (tmp_path / "text.pth").write_text("not weights")
    refused(tmp_path / "text.pth", "cannot be read as weights")
    refused(tmp_path / "absent.safetensors", "cannot be read as weights")
    refused("KINETICS9", r"torchvision's name of weights \(none for this network\)")
    refused("KINETICS9", r"torchvision's name of weights \(.*KINETICS400_V1", name="r3d_18")


def test_unreachable_download_names_the_file_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    refused("DEFAULT", r"no route to host.*Fetch https://.*r3d_18.*\.pth by hand", name="r3d_18")


def test_files_are_found_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_network(Path("model.safetensors"), build_network(SMALL, 3))
    settings = NetworkSettings(name="small3d", width=4, weights="model.safetensors").with_absolute_paths()
    monkeypatch.chdir(tmp_path.parent)
    assert build_network(settings, 3)(clips()).shape == (2, 3)
    assert NetworkSettings(weights="DEFAULT").with_absolute_paths().weights == "DEFAULT"


@pytest.mark.parametrize(
    ("settings", "frames", "size"),
    [
        (SMALL, 4, 32),
        (NetworkSettings(name="r3d_18"), 4, 32),
        (NetworkSettings(name="swin3d_t"), 4, 32),
        (NetworkSettings(name="s3d"), 16, 224),
    ],
)
def test_mean_of_the_map_is_the_feature(settings: NetworkSettings, frames: int, size: int) -> None:
    network = build_network(settings, 3).eval()
    clip = clips(frames, size)[:1]
    with torch.inference_mode():
        features, pooled = network.features(clip), network.feature_map(clip)
        assert pooled.dim() == 5 and pooled.shape[:2] == (1, network.feature_size) and pooled[0, 0].numel() > 1
        torch.testing.assert_close(pooled.mean((2, 3, 4)), features, rtol=1e-4, atol=1e-5)
        assert torch.equal(network.features(clip), features)  # the map leaves nothing behind


def test_a_network_without_a_map_says_so() -> None:
    network = build_network(NetworkSettings(name="mvit_v1_b"), 3)
    with pytest.raises(SettingError, match=r"^name='MViT': pools no map .* Choose small3d"):
        network.feature_map(clips(16, 224)[:1])


def test_a_loaded_network_is_where_its_process_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_network(tmp_path / "model.safetensors", build_network(SMALL, 3))
    monkeypatch.setattr("l2a_ray.classifier.zoo.best_device", lambda: torch.device("meta"))
    network = load_network(tmp_path / "model.safetensors", SMALL, 3)
    assert {tensor.device.type for tensor in (*network.parameters(), network.mean)} == {"meta"}
    there = load_network(tmp_path / "model.safetensors", SMALL, 3, torch.device("cpu"))
    assert {parameter.device.type for parameter in there.parameters()} == {"cpu"}


def test_precision_is_a_setting() -> None:
    assert build_network(SMALL, 3).autocast
    assert not build_network(NetworkSettings(name="small3d", width=4, precision="float32"), 3).autocast


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^name='resnet': must be one of small3d, mc3_18"):
        NetworkSettings(name="resnet")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"^width=0"):
        NetworkSettings(name="small3d", width=0)
    with pytest.raises(SettingError, match=r"mvit_v2_s.* 4 frames of 32x32 pixels"):
        check_input(build_network(NetworkSettings(name="mvit_v2_s"), 3), "mvit_v2_s", 4, 32)
