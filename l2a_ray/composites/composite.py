"""Compositing: a foreground's actor pasted on another clip's clean background, and the label of the result.

Everything costly (segmentation, inpainting) was done once a video by ``prepare``; a composite is one masked copy.

Axes: B clips in a batch, T time, H height, W width, C channel (RGB), L classes.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.settings import CompositeSettings as CompositeSettings

Mask = NDArray[np.bool_] | NDArray[np.uint8]


def composite(
    frames_BTHWC: NDArray[np.uint8], masks_BTHW: Mask, backgrounds_BTHWC: NDArray[np.uint8], feather: float = 0.0
) -> NDArray[np.uint8]:
    """Paste the masked pixels of the foregrounds on the backgrounds: V~ = V_f * M_f + V'_b * (1 - M_f), Eq. 1.

    Args:
        frames_BTHWC: foreground clips, RGB in [0, 255]; a single clip is B = 1.
        masks_BTHW: the foregrounds' masks, bool or 0 and 1.
        backgrounds_BTHWC: clean backgrounds of the frames' shape.
        feather: standard deviation in pixels of the Gaussian that softens the masks; 0: not at all.

    Returns:
        The composites, a new array of the frames' shape.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    if frames_BTHWC.shape != backgrounds_BTHWC.shape or frames_BTHWC.shape != (*masks_BTHW.shape, 3):
        shapes = f"{frames_BTHWC.shape}, {masks_BTHW.shape}, {backgrounds_BTHWC.shape}"
        raise ValueError(f"frames, masks and backgrounds must be BTHW3, BTHW, BTHW3, got {shapes}")
    types = {frames_BTHWC.dtype, backgrounds_BTHWC.dtype, np.dtype(np.uint8)}
    if len(types) > 1 or masks_BTHW.dtype not in (np.bool_, np.uint8):
        raise ValueError("frames and backgrounds must be uint8, masks bool or uint8")
    composites = backgrounds_BTHWC.copy()
    if feather > 0:
        for place in np.ndindex(masks_BTHW.shape[:2]):
            composites[place] = _soft(frames_BTHWC[place], masks_BTHW[place], backgrounds_BTHWC[place], feather)
    elif composites.size:
        # To OpenCV the whole batch is one tall image. A binary mask makes Eq. 1 a choice: no arithmetic, no float copy.
        width = frames_BTHWC.shape[3]
        mask = masks_BTHW.view(np.uint8).reshape(-1, width)
        cv2.copyTo(frames_BTHWC.reshape(-1, width, 3), mask, composites.reshape(-1, width, 3))
    return composites


def _soft(
    frame_HWC: NDArray[np.uint8], mask_HW: Mask, background_HWC: NDArray[np.uint8], feather: float
) -> NDArray[np.uint8]:
    weight = cv2.GaussianBlur(mask_HW.astype(np.float32), (0, 0), feather)
    return cv2.blendLinear(frame_HWC, background_HWC, weight, 1 - weight).astype(np.uint8, copy=False)


def foreground_ratio(masks_THW: Mask) -> float:
    """Share of a clip's pixels that its mask covers: gamma = sum(M_f) / (T H W), in [0, 1] (paper, 4.2)."""
    return float(np.count_nonzero(masks_THW) / masks_THW.size)


def label_weight(gamma: float, alpha: float) -> float:
    """Weight of the foreground's label: lambda = 1 - (1 - gamma)^alpha, in [0, 1], Eq. 8."""
    return 1.0 - math.pow(1.0 - gamma, alpha)


def mix_labels(
    foreground_label: NDArray[np.float32], background_label: NDArray[np.float32], weight: float
) -> NDArray[np.float32]:
    """Label of a composite: y~ = lambda y_f + (1 - lambda) y_b, Eq. 7, with ``weight`` as lambda."""
    mixed = weight * foreground_label + (1.0 - weight) * background_label
    return mixed.astype(np.float32)


def place(
    frames_THWC: NDArray[np.uint8], masks_THW: Mask, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Put a foreground on a canvas of the background's size: centred, never rescaled, frames and masks alike.

    Clips share their short side but not their aspect, so one axis is cropped or padded. Padding is black and unmasked.

    Args:
        frames_THWC: the foreground's frames.
        masks_THW: the foreground's masks.
        height: rows of the background.
        width: columns of the background.

    Returns:
        Frames uint8 (T, height, width, C) and masks bool (T, height, width).
    """
    frame_count, own_height, own_width, channels = frames_THWC.shape
    if (own_height, own_width) == (height, width):
        return frames_THWC, masks_THW.astype(np.bool_, copy=False)
    from_rows, to_rows = _overlap(own_height, height)
    from_columns, to_columns = _overlap(own_width, width)
    placed = np.zeros((frame_count, height, width, channels), dtype=np.uint8)
    placed_masks = np.zeros((frame_count, height, width), dtype=np.bool_)
    placed[:, to_rows, to_columns] = frames_THWC[:, from_rows, from_columns]
    placed_masks[:, to_rows, to_columns] = masks_THW[:, from_rows, from_columns]
    return placed, placed_masks


def _overlap(size: int, canvas: int) -> tuple[slice, slice]:
    """Where a centred axis of ``size`` and its ``canvas`` meet, in the coordinates of either."""
    length = min(size, canvas)
    start, canvas_start = (size - length) // 2, (canvas - length) // 2
    return slice(start, start + length), slice(canvas_start, canvas_start + length)
