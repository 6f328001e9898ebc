"""What a way to train a classifier is. Imports no Ray.

Axes: B samples, T time, H height, W width, C channel, L classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.network import Network
from l2a_ray.composites.schedule import Stacked, Stream


@dataclass(frozen=True)
class Batch:
    """A worker's samples of one step, in the order of the schedule.

    Args:
        clips: what the model takes: uint8 clips (B, T, H, W, C) or, if it is a head alone, features (B, F).
        labels: float32 label distributions (B, L).
        streams: name of each sample's stream, (B,).
        views: name of each sample's view, (B,).
        boxes: bool (B, T, H, W), the boxes around people where a stream has them; None: none has.
        teacher: float32 (B, K), a teacher's probabilities, 0 for composites; None: there is no teacher.
    """

    clips: Tensor
    labels: Tensor
    streams: NDArray[np.str_]
    views: NDArray[np.str_]
    boxes: Tensor | None = None
    teacher: Tensor | None = None

    @classmethod
    def of(cls, stacked: Stacked, device: torch.device) -> "Batch":
        """Put arrays where the network is."""

        def put(array: NDArray[Any] | None) -> Tensor | None:
            return None if array is None else torch.tensor(array).to(device)

        clips, labels = torch.tensor(stacked.clips).to(device), torch.tensor(stacked.labels).to(device)
        return cls(clips, labels, stacked.streams, stacked.views, put(stacked.boxes), put(stacked.teacher))

    def only(self, stream: str, view: str = "weak") -> "Batch":
        """Return the samples of one stream as one view shows them."""
        return self.rows(np.flatnonzero((self.streams == stream) & (self.views == view)))

    def rows(self, rows: NDArray[np.int64]) -> "Batch":
        """Return some samples, in their order."""
        there = torch.from_numpy(rows).to(self.clips.device)
        return Batch(
            self.clips[there],
            self.labels[there],
            self.streams[rows],
            self.views[rows],
            None if self.boxes is None else self.boxes[there],
            None if self.teacher is None else self.teacher[there],
        )


class Guesses(NamedTuple):
    """What a method took the unlabelled clips of a step for, in the order of the schedule.

    Args:
        label: the likeliest class of each, int64 (B,).
        kept: whether it was sure enough to learn it, bool (B,).
    """

    label: Tensor
    kept: Tensor


class Method(Protocol):
    """A way to train a classifier: what it sees at each step, and what it makes less.

    A method is made for a network (:data:`l2a_ray.classifier.methods.METHODS`) that is where it is to be trained and
    has its first weights.
    """

    def streams(self, data: TrainingData) -> Sequence[Stream]:
        """Return what the schedule draws from."""

    def learner(self, network: Network, data: TrainingData, known: bool) -> nn.Module:
        """Return what ``loss`` calls, made of the network; heads that are needed beside its own are added to it.

        Args:
            network: what is trained.
            data: what it is trained on.
            known: whether batches hold the features of a frozen backbone in the place of clips.

        Raises:
            SettingError: the method cannot learn with a frozen backbone.
        """

    def loss(self, model: nn.Module, batch: Batch, step: int, steps: int) -> Tensor:
        """Return the loss of one step, a scalar; it is called once a step.

        Args:
            model: the ``learner``, or what Ray Train wraps it in for several workers; it is called once.
            batch: this worker's samples.
            step: counted from 0 over all epochs.
            steps: number of all steps.
        """

    def guesses(self) -> Guesses | None:
        """Return what the last ``loss`` took unlabelled clips for; None if the method does not guess."""

    def after_step(self, network: Network) -> None:
        """Do what follows the optimiser's step, as moving a teacher."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what a checkpoint must hold beside the network and its optimiser."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a ``state``."""

    def predictor(self, network: Network) -> Network:
        """Return the network that is the result of the training."""

    def student(self, network: Network) -> Network | None:
        """Return the network that was trained, if the result is another one: the average of its weights."""
