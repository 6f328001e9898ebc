"""Mask R-CNN (https://arxiv.org/abs/1703.06870) by torchvision, trained on COCO: the paper's segmenter.

Axes: N frames, or objects of a frame; H height, W width, C channel.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights as Weights
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment.base import Found
from l2a_ray.storage.weights import WeightsError, read_weights

CLASSES = np.array(Weights.COCO_V1.meta["categories"])
WAYS_OUT = (
    "Three ways out: name a file (segment.weights=PATH to maskrcnn_resnet50_fpn_v2's state dict), use masks made "
    "elsewhere (segment.kind=precomputed), or go without weights (segment.kind=motion, for still or panning cameras)"
)


class MaskRCNNDetector:
    """Finds COCO's 80 kinds of object and their masks.

    Args:
        weights: a file with the state dict, or torchvision's name of weights.
        options: of torchvision's ``MaskRCNN``, as ``box_score_thresh`` (below it no mask is computed).

    Raises:
        SettingError: the weights cannot be had, or are of another model.
    """

    def __init__(self, weights: str, **options: Any) -> None:
        try:
            state = read_weights(weights, Weights)
        except WeightsError as error:
            raise SettingError("segment.weights", weights, f"{error}. {WAYS_OUT}") from error
        model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=len(CLASSES), **options)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = f"is not a state dict of maskrcnn_resnet50_fpn_v2 ({_brief(error)}). {WAYS_OUT}"
            raise SettingError("segment.weights", weights, reason) from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, frames_NHWC: NDArray[np.uint8]) -> list[Found]:
        """Return what is found in each RGB frame. On a GPU, convolutions run in bfloat16."""
        frames_NCHW = torch.from_numpy(np.ascontiguousarray(frames_NHWC)).to(self.device).permute(0, 3, 1, 2) / 255
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            outputs = self._model(list(frames_NCHW))
        return [_found(output) for output in outputs]


def _found(output: dict[str, Tensor]) -> Found:
    numbers = {name: value.cpu().float().numpy() for name, value in output.items() if name in ("scores", "boxes")}
    return Found(
        class_N=CLASSES[output["labels"].cpu().numpy()],
        score_N=numbers["scores"],
        box_N4=numbers["boxes"],
        mask_NHW=(output["masks"][:, 0] >= 0.5).cpu().numpy(),  # torchvision's own threshold in its examples
    )


def _brief(error: RuntimeError) -> str:
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()[:200]
