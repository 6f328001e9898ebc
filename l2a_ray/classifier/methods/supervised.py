"""Cross-entropy on labelled clips and on composites (paper, 4.2), and if wanted distillation (paper, 5.2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods.base import Batch, Guesses
from l2a_ray.classifier.methods.learner import Learner, add_head, strip_heads
from l2a_ray.classifier.methods.losses import distillation
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.classifier.step import soft_cross_entropy
from l2a_ray.composites.schedule import COMPOSITES, REAL, Stream
from l2a_ray.errors import SettingError

TEACHER = "teacher"
"""Name of the head that a teacher's probabilities are distilled into."""


class Supervised:
    """Real clips and composites, in their share of each batch or beside it; the network itself is the result."""

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        self.settings, self.numbers = settings, settings.numbers
        self._views = ("weak",) if settings.augment.kind == "none" else ("strong",)
        self._mean_weight = 1.0  # of the samples of a step

    def streams(self, data: TrainingData) -> Sequence[Stream]:
        """Return the composites, if there are pairs, and the real clips, which fill what is left of each batch."""
        settings, real = self.settings, Stream(REAL, data.real, views=self._views)
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

    def learner(self, network: Network, data: TrainingData, known: bool) -> nn.Module:
        """Return the network, its head where features are known, or with a teacher a learner of both heads."""
        if not self.numbers.distill:
            return network.head if known else network
        self.add_teacher(network, data, known)
        return Learner(network)

    def add_teacher(self, network: Network, data: TrainingData, known: bool) -> None:
        """Add the head that a teacher's probabilities are distilled into.

        Raises:
            SettingError: the backbone is frozen.
        """
        if known:
            raise SettingError("distill", self.numbers.distill, "teaches a frozen backbone nothing: must be 0")
        assert data.teacher_classes is not None, "read_data has seen to it"
        add_head(network, TEACHER, data.teacher_classes)

    def loss(self, model: nn.Module, batch: Batch, step: int, steps: int) -> Tensor:
        """Return the mean cross-entropy to the label distributions, and with a teacher the distillation's."""
        seen = model(batch.clips)
        if not self.numbers.distill:
            return self.labelled_loss(seen, batch)
        found = seen[0]
        return self.labelled_loss(found.logits, batch) + self.numbers.distill * distillation(
            found.others[TEACHER], batch.teacher
        )

    def labelled_loss(self, logits_BL: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy to the label distributions, weighted where composites weigh otherwise.

        The weights' mean is that of all steps, not of this batch: so workers agree, and a clip weighs the same always.
        """
        weight = self.settings.composite_weight
        if weight == 1:
            return soft_cross_entropy(logits_BL, batch.labels)
        weights = torch.from_numpy(np.where(batch.streams == COMPOSITES, np.float32(weight), np.float32(1)))
        return soft_cross_entropy(logits_BL, batch.labels, weights / (self._mean_weight * len(weights)))

    def guesses(self) -> Guesses | None:
        """It knows its labels."""
        return None

    def after_step(self, network: Network) -> None:
        """Nothing follows a step."""

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing: there is no state beside the network's."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to go back to."""

    def predictor(self, network: Network) -> Network:
        """Return the network, without the heads that were added to it."""
        return strip_heads(network)

    def student(self, network: Network) -> Network | None:
        """Return none: the result is the network."""
        return None
