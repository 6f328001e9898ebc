"""Training samples: real clips and composites, cropped and flipped, and the plan that says which come in which step.

Imports no Ray. Axes: T time, H height, W width, C channel, L classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from l2a_ray.clips.store import ClipStore
from l2a_ray.composite import CompositeSettings, mix_labels
from l2a_ray.errors import SettingError
from l2a_ray.metrics import count
from l2a_ray.mixes import mix

REAL, PAIRS, CROPS = 0, 1, 2  # the independent random streams of one seed


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


@dataclass(frozen=True)
class BatchPlan:
    """Which samples each step sees: a pure function of the seed and the step, so that a restart sees the same ones.

    The samples of all steps form one endless row in which every (1/composite_share)-th is a composite and the others
    are real; without pairs all are real. Real clips come in shuffled passes, each clip once a pass, and so do pairs;
    a pass runs on over the ends of batches and epochs. So every batch is full, and arms of one experiment take the
    same number of steps an epoch, as many as one pass over the real clips would, whatever they mix in.

    Args:
        real: ids of the real training clips, str (N,).
        pairs: ids of foreground and background clips, str (P, 2), or None.
        batch_size: samples a step.
        composite_share: share of composites in [0, 1] where there are pairs.
        seed: of the shuffles, crops and flips.
    """

    real: NDArray[np.str_]
    pairs: NDArray[np.str_] | None
    batch_size: int
    composite_share: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps that hold as many samples as there are real clips, rounded up."""
        return -(-len(self.real) // self.batch_size)

    def batch(self, step: int) -> list[Sample]:
        """Return the samples of one step, counted from 0 over all epochs."""
        return [self._sample(step * self.batch_size + position) for position in range(self.batch_size)]

    def rng(self, step: int, position: int) -> np.random.Generator:
        """Return the generator of one sample's crop and flip."""
        return np.random.default_rng((self.seed, CROPS, step, position))

    def _sample(self, number: int) -> Sample:
        composites = 0 if self.pairs is None else int(number * self.composite_share)
        if self.pairs is not None and int((number + 1) * self.composite_share) > composites:
            foreground, background = self.pairs[_shuffled(self.seed, PAIRS, len(self.pairs), composites)]
            return Sample(str(foreground), str(background))
        return Sample(str(self.real[_shuffled(self.seed, REAL, len(self.real), number - composites)]))


def stack(
    loader: SampleLoader, plan: BatchPlan, step: int, positions: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Make the samples at some positions of one step: uint8 (B, T, crop, crop, C) and float32 (B, L)."""
    batch = plan.batch(step)
    samples = [loader(batch[position], plan.rng(step, position)) for position in positions]
    return np.stack([frames for frames, _ in samples]), np.stack([label for _, label in samples])


def _shuffled(seed: int, stream: int, size: int, number: int) -> int:
    """Return item ``number`` of an endless row of shuffles of range(size)."""
    return int(_permutation(seed, stream, size, number // size)[number % size])


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, size: int, turn: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, stream, turn)).permutation(size)
