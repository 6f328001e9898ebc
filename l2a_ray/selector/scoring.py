"""Scoring pairs of clips: in float32, or quicker and roughly in bfloat16.

Pure PyTorch. Axes: B pairs, N clips, V a clip's values, H first hidden layer.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch.nn import functional

from l2a_ray.errors import SelectorFileError
from l2a_ray.selector.network import SelectorNetwork

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

BATCH = 1024
SCREEN_FROM = 100_000
"""Candidate pairs from which a second pass over them is worth its start."""
SAFETY = 2
"""The error that a screen allows for, as a multiple of the largest one of a sample."""


class Scorer(Protocol):
    """Scores pairs of clips."""

    def __call__(self, foreground_B: Rows, background_B: Rows) -> Floats:
        """Score pairs of clips, given by their rows; returns logits, float32 of shape (B,)."""


@dataclass(frozen=True)
class RandomScorer:
    """Scores pairs by chance: omega is uniform in (0, 1) and depends on the seed and the two rows alone."""

    seed: int

    def __call__(self, foreground_B: Rows, background_B: Rows) -> Floats:
        """Score pairs of clips, given by their rows; returns logits, float32 of shape (B,)."""
        seed = pd.util.hash_array(np.array([self.seed], np.uint64))
        hash_B = pd.util.hash_array(seed ^ (foreground_B.astype(np.uint64) << 32 | background_B.astype(np.uint64)))
        uniform_B = ((hash_B >> 11) + 0.5) * 2.0**-53
        logits_B: Floats = logit(uniform_B).astype(np.float32)
        return logits_B


@dataclass(frozen=True)
class PairScorer:
    """A network whose first layer is computed already, once a clip.

    Args:
        network: what follows the first layer.
        halves_NH: the first layer's halves of all clips as foregrounds and after these as backgrounds, float32, or
            the bits of bfloat16 as int16: numpy has no bfloat16, and numpy's arrays are what Ray shares without copies.
        batch: pairs in one matrix product.
    """

    network: SelectorNetwork
    halves_NH: NDArray[np.float32] | NDArray[np.int16]
    batch: int = BATCH

    @torch.no_grad()
    def __call__(self, foreground_B: Rows, background_B: Rows) -> Floats:
        """Score pairs of clips, given by their rows; returns logits, float32 of shape (B,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Ray shares is read-only; nothing here writes to it
            halves = torch.from_numpy(self.halves_NH)
        head: Callable[[torch.Tensor], torch.Tensor] = self.network.head
        if halves.dtype == torch.int16:
            halves = halves.view(torch.bfloat16)
            head = _packed_head(self.network, self.batch) if fast_bfloat16() else head
        # Matrix products of different shapes may round differently. Padding gives all the same shape, so that a pair's
        # score does not depend on which pairs are scored along with it.
        pairs = np.zeros((len(foreground_B) + -len(foreground_B) % self.batch, 2), np.int64)
        pairs[: len(foreground_B), 0] = foreground_B
        pairs[: len(foreground_B), 1] = background_B + len(halves) // 2
        logits = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), self.batch):
            part = slice(start, start + self.batch)
            sums_BH = functional.embedding_bag(torch.from_numpy(pairs[part]), halves, mode="sum")
            logits[part] = head(sums_BH).numpy()
        return logits[: len(foreground_B)]


def _packed_head(network: SelectorNetwork, batch: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return ``network.head`` in bfloat16, with the weights brought into the kernel's layout once, not every time.

    That saves a fifth with AMX. PyTorch has these operators for its own compiler; its version is pinned.
    """
    operators = torch.ops.mkldnn
    packed = [(operators._reorder_linear_weight(layer.weight, batch), layer.bias) for layer in network.deeper]

    def head(halves_BH: torch.Tensor) -> torch.Tensor:
        hidden = halves_BH.relu_()
        for weight, bias in packed:
            hidden = operators._linear_pointwise(hidden, weight, bias, "relu", [], "")
        logits: torch.Tensor = network.last(hidden.float()).squeeze(-1)
        return logits

    return head


@torch.no_grad()
def pair_scorer(network: SelectorNetwork, clip_vectors_NV: Floats, batch: int = BATCH) -> PairScorer:
    """Compute the first layer for every clip.

    Raises:
        SelectorFileError: the clips' vectors are not of the size that the network was made for, or it gives NaN.
    """
    if clip_vectors_NV.shape[1] != network.clip_size:
        raise SelectorFileError(
            f"the Selector takes {network.feature_size} features and {network.label_size} label values a clip, "
            f"together {network.clip_size}, but these clips have {clip_vectors_NV.shape[1]}. "
            "Compute them with the Selector's own backbone and label encoding"
        )
    clips = torch.from_numpy(clip_vectors_NV)
    if not all(values.isfinite().all() for values in (clips, *network.state_dict().values())):
        raise SelectorFileError(
            "the Selector's weights or the clips' features hold NaN or infinity, so no pair can be scored. "
            "Train the Selector again with a smaller learning rate"
        )
    return PairScorer(network, torch.cat([network.half_f(clips), network.half_b(clips)]).numpy(), batch)


def score_pairs(
    network: SelectorNetwork, clip_vectors_NV: Floats, foreground_B: Rows, background_B: Rows, batch: int = BATCH
) -> Floats:
    """Score pairs of rows of ``clip_vectors_NV``; returns omega, float32 in [0, 1], of shape (B,).

    Raises:
        SelectorFileError: as :func:`pair_scorer`.
    """
    return omega(pair_scorer(network, clip_vectors_NV, batch)(foreground_B, background_B))


def omega(logits_B: Floats) -> Floats:
    """Return the sigmoid. Double precision, as float32's last digit may depend on a value's place in the array."""
    omega_B: Floats = expit(logits_B.astype(np.float64)).astype(np.float32)
    return omega_B


@dataclass(frozen=True)
class Screen:
    """A quick first look at the pairs.

    Args:
        scorer: scores in bfloat16.
        margin: how far its logits may be from float32's.
    """

    scorer: PairScorer
    margin: float


@torch.no_grad()
def make_screen(exact: PairScorer, foreground_B: Rows, background_B: Rows) -> Screen:
    """Round a scorer to bfloat16, and measure on a sample of pairs what that does to the logits."""
    network = copy.deepcopy(exact.network)
    network.deeper.bfloat16()
    halves = torch.from_numpy(exact.halves_NH).bfloat16().view(torch.int16)
    scorer = PairScorer(network, halves.numpy(), exact.batch)
    error_B = scorer(foreground_B, background_B) - exact(foreground_B, background_B)
    network.last.bias.sub_(float(error_B.mean()))
    return Screen(scorer, SAFETY * float(np.abs(error_B - error_B.mean()).max()))


def worth_screening(k: int, total: int) -> bool:
    """Tell whether scoring all pairs in bfloat16 and then some in float32 is quicker than all in float32."""
    return total >= SCREEN_FROM and 2 * k < total and fast_bfloat16()


def fast_bfloat16() -> bool:
    """Tell whether the processor has AMX, or AMD's AVX-512, which multiplies bfloat16 twice as fast as float32.

    Intel's AVX-512 gains next to nothing by it.
    """
    processor = torch.cpu.get_capabilities()
    amd = "AMD" in processor.get("cpu_name", "") and bool(processor.get("avx512_bf16"))
    return amd or bool(processor.get("amx_bf16"))
