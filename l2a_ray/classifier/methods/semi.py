"""What all methods have in common that learn from clips without labels beside the labelled ones.

Axes: B clips in a batch, L classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods.base import Batch, Guesses
from l2a_ray.classifier.methods.learner import Average, Learner, Seen, strip_heads
from l2a_ray.classifier.methods.losses import distillation
from l2a_ray.classifier.methods.supervised import TEACHER, Supervised
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.composites.schedule import UNLABELLED, Stream
from l2a_ray.errors import SettingError


class SemiSupervised(Supervised, ABC):
    """The supervised loss, plus one on unlabelled clips, times a weight that may grow, plus that of a teacher.

    A step is ``batch_size`` labelled samples, as in supervised training, and ``semi.mu`` times as many unlabelled
    clips beside them: all methods take the same number of steps.
    """

    views: ClassVar[tuple[str, ...]] = ("weak",)
    """Of an unlabelled clip."""
    boxes: ClassVar[bool] = False
    """Whether unlabelled clips come with the boxes around their people."""
    labelled_views: ClassVar[int] = 1
    """Views of a labelled sample; the first is learned by its label."""
    needs_clips: ClassVar[bool] = False
    """Whether features of a frozen backbone will not do."""

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        super().__init__(settings, network)
        self.semi = settings.semi
        weight = self.numbers.weight
        self._weight = float(network.head.out_features) if weight is None else weight
        self.average = Average(network, self.numbers.ema) if self.numbers.ema else None
        self._guesses: Guesses | None = None

    def streams(self, data: TrainingData) -> Sequence[Stream]:
        """Return those of supervised training, and the unlabelled clips."""
        shown = [replace(stream, views=stream.views * self.labelled_views) for stream in super().streams(data)]
        return [
            *shown,
            Stream(
                UNLABELLED,
                data.unlabelled,
                per_step=self.settings.unlabelled,
                views=self.views,
                labelled=False,
                boxes=self.boxes,
                augment=self.semi.strong.augment,
            ),
        ]

    def learner(self, network: Network, data: TrainingData, known: bool) -> nn.Module:
        """Return a learner of the network and the heads that the method adds."""
        if known and self.needs_clips:
            reason = f"with looks leaves method {self.settings.method} no clips to change. Choose another method"
            raise SettingError("freeze", list(self.settings.freeze), reason)
        if self.numbers.distill:
            self.add_teacher(network, data, known)
        self.add_heads(network)
        return Learner(network, apart=self.semi.batch_norm == "freeze")

    def add_heads(self, network: Network) -> None:
        """Add what heads the method needs."""

    def loss(self, model: nn.Module, batch: Batch, step: int, steps: int) -> Tensor:
        """Return the loss of the labelled samples, of the unlabelled clips, and of the teacher's opinion of both."""
        labelled = _views(batch, batch.streams != UNLABELLED, self.labelled_views)
        unlabelled = _views(batch, batch.streams == UNLABELLED, len(self.views))
        seen = model(*self.parts(labelled, unlabelled))
        loss = self.parts_loss(seen, labelled, unlabelled, step / steps)
        if self.numbers.distill:
            loss = loss + self.numbers.distill * _distillation(seen, [labelled[0], unlabelled[0]])
        return loss

    def parts(self, labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> list[Tensor]:
        """Return what the network is shown, given a batch a view: labelled samples first, then unlabelled clips."""
        return [labelled[0].clips, *(view.clips for view in unlabelled)]

    def parts_loss(
        self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch], done: float
    ) -> Tensor:
        """Return the labelled loss plus the unlabelled one, given what the network says of the parts.

        ``done`` is the share of all steps that came before this one.
        """
        loss = self.labelled_loss(seen[0].logits, labelled[0])
        return loss + self.weight(done) * self.unlabelled_loss(seen, labelled, unlabelled)

    @abstractmethod
    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return the loss on the unlabelled clips, which may ask something of the labelled ones too."""

    def weight(self, done: float) -> float:
        """Return the weight of the unlabelled loss when a share of all steps is done."""
        started = done - self.numbers.warm_up
        if started < 0:
            return 0.0
        return self._weight * self.growth(min(1.0, started / self.numbers.ramp) if self.numbers.ramp else 1.0)

    def growth(self, share: float) -> float:
        """Return which share of its weight the loss has when a share of the ramp is done: a line."""
        return share

    def guess(self, logits_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest classes, int64 (B,), and which are kept, float (B,); no gradient goes back.

        They are what ``guesses`` tells of this step.
        """
        chance, label = logits_BL.detach().softmax(dim=1).max(dim=1)
        self._guesses = Guesses(label, chance >= self.numbers.threshold)
        return label, self._guesses.kept.float()

    def guesses(self) -> Guesses | None:
        """Return the guesses of the last step, if the method makes any."""
        return self._guesses

    def after_step(self, network: Network) -> None:
        """Move the average."""
        if self.average is not None:
            self.average.update(network)

    def state(self) -> Mapping[str, Tensor]:
        """Return that of the average."""
        return {} if self.average is None else self.average.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a ``state``."""
        if self.average is not None:
            self.average.restore(state)

    def predictor(self, network: Network) -> Network:
        """Return the average if there is one, else the network."""
        return strip_heads(network if self.average is None else self.average.network)

    def student(self, network: Network) -> Network | None:
        """Return the network, if there is an average."""
        return None if self.average is None else strip_heads(network)


def _views(batch: Batch, chosen: NDArray[np.bool_], count: int) -> list[Batch]:
    """Return a batch a view of some samples, whose views lie side by side."""
    rows = np.flatnonzero(chosen)
    return [batch.rows(rows[number::count]) for number in range(count)]


def _distillation(seen: Sequence[Seen], parts: Sequence[Batch]) -> Tensor:
    """Return the loss of the teacher's opinion of the first parts, or the part of them that comes first."""
    said = [one.others[TEACHER][: len(part.clips)] for one, part in zip(seen, parts, strict=False)]
    opinions = [part.teacher for part in parts if part.teacher is not None]
    return distillation(torch.cat(said), torch.cat(opinions))
