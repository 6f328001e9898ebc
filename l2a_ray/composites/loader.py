"""Training samples: real clips and composites, cropped and flipped.

Imports no Ray. Axes: T time, H height, W width, C channel, L classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, mix_labels
from l2a_ray.composites.mixes import mix
from l2a_ray.errors import SettingError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.telemetry import count


@dataclass(frozen=True)
class Sample:
    """What one sample is made of.

    Args:
        foreground: id of the clip whose actor is seen.
        background: id of the clip whose cleaned background it is pasted on; None: the foreground clip as it is.
    """

    foreground: str
    background: str | None = None


class SampleLoader:
    """Reads clips and makes samples of them.

    Args:
        store: the prepared clips.
        settings: how composites are labelled.
        crop: side of the square that is cut out, pixels.
    """

    def __init__(self, store: ClipStore, settings: CompositeSettings, crop: int) -> None:
        self.store, self.settings, self.crop = store, settings, crop
        self.labels = dict(zip(store.index["id"], store.index["label"].astype(int), strict=True))
        self.one_hot_LL = np.eye(len(store.classes), dtype=np.float32)

    def __call__(
        self, sample: Sample, rng: np.random.Generator | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return uint8 frames (T, crop, crop, C) and the float32 label distribution (L,).

        Args:
            sample: a real clip or a pair.
            rng: draws the crop's place and the flip, alike for all frames, after compositing; None: the centre,
                not flipped.

        Raises:
            SettingError: the crop is larger than the clip.
            StorageError: a clip's file is missing or damaged.
        """
        frames_THWC, label_L = self.blend(sample, rng)
        return crop_and_flip(frames_THWC, self.crop, rng), label_L

    def blend(
        self, sample: Sample, rng: np.random.Generator | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the whole frames, uint8 (T, H, W, C), neither cropped nor flipped, and the label distribution (L,).

        ``rng`` draws what a kind of mix leaves to chance; None: the same for the same pair. `paste` draws nothing.
        """
        front = self.store.read(sample.foreground)
        front_label_L = self.one_hot_LL[self.labels[sample.foreground]]
        if sample.background is None:
            return front.frames_THWC, front_label_L
        if rng is None:
            rng = np.random.default_rng(list(f"{sample.foreground}{sample.background}".encode()))
        mixed = mix(front, self.store.read(sample.background), self.settings, rng)
        count("l2a_samples_composited")
        back_label_L = self.one_hot_LL[self.labels[sample.background]]
        return mixed.frames_THWC, mix_labels(front_label_L, back_label_L, mixed.weight)


def crop_and_flip(frames_THWC: NDArray[np.uint8], crop: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """Cut the same square out of all frames and flip them with probability 1/2; without ``rng`` the centre, unflipped.

    Raises:
        SettingError: the crop is larger than the frames.
    """
    height, width = frames_THWC.shape[1:3]
    if crop > min(height, width):
        reason = f"must be at most the clips' short side, {min(height, width)} pixels (decode.size)"
        raise SettingError("classifier.crop", crop, reason)
    if rng is None:
        top, left, flip = (height - crop) // 2, (width - crop) // 2, False
    else:
        top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
        flip = bool(rng.integers(2))
    window_THWC = frames_THWC[:, top : top + crop, left : left + crop]
    return window_THWC[:, :, ::-1] if flip else window_THWC
