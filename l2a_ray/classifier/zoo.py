"""The networks that learn actions: torchvision's video models, a small one of ours for CPUs, mmaction2's and timm's.

Axes: B clips in a batch, T time, H height, W width, C channel, F features, L classes.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import IMAGENET, MMACTION, SMALL, TIMM, Name
from l2a_ray.classifier.settings import NetworkSettings as NetworkSettings
from l2a_ray.errors import SettingError, StorageError
from l2a_ray.runtime.device import best_device
from l2a_ray.runtime.openmmlab import read_checkpoint
from l2a_ray.storage.files import AnyPath, read_bytes
from l2a_ray.storage.weights import WeightsError, read_weights

log = logging.getLogger(__name__)


def build_network(settings: NetworkSettings, num_classes: int) -> Network:
    """Build a network; random weights come from torch's global generator, so seed that first.

    Raises:
        MissingPackageError: mmaction2 or a package of weights is asked for and not installed.
        SettingError: the weights cannot be had, or belong to another network.
    """
    network: Network
    if settings.name == MMACTION:
        from l2a_ray.classifier.recognizer import build_recognizer

        network, head_name = build_recognizer(cast(str, settings.config), num_classes)
    elif settings.name == TIMM:
        from l2a_ray.classifier.framewise import build_framewise

        network, head_name = build_framewise(settings.backbone, settings.temporal, num_classes)
    elif settings.name == SMALL:
        network, head_name = Network(_small3d(settings.width), 8 * settings.width, num_classes), "head"
    else:
        backbone, feature_size, head_name = _torchvision(settings.name)
        network = Network(backbone, feature_size, num_classes)
    network.autocast = settings.precision == "auto"
    if settings.weights is not None:
        _load_weights(network, settings, head_name)
    return network


def build_with_head(settings: NetworkSettings) -> Network:
    """Build a network of timm with the head of its weights, and as many classes as that has.

    Raises:
        SettingError: of ``settings``: the weights have no head, or as :func:`build_network`.
    """
    from l2a_ray.classifier.framewise import build_framewise

    head_name = build_framewise(settings.backbone, settings.temporal, 1)[1]
    state = _read_weights(settings)
    head = next((state[key] for key in ("head.weight", f"{head_name}.weight") if key in state), None)
    if head is None:
        _refuse(settings, f"has no head of {settings.backbone}, so there are no classes that it could tell apart")
    return build_network(settings, len(head))


def load_network(
    path: AnyPath, settings: NetworkSettings, num_classes: int, device: torch.device | None = None
) -> Network:
    """Load what ``save_network`` wrote; ``settings.weights`` plays no part.

    Args:
        path: its file.
        settings: the network that it is of.
        num_classes: L.
        device: where it is to run; None: on this process's GPU, if it has one.

    Raises:
        StorageError: the file is missing or damaged, or holds another network or other classes.
    """
    network = build_network(replace(settings, weights=None), num_classes)
    try:
        network.load_state_dict(safetensors.torch.load(read_bytes(path)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StorageError(
            f"{path}: no weights of {settings.name} (width {settings.width}) for {num_classes} classes: {error}. "
            "Train again, or name the network that these weights are of"
        ) from error
    return network.to(device or best_device())


def _small3d(width: int) -> nn.Module:
    """Four blocks of 3x3x3 convolution, small enough to be trained on CPUs."""
    layers: list[nn.Module] = []
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    for i, stride in enumerate([(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]):
        convolution = nn.Conv3d(channels[i], channels[i + 1], 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(channels[i + 1]), nn.ReLU(inplace=True)]
    backbone = nn.Sequential(*layers)
    backbone.add_module("avgpool", nn.AdaptiveAvgPool3d(1))
    backbone.add_module("flatten", nn.Flatten())
    return backbone


def _torchvision(name: str) -> tuple[nn.Module, int, str]:
    """Return a torchvision model without its head, the head's input size and the head's name in state dicts."""
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    # The head is the last layer with weights. s3d's is a 1x1x1 convolution followed by a mean, which equals a mean
    # followed by our linear head.
    head_name, head = [
        (key, layer) for key, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv3d)
    ][-1]
    parent, _, child = head_name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, head.in_features if isinstance(head, nn.Linear) else head.in_channels, head_name


def _load_weights(network: Network, settings: NetworkSettings, head_name: str) -> None:
    """Load ``settings.weights`` into a network: our own state dict, or one of torchvision's or mmaction2's."""
    state = _read_weights(settings)
    if not all(key.startswith(("backbone.", "head.")) for key in state):
        state = {_our_name(key, head_name): value for key, value in state.items()}
    own = network.state_dict()
    for part in ("weight", "bias"):
        head = state.get(f"head.{part}")
        if head is not None and head.numel() == own[f"head.{part}"].numel():
            state[f"head.{part}"] = head.reshape(own[f"head.{part}"].shape)
        elif head is not None:
            log.warning("%s: its head has %d classes, not ours: the head starts anew", settings.weights, len(head))
            state[f"head.{part}"] = own[f"head.{part}"]
    wrong = [key for key in own.keys() | state.keys() if key not in own or key not in state]
    wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if wrong:
        _refuse(settings, f"is not a state dict of {settings.name}: {len(wrong)} of its tensors, {min(wrong)} say, do "
                          "not fit. Name the network that these weights are of")  # fmt: skip
    network.load_state_dict(state)


def _our_name(key: str, head_name: str) -> str:
    """Return our name of a tensor in a state dict of others."""
    return "head" + key.removeprefix(head_name) if key.startswith(head_name + ".") else f"backbone.{key}"


def _read_weights(settings: NetworkSettings) -> dict[str, Tensor]:
    """Read a state dict from a file, from a package, or from torchvision's or timm's download."""
    name = cast(str, settings.weights)
    if settings.name == MMACTION and Path(name).suffix != ".safetensors":
        return read_checkpoint(name, "weights")[0]
    try:
        if settings.name == TIMM and name in (IMAGENET, "DEFAULT"):
            from l2a_ray.classifier.imagenet import downloaded_weights, packaged_weights

            return (packaged_weights if name == IMAGENET else downloaded_weights)(settings.backbone)
        return read_weights(name, _choices(settings.name))
    except WeightsError as error:
        _refuse(settings, str(error))


def _choices(name: Name) -> Any:
    """Return torchvision's enumeration of weights for a network, if it is one of its own."""
    from torchvision.models import get_model_weights

    return None if name in (SMALL, MMACTION, TIMM) else get_model_weights(name)


def _refuse(settings: NetworkSettings, reason: str) -> NoReturn:
    raise SettingError("weights", settings.weights, reason)
