"""Segmenter without weights: what moves before a background that is still, or that a camera pans over.

Frames are aligned to the middle one (sparse optical flow, RANSAC similarity transform), the background is their
temporal median, and what differs from it in colour is foreground.

It serves where the whole actor moves and no place is covered for half of the time. On hand-held and real video it is
poor: it misses people who stay in place and parts that stay still, takes moving objects for people, and a zoom or a
depth that the transform cannot follow for movement.

Axes: T time, H height, W width, C channel.
"""

from functools import reduce

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.prepare.inpaint.camera import alignments, shared_canvas
from l2a_ray.prepare.inpaint.fill import temporal_median
from l2a_ray.prepare.segment.base import Instances, people
from l2a_ray.prepare.segment.settings import MotionSettings as MotionSettings
from l2a_ray.videos.decode import Clip

_MIN_SEEN = 3  # of two frames one cannot tell which shows the background


class MotionSegmenter:
    """Every large connected component of what moves is an instance."""

    def __init__(self, settings: MotionSettings) -> None:
        self._settings = settings

    def __call__(self, clip: Clip) -> Instances:
        """Segment one clip. Motion knows no classes: every instance is called a person.

        An instance's score is d / (d + threshold), d being its mean difference from the background. Where nothing
        moves, or in fewer than 3 frames, there are no instances.
        """
        differences = _difference(clip.frames_THWC)
        threshold = max(self._settings.contrast, self._settings.noise * 1.4826 * float(np.median(differences)))
        masks, scores, frames = [], [], []
        for t, difference in enumerate(differences):
            for mask in self._components(difference > threshold):
                strength = float(difference[mask].mean())
                masks.append(mask)
                scores.append(strength / (strength + threshold))
                frames.append(t)
        stacked = np.array(masks, dtype=np.bool_).reshape(-1, *differences.shape[1:])
        return people(stacked, np.array(frames, np.int64), np.array(scores, np.float32), len(differences))

    def _components(self, moved_HW: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Clean the mask and part it into its large connected components, their holes filled."""
        clean = cv2.medianBlur(moved_HW.view(np.uint8), 3)  # drops specks and keeps thin limbs, unlike an opening
        size = 2 * max(1, round(min(clean.shape) / 36)) + 1
        clean = cv2.morphologyEx(clean, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
        outlines, _ = cv2.findContours(clean, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = [cv2.drawContours(np.zeros_like(clean), [line], -1, 1, cv2.FILLED) for line in outlines]
        areas = [int(mask.sum()) for mask in filled]
        least = max(self._settings.min_area * clean.size, self._settings.min_share * max(areas, default=0))
        return [mask.view(np.bool_) for mask, area in zip(filled, areas, strict=True) if area >= least]


def _difference(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Difference of each pixel from the background, (T, H, W): 0 where too few frames show its place.

    Compared with the range of the background's 3 x 3 neighbourhood, so that an alignment one pixel off shows no edges.
    """
    low, high, maps = _background(frames_THWC)
    size = frames_THWC.shape[2], frames_THWC.shape[1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    differences = []
    for frame, map_ in zip(frames_THWC, maps, strict=True):
        below = cv2.subtract(cv2.warpAffine(low, map_, size, flags=flags), frame)
        high_here = cv2.warpAffine(high, map_, size, flags=flags, borderValue=(255, 255, 255))
        beyond = cv2.max(below, cv2.subtract(frame, high_here))
        differences.append(reduce(cv2.max, cv2.split(beyond)))
    return np.stack(differences)


def _background(
    frames_THWC: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[NDArray[np.float64]]]:
    """Least and greatest background values around each pixel of the canvas, and the maps from the frames onto it."""
    maps, canvas = shared_canvas(alignments(frames_THWC), frames_THWC.shape[2], frames_THWC.shape[1])
    full = np.full(frames_THWC.shape[1:3], 255, dtype=np.uint8)
    known = np.stack([cv2.warpAffine(full, map_, canvas) for map_ in maps]) == 255
    aligned = [cv2.warpAffine(frame, map_, canvas) for frame, map_ in zip(frames_THWC, maps, strict=True)]
    median, count = temporal_median(np.stack(aligned).astype(np.uint8, copy=False), known)
    square = np.ones((3, 3), dtype=np.uint8)
    low, high = (edge(median, square).astype(np.uint8, copy=False) for edge in (cv2.erode, cv2.dilate))
    few = count < _MIN_SEEN
    low[few], high[few] = 0, 255
    return low, high, maps
