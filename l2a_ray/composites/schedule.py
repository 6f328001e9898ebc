"""Which samples each step of a training sees. Imports no Ray.

Axes: B clips in a batch, T time, H height, W width, C channel, L classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.loader import Sample, SampleLoader

REAL, PAIRS, CROPS = 0, 1, 2  # the independent random streams of one seed


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
