"""What each choice of a step was worth: what the loss would have been with that one choice turned.

One reward for B choices tells each of them next to nothing. The difference that one choice makes, all others as they
were drawn, is an unbiased gradient of the same objective with a fraction of the noise (difference rewards, as in COMA:
Foerster et al. 2018, https://arxiv.org/abs/1705.08926).

Axes: K masks, B pairs, F features, L classes, N validation clips.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST = 2**24
"""Numbers in the largest array: 64 MiB."""


def turned(chosen_B: Tensor) -> Tensor:
    """Return masks (1 + B, B): the choices as they are, then with each one turned. ``chosen_B``: bool."""
    return torch.cat([chosen_B[None], chosen_B ^ torch.eye(len(chosen_B), dtype=torch.bool)])


def worth(losses_K: Tensor, chosen_B: Tensor) -> Tensor:
    """Return L without a pair less L with it, (B,), from the losses after steps on the masks of :func:`turned`."""
    change_B = losses_K[1:] - losses_K[0]
    return torch.where(chosen_B, change_B, -change_B)


def step_weights(masks_KB: Tensor, labels_BL: Tensor, balance: bool) -> Tensor:
    """Return each pair's share of the loss of a step on each mask, (K, B); as ``balanced_weights`` if ``balance``."""
    masks_KB = masks_KB.float()
    if not balance:
        return masks_KB / masks_KB.sum(dim=1, keepdim=True).clamp(min=1)
    mass_KL = masks_KB @ labels_BL
    occurs_KL = mass_KL > 0
    share_KB = (occurs_KL / mass_KL.clamp(min=1e-12)) @ labels_BL.T
    return masks_KB * share_KB / occurs_KL.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, eq=False)
class HeadStep:
    """One SGD step of a linear head, as far as it does not depend on which pairs it is taken on.

    Args:
        weight: of the head, (L, F).
        bias: of the head, (L,).
        drift: what a step with no gradient adds to both, by weight decay and momentum.
        learning_rate: of the step.
    """

    weight: Tensor
    bias: Tensor
    drift: tuple[Tensor, Tensor]
    learning_rate: float

    @classmethod
    def of(cls, head: nn.Linear, optimizer: torch.optim.SGD) -> "HeadStep":
        """Return the step that an optimiser would take with a head as it is."""
        (group,) = optimizer.param_groups
        drifts = []
        for parameter in (head.weight, head.bias):
            direction = group["weight_decay"] * parameter.detach()
            velocity = optimizer.state[parameter].get("momentum_buffer")
            if velocity is not None:
                direction = direction + group["momentum"] * velocity
            drifts.append(-group["lr"] * direction)
        return cls(head.weight.detach(), head.bias.detach(), (drifts[0], drifts[1]), group["lr"])

    def losses(
        self, inputs_BF: Tensor, labels_BL: Tensor, weights_KB: Tensor, val_inputs_NF: Tensor, val_labels_N: Tensor
    ) -> Tensor:
        """Return the validation loss after a step on each mask, (K,); without a pair no step is taken.

        The gradient is linear in the pairs' weights, so all masks are one product.
        """
        residual_BL = (inputs_BF @ self.weight.T + self.bias).softmax(dim=1) * labels_BL.sum(dim=1, keepdim=True)
        residual_BL = residual_BL - labels_BL
        kernel_NB = val_inputs_NF @ inputs_BF.T + 1  # the bias sees 1
        still_NL = val_inputs_NF @ self.weight.T + self.bias
        drifted_NL = still_NL + val_inputs_NF @ self.drift[0].T + self.drift[1]
        losses = []
        largest = len(val_inputs_NF) * max(labels_BL.shape)  # of one mask: (N, B) or (N, L)
        for weights in torch.split(weights_KB, max(1, MOST // max(1, largest))):
            moved_KNL = torch.einsum("kb,nb,bl->knl", weights, kernel_NB, residual_BL)
            logits_KNL = torch.where(
                weights.any(dim=1)[:, None, None], drifted_NL - self.learning_rate * moved_KNL, still_NL
            )
            truth = val_labels_N.expand(len(weights), -1)
            loss_KN = nn.functional.cross_entropy(logits_KNL.transpose(1, 2), truth, reduction="none")
            losses.append(loss_KN.mean(dim=1))
        return torch.cat(losses)
