"""Segmenter without weights: what moves before a background that is still, or that a camera pans over.

Frames are aligned to the middle one (sparse optical flow, RANSAC similarity transform), the background is their
temporal median, and what differs from it in colour is foreground.

It serves where the whole actor moves and no place is covered for half of the time. On hand-held and real video it is
poor: mean intersection over union with the true masks is 0.25 on J-HMDB (63 random clips, 8 frames of short side 128),
above one half in 14 % of the frames. It misses people who stay in place and parts that stay
still, takes moving objects for people, and a zoom or a depth that the transform cannot follow for movement.

Axes: T time, H height, W width, C channel, N instances over all frames of a clip, P points.
"""

from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.prepare.inpaint.camera import alignments, shared_canvas
from l2a_ray.prepare.inpaint.fill import temporal_median
from l2a_ray.prepare.segment.base import Instances, people
from l2a_ray.videos.decode import Clip

_MIN_SEEN = 3  # of two frames one cannot tell which shows the background


@dataclass(frozen=True, kw_only=True)
class MotionSettings:
    """What counts as movement."""

    contrast: int = 20
    """Least difference from the background, in grey levels of the channel that differs most, in [1, 255]. Ours."""
    noise: float = 4.0
    """Least difference in standard deviations of the clip's own noise (robust, from the median). Ours."""
    min_area: float = 0.004
    """Smallest component that is kept, as a share of the frame, in [0, 1]. Ours."""
    min_share: float = 0.2
    """Smallest component that is kept, as a share of its frame's largest, in [0, 1]. Ours."""

    def __post_init__(self) -> None:
        if not 1 <= self.contrast <= 255:
            raise SettingError("segment.motion.contrast", self.contrast, "must be between 1 and 255 grey levels")
        if not 0 <= self.noise < np.inf:
            raise SettingError("segment.motion.noise", self.noise, "must be 0 or more standard deviations")
        for field in ("min_area", "min_share"):
            if not 0 <= getattr(self, field) <= 1:
                raise SettingError(f"segment.motion.{field}", getattr(self, field), "must be between 0 and 1")


class MotionSegmenter:
    """Every large connected component of what moves is an instance."""

    def __init__(self, settings: MotionSettings) -> None:
        self._settings = settings

    def __call__(self, clip: Clip) -> Instances:
        """Segment one clip. Motion knows no classes: every instance is called a person.

        An instance's score is d / (d + threshold), d being its mean difference from the background. Where nothing
        moves, or in fewer than 3 frames, there are no instances.
        """
        difference_THW = _difference(clip.frames_THWC)
        threshold = max(self._settings.contrast, self._settings.noise * 1.4826 * float(np.median(difference_THW)))
        masks, scores, frames = [], [], []
        for t, difference_HW in enumerate(difference_THW):
            for mask_HW in self._components(difference_HW > threshold):
                strength = float(difference_HW[mask_HW].mean())
                masks.append(mask_HW)
                scores.append(strength / (strength + threshold))
                frames.append(t)
        mask_NHW = np.array(masks, dtype=np.bool_).reshape(-1, *difference_THW.shape[1:])
        return people(mask_NHW, np.array(frames, np.int64), np.array(scores, np.float32), len(difference_THW))

    def _components(self, moved_HW: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Clean the mask and part it into its large connected components, their holes filled."""
        clean_HW = cv2.medianBlur(moved_HW.view(np.uint8), 3)  # drops specks and keeps thin limbs, unlike an opening
        size = 2 * max(1, round(min(clean_HW.shape) / 36)) + 1
        clean_HW = cv2.morphologyEx(
            clean_HW, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        )
        outlines, _ = cv2.findContours(clean_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = [cv2.drawContours(np.zeros_like(clean_HW), [line], -1, 1, cv2.FILLED) for line in outlines]
        areas = [int(mask_HW.sum()) for mask_HW in filled]
        least = max(self._settings.min_area * clean_HW.size, self._settings.min_share * max(areas, default=0))
        return [mask_HW.view(np.bool_) for mask_HW, area in zip(filled, areas, strict=True) if area >= least]


def _difference(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Difference of each pixel from the background, (T, H, W): 0 where too few frames show its place.

    Compared with the range of the background's 3 x 3 neighbourhood, so that an alignment one pixel off shows no edges.
    """
    low_HWC, high_HWC, maps = _background(frames_THWC)
    size = frames_THWC.shape[2], frames_THWC.shape[1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    differences = []
    for frame_HWC, map_ in zip(frames_THWC, maps, strict=True):
        below_HWC = cv2.subtract(cv2.warpAffine(low_HWC, map_, size, flags=flags), frame_HWC)
        high_here_HWC = cv2.warpAffine(high_HWC, map_, size, flags=flags, borderValue=(255, 255, 255))
        beyond_HWC = cv2.max(below_HWC, cv2.subtract(frame_HWC, high_here_HWC))
        differences.append(reduce(cv2.max, cv2.split(beyond_HWC)))
    return np.stack(differences)


def _background(
    frames_THWC: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[NDArray[np.float64]]]:
    """Least and greatest background values around each pixel of the canvas, and the maps from the frames onto it."""
    maps, canvas = shared_canvas(alignments(frames_THWC), frames_THWC.shape[2], frames_THWC.shape[1])
    full_HW = np.full(frames_THWC.shape[1:3], 255, dtype=np.uint8)
    known_THW = np.stack([cv2.warpAffine(full_HW, map_, canvas) for map_ in maps]) == 255
    aligned = [cv2.warpAffine(frame_HWC, map_, canvas) for frame_HWC, map_ in zip(frames_THWC, maps, strict=True)]
    median_HWC, count_HW = temporal_median(np.stack(aligned).astype(np.uint8, copy=False), known_THW)
    square = np.ones((3, 3), dtype=np.uint8)
    low_HWC, high_HWC = (edge(median_HWC, square).astype(np.uint8, copy=False) for edge in (cv2.erode, cv2.dilate))
    few_HW = count_HW < _MIN_SEEN
    low_HWC[few_HW], high_HWC[few_HW] = 0, 255
    return low_HWC, high_HWC, maps
