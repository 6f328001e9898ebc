"""One step of the classifier's training: SGD on soft cross-entropy. Imports no Ray; the environment uses it too.

Axes: B clips in a batch, N clips, T time, H height, W width, C channel, F features, L classes.
"""

import math
from collections.abc import Callable

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


def soft_cross_entropy(logits_BL: Tensor, labels_BL: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy to label distributions, or the sum weighted by each clip's share of the loss."""
    if weights is None:
        return nn.functional.cross_entropy(logits_BL, labels_BL)
    losses = nn.functional.cross_entropy(logits_BL, labels_BL, reduction="none")
    return (losses * weights.to(losses.device)).sum()


def balanced_weights(labels_BL: Tensor, taken: Tensor | None = None) -> Tensor:
    """Return each clip's share of the loss such that every class that occurs has the same share; they sum to 1.

    A clip of several labels takes its part of each: w_i = sum_l y_il / sum_j y_jl, divided by the number of classes.

    Args:
        labels_BL: float label distributions.
        taken: which of the clips the step is taken on, (..., B), where the others' share is 0; None: all.

    Returns:
        float (B,), or (..., B) for each of the choices.
    """
    taken = torch.ones(len(labels_BL)) if taken is None else taken.float()
    mass = taken @ labels_BL
    occurs = mass > 0
    share = (occurs / mass.clamp(min=1e-12)) @ labels_BL.T
    return taken * share / occurs.sum(dim=-1, keepdim=True).clamp(min=1)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels_BL: Tensor,
    weights: Tensor | None = None,
) -> float:
    """Take one SGD step on inputs and float label distributions; return the loss before the step.

    ``inputs`` are what the network takes: uint8 clips (B, T, H, W, C), or features (B, F) if it is a head alone.
    ``weights`` are each clip's share of the loss and sum to 1; None: all alike.
    """
    device = next(network.parameters()).device

    def loss() -> Tensor:
        return soft_cross_entropy(network(inputs.to(device)), labels_BL.to(device), weights)

    return descend(network, optimizer, loss)


def descend(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], clip: float | None = None
) -> float:
    """Take one step down the gradient of a loss, computed in training mode; return the loss before the step.

    ``clip`` is the largest norm of the gradient, to which a larger one is shortened; None: it stays as it is.
    """
    network.train()
    optimizer.zero_grad(set_to_none=True)
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return value.item()


def predict(network: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """Return logits, float32 (N, L) on the CPU, in eval mode; the network's mode is left as it was.

    ``inputs`` are what the network takes: uint8 clips (N, T, H, W, C), or features (N, F) if it is a head alone.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        logits = [network(batch.to(device)).float().cpu() for batch in torch.split(inputs, batch_size)]
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
