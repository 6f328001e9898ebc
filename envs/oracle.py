"""What each pair is worth on its own, the slow and exact way: the reference for a Selector's scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.trial import ClassifierTrial
from l2a_ray.composites.loader import Sample
from l2a_ray.runtime.progress import Bar


def one_step_gains(trial: ClassifierTrial, pairs: Sequence[Sample], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how far the validation loss falls when the classifier takes its SGD step on one pair alone.

    Every pair is tried from the classifier's start, so neither the others nor their order play a part, but through
    ``rng`` where ``env.tune=all`` draws crops from it.

    Returns:
        float64 (P,), in nats: loss at the start minus loss after the step; above 0 where the pair helped.
    """
    gains = np.empty(len(pairs))
    for i, pair in enumerate(Bar(pairs, desc="oracle", unit="pair")):
        start = trial.reset()
        gains[i] = start.val_loss - trial.step([pair], rng).val_loss
    return gains
