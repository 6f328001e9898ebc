"""The ways to look at a clip: what is cut out of its frames, and how it is changed. Imports no Ray.

Axes: V views, T time, H height, W width, C channel.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.settings import AugmentSettings
from l2a_ray.composites.transforms import as_frames, as_video, draw
from l2a_ray.errors import SettingError

Frames = NDArray[np.uint8]


def crop_and_flip(frames_THWC: Frames, crop: int, rng: np.random.Generator | None) -> Frames:
    """Cut the same square out of all frames and flip them with probability 1/2; without ``rng`` the centre, unflipped.

    Raises:
        SettingError: the crop is larger than the frames.
    """
    height, width = frames_THWC.shape[1:3]
    _check_crop(crop, height, width)
    if rng is None:
        top, left, flip = (height - crop) // 2, (width - crop) // 2, False
    else:
        top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
        flip = bool(rng.integers(2))
    window = frames_THWC[:, top : top + crop, left : left + crop]
    return window[:, :, ::-1] if flip else window


def even_crops(frames_THWC: Frames, crop: int, count: int) -> Frames:
    """Cut ``count`` squares, evenly spread along the longer side and in the middle of the other: (V, T, crop, crop, C).

    One is the centre; of three, the outer ones touch the edges, as SlowFast is tested (Feichtenhofer et al. 2019).

    Raises:
        SettingError: the crop is larger than the frames.
    """
    height, width = frames_THWC.shape[1:3]
    _check_crop(crop, height, width)
    room = np.array([height - crop, width - crop])
    places = np.tile(room // 2, (count, 1))
    if count > 1:
        longer = int(width >= height)
        places[:, longer] = np.arange(count) * room[longer] // (count - 1)
    return np.stack([frames_THWC[:, top : top + crop, left : left + crop] for top, left in places])


def _check_crop(crop: int, height: int, width: int) -> None:
    if crop > min(height, width):
        reason = f"must be at most the clips' short side, {min(height, width)} pixels (decode.size)"
        raise SettingError("crop", crop, reason)


def _weak(frames_THWC: Frames, crop: int, rng: np.random.Generator, augment: AugmentSettings) -> Frames:
    return crop_and_flip(frames_THWC, crop, rng)


def _strong(frames_THWC: Frames, crop: int, rng: np.random.Generator, augment: AugmentSettings) -> Frames:
    """RandAugment (https://arxiv.org/abs/1909.13719) of what `weak` cuts out; its operations are drawn once a clip."""
    from torchvision.transforms import v2

    transform = v2.RandAugment(num_ops=augment.num_ops, magnitude=augment.magnitude)
    return as_frames(draw(transform, rng, as_video(crop_and_flip(frames_THWC, crop, rng))))


def _strong_in_time(frames_THWC: Frames, crop: int, rng: np.random.Generator, augment: AugmentSettings) -> Frames:
    """What `strong` does, after one change in time.

    It is one of these, drawn alike: none, each second frame in place of the next, the frames backwards, each frame lost
    with probability 1/2 (then the one before it stays). Of ActorCutMix (https://github.com/vt-vl-lab/video-data-aug);
    that the frame before stays is ours.
    """
    return _strong(frames_THWC[_times(len(frames_THWC), int(rng.integers(4)), rng)], crop, rng, augment)


def _times(count: int, kind: int, rng: np.random.Generator) -> NDArray[np.int64]:
    times = np.arange(count)
    if kind == 1:
        return times // 2 * 2
    if kind == 2:
        return times[::-1]
    if kind == 3:
        kept = rng.integers(2, size=count).astype(bool)
        kept[0] = True
        return np.maximum.accumulate(np.where(kept, times, 0))
    return times


VIEWS: Mapping[str, Callable[[Frames, int, np.random.Generator, AugmentSettings], Frames]] = {
    "weak": _weak,
    "strong": _strong,
    "strong_in_time": _strong_in_time,
}
"""The ways to look at a training sample, by name."""
