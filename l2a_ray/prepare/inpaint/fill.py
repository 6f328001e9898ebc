"""Frames and masks in, clean background out: what the scene looks like without the masked objects.

A masked pixel takes the median of the colours seen at its place in the frames where it is not masked. Where the camera
moves, the frames are first laid on one canvas that stands still (``camera.py``; masked pixels do not lead it), and what
the canvas shows is carried back to each frame. What is masked at every time is filled once on that canvas: by OpenCV's
inpainting, or by a learned inpainter. So what is filled has one colour for the whole clip and moves with the scene: it
does not flicker. Unmasked pixels keep their own values, so the scene goes on moving.

Axes: T time, H height, W width, C channel.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.prepare.inpaint.camera import IDENTITY, alignments, shared_canvas
from l2a_ray.prepare.inpaint.settings import InpaintSettings as InpaintSettings

SpatialFill = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[np.uint8]]
"""Takes an image (H, W, C) and which of its pixels are unknown (H, W); returns it with those filled."""
_METHODS = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}


class NoBackgroundError(ValueError):
    """The masks leave nothing to fill from."""


class Inpainter(Protocol):
    """Removes the masked pixels of a clip."""

    def __call__(self, frames_THWC: NDArray[np.uint8], masks_THW: NDArray[np.bool_], /) -> NDArray[np.uint8]:
        """Return the background, uint8 (T, H, W, C), equal to the frames wherever nothing had to be filled.

        Raises:
            ValueError: shapes disagree, or no background is seen at any time.
        """
        ...


def build_inpainter(settings: InpaintSettings) -> Inpainter:
    """Make the inpainter that the settings name.

    Raises:
        SettingError: the file of the learned inpainter is missing, or is of another kind.
    """
    if settings.kind == "temporal":
        return partial(inpaint, settings=settings)
    # Not before it is asked for: PyTorch takes seconds to import.
    from l2a_ray.prepare.inpaint.learned import LearnedFill

    return partial(inpaint, settings=settings, fill=LearnedFill(cast(str, settings.model)))


def inpaint(
    frames_THWC: NDArray[np.uint8],
    masks_THW: NDArray[np.bool_],
    settings: InpaintSettings,
    fill: SpatialFill | None = None,
) -> NDArray[np.uint8]:
    """Remove the masked pixels of a clip.

    Args:
        frames_THWC: uint8 frames.
        masks_THW: what to remove, bool.
        settings: see InpaintSettings.
        fill: what fills the pixels that are masked at every time; OpenCV by default.

    Returns:
        Background, uint8 (T, H, W, C); a new array, equal to the frames wherever the grown masks are not.

    Raises:
        ValueError: shapes disagree.
        NoBackgroundError: the grown masks leave no background pixel at any time.
    """
    if masks_THW.shape != frames_THWC.shape[:3]:
        raise ValueError(f"masks of shape {masks_THW.shape} do not fit frames of shape {frames_THWC.shape}")
    masked = _grow(masks_THW, settings.dilate)
    if masked.all():
        raise NoBackgroundError("the masks cover every pixel at every time: no background is ever seen")
    if not masked.any():
        return frames_THWC.copy()
    fill = fill or partial(_opencv_fill, settings=settings)
    maps = alignments(frames_THWC, masked) if settings.compensate else []
    if all(map_ is IDENTITY for map_ in maps):
        clean = _clean(frames_THWC, ~masked, fill)
        return np.where(masked[..., None], clean, frames_THWC)
    return np.where(masked[..., None], _clean_moving(frames_THWC, ~masked, maps, fill), frames_THWC)


def _clean(frames_THWC: NDArray[np.uint8], known_THW: NDArray[np.bool_], fill: SpatialFill) -> NDArray[np.uint8]:
    """One image of a scene that stands still in its frames."""
    clean, seen = temporal_median(frames_THWC, known_THW)
    return clean if seen.all() else fill(clean, seen == 0)


def _clean_moving(
    frames_THWC: NDArray[np.uint8],
    known_THW: NDArray[np.bool_],
    maps: list[NDArray[np.float64]],
    fill: SpatialFill,
) -> NDArray[np.uint8]:
    """The scene as each frame sees it, (T, H, W, C). The maps lay the frames on the middle one."""
    size = frames_THWC.shape[2], frames_THWC.shape[1]
    maps, canvas = shared_canvas(maps, *size)
    # A place is known where all four pixels that it is mixed from are: no colour of a masked one gets in.
    known = [
        cv2.warpAffine(plane.view(np.uint8) * 255, map_, canvas) for plane, map_ in zip(known_THW, maps, strict=True)
    ]
    aligned = [
        cv2.warpAffine(frame, map_, canvas, borderMode=cv2.BORDER_REPLICATE)
        for frame, map_ in zip(frames_THWC, maps, strict=True)
    ]
    clean = _clean(np.stack(aligned).astype(np.uint8, copy=False), np.stack(known) == 255, fill)
    back = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = [cv2.warpAffine(clean, map_, size, flags=back, borderMode=cv2.BORDER_REPLICATE) for map_ in maps]
    return np.stack(seen).astype(np.uint8, copy=False)


def _opencv_fill(
    image_HWC: NDArray[np.uint8], unknown_HW: NDArray[np.bool_], settings: InpaintSettings
) -> NDArray[np.uint8]:
    filled = cv2.inpaint(image_HWC, unknown_HW.view(np.uint8), settings.radius, _METHODS[settings.spatial])
    return filled.astype(np.uint8, copy=False)


def temporal_median(
    frames_THWC: NDArray[np.uint8], known_THW: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Median over time of each pixel's known values, channel by channel.

    Returns:
        The median, uint8 (H, W, C): of an even number of values the mean of the middle two, rounded up; 255 where no
        value is known. And the number of known values, int64 (H, W).
    """
    count = known_THW.sum(axis=0, dtype=np.uint16).astype(np.int64)
    ordered = np.where(known_THW[..., None], frames_THWC, np.uint8(255))  # unknown values sort last
    _sort_time(ordered)
    lower = np.maximum(count - 1, 0) // 2
    upper = np.minimum(count // 2, len(ordered) - 1)
    below, above = (np.take_along_axis(ordered, at[None, ..., None], axis=0)[0] for at in (lower, upper))
    return below + (above - below + 1) // 2, count


def _sort_time(values: NDArray[np.uint8]) -> None:
    """Sort along the first axis in place, by odd-even transposition: T rounds of whole-array minima and maxima.

    For the few frames of a clip it is much faster than ``np.sort`` along this axis.
    """
    last = len(values) - 1
    for start in range(len(values)):
        left, right = values[start % 2 : last : 2], values[start % 2 + 1 :: 2]
        low = np.minimum(left, right)
        np.maximum(left, right, out=right)
        left[...] = low


def _grow(masks_THW: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Dilate each frame's mask by a disc of this radius."""
    if pixels == 0:
        return masks_THW
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return np.stack([cv2.dilate(mask.view(np.uint8), disc) for mask in masks_THW]).view(np.bool_)
