"""Prototypical networks without a network to train: the nearest mean of the supports. Pure; imports no Ray.

Snell, Swersky, Zemel, 2017, https://arxiv.org/abs/1703.05175. Axes: B episodes, W ways, M supports of a class, R
queries of an episode, N rows of a bank, F features.
"""

import torch
from torch import Tensor
from torch.nn import functional


def prototype_logits(bank_NF: Tensor, queries_BR: Tensor, supports_BWM: Tensor, there_BWM: Tensor) -> Tensor:
    """Return -||q - c||^2, float (B, R, W), of queries q to c, the mean of the class's supports.

    Args:
        bank_NF: features.
        queries_BR: rows of the queries.
        supports_BWM: rows of the supports.
        there_BWM: bool; which of them count.
    """
    weights = there_BWM.to(bank_NF.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    ways = supports_BWM.flatten(0, 1)
    means = functional.embedding_bag(ways, bank_NF, mode="sum", per_sample_weights=weights.flatten(0, 1))
    means_BWF = means.reshape(*supports_BWM.shape[:2], -1)
    return -torch.cdist(bank_NF[queries_BR], means_BWF, compute_mode="donot_use_mm_for_euclid_dist").square()
