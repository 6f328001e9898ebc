"""FAME's guess of what moves, from frames alone: one mask for a whole clip.

Foreground-background Merging (https://arxiv.org/abs/2109.15130), with the numbers of its authors' code. Axes: T time,
H height, W width, C channel (RGB).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

MOVES = 0.5
"""Share of the pixels, those that change most, whose colours are taken to be the foreground's."""
STILL = 0.1
"""Share of the pixels, those that change least, whose colours are taken to be the background's."""
BINS = 10
"""Of each of the three axes of colour."""
BLUR = 0.1
"""Width of the blur, of the shorter side."""


def moving(frames_THWC: NDArray[np.uint8], share: float) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the given share of the pixels: those whose place and colour most likely belong to motion.

    Where frames differ most, colours are taken for the foreground's, where they differ least, for the background's; a
    pixel's chance of being foreground is by its colour, and blurred.

    Args:
        frames_THWC: uint8; of a single frame nothing moves, and colours alone decide little.
        share: of the frame, above 0 and below 1.
    """
    frames = frames_THWC.astype(np.float32) / 255
    change = _blur(np.abs(np.diff(frames, axis=0)).sum(axis=(0, 3), dtype=np.float32))
    order = np.argsort(-change, axis=None, kind="stable")
    moves, still = int(MOVES * order.size), order.size - int(STILL * order.size)
    colour = _colours(frames.mean(axis=0)).reshape(-1)
    front = np.bincount(colour[order[:moves]], minlength=BINS**3) / max(1, moves)
    back = np.bincount(colour[order[still:]], minlength=BINS**3) + 1.0
    chance = (front / (front + back / back.sum()))[colour].reshape(change.shape).astype(np.float32)
    chosen = np.zeros(order.size, np.bool_)
    chosen[np.argsort(-_blur(chance), axis=None, kind="stable")[: int(share * order.size)]] = True
    return chosen.reshape(change.shape)


def _blur(values_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    width = int(BLUR * min(values_HW.shape)) // 2 * 2 + 1
    return np.asarray(cv2.GaussianBlur(values_HW, (width, width), width / 3), dtype=np.float32)


def _colours(frame_HWC: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the number of each pixel's colour (H, W), in [0, BINS**3): hue and saturation as a disc, and value."""
    hsv = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2HSV)
    hue, saturation, value = np.deg2rad(hsv[..., 0]), hsv[..., 1], hsv[..., 2]
    axes = (saturation * np.cos(hue) + 1) / 2, (saturation * np.sin(hue) + 1) / 2, value
    x, y, z = (np.rint(axis * (BINS - 1)).astype(np.int64) for axis in axes)
    return np.asarray(x + BINS * (y + BINS * z))
