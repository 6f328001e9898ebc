"""What every segmenter takes and gives.

Axes: T time, H height, W width, C channel, N instances over all frames of a clip.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from l2a_ray.videos.decode import Clip


@dataclass(frozen=True)
class Planes:
    """The three masks of a clip that the store keeps, each bool of shape (T, H, W)."""

    objects: NDArray[np.bool_]
    people: NDArray[np.bool_]
    boxes: NDArray[np.bool_]


@dataclass(frozen=True)
class Instances:
    """Objects found in a clip, one row for each object in each frame.

    Args:
        frame_N: index of the frame, int, in [0, T).
        score_N: confidence, float32, in [0, 1].
        person_N: whether the object is a person, bool.
        mask_NHW: its pixels, bool.
        frames: number of frames T of the clip.
    """

    frame_N: NDArray[np.int64]
    score_N: NDArray[np.float32]
    person_N: NDArray[np.bool_]
    mask_NHW: NDArray[np.bool_]
    frames: int

    def planes(self) -> Planes:
        """Unite the instances of each frame: all objects, people only, and the bounding boxes of all objects."""
        shape = (self.frames, *self.mask_NHW.shape[1:])
        objects, people, boxes = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
        for t, person, mask_HW in zip(self.frame_N, self.person_N, self.mask_NHW, strict=True):
            rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
            if rows.size == 0:
                continue
            objects[t] |= mask_HW
            if person:
                people[t] |= mask_HW
            boxes[t, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        return Planes(objects=objects, people=people, boxes=boxes)


class Segmenter(Protocol):
    """Finds the people and objects of a clip."""

    def __call__(self, clip: Clip) -> Instances:
        """Segment one clip.

        Raises:
            VideoError: this clip cannot be segmented (its precomputed masks are missing, say).
        """
        ...
