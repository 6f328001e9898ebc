"""Camera motion: the map that lays each frame of a clip onto its middle frame, and the canvas that holds them all.

Sparse optical flow on a grid of points, then the similarity transform (shift, turn, zoom) that most of them agree on.

Axes: T time, H height, W width, C channel.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

IDENTITY = np.eye(2, 3)
_POINTS_ACROSS = 12  # of the grid that is followed from frame to frame
_WINDOW, _LEVELS = 9, 3  # of Lucas-Kanade: finds shifts up to some 9 * 2^3 / 2 pixels
_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03)  # faster than OpenCV's own, and as good
_INLIER_PIXELS = 1.5
_INLIER_SHARE = 0.2  # of the grid: so many points must agree, more than an actor usually covers
_GAIN = 0.9  # an alignment must lower the difference to below this share of the unaligned one's, else the actor led it
_GAIN_LEVELS = 1.0  # and by so many grey levels: any map that mixes pixels lowers the noise a little
_MIN_SIDE = 16  # smaller frames are not aligned: no room for the windows


class _View(NamedTuple):
    grey_HW: NDArray[np.uint8]
    masked_HW: NDArray[np.bool_]


def alignments(
    frames_THWC: NDArray[np.uint8], masked_THW: NDArray[np.bool_] | None = None
) -> list[NDArray[np.float64]]:
    """Return for each frame the 2 x 3 matrix that maps it onto the middle frame.

    Args:
        frames_THWC: uint8 frames.
        masked_THW: pixels that have no say, bool: what is known to move by itself.

    Returns:
        Matrices of float64; the identity where nothing better is found, as on a still camera.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
    if masked_THW is None:
        masked_THW = np.zeros(frames_THWC.shape[:3], dtype=np.bool_)
    views = [*map(_View, grey, masked_THW)]
    middle = len(grey) // 2
    maps = [IDENTITY] * len(grey)
    if min(grey[middle].shape) < _MIN_SIDE:
        return maps
    for step, order in ((1, range(middle + 1, len(grey))), (-1, reversed(range(middle)))):
        for t in order:
            maps[t] = _best(views[t], views[t - step], views[middle], maps[t - step])
    return maps


def _best(image: _View, neighbour: _View, target: _View, neighbour_map: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map of the image onto the target, found directly or by way of the neighbouring frame; else the identity.

    On a plain scene most of the points that can be followed are the actor's: what they agree on is no camera motion.
    """
    unaligned = _cost(image, target, IDENTITY)
    enough = min(_GAIN * unaligned, unaligned - _GAIN_LEVELS)
    direct = _follow(image, target, neighbour_map)
    if direct is not None and _cost(image, target, direct) < enough:
        return direct
    step = None if neighbour is target else _follow(image, neighbour, IDENTITY)
    if step is not None and _cost(image, target, roundabout := after(neighbour_map, step)) < enough:
        return roundabout
    return IDENTITY


def _follow(image: _View, target: _View, start: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Matrix that maps the image onto the target by points followed from ``start`` on; None where too few agree."""
    height, width = target.grey_HW.shape
    step = max(height, width) / _POINTS_ACROSS
    y, x = np.mgrid[step / 2 : height : step, step / 2 : width : step]
    points = np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)[:, None]
    points = points[~_at(target.masked_HW, points)]
    least = max(4, round(_INLIER_SHARE * len(points)))
    if len(points) < least:
        return None
    guess = cv2.transform(points, cv2.invertAffineTransform(start)).astype(np.float32)
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        target.grey_HW,
        image.grey_HW,
        points,
        guess,
        winSize=(_WINDOW, _WINDOW),
        maxLevel=_LEVELS,
        criteria=_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    good = (status[:, 0] == 1) & ~_at(image.masked_HW, found)
    if good.sum() < least:
        return None
    map_, inlier = cv2.estimateAffinePartial2D(found[good], points[good], ransacReprojThreshold=_INLIER_PIXELS)
    return None if map_ is None or inlier.sum() < least else np.asarray(map_, dtype=np.float64)


def _at(masked_HW: NDArray[np.bool_], points: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the nearest pixel of each point is masked; the border's goes for what lies beyond."""
    x, y = np.clip(np.rint(points[:, 0]), 0, np.array(masked_HW.shape[::-1]) - 1).astype(int).T
    masked: NDArray[np.bool_] = masked_HW[y, x]
    return masked


def after(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix of the first map followed by the second."""
    return np.asarray(second @ np.vstack([first, [0, 0, 1]]), dtype=np.float64)


def _cost(image: _View, target: _View, map_: NDArray[np.float64]) -> float:
    """Mean absolute difference of what neither masks, cut off: an actor counts by area and not by contrast.

    What leaves the picture is made up of its border: that costs maps that reach far, as an actor's do on a plain scene.
    """
    size = target.grey_HW.shape[1], target.grey_HW.shape[0]
    moved = cv2.warpAffine(image.grey_HW, map_, size, borderMode=cv2.BORDER_REPLICATE)
    masked = cv2.warpAffine(image.masked_HW.view(np.uint8), map_, size, flags=cv2.INTER_NEAREST)
    shown = ~(masked.view(np.bool_) | target.masked_HW)
    if not shown.any():
        return np.inf
    return float(np.minimum(cv2.absdiff(moved, target.grey_HW), 20)[shown].mean())


def shared_canvas(
    maps: list[NDArray[np.float64]], width: int, height: int
) -> tuple[list[NDArray[np.float64]], tuple[int, int]]:
    """Shift the maps so that all frames fall on one canvas, of at most twice the frame's sides; its (width, height)."""
    side = np.array([width, height])
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]])
    reached = np.concatenate([corners @ map_.T for map_ in maps])
    first = np.floor(np.clip(reached.min(axis=0), -side / 2, 0))
    last = np.ceil(np.clip(reached.max(axis=0), side - 1, 1.5 * side))
    shift = np.column_stack([np.zeros((2, 2)), -first])
    columns, rows = (last - first + 1).astype(int)
    return [map_ + shift for map_ in maps], (int(columns), int(rows))
