"""Any 2D network of timm as a network of videos: each frame goes through it, and time is mixed without new weights.

Axes: B clips in a batch, T time, H height, W width, C channel, F features, L classes.
"""

import difflib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from l2a_ray.classifier.network import Network, refuse_map
from l2a_ray.classifier.settings import Temporal
from l2a_ray.errors import SettingError

SHIFTED = 8
"""One channel of so many is taken from the next frame, and one from the frame before (TSM, 4.1: 1/8 each)."""
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""What EfficientNet-Lite was trained with; timm says 0.5 and 0.5, which is half a grey level off."""


class FramewiseNetwork(Network):
    """Features of frames, pooled over time.

    Args:
        backbone: a timm network without its head: maps normalised frames (N, C, H, W) to features (N, F).
        num_classes: L.
        mean: of red, green and blue over the images that the backbone was made for, in [0, 1].
        std: their standard deviation.
        temporal: how time is mixed (:class:`~l2a_ray.classifier.settings.NetworkSettings`).

    Raises:
        SettingError: ``temporal`` is ``shift`` and the backbone has no residual block that is known here.
    """

    def __init__(
        self, backbone: Any, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...], temporal: Temporal
    ) -> None:
        parts = 2 if temporal == "mean_std" else 1
        super().__init__(backbone, parts * backbone.head_hidden_size, num_classes, mean, std)
        self._temporal, self._frames = temporal, 1
        if temporal == "shift":
            layers = list(residual_convolutions(backbone))
            if not layers:
                reason = f"{type(backbone).__name__} has no residual block to shift in. Choose mean_std or mean"
                raise SettingError("temporal", temporal, reason)
            for layer in layers:
                layer.register_forward_pre_hook(self._shift)

    def run_backbone(self, clips_BCTHW: Tensor) -> Tensor:
        """Return features (B, F) or, of ``mean_std``, (B, 2F)."""
        features_BTF = self._as_clips(self.backbone(self._as_frames(clips_BCTHW))).float()
        mean = features_BTF.mean(dim=1)
        if self._temporal != "mean_std":
            return mean
        return torch.cat([mean, features_BTF.std(dim=1, correction=0)], dim=1)

    def frame_logits(self, clips_BTHWC: Tensor) -> Tensor:
        """Return what the head says of each frame by itself, float (B, T, L), of uint8 clips; not of ``mean_std``."""
        logits: Tensor = self.head(self.frame_features(clips_BTHWC))
        return logits

    def frame_features(self, clips_BTHWC: Tensor) -> Tensor:
        """Return the backbone's features of each frame, before time is mixed, float (B, T, F), of uint8 clips."""

        def run(clips_BCTHW: Tensor) -> Tensor:
            return self._as_clips(self.backbone(self._as_frames(clips_BCTHW)))

        return self._run(run, clips_BTHWC)

    def run_to_map(self, clips_BCTHW: Tensor) -> Tensor:
        """Return the map of features (B, F, T, H', W') that the backbone pools, frame by frame."""
        model: Any = self.backbone
        found: Tensor = model.forward_features(self._as_frames(clips_BCTHW))
        if found.dim() != 4 or found.shape[1] != model.num_features:
            refuse_map(model)
        return self._as_clips(found).transpose(1, 2)

    def _as_frames(self, clips_BCTHW: Tensor) -> Tensor:
        """Return (B T, C, H, W); as stored clips lie, that is no copy, and its channels are last."""
        self._frames = clips_BCTHW.shape[2]
        return clips_BCTHW.transpose(1, 2).flatten(0, 1)

    def _as_clips(self, frames: Tensor) -> Tensor:
        """Return (B, T, ...) of what was computed of the frames, (B T, ...)."""
        return frames.reshape(-1, self._frames, *frames.shape[1:])

    def _shift(self, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return shift(self._as_clips(inputs[0])).flatten(0, 1)


def shift(x_BTCHW: Tensor) -> Tensor:
    """Move an eighth of the channels back in time by a frame and an eighth forth; what comes from outside is 0.

    TSM: Lin, Gan, Han, 2019, https://arxiv.org/abs/1811.08383.
    """
    fold = x_BTCHW.shape[2] // SHIFTED
    back, forth, rest = x_BTCHW.tensor_split((fold, 2 * fold), dim=2)
    nothing = torch.zeros_like(back[:, :1])
    return torch.cat([torch.cat([back[:, 1:], nothing], 1), torch.cat([nothing, forth[:, :-1]], 1), rest], dim=2)


def residual_convolutions(backbone: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield the first convolution of each residual block: TSM shifts there, so that the shortcut keeps each frame."""
    for block in backbone.modules():
        if getattr(block, "has_skip", isinstance(block, BasicBlock | Bottleneck)):  # has_skip: MobileNet's and its kin
            yield next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))


def build_framewise(name: str, temporal: Temporal, num_classes: int) -> tuple[FramewiseNetwork, str]:
    """Return a network with random weights, and its head's name in timm's state dicts.

    Args:
        name: of a network of timm.
        temporal: how time is mixed.
        num_classes: L.

    Raises:
        SettingError: timm has no such network, or it cannot shift.
    """
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 5)) or "none"
        raise SettingError("backbone", name, f"timm {timm.__version__} has no such network; near it are: {near}")
    model: Any = timm.create_model(name, num_classes=0)
    about = model.pretrained_cfg
    lite = name.startswith("tf_efficientnet_lite")
    mean, std = (LITE_MEAN, LITE_STD) if lite else (about["mean"], about["std"])
    return FramewiseNetwork(model, num_classes, mean, std, temporal), about["classifier"]
