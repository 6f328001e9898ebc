"""What every network that learns actions is: a backbone and a linear head over its features.

Axes: B clips in a batch, T time, H height, W width, C channel, F features, L classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NoReturn, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from l2a_ray.errors import SettingError
from l2a_ray.storage.files import AnyPath, write_bytes

# Kinetics-400, RGB in [0, 1]: torchvision.transforms._presets.VideoClassification.
MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)


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
    autocast = True
    """Whether the backbone computes in bfloat16 on a GPU."""

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
        self._frozen: tuple[str, ...] = ()
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def freeze(self, names: Sequence[str]) -> None:
        """Keep parts of the network as they are: no gradient reaches them, and they compute as in a test.

        So the parts before the first that learns cost no pass back.

        Args:
            names: of submodules, as ``backbone`` or ``backbone.layer1``.

        Raises:
            SettingError: of ``freeze``: there is no such part, or nothing is left to learn.
        """
        for name in names:
            try:
                part = self.get_submodule(name)
            except AttributeError:
                there = ", ".join(f"backbone.{child}" for child, _ in self.backbone.named_children())
                reason = f"is no part of the network; there are backbone, head and, among others, {there}"
                raise SettingError("freeze", name, reason) from None
            part.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise SettingError("freeze", list(names), "leaves nothing to learn. Leave out the head")
        self._frozen = tuple(names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but of frozen parts."""
        super().train(mode)
        for name in self._frozen:  # by name, for layers are replaced when several workers train
            self.get_submodule(name).eval()
        return self

    def features(self, clips_BTHWC: Tensor) -> Tensor:
        """Return the input of the head, float (B, F), of uint8 clips."""
        return self._run(self.run_backbone, clips_BTHWC)

    def frame_features(self, clips_BTHWC: Tensor) -> Tensor:
        """Return a feature for each frame by itself, float (B, T, F), of uint8 clips; here one for the whole clip."""
        return self.features(clips_BTHWC)[:, None]

    def feature_map(self, clips_BTHWC: Tensor) -> Tensor:
        """Return what the backbone pools to features, float (B, F, T', H', W') with strides of its own, of uint8 clips.

        Raises:
            SettingError: the backbone has no such map.
        """
        return self._run(self.run_to_map, clips_BTHWC)

    def run_backbone(self, clips_BCTHW: Tensor) -> Tensor:
        """Return features (B, F) of normalised clips."""
        features: Tensor = self.backbone(clips_BCTHW)
        return features

    def run_to_map(self, clips_BCTHW: Tensor) -> Tensor:
        """Return the map of features (B, F, T', H', W') of normalised clips: what enters the layer ``avgpool``."""
        pool = getattr(self.backbone, "avgpool", None)
        if pool is None:
            refuse_map(self.backbone)
        seen: list[Tensor] = []
        hook = pool.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
        try:
            self.run_backbone(clips_BCTHW)
        finally:
            hook.remove()
        return seen[0]

    def _run(self, run: Callable[[Tensor], Tensor], clips_BTHWC: Tensor) -> Tensor:
        # A permuted uint8 clip already lies in channels_last_3d order: the cast to float is the only copy.
        x = (clips_BTHWC.permute(0, 4, 1, 2, 3).float() - self.mean) * self.scale
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=x.is_cuda and self.autocast):
            out = run(x)
        return out.float()

    def forward(self, clips_BTHWC: Tensor) -> Tensor:
        """Return logits, float32 (B, L), of uint8 clips."""
        logits: Tensor = self.head(self.features(clips_BTHWC))
        return logits


def refuse_map(backbone: nn.Module) -> NoReturn:
    """Say that a network has no map of features.

    Raises:
        SettingError: always, of ``name``.
    """
    reason = "pools no map of features over time and place, as transformers with a class token do not"
    raise SettingError("name", type(backbone).__name__, f"{reason}. Choose small3d, a CNN of torchvision or swin3d")


def save_network(path: AnyPath, network: Network) -> None:
    """Write a network's weights as ``load_network`` reads them.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes(path, safetensors.torch.save(weights))


def backbone_digest(network: Network) -> str:
    """Return what tells backbones of different weights apart."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in network.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_input(network: Network, name: str, frames: int, size: int, field: str = "name") -> None:
    """Refuse clips that a network cannot take, before any training starts.

    Raises:
        SettingError: of ``field``: a forward pass over ``frames`` frames of ``size`` pixels fails.
    """
    try:
        with torch.no_grad():
            network.eval()(torch.zeros((1, frames, size, size, 3), dtype=torch.uint8))
    except (RuntimeError, ValueError) as error:
        reason = f"does not take clips of {frames} frames of {size}x{size} pixels ({str(error).splitlines()[0]})"
        advice = "choose another network, or the frames (decode.frames, classifier.frames) and the crop it was made for"
        raise SettingError(field, name, f"{reason}: {advice}") from error
