"""Frames and masks in, clean background out: what the scene looks like without the masked objects.

A masked pixel takes the median of the colours seen at its place in the frames where it is not masked. Where the camera
moves, the frames are first laid on one canvas that stands still (``camera.py``; masked pixels do not lead it), and what
the canvas shows is carried back to each frame. What is masked at every time is filled once on that canvas: by OpenCV's
inpainting, or by a learned inpainter. So what is filled has one colour for the whole clip and moves with the scene: it
does not flicker. Unmasked pixels keep their own values, so the scene goes on moving.

Axes: T time, H height, W width, C channel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.prepare.inpaint.camera import IDENTITY, alignments, shared_canvas

SpatialFill = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[np.uint8]]
"""Takes an image (H, W, C) and which of its pixels are unknown (H, W); returns it with those filled."""
_METHODS = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}
_KINDS = ("temporal", "torchscript")


class NoBackgroundError(ValueError):
    """The masks leave nothing to fill from."""


@dataclass(frozen=True, kw_only=True)
class InpaintSettings:
    """How objects are removed from their own scene."""

    kind: Literal["temporal", "torchscript"] = "temporal"
    """Colours of other times first, always; what is masked at every time is filled by OpenCV (``temporal``) or by the
    learned inpainter of `model` (``torchscript``)."""
    model: str | None = None
    """TorchScript file of ``torchscript``, in the form of `big-lama.pt`; ``learned_fill.py`` describes it."""
    compensate: bool = True
    """Whether frames are aligned before they lend each other colours. It changes nothing on a still camera. Ours."""
    dilate: int = 2
    """Pixels by which masks grow first, in [0, 64]: their soft borders carry the object's colour. Ours."""
    spatial: Literal["telea", "navier_stokes"] = "telea"
    """OpenCV's method for pixels that are masked at every time, for ``temporal``. Ours."""
    radius: float = 3.0
    """Neighbourhood of the spatial method in pixels, in [1, 100]. OpenCV's examples."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise SettingError("inpaint.kind", self.kind, f"must be one of {', '.join(_KINDS)}")
        if not 0 <= self.dilate <= 64:
            raise SettingError("inpaint.dilate", self.dilate, "must be between 0 and 64 pixels")
        if self.spatial not in _METHODS:
            raise SettingError("inpaint.spatial", self.spatial, f"must be one of {', '.join(_METHODS)}")
        if not 1 <= self.radius <= 100:
            raise SettingError("inpaint.radius", self.radius, "must be between 1 and 100 pixels")


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
        SettingError: the file of the learned inpainter is not named, is missing, or is of another kind.
    """
    if settings.kind == "temporal":
        return partial(inpaint, settings=settings)
    if settings.model is None:
        reason = "must name a TorchScript file such as big-lama.pt for inpaint.kind=torchscript"
        raise SettingError("inpaint.model", settings.model, reason)
    from l2a_ray.prepare.inpaint.learned import (
        LearnedFill,  # not before it is asked for: PyTorch takes seconds to import
    )

    return partial(inpaint, settings=settings, fill=LearnedFill(settings.model))


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
    masked_THW = _grow(masks_THW, settings.dilate)
    if masked_THW.all():
        raise NoBackgroundError("the masks cover every pixel at every time: no background is ever seen")
    if not masked_THW.any():
        return frames_THWC.copy()
    fill = fill or partial(_opencv_fill, settings=settings)
    maps = alignments(frames_THWC, masked_THW) if settings.compensate else []
    if all(map_ is IDENTITY for map_ in maps):
        clean_HWC = _clean(frames_THWC, ~masked_THW, fill)
        return np.where(masked_THW[..., None], clean_HWC, frames_THWC)
    return np.where(masked_THW[..., None], _clean_moving(frames_THWC, ~masked_THW, maps, fill), frames_THWC)


def _clean(frames_THWC: NDArray[np.uint8], known_THW: NDArray[np.bool_], fill: SpatialFill) -> NDArray[np.uint8]:
    """One image of a scene that stands still in its frames."""
    clean_HWC, seen_HW = temporal_median(frames_THWC, known_THW)
    return clean_HWC if seen_HW.all() else fill(clean_HWC, seen_HW == 0)


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
        cv2.warpAffine(known_HW.view(np.uint8) * 255, map_, canvas)
        for known_HW, map_ in zip(known_THW, maps, strict=True)
    ]
    aligned = [
        cv2.warpAffine(frame_HWC, map_, canvas, borderMode=cv2.BORDER_REPLICATE)
        for frame_HWC, map_ in zip(frames_THWC, maps, strict=True)
    ]
    clean_HWC = _clean(np.stack(aligned).astype(np.uint8, copy=False), np.stack(known) == 255, fill)
    back = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = [cv2.warpAffine(clean_HWC, map_, size, flags=back, borderMode=cv2.BORDER_REPLICATE) for map_ in maps]
    return np.stack(seen).astype(np.uint8, copy=False)


def _opencv_fill(
    image_HWC: NDArray[np.uint8], unknown_HW: NDArray[np.bool_], settings: InpaintSettings
) -> NDArray[np.uint8]:
    filled_HWC = cv2.inpaint(image_HWC, unknown_HW.view(np.uint8), settings.radius, _METHODS[settings.spatial])
    return filled_HWC.astype(np.uint8, copy=False)


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
