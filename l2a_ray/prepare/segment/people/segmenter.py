"""The actor's mask in each frame: MoveNet says where to look, BlazePose's mask says what is body, neighbours agree.

BlazePose (https://arxiv.org/abs/2006.10204) is the pose network of MediaPipe; one of its heads is a mask of the person
in the middle of its square, which should hold the whole body, upright.

Axes: T time, K points, H height, W width, C channel.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.prepare.segment.base import Instances, people
from l2a_ray.prepare.segment.detect import without_specks
from l2a_ray.prepare.segment.people.graph import Graph
from l2a_ray.prepare.segment.people.points import POINTS, Floats, crops, find_points
from l2a_ray.prepare.segment.settings import PeopleSettings
from l2a_ray.videos.decode import Clip

WEIGHTS = Path(__file__).with_name("weights")
DIGESTS = {"movenet": "3a0b7bb2aad82d81fe44becede160987", "blazepose": "273ca1880e9d033980f089fccaaaf711"}
_OUTSIDE = -20.0  # logit of what lies outside the square

Map = NDArray[np.float32]


class PeopleSegmenter:
    """Finds one person a frame, who is an instance.

    Raises:
        StorageError: the weights that come with the package are missing or damaged.
    """

    def __init__(self, settings: PeopleSettings) -> None:
        self._settings = settings
        self._points, self._body = (Graph(WEIGHTS / f"{name}.safetensors", DIGESTS[name]) for name in DIGESTS)

    def __call__(self, clip: Clip) -> Instances:
        """Segment one clip. A frame in which no person is found, or nothing but specks, has no instance."""
        settings, frames = self._settings, clip.frames_THWC
        height, width = frames.shape[1:3]
        masks, scores = np.zeros(frames.shape[:3], np.bool_), np.zeros(len(frames), np.float32)
        squares = crops(self._find_points(frames), settings)
        if squares is not None:
            looked = [self._look(frame, *square) for frame, square in zip(frames, squares, strict=True)]
            scores = np.array([person for _, person in looked], np.float32)
            if scores.max() >= settings.person:
                agreed = _agreed([found for found, _ in looked], frames, settings.smooth)
                least = settings.min_area * height * width
                masks = np.stack([without_specks(found >= settings.mask, least) for found in agreed])
        shown = np.flatnonzero(masks.any(axis=(1, 2)))
        return people(masks[shown], shown, scores[shown], len(frames))

    def _find_points(self, frames_THWC: NDArray[np.uint8]) -> Floats:
        """Return the points of each frame, (T, K, 3), none where they are not looked for."""
        points = np.zeros((len(frames_THWC), POINTS, 3))
        for t in range(0, len(frames_THWC), self._settings.stride):
            points[t] = find_points(self._points, frames_THWC[t])
        return points

    def _look(self, frame_HWC: NDArray[np.uint8], x: float, y: float, side: float, lean: float) -> tuple[Map, float]:
        """Return each pixel's probability of being the person's, (H, W), and that of there being one."""
        height, width = frame_HWC.shape[:2]
        size = self._body.input_shape[1]
        scale = size / (side * self._settings.grow)
        cosine, sine = scale * np.cos(lean), scale * np.sin(lean)
        turn = np.array([[cosine, sine], [-sine, cosine]])  # clockwise in the picture by -lean: upright
        into = np.column_stack([turn, size / 2 - turn @ (x, y)])
        square = cv2.warpAffine(frame_HWC, into, (size, size), borderMode=cv2.BORDER_REPLICATE)
        outputs = self._body(torch.from_numpy(square).permute(2, 0, 1)[None] / 255)
        logits = outputs["mask"][0, 0].numpy().clip(_OUTSIDE, -_OUTSIDE)
        back = cv2.warpAffine(logits, cv2.invertAffineTransform(into), (width, height), borderValue=_OUTSIDE)
        return (1 / (1 + np.exp(-back))).astype(np.float32), float(torch.sigmoid(outputs["person"]))


def _agreed(probabilities: list[Map], frames_THWC: NDArray[np.uint8], weight: float) -> list[Map]:
    """Average each frame's probabilities with those of the frames before and after, moved along with the picture.

    Args:
        probabilities: of each frame, (H, W).
        frames_THWC: the frames.
        weight: of a neighbour, beside 1 of the frame itself.
    """
    if weight == 0:
        return probabilities
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    unknown = np.zeros((*frames_THWC.shape[1:3], 2), np.float32)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
    sums, weights = [found.copy() for found in probabilities], [1.0] * len(greys)
    for before, after in pairwise(range(len(greys))):
        for here, there in ((before, after), (after, before)):
            sums[here] += weight * _fetched(probabilities[there], flow.calc(greys[here], greys[there], unknown))
            weights[here] += weight
    return [total / whole for total, whole in zip(sums, weights, strict=True)]


def _fetched(values_HW: Map, flow_HW2: NDArray[Any]) -> Map:
    """Return for each pixel the value at the place that it moves to."""
    height, width = values_HW.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    fetched = cv2.remap(
        values_HW, x + flow_HW2[..., 0], y + flow_HW2[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return fetched.astype(np.float32, copy=False)
