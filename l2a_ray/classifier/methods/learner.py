"""A network that sees labelled and unlabelled clips in one call, with heads beside its own, and its average over time.

Axes: B clips in a batch, T time, H height, W width, C channel, F features, L classes, K outputs of another head.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from l2a_ray.classifier.network import Network

_HEADS = "other_heads"


class Seen(NamedTuple):
    """What a network says of some clips.

    Args:
        logits: float (B, L).
        others: what its other heads say, (B, K) by name.
    """

    logits: Tensor
    others: Mapping[str, Tensor]

    def rows(self, start: int, stop: int) -> "Seen":
        """Return what it says of some of them."""
        return Seen(self.logits[start:stop], {name: value[start:stop] for name, value in self.others.items()})


def add_head(network: Network, name: str, outputs: int) -> None:
    """Give a network another linear head over its features, with random weights."""
    if not hasattr(network, _HEADS):
        network.add_module(_HEADS, nn.ModuleDict())
    network.get_submodule(_HEADS).add_module(name, nn.Linear(network.feature_size, outputs).to(network.mean.device))


def strip_heads(network: Network) -> Network:
    """Return a network without the heads that were added: a copy, if there are any."""
    if not hasattr(network, _HEADS):
        return network
    stripped = copy.deepcopy(network)
    delattr(stripped, _HEADS)
    return stripped


def look(network: Network, inputs: Tensor) -> Seen:
    """Return what all heads say of clips (B, T, H, W, C) or, where a backbone is frozen, of its features (B, F)."""
    features = inputs if inputs.dim() == 2 else network.features(inputs)
    heads = network.get_submodule(_HEADS).named_children() if hasattr(network, _HEADS) else ()
    return Seen(network.head(features), {name: head(features) for name, head in heads})


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch normalisation use each batch's statistics, as in training, but not remember them."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


class Learner(nn.Module):
    """Shows a network the parts of a batch, all in one call: so workers that share a step stay in step.

    Args:
        network: what learns.
        apart: whether unlabelled parts are normalised among themselves and leave the running statistics alone; else
            all parts of one shape are normalised together.
    """

    def __init__(self, network: Network, apart: bool = False) -> None:
        super().__init__()
        self.network, self._apart = network, apart

    def forward(self, labelled: Tensor, *unlabelled: Tensor) -> list[Seen]:
        """Return what the network says of each part, labelled clips first; neighbours of one shape share a pass."""
        found: list[Seen] = []
        parts = [(False, labelled), *((self._apart, part) for part in unlabelled)]
        for (apart, _), together in groupby(parts, key=lambda part: (part[0], part[1].shape[1:])):
            inputs = [part for _, part in together]
            with still_statistics(self.network) if apart else nullcontext():
                seen = look(self.network, torch.cat(inputs) if len(inputs) > 1 else inputs[0])
            start = 0
            for part in inputs:
                found.append(seen.rows(start, start + len(part)))
                start += len(part)
        return found


class Average:
    """The moving average of a network's weights; running statistics are the network's own.

    Args:
        network: the network at the start.
        decay: what the average keeps of itself at a step, at most: at step t = 1, 2, ... it keeps 1 - 1 / (t + 1), so
            that it is the plain mean of all weights so far until this is reached (Mean Teacher's code).
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay, self._count = decay, 0

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Take in the weights after a step."""
        self._count += 1
        kept = min(1 - 1 / (self._count + 1), self._decay)
        weights = dict(network.named_parameters())
        for name, mean in self.network.named_parameters():
            mean.lerp_(weights[name], 1 - kept)
        buffers = dict(network.named_buffers())
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])

    def state(self) -> dict[str, Tensor]:
        """Return what ``restore`` takes."""
        return {"count": torch.tensor(self._count), **self.network.state_dict()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a ``state``."""
        weights = dict(state)
        self._count = int(weights.pop("count"))
        self.network.load_state_dict(weights)
