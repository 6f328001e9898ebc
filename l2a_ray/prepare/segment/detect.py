"""From a detector of single frames to a segmenter of clips: batches, threshold, specks, and care over time.

Axes: T time, H height, W width, C channel, N instances.
"""

import logging
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from l2a_ray.errors import VideoError
from l2a_ray.prepare.segment.base import Found, Instances
from l2a_ray.prepare.segment.settings import DetectSettings as DetectSettings
from l2a_ray.videos.decode import Clip

logger = logging.getLogger(__name__)


class Detector(Protocol):
    """Finds the objects of single frames."""

    def __call__(self, frames_THWC: NDArray[np.uint8]) -> list[Found]:
        """Return what is found in each RGB frame, whatever its score."""
        ...


class DetectorSegmenter:
    """Runs a detector over the frames of a clip."""

    def __init__(self, detector: Detector, settings: DetectSettings) -> None:
        self._detector, self._settings, self._batch_size = detector, settings, settings.batch_size

    def __call__(self, clip: Clip) -> Instances:
        """Segment one clip.

        Raises:
            VideoError: the GPU's memory does not hold a single frame.
        """
        height, width = clip.frames_THWC.shape[1:3]
        kept = [self._keep(found) for found in self._detect(clip)]
        frame_indices = np.repeat(np.arange(len(kept)), [len(found.class_N) for found in kept])
        instances = Instances(
            class_N=np.concatenate([found.class_N for found in kept]).astype(np.str_),
            score_N=np.concatenate([found.score_N for found in kept]),
            box_N4=np.concatenate([found.box_N4 for found in kept]).reshape(-1, 4),
            mask_NHW=np.concatenate([found.mask_NHW for found in kept]).reshape(-1, height, width),
            frame_N=frame_indices,
            frames=len(kept),
        )
        return carry_through(instances, self._settings.carry, self._settings.overlap)

    def _detect(self, clip: Clip) -> list[Found]:
        found: list[Found] = []
        while len(found) < len(clip.frames_THWC):
            try:
                found += self._detector(clip.frames_THWC[len(found) : len(found) + self._batch_size])
            except torch.OutOfMemoryError as error:
                if self._batch_size == 1:
                    advice = "Use a larger GPU or smaller frames (decode.size)"
                    raise VideoError(
                        clip.path, f"the GPU's memory does not hold one frame ({error})", advice
                    ) from error
                self._batch_size //= 2
                torch.cuda.empty_cache()
                logger.warning("segment: out of GPU memory, going on with %d frames at once", self._batch_size)
        return found

    def _keep(self, found: Found) -> Found:
        """Drop what is uncertain, then specks, then what is nothing but specks."""
        certain = found.score_N >= self._settings.score
        least = self._settings.min_area * found.mask_NHW[0].size if len(certain) else 0
        masks = [without_specks(mask, least) for mask in found.mask_NHW[certain]]
        cleaned = np.array(masks, dtype=np.bool_).reshape(-1, *found.mask_NHW.shape[1:])
        seen = cleaned.any(axis=(1, 2))
        sure = np.flatnonzero(certain)[seen]
        return Found(found.class_N[sure], found.score_N[sure], found.box_N4[sure], cleaned[seen])


def without_specks(mask_HW: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Return a mask without its connected pieces of fewer than ``least`` pixels."""
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats(mask_HW.view(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= least
    large[0] = False  # what is not mask
    kept: NDArray[np.bool_] = large[pieces]
    return kept


@dataclass(frozen=True)
class _Sighting:
    """An object in a frame; ``row`` is the instance whose class, score and mask it has."""

    row: int
    frame: int
    name: str
    box: NDArray[np.float32]

    def overlap(self, other: "_Sighting") -> float:
        """Return the boxes' intersection over union; 0 if the classes differ."""
        if self.name != other.name:
            return 0.0
        return float(box_iou(torch.from_numpy(self.box[None]), torch.from_numpy(other.box[None])))


def carry_through(instances: Instances, most: int, overlap: float) -> Instances:
    """Fill in an object that drops out for up to ``most`` frames between two in which it is seen.

    Two detections are the same object if their classes are, and if the intersection over union of their boxes is at
    least ``overlap``. In the frames between, its box moves evenly from the one to the other, and its mask is the nearer
    one's, moved along.
    """
    columns = zip(instances.frame_N.tolist(), instances.class_N.tolist(), instances.box_N4, strict=True)
    seen = [_Sighting(row, *column) for row, column in enumerate(columns)]
    filled: list[_Sighting] = []
    for gap in range(1, most + 1):
        for first, last in _ends(seen, gap + 1, overlap):
            between = [_on_the_way(first, last, first.frame + step) for step in range(1, gap + 1)]
            if not any(_is_there(sighting, seen + filled, overlap) for sighting in between):
                filled += between
    if not filled:
        return instances
    rows = np.array([sighting.row for sighting in filled])
    masks = [_moved(instances.mask_NHW[s.row], s.box - instances.box_N4[s.row]) for s in filled]
    return replace(
        instances,
        class_N=np.concatenate([instances.class_N, instances.class_N[rows]]),
        score_N=np.concatenate([instances.score_N, instances.score_N[rows]]),
        box_N4=np.concatenate([instances.box_N4, np.stack([sighting.box for sighting in filled])]),
        mask_NHW=np.concatenate([instances.mask_NHW, np.stack(masks)]),
        frame_N=np.concatenate([instances.frame_N, np.array([sighting.frame for sighting in filled])]),
    )


def _ends(seen: list[_Sighting], apart: int, overlap: float) -> list[tuple[_Sighting, _Sighting]]:
    """Pair each sighting with the one, so many frames later, that it overlaps most."""
    pairs = []
    for first in seen:
        later = [sighting for sighting in seen if sighting.frame == first.frame + apart]
        last = max(later, key=first.overlap, default=None)
        if last is not None and first.overlap(last) >= overlap:
            pairs.append((first, last))
    return pairs


def _on_the_way(first: _Sighting, last: _Sighting, frame: int) -> _Sighting:
    share = (frame - first.frame) / (last.frame - first.frame)
    box = ((1 - share) * first.box + share * last.box).astype(np.float32)
    return _Sighting((first if share <= 0.5 else last).row, frame, first.name, box)


def _is_there(sighting: _Sighting, others: list[_Sighting], overlap: float) -> bool:
    return any(other.frame == sighting.frame and sighting.overlap(other) >= overlap for other in others)


def _moved(mask_HW: NDArray[np.bool_], by: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Shift a mask by as much as its box's centre moved, in whole pixels."""
    right, down = np.round((by[:2] + by[2:]) / 2).astype(float)
    shift = np.array([[1, 0, right], [0, 1, down]])
    moved = cv2.warpAffine(mask_HW.view(np.uint8), shift, mask_HW.shape[::-1], flags=cv2.INTER_NEAREST)
    return moved.view(np.bool_)
