"""Cross-entropy on labelled clips and on composites (paper, 4.2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.classifier.step import soft_cross_entropy
from l2a_ray.composites.schedule import COMPOSITES, REAL, Stream


class Supervised:
    """Real clips and composites, in their share of each batch or beside it; the network itself is the result."""

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        self._settings = settings
        self._views = ("weak",) if settings.augment.kind == "none" else ("strong",)
        self._mean_weight = 1.0  # of the samples of a step

    def streams(self, data: TrainingData) -> Sequence[Stream]:
        """Return the composites, if there are pairs, and the real clips, which fill what is left of each batch."""
        settings, real = self._settings, Stream(REAL, data.real, views=self._views)
        if data.pairs is None:
            return [real]
        added, share = settings.added_composites, settings.composite_share
        if settings.composite_mode == "add":
            share = added / (settings.batch_size + added)
        self._mean_weight = 1 - share + share * settings.composite_weight
        if settings.composite_mode == "replace":
            return [Stream(COMPOSITES, data.pairs, share, views=self._views), real]
        beside = Stream(COMPOSITES, data.pairs, per_step=added, views=self._views)
        return [real, *([beside] if added else [])]

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Return the mean cross-entropy to the label distributions, weighted where composites weigh otherwise.

        The weights' mean is that of all steps, not of this batch: so workers agree, and a clip weighs the same always.
        """
        logits, weight = model(batch.clips), self._settings.composite_weight
        if weight == 1:
            return soft_cross_entropy(logits, batch.labels)
        weights = torch.from_numpy(np.where(batch.streams == COMPOSITES, np.float32(weight), np.float32(1)))
        return soft_cross_entropy(logits, batch.labels, weights / (self._mean_weight * len(weights)))

    def after_step(self, network: Network) -> None:
        """Nothing follows a step."""

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing: there is no state beside the network's."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to go back to."""

    def predictor(self, network: Network) -> Network:
        """Return the network."""
        return network
