"""One step of the classifier's training: SGD on soft cross-entropy. Imports no Ray; the environment uses it too.

Axes: B clips in a batch, N clips, T time, H height, W width, C channel, L classes.
"""

import math

import torch
from torch import Tensor, nn

from l2a_ray.classifier.settings import ClassifierSettings


def make_optimizer(network: nn.Module, settings: ClassifierSettings) -> torch.optim.SGD:
    """Return SGD with momentum over all parameters."""
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def cosine_rate(learning_rate: float, step: int, total_steps: int) -> float:
    """Return the learning rate of ``step`` in [0, total_steps): a cosine from ``learning_rate`` to 0."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def soft_cross_entropy(logits_BL: Tensor, labels_BL: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy to label distributions, or the sum weighted by each clip's share of the loss."""
    if weights_B is None:
        return nn.functional.cross_entropy(logits_BL, labels_BL)
    losses_B = nn.functional.cross_entropy(logits_BL, labels_BL, reduction="none")
    return (losses_B * weights_B.to(losses_B.device)).sum()


def balanced_weights(labels_BL: Tensor) -> Tensor:
    """Return each clip's share of the loss such that every class that occurs has the same share; they sum to 1.

    A clip of several labels takes its part of each: w_i = sum_l y_il / sum_j y_jl, divided by the number of classes.
    """
    mass_L = labels_BL.sum(dim=0)
    share_BL = labels_BL / mass_L.clamp(min=1e-12)
    return share_BL.sum(dim=1) / (mass_L > 0).sum()


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips_BTHWC: Tensor,
    labels_BL: Tensor,
    weights_B: Tensor | None = None,
) -> float:
    """Take one SGD step on uint8 clips and float label distributions; return the loss before the step.

    ``weights_B`` are each clip's share of the loss and sum to 1; None: all alike.
    """
    device = next(network.parameters()).device
    network.train()
    optimizer.zero_grad(set_to_none=True)
    loss = soft_cross_entropy(network(clips_BTHWC.to(device)), labels_BL.to(device), weights_B)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def predict(network: nn.Module, clips_NTHWC: Tensor, batch_size: int) -> Tensor:
    """Return logits, float32 (N, L) on the CPU, in eval mode; the network's mode is left as it was."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        logits = [network(clips.to(device)).float().cpu() for clips in torch.split(clips_NTHWC, batch_size)]
    network.train(was_training)
    return torch.cat(logits)


def training_state(network: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Return the weights, running statistics and momenta by name; they are not copied."""
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            state[f"momentum.{name}"] = momentum
    return state


def restore_state(network: nn.Module, optimizer: torch.optim.SGD, state: dict[str, Tensor]) -> None:
    """Set a network and its optimiser to a ``training_state``, bit for bit.

    Raises:
        RuntimeError: the state is of another network.
    """
    prefix = "network."
    network.load_state_dict({name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)})
    for name, parameter in network.named_parameters():
        momentum = state.get(f"momentum.{name}")
        if momentum is not None:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter.detach()).copy_(momentum)
