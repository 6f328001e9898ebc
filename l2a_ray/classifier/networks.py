"""The networks that learn actions: torchvision's video models, a small one of ours for CPUs, and mmaction2's.

Axes: B clips in a batch, T time, H height, W width, C channel, F features, L classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from l2a_ray.classifier.settings import MMACTION, SMALL
from l2a_ray.classifier.settings import NetworkSettings as NetworkSettings
from l2a_ray.errors import SettingError, StorageError
from l2a_ray.files import AnyPath, read_bytes, write_bytes
from l2a_ray.openmmlab import read_checkpoint
from l2a_ray.weights import WeightsError, read_weights

# Kinetics-400, RGB in [0, 1]: torchvision.transforms._presets.VideoClassification.
MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)

log = logging.getLogger(__name__)


class Network(nn.Module):
    """A backbone and a linear head; takes uint8 clips as they are stored.

    Args:
        backbone: maps normalised clips (B, C, T, H, W) to features (B, F).
        feature_size: F.
        num_classes: L.
        mean: of red, green and blue over the clips that the network was made for, in [0, 1].
        std: their standard deviation.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        num_classes: int,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(feature_size, num_classes)
        self.feature_size = feature_size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(3, 1, 1, 1)), persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def features(self, clips_BTHWC: Tensor) -> Tensor:
        """Return the input of the head, float (B, F), of uint8 clips."""
        # A permuted uint8 clip already lies in channels_last_3d order: the cast to float is the only copy.
        x = (clips_BTHWC.permute(0, 4, 1, 2, 3).float() - self.mean) * self.scale
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=x.is_cuda):
            features = self.run_backbone(x)
        return features.float()

    def run_backbone(self, clips_BCTHW: Tensor) -> Tensor:
        """Return features (B, F) of normalised clips."""
        features: Tensor = self.backbone(clips_BCTHW)
        return features

    def forward(self, clips_BTHWC: Tensor) -> Tensor:
        """Return logits, float32 (B, L), of uint8 clips."""
        logits: Tensor = self.head(self.features(clips_BTHWC))
        return logits


def build_network(settings: NetworkSettings, num_classes: int) -> Network:
    """Build a network; random weights come from torch's global generator, so seed that first.

    Raises:
        MissingPackageError: mmaction2 is asked for and not installed.
        SettingError: the weights cannot be had, or belong to another network.
    """
    network: Network
    if settings.name == MMACTION:
        from l2a_ray.classifier.recognizer import build_recognizer

        network, head_name = build_recognizer(cast(str, settings.config), num_classes)
    elif settings.name == SMALL:
        network, head_name = Network(_small3d(settings.width), 8 * settings.width, num_classes), "head"
    else:
        backbone, feature_size, head_name = _torchvision(settings.name)
        network = Network(backbone, feature_size, num_classes)
    if settings.weights is not None:
        _load_weights(network, settings, head_name)
    return network


def save_network(path: AnyPath, network: Network) -> None:
    """Write a network's weights as ``load_network`` reads them.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes(path, safetensors.torch.save(weights))


def load_network(path: AnyPath, settings: NetworkSettings, num_classes: int) -> Network:
    """Load what ``save_network`` wrote; ``settings.weights`` plays no part.

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
    return network


def check_input(network: Network, name: str, frames: int, size: int) -> None:
    """Refuse clips that a network cannot take, before any training starts.

    Raises:
        SettingError: a forward pass over ``frames`` frames of ``size`` pixels fails.
    """
    try:
        with torch.no_grad():
            network.eval()(torch.zeros((1, frames, size, size, 3), dtype=torch.uint8))
    except (RuntimeError, ValueError) as error:
        reason = f"does not take clips of {frames} frames of {size}x{size} pixels ({str(error).splitlines()[0]})"
        advice = "choose another network, or the decode.frames and classifier.crop it was made for"
        raise SettingError("classifier.network.name", name, f"{reason}: {advice}") from error


def _small3d(width: int) -> nn.Module:
    """Four blocks of 3x3x3 convolution: 3 ms a clip, forward and backward, at 8x56x56, width 16, on one thread."""
    layers: list[nn.Module] = []
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    for i, stride in enumerate([(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]):
        convolution = nn.Conv3d(channels[i], channels[i + 1], 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(channels[i + 1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten())


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
    """Read a state dict from a file, or from torchvision's download."""
    from torchvision.models import get_model_weights

    name = cast(str, settings.weights)
    if settings.name == MMACTION and Path(name).suffix != ".safetensors":
        return read_checkpoint(name, "classifier.network.weights")[0]
    try:
        return read_weights(name, None if settings.name in (SMALL, MMACTION) else get_model_weights(settings.name))
    except WeightsError as error:
        _refuse(settings, str(error))


def _refuse(settings: NetworkSettings, reason: str) -> NoReturn:
    raise SettingError("classifier.network.weights", settings.weights, reason)
