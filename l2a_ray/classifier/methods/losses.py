"""The losses that methods share.

Axes: B clips in a batch, L classes, K a teacher's classes, N vectors, D their length.
"""

import torch
from torch import Tensor, nn


def distillation(logits_BK: Tensor, probabilities_BK: Tensor | None) -> Tensor:
    """Return the mean cross-entropy to a teacher's probabilities over the clips that have any, at temperature 1.

    So ActorCutMix distils an ImageNet teacher (mmaction/models/recognizers/recognizer3d_semi.py of
    https://github.com/vt-vl-lab/video-data-aug).
    """
    assert probabilities_BK is not None, "what brings the samples brings the teacher's opinion of them"
    asked = (probabilities_BK.sum(dim=1) > 0).sum()
    losses = nn.functional.cross_entropy(logits_BK, probabilities_BK, reduction="none")
    return losses.sum() / asked.clamp(min=1)


def masked_cross_entropy(logits_BL: Tensor, targets: Tensor, kept_B: Tensor) -> Tensor:
    """Return the cross-entropy of the clips that are kept, divided by the number of all clips (FixMatch, Eq. 4).

    ``targets`` are classes, int64 (B,), or distributions, float (B, L).
    """
    losses = nn.functional.cross_entropy(logits_BL, targets, reduction="none")
    return (losses * kept_B).mean()


def nt_xent(one_ND: Tensor, other_ND: Tensor, temperature: float = 0.5) -> Tensor:
    """Return SimCLR's loss (Eq. 1, https://arxiv.org/abs/2002.05709): each vector must find its partner among all 2 N.

    TCL's code has it with this temperature.
    """
    both = nn.functional.normalize(torch.cat([one_ND, other_ND]), dim=1)
    likeness = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(one_ND))
    return nn.functional.cross_entropy(likeness, partner)
