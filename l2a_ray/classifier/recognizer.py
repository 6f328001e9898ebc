"""Any recognizer of mmaction2 1.2 that sees RGB frames, by its config, with a head for our classes.

Axes: B clips in a batch, T time, H height, W width, C channel, F features, L classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from l2a_ray.classifier.network import Network, refuse_map
from l2a_ray.errors import SettingError
from l2a_ray.runtime import openmmlab

CONFIG = "config"


class RecognizerNetwork(Network):
    """A recognizer whose last linear layer is ours: what lies before it, in mmaction2's head, stays in use.

    That layer may be followed by a mean over segments (TSM), which equals a mean followed by the layer.
    """

    def run_backbone(self, clips_BCTHW: Tensor) -> Tensor:
        """Return features (B, F): 2D recognizers take each frame for a segment, 3D ones a clip for a single view."""
        features: Tensor = self._run_stage(clips_BCTHW, "head")
        if features.shape != (len(clips_BCTHW), self.feature_size):
            raise ValueError(f"the config's recognizer makes {tuple(features.shape)} of {len(clips_BCTHW)} clips")
        return features

    def run_to_map(self, clips_BCTHW: Tensor) -> Tensor:
        """Return the map of features (B, F, T', H', W') that the recognizer's head pools."""
        found = self._run_stage(clips_BCTHW, "neck")
        if isinstance(found, Tensor) and found.dim() == 4:  # (B T', F, H', W') of segments
            found = found.view(len(clips_BCTHW), -1, *found.shape[1:]).transpose(1, 2)
        if (
            not isinstance(found, Tensor)
            or found.dim() != 5
            or found.shape[:2] != (len(clips_BCTHW), self.feature_size)
        ):
            refuse_map(self.backbone)
        return found

    def _run_stage(self, clips_BCTHW: Tensor, stage: str) -> Any:
        from mmaction.models import Recognizer2D

        segments = isinstance(self.backbone, Recognizer2D)
        inputs = clips_BCTHW.transpose(1, 2) if segments else clips_BCTHW.unsqueeze(1)
        return self.backbone(inputs.contiguous(), stage=stage)


def build_recognizer(config: str, num_classes: int) -> tuple[RecognizerNetwork, str]:
    """Return a recognizer with random weights, and its head's name in mmaction2's state dicts.

    Args:
        config: path of its config, or the part of the path below mmaction2's own configs.
        num_classes: L.

    Raises:
        MissingPackageError: mmaction2 is not installed.
        SettingError: the config cannot be used, or is of another kind of model.
    """
    settings = openmmlab.read_config("mmaction", config, CONFIG)
    model: Any = openmmlab.build_model("mmaction", settings, config, CONFIG)
    from mmaction.models import Recognizer2D, Recognizer3D

    if not isinstance(model, Recognizer2D | Recognizer3D) or not model.with_cls_head:
        reason = f"is a {type(model).__name__}: must be a Recognizer2D or Recognizer3D with a head"
        raise SettingError(CONFIG, config, reason)
    name, head = _last_layer(model.cls_head, config)
    model.cls_head.set_submodule(name, nn.Identity())
    mean, std = _normalisation(model.data_preprocessor, config)
    return RecognizerNetwork(model, head.in_features, num_classes, mean, std), f"cls_head.{name}"


def _last_layer(head: nn.Module, config: str) -> tuple[str, nn.Linear]:
    layers = [
        (name, layer)
        for name, layer in head.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == head.num_classes
    ]
    if len(layers) != 1:
        reason = f"has a {type(head).__name__} with {len(layers)} linear layers that give classes: must be 1"
        raise SettingError(CONFIG, config, reason)
    return layers[0]


def _normalisation(preprocessor: Any, config: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation in [0, 1]."""
    mean, std = getattr(preprocessor, "mean", torch.zeros(3)), getattr(preprocessor, "std", torch.ones(3))
    if mean.numel() != 3 or preprocessor.to_rgb:
        raise SettingError(CONFIG, config, "must be of a recognizer of RGB frames: three means, and to_rgb=False")
    return (mean.flatten() / 255).tolist(), (std.flatten() / 255).tolist()
