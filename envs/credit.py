"""What each choice of a step was worth: what the loss would have been with that one choice turned.

One reward for B choices tells each of them next to nothing. The difference that one choice makes, all others as they
were drawn, is an unbiased gradient of the same objective with a fraction of the noise (difference rewards, as in COMA:
Foerster et al. 2018, https://arxiv.org/abs/1705.08926). For a head it is exact (:class:`HeadStep`), for a whole network
of first order (:class:`NetworkStep`).

Axes: K masks, B pairs, F features, L classes, N validation clips.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from l2a_ray.classifier.step import balanced_weights

MOST = 2**24
"""Numbers in the largest array: 64 MiB."""


def turned(chosen_B: Tensor) -> Tensor:
    """Return masks (1 + B, B): the choices as they are, then with each one turned. ``chosen_B``: bool."""
    return torch.cat([chosen_B[None], chosen_B ^ torch.eye(len(chosen_B), dtype=torch.bool)])


def worth(losses_K: Tensor, chosen_B: Tensor) -> Tensor:
    """Return L without a pair less L with it, (B,), from the losses after steps on the masks of :func:`turned`.

    Of the losses of several clips, (1 + B, N), those of each: (B, N).
    """
    change_B = losses_K[1:] - losses_K[0]
    return torch.where(chosen_B.reshape(-1, *[1] * (losses_K.dim() - 1)), change_B, -change_B)


def step_weights(masks_KB: Tensor, labels_BL: Tensor, balance: bool) -> Tensor:
    """Return each pair's share of the loss of a step on each mask, (K, B); as ``balanced_weights`` if ``balance``.

    A mask may hold any weights from 0 on, too.
    """
    if balance:
        return balanced_weights(labels_BL, masks_KB)
    masks_KB = masks_KB.float()
    return masks_KB / masks_KB.sum(dim=1, keepdim=True).clamp(min=1)


def drift(parameter: Tensor, optimizer: torch.optim.SGD) -> Tensor:
    """Return what a step with no gradient adds to a parameter, by weight decay and momentum."""
    (group,) = optimizer.param_groups
    direction = group["weight_decay"] * parameter.detach()
    velocity = optimizer.state[parameter].get("momentum_buffer")
    if velocity is not None:
        direction = direction + group["momentum"] * velocity
    change: Tensor = -group["lr"] * direction
    return change


@dataclass(frozen=True, eq=False)
class HeadStep:
    """One SGD step of a linear head, as far as it does not depend on which pairs it is taken on.

    Args:
        weight: of the head, (L, F).
        bias: of the head, (L,).
        drift: of both (:func:`drift`).
        learning_rate: of the step.
    """

    weight: Tensor
    bias: Tensor
    drift: tuple[Tensor, Tensor]
    learning_rate: float

    @classmethod
    def of(cls, head: nn.Linear, optimizer: torch.optim.SGD) -> "HeadStep":
        """Return the step that an optimiser would take with a head as it is, which is copied."""
        weight, bias = head.weight, head.bias
        drifts = drift(weight, optimizer), drift(bias, optimizer)
        return cls(weight.detach().clone(), bias.detach().clone(), drifts, optimizer.param_groups[0]["lr"])

    def losses(
        self, inputs_BF: Tensor, labels_BL: Tensor, weights_KB: Tensor, val_inputs_NF: Tensor, val_labels_N: Tensor
    ) -> Tensor:
        """Return the validation loss after a step on each mask, (K,); without a pair no step is taken."""
        return self.clip_losses(inputs_BF, labels_BL, weights_KB, val_inputs_NF, val_labels_N).mean(dim=1)

    def clip_losses(
        self, inputs_BF: Tensor, labels_BL: Tensor, weights_KB: Tensor, val_inputs_NF: Tensor, val_labels_N: Tensor
    ) -> Tensor:
        """Return the loss of each validation clip after a step on each mask, (K, N).

        The gradient is linear in the pairs' weights, so all masks are one product. Classes come first: sums over a few
        of them are slow where they come last.
        """
        residual_BL = (inputs_BF @ self.weight.T + self.bias).softmax(dim=1) * labels_BL.sum(dim=1, keepdim=True)
        residual_BL = residual_BL - labels_BL
        kernel_BN = inputs_BF @ val_inputs_NF.T + 1  # the bias sees 1
        still_LN = self.weight @ val_inputs_NF.T + self.bias[:, None]
        drift_LN = self.drift[0] @ val_inputs_NF.T + self.drift[1][:, None]
        losses = []
        largest = len(self.bias) * max(kernel_BN.shape)  # of one mask: (L, B) or (L, N)
        for some_KB in torch.split(weights_KB, max(1, MOST // largest)):
            stepped_K1 = some_KB.any(dim=1, keepdim=True).float()
            moved_LKN = (some_KB * residual_BL.T[:, None]) @ kernel_BN
            logits_LKN = still_LN[:, None] + drift_LN[:, None] * stepped_K1 - self.learning_rate * moved_LKN
            truth_1KN = val_labels_N.expand(1, len(some_KB), -1)
            loss_KN = logits_LKN.logsumexp(dim=0) - logits_LKN.gather(0, truth_1KN)[0]
            losses.append(loss_KN)
        return torch.cat(losses)


@dataclass(frozen=True, eq=False)
class NetworkStep:
    """One SGD step of a whole network, as far as it does not depend on which pairs it is taken on.

    Args:
        weights: by name, before the step.
        buffers: by name, before the step: the running statistics of batch normalisation.
        drift: of each weight (:func:`drift`).
        learning_rate: of the step.
    """

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    drift: dict[str, Tensor]
    learning_rate: float

    @classmethod
    def of(cls, network: nn.Module, optimizer: torch.optim.SGD) -> "NetworkStep":
        """Return the step that an optimiser would take with a network as it is; its state is copied."""
        named = dict(network.named_parameters())
        return cls(
            {name: parameter.detach().clone() for name, parameter in named.items()},
            {name: buffer.clone() for name, buffer in network.named_buffers()},
            {name: drift(parameter, optimizer) for name, parameter in named.items()},
            optimizer.param_groups[0]["lr"],
        )

    def losses(self, network: nn.Module, inputs: Tensor, labels_BL: Tensor, weights_KB: Tensor, loss: float) -> Tensor:
        """Return the validation loss after a step on each mask, (K,), to first order around the step on the first one.

        Another mask moves the weights elsewhere, and the loss by the inner product of that with its gradient. Left out
        is what one pair changes in another's batch normalisation: each pair's loss is that in the batch of all B.

        Args:
            network: after the step on the first mask, with the gradient of that loss in its weights' ``grad``.
            inputs: what it takes of all B pairs.
            labels_BL: their label distributions.
            weights_KB: each pair's share of the loss of a step on each mask.
            loss: on D_val after the step on the first mask.
        """
        gradient = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in network.named_parameters()
        }
        slopes_B = self.slopes(network, inputs, labels_BL, gradient)
        stepped_K = weights_KB.any(dim=1).float()
        drifted = sum(float((gradient[name] * change).sum()) for name, change in self.drift.items())
        moved_K = self.learning_rate * (weights_KB - weights_KB[0]) @ slopes_B
        return loss + drifted * (stepped_K - stepped_K[0]) - moved_K

    def slopes(self, network: nn.Module, inputs: Tensor, labels_BL: Tensor, direction: dict[str, Tensor]) -> Tensor:
        """Return the inner product of each pair's gradient before the step with a direction, (B,), on the CPU.

        One pass forward for all pairs, which carries the derivative along (forward-mode differentiation), in training
        mode, as the step is taken.
        """
        network.train()
        device = next(iter(self.weights.values())).device
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}  # that pass counts in them
        # Fused attention cannot carry a derivative forward, plain attention can. PyTorch warns of itself at first use.
        with (
            torch.no_grad(),
            forward_ad.dual_level(),
            sdpa_kernel(SDPBackend.MATH),
            warnings.catch_warnings(category=DeprecationWarning, action="ignore"),
        ):
            dual: Any = forward_ad.make_dual
            duals = {name: dual(value, direction[name]) for name, value in self.weights.items()}
            logits_BL = functional_call(network, (duals, buffers), (inputs.to(device),))
            losses_B = nn.functional.cross_entropy(logits_BL, labels_BL.to(device), reduction="none")
            unpack: Any = forward_ad.unpack_dual
            tangent: Tensor = unpack(losses_B).tangent
            return tangent.cpu()
