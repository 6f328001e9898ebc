"""Frames and masks in, clean background out: what the scene looks like without the masked objects.

A masked pixel takes the median of the colours seen at its place in the frames where it is not masked. What is masked at
every time is filled once, by OpenCV's inpainting of the median image. So a filled pixel has one colour for the whole
clip: on a still camera there is no flicker. Unmasked pixels keep their own values, so the scene goes on moving. Nothing
compensates for a moving camera: there, what is filled stays in place while the scene around it moves.

Axes: T time, H height, W width, C channel.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import SettingError

_METHODS = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}


class NoBackgroundError(ValueError):
    """The masks leave nothing to fill from."""


@dataclass(frozen=True, kw_only=True)
class InpaintSettings:
    """How objects are removed from their own scene."""

    dilate: int = 2
    """Pixels by which masks grow first, in [0, 64]: their soft borders carry the object's colour. Ours."""
    spatial: Literal["telea", "navier_stokes"] = "telea"
    """OpenCV's method for pixels that are masked at every time. Ours."""
    radius: float = 3.0
    """Neighbourhood of the spatial method in pixels, in [1, 100]. OpenCV's examples."""

    def __post_init__(self) -> None:
        if not 0 <= self.dilate <= 64:
            raise SettingError("inpaint.dilate", self.dilate, "must be between 0 and 64 pixels")
        if self.spatial not in _METHODS:
            raise SettingError("inpaint.spatial", self.spatial, f"must be one of {', '.join(_METHODS)}")
        if not 1 <= self.radius <= 100:
            raise SettingError("inpaint.radius", self.radius, "must be between 1 and 100 pixels")


def inpaint(
    frames_THWC: NDArray[np.uint8], masks_THW: NDArray[np.bool_], settings: InpaintSettings
) -> NDArray[np.uint8]:
    """Remove the masked pixels of a clip.

    Args:
        frames_THWC: uint8 frames.
        masks_THW: what to remove, bool.
        settings: see InpaintSettings.

    Returns:
        Background, uint8 (T, H, W, C); a new array, equal to the frames wherever the grown masks are not.

    Raises:
        ValueError: shapes disagree.
        NoBackgroundError: the grown masks leave no background pixel at any time.
    """
    if masks_THW.shape != frames_THWC.shape[:3]:
        raise ValueError(f"masks of shape {masks_THW.shape} do not fit frames of shape {frames_THWC.shape}")
    masked_THW = _grow(masks_THW, settings.dilate)
    if masked_THW.all():
        raise NoBackgroundError("the masks cover every pixel at every time: no background is ever seen")
    if not masked_THW.any():
        return frames_THWC.copy()
    clean_HWC, seen_HW = temporal_median(frames_THWC, ~masked_THW)
    if not seen_HW.all():
        unseen_HW = (seen_HW == 0).astype(np.uint8)
        filled_HWC = cv2.inpaint(clean_HWC, unseen_HW, settings.radius, _METHODS[settings.spatial])
        clean_HWC = filled_HWC.astype(np.uint8, copy=False)
    return np.where(masked_THW[..., None], clean_HWC, frames_THWC)


def temporal_median(
    frames_THWC: NDArray[np.uint8], known_THW: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Median over time of each pixel's known values, channel by channel.

    Returns:
        The median, uint8 (H, W, C): of an even number of values the mean of the middle two, rounded up; 255 where no
        value is known. And the number of known values, int64 (H, W).
    """
    count_HW = known_THW.sum(axis=0, dtype=np.uint16).astype(np.int64)
    sorted_THWC = np.where(known_THW[..., None], frames_THWC, np.uint8(255))  # unknown values sort last
    _sort_time(sorted_THWC)
    below_HW = np.maximum(count_HW - 1, 0) // 2
    above_HW = np.minimum(count_HW // 2, len(sorted_THWC) - 1)
    below_HWC, above_HWC = (
        np.take_along_axis(sorted_THWC, at_HW[None, ..., None], axis=0)[0] for at_HW in (below_HW, above_HW)
    )
    return below_HWC + (above_HWC - below_HWC + 1) // 2, count_HW


def _sort_time(values_T: NDArray[np.uint8]) -> None:
    """Sort along the first axis in place, by odd-even transposition: T rounds of whole-array minima and maxima.

    For the few frames of a clip it is some 20 times faster than ``np.sort`` along this axis.
    """
    last = len(values_T) - 1
    for start in range(len(values_T)):
        left_T, right_T = values_T[start % 2 : last : 2], values_T[start % 2 + 1 :: 2]
        low_T = np.minimum(left_T, right_T)
        np.maximum(left_T, right_T, out=right_T)
        left_T[...] = low_T


def _grow(masks_THW: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Dilate each frame's mask by a disc of this radius."""
    if pixels == 0:
        return masks_THW
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return np.stack([cv2.dilate(mask_HW.view(np.uint8), disc) for mask_HW in masks_THW]).view(np.bool_)
