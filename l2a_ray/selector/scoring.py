"""Scoring pairs of clips, in float32: on the GPU where this process has one, else on the CPU.

No Ray. Axes: B pairs, N clips, F features, L length of a label vector.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from l2a_ray.errors import SelectorFileError
from l2a_ray.pairs.vectors import ClipVectors, Floats, Rows, class_agreement
from l2a_ray.runtime.device import best_device
from l2a_ray.selector.network import SelectorNetwork

BATCH = 1024


class Scorer(Protocol):
    """Scores pairs of clips."""

    def __call__(self, foreground: Rows, background: Rows) -> Floats:
        """Score pairs of clips, given by their rows; returns logits, float32 of shape (B,)."""


@dataclass(frozen=True)
class AgreementScorer:
    """Scores a pair by how well the feature of its foreground agrees with its label; needs no training.

    Args:
        agreement_N: ``class_agreement`` of each clip; its sigmoid stands where a Selector's omega does.
    """

    agreement_N: Floats

    def __call__(self, foreground: Rows, background: Rows) -> Floats:
        """Score pairs of clips, given by their rows; returns logits, float32 of shape (B,)."""
        return self.agreement_N[foreground]


def agreement_scorer(clips: ClipVectors, *, known: bool) -> AgreementScorer:
    """Return the scorer of these clips.

    Args:
        clips: what a Selector knows of them.
        known: whether their last feature is the agreement already (``selector.agreement``); if not, it is computed.
    """
    if known:
        return AgreementScorer(clips.features_NF[:, -1].copy())
    _, labels = np.unique(clips.labels_NL, axis=0, return_inverse=True)
    return AgreementScorer(class_agreement(clips.features_NF, labels))


@dataclass(frozen=True)
class PairScorer:
    """A Selector's network and the clips that it knows; :func:`pair_scorer` checks that they fit each other.

    Matrix products of different shapes may round differently. So all are of ``batch`` rows, padded where there are
    fewer, and a pair's score does not depend on which pairs are scored along with it.

    Args:
        network: the network.
        clips: the clips, in the rows that pairs are given by.
        batch: pairs, or clips, in one matrix product.
    """

    network: SelectorNetwork
    clips: ClipVectors
    batch: int = BATCH

    @torch.no_grad()
    def __call__(self, foreground: Rows, background: Rows) -> Floats:
        """Score pairs of clips, given by their rows; returns logits, float32 of shape (B,).

        The first layer's halves are computed once for each clip of these pairs.
        """
        network = self.network.to(best_device())
        foregrounds, first = np.unique(foreground, return_inverse=True)
        backgrounds, second = np.unique(background, return_inverse=True)
        halves = torch.empty(
            (len(foregrounds) + len(backgrounds), network.first.out_features), device=network.first.weight.device
        )
        self._fill(halves[: len(foregrounds)], network.half_f, foregrounds)
        self._fill(halves[len(foregrounds) :], network.half_b, backgrounds)
        pairs = np.zeros((len(first) + -len(first) % self.batch, 2), np.int64)
        pairs[: len(first), 0], pairs[: len(first), 1] = first, second + len(foregrounds)
        logits = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), self.batch):
            part = slice(start, start + self.batch)
            sums = functional.embedding_bag(torch.from_numpy(pairs[part]).to(halves.device), halves, mode="sum")
            logits[part] = network.head(sums).cpu().numpy()
        return logits[: len(first)]

    def _fill(self, halves: Tensor, half: Callable[[Tensor], Tensor], rows: Rows) -> None:
        vectors = torch.zeros((self.batch, self.clips.clip_size), device=halves.device)
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            vectors[: len(part)] = torch.from_numpy(self.clips.of(part)).to(halves.device)
            halves[start : start + len(part)] = half(vectors)[: len(part)]


def pair_scorer(network: SelectorNetwork, clips: ClipVectors, batch: int = BATCH) -> PairScorer:
    """Return what scores pairs of these clips.

    Raises:
        SelectorFileError: the clips' vectors are not of the size that the network was made for, or it gives NaN.
    """
    features, labels = clips.features_NF.shape[1], clips.labels_NL.shape[1]
    if (features, labels) != (network.feature_size, network.label_size):
        raise SelectorFileError(
            f"the Selector takes {network.feature_size} features and {network.label_size} label values a clip, "
            f"but these clips have {features} and {labels}. Compute them with the Selector's own backbone and label "
            "encoding"
        )
    finite = all(np.isfinite(values).all() for values in (clips.features_NF, clips.labels_NL))
    if not finite or not all(values.isfinite().all() for values in network.state_dict().values()):
        raise SelectorFileError(
            "the Selector's weights or the clips' features hold NaN or infinity, so no pair can be scored. "
            "Train the Selector again with a smaller learning rate"
        )
    return PairScorer(copy.deepcopy(network), clips, batch)


def score_pairs(
    network: SelectorNetwork, clips: ClipVectors, foreground: Rows, background: Rows, batch: int = BATCH
) -> Floats:
    """Score pairs, given by their rows of ``clips``; returns omega, float32 in [0, 1], of shape (B,).

    Raises:
        SelectorFileError: as :func:`pair_scorer`.
    """
    return omega(pair_scorer(network, clips, batch)(foreground, background))


def omega(logits: Floats) -> Floats:
    """Return the sigmoid. Double precision, as float32's last digit may depend on a value's place in the array."""
    probabilities: Floats = expit(logits.astype(np.float64)).astype(np.float32)
    return probabilities
