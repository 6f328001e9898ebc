"""Mask R-CNN (https://arxiv.org/abs/1703.06870) by torchvision, trained on COCO: the paper's segmenter.

Axes: T frames, N objects of a frame, H height, W width, C channel.
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
    "Four ways out: name a file here (maskrcnn_resnet50_fpn_v2's state dict), use masks made elsewhere "
    "(kind=precomputed), the networks that come with this package (kind=people), or none (kind=motion, for still or "
    "panning cameras)"
)


class MaskRCNNDetector:
    """Finds COCO's 80 kinds of object and their masks.

    Args:
        weights: a file with the state dict, or torchvision's name of weights.
        mask: least probability of a pixel that belongs to an object.
        options: of torchvision's ``MaskRCNN``, as ``box_score_thresh`` (below it no mask is computed).

    Raises:
        SettingError: the weights cannot be had, or are of another model.
    """

    def __init__(self, weights: str, mask: float, **options: Any) -> None:
        try:
            state = read_weights(weights, Weights)
        except WeightsError as error:
            raise SettingError("weights", weights, f"{error}. {WAYS_OUT}") from error
        model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=len(CLASSES), **options)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = f"is not a state dict of maskrcnn_resnet50_fpn_v2 ({_brief(error)}). {WAYS_OUT}"
            raise SettingError("weights", weights, reason) from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._mask = model.eval().to(self.device), mask

    @torch.inference_mode()
    def __call__(self, frames_THWC: NDArray[np.uint8]) -> list[Found]:
        """Return what is found in each RGB frame. On a GPU, convolutions run in bfloat16."""
        frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).to(self.device).permute(0, 3, 1, 2) / 255
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            outputs = self._model(list(frames))
        return [_found(output, self._mask) for output in outputs]


def _found(output: dict[str, Tensor], mask: float) -> Found:
    numbers = {name: value.cpu().float().numpy() for name, value in output.items() if name in ("scores", "boxes")}
    return Found(
        class_N=CLASSES[output["labels"].cpu().numpy()],
        score_N=numbers["scores"],
        box_N4=numbers["boxes"],
        mask_NHW=(output["masks"][:, 0] >= mask).cpu().numpy(),
    )


def _brief(error: RuntimeError) -> str:
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()[:200]
