"""Where the body is: MoveNet's points in a frame, and the square around them over time.

MoveNet is Google's single-pose network (https://www.tensorflow.org/hub/tutorials/movenet): a map of body centres, maps
of 17 points (COCO's), and for each place the way to the points of a body centred there. It gives one person a frame,
the one whose centre is surest, with a preference for the middle of the picture.

Axes: T time, K points, H height, W width, C channel.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.prepare.segment.people.graph import Graph
from l2a_ray.prepare.segment.settings import PeopleSettings

Floats = NDArray[np.float64]
POINTS = 17
_SHOULDERS, _HIPS = slice(5, 7), slice(11, 13)
_NEAR = 1.8  # added to distances, in cells: MoveNet's own constant
_SMALLEST = 16.0  # side of the square around the points, pixels


def find_points(network: Graph, frame_HWC: NDArray[np.uint8]) -> Floats:
    """Return the points of one person, (K, 3): x and y in pixels, and a confidence in [0, 1].

    Args:
        network: MoveNet.
        frame_HWC: RGB.
    """
    height, width = frame_HWC.shape[:2]
    side = network.input_shape[1]
    scale = side / max(height, width)
    into = np.array([[scale, 0, (side - width * scale) / 2], [0, scale, (side - height * scale) / 2]])
    square = cv2.warpAffine(frame_HWC, into, (side, side))
    image = torch.from_numpy(square).permute(2, 0, 1)[None] / 127.5 - 1
    outputs = {name: value[0].numpy() for name, value in network(image).items()}
    cells_K2, confidence_K = decode(outputs)
    cell = side / outputs["points"].shape[-1]
    return np.column_stack([(cells_K2 * cell - into[:, 2]) / scale, confidence_K])


def decode(outputs: dict[str, NDArray[np.float32]]) -> tuple[Floats, Floats]:
    """Return the points (K, 2), x and y in cells of the maps, and their confidences (K).

    Args:
        outputs: ``centre`` (1, H, W) and ``points`` (K, H, W), probabilities; ``regressed`` (2 K, H, W), the way from
            a centre to its points, and ``offsets`` (2 K, H, W), from a cell to the point in it, y before x, in cells.
    """
    heat = outputs["points"]
    count, height, width = heat.shape
    y, x = np.unravel_index(outputs["centre"].argmax(), (height, width))
    expected_K2 = outputs["regressed"][:, y, x].reshape(count, 2) + np.array([y, x])
    rows, columns = np.mgrid[:height, :width]
    away = np.hypot(rows - expected_K2[:, 0, None, None], columns - expected_K2[:, 1, None, None])
    best = (heat / (away + _NEAR)).reshape(count, -1).argmax(axis=1)
    y_K, x_K = np.unravel_index(best, (height, width))
    each = np.arange(count)
    offsets = outputs["offsets"].reshape(count, 2, height, width)[each, :, y_K, x_K]
    cells = np.column_stack([x_K + offsets[:, 1], y_K + offsets[:, 0]])
    return cells.astype(np.float64), heat[each, y_K, x_K].astype(np.float64)


def crops(points_TK3: Floats, settings: PeopleSettings) -> Floats | None:
    """Return the square to look at in each frame, (T, 4): its centre x and y, its side, and how far the body leans.

    What one frame misses its neighbours have: place and side are weighted medians over neighbours, the lean is a mean.
    It is the angle from upright, in radians, clockwise. None: no frame shows a person.
    """
    found = [_square(points, settings) for points in points_TK3]
    sureness = np.array(
        [0.0 if square is None else points[:, 2].mean() ** 2 for square, points in zip(found, points_TK3, strict=True)]
    )
    if not sureness.any():
        return None
    squares = np.array([np.zeros(3) if square is None else square for square in found])
    leans = np.stack([_lean(points, settings.score) for points in points_TK3])
    smooth = []
    for t in range(len(found)):
        apart = np.abs(np.arange(len(found)) - t)
        # Frames further away count where none that is near shows anyone.
        weights = sureness * np.where(apart <= settings.neighbours, 1 / (1 + apart), 1e-6 * 0.1**apart)
        x, y = weights @ leans
        smooth.append([*(_weighted_median(column, weights) for column in squares.T), np.arctan2(x, -y)])
    return np.array(smooth)


def _square(points_K3: Floats, settings: PeopleSettings) -> Floats | None:
    """Return centre and side of the square around the points that can be seen."""
    seen = points_K3[points_K3[:, 2] >= settings.score, :2]
    if len(seen) < settings.points:
        return None
    low, high = seen.min(axis=0), seen.max(axis=0)
    return np.array([*(low + high) / 2, max(*(high - low), _SMALLEST)])


def _lean(points_K3: Floats, score: float) -> Floats:
    """Return the direction from hips to shoulders, as long as it is sure; hardly any, and up, where it is not seen."""
    shoulders, hips = points_K3[_SHOULDERS], points_K3[_HIPS]
    way = shoulders[:, :2].mean(axis=0) - hips[:, :2].mean(axis=0)
    length, sure = float(np.hypot(*way)), float(min(shoulders[:, 2].max(), hips[:, 2].max()))
    return way / length * sure if length > 0 and sure >= score else np.array([0.0, -1e-3])


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
