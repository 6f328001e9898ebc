"""What every segmenter takes and gives.

Axes: T time, H height, W width, C channel, N instances (of a frame, or of all frames of a clip).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from l2a_ray.videos.decode import Clip

PERSON = "person"


@dataclass(frozen=True)
class Planes:
    """The masks of a clip that the store keeps, each bool of shape (T, H, W): objects or people, as masks or boxes."""

    objects: NDArray[np.bool_]
    people: NDArray[np.bool_]
    boxes: NDArray[np.bool_]
    people_boxes: NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """Objects found in one frame.

    Args:
        class_N: names of their classes, str; people are ``person``, as in COCO.
        score_N: confidence, float32, in [0, 1].
        box_N4: left, top, right and bottom edge in pixels, float32.
        mask_NHW: their pixels, bool.
    """

    class_N: NDArray[np.str_]
    score_N: NDArray[np.float32]
    box_N4: NDArray[np.float32]
    mask_NHW: NDArray[np.bool_]


@dataclass(frozen=True)
class Instances(Found):
    """Objects found in a clip, one row for each object in each frame.

    Args:
        frame_N: index of the frame, int, in [0, T).
        frames: number of frames T of the clip.
    """

    frame_N: NDArray[np.int64]
    frames: int

    def planes(self) -> Planes:
        """Unite the instances of each frame. One without a pixel of its own has no box either."""
        shape = (self.frames, *self.mask_NHW.shape[1:])
        objects, people, boxes, people_boxes = (np.zeros(shape, dtype=np.bool_) for _ in range(4))
        for t, name, box, mask in zip(self.frame_N, self.class_N, self.box_N4, self.mask_NHW, strict=True):
            if not mask.any():
                continue
            left, top = np.floor(box[:2]).clip(0).astype(int)
            right, bottom = np.ceil(box[2:]).astype(int)
            for masks, box_planes in ((objects, boxes), (people, people_boxes))[: 1 + (name == PERSON)]:
                masks[t] |= mask
                box_planes[t, top:bottom, left:right] = True
        return Planes(objects, people, boxes, people_boxes)


def people(
    mask_NHW: NDArray[np.bool_], frame_indices: NDArray[np.int64], scores: NDArray[np.float32], frames: int
) -> Instances:
    """Return masks as instances that are all people, with the boxes around their pixels."""
    boxes = [_box(mask) for mask in mask_NHW]
    return Instances(
        class_N=np.full(len(mask_NHW), PERSON),
        score_N=scores,
        box_N4=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        mask_NHW=mask_NHW,
        frame_N=frame_indices,
        frames=frames,
    )


def _box(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class Segmenter(Protocol):
    """Finds the people and objects of a clip."""

    def __call__(self, clip: Clip) -> Instances:
        """Segment one clip.

        Raises:
            VideoError: this clip cannot be segmented (its precomputed masks are missing, say).
        """
        ...
