"""What a way to train a classifier is. Imports no Ray.

Axes: B samples, T time, H height, W width, C channel, L classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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
    """

    clips: Tensor
    labels: Tensor
    streams: NDArray[np.str_]
    views: NDArray[np.str_]

    @classmethod
    def of(cls, stacked: Stacked, device: torch.device) -> "Batch":
        """Put arrays where the network is."""
        clips, labels = torch.tensor(stacked.clips), torch.tensor(stacked.labels)
        return cls(clips.to(device), labels.to(device), stacked.streams, stacked.views)

    def only(self, stream: str, view: str = "weak") -> "Batch":
        """Return the samples of one stream as one view shows them."""
        chosen = (self.streams == stream) & (self.views == view)
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(self.clips.device)
        return Batch(self.clips[rows], self.labels[rows], self.streams[chosen], self.views[chosen])


class Method(Protocol):
    """A way to train a classifier: what it sees at each step, and what it makes less.

    A method is made for a network (:data:`l2a_ray.classifier.methods.METHODS`) that is where it is to be trained and
    has its first weights.
    """

    def streams(self, data: TrainingData) -> Sequence[Stream]:
        """Return what the schedule draws from."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Return the loss of one step, a scalar; it is called once a step.

        Args:
            model: maps the batch's clips to logits: the network, or its head alone where the backbone is frozen and
                has seen them; or what Ray Train wraps it in for several workers.
            batch: this worker's samples.
            step: counted from 0 over all epochs.
        """

    def after_step(self, network: Network) -> None:
        """Do what follows the optimiser's step, as moving a teacher."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what a checkpoint must hold beside the network and its optimiser."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a ``state``."""

    def predictor(self, network: Network) -> Network:
        """Return the network that is the result of the training."""
