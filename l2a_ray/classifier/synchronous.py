"""Batch normalisation over the whole batch, however many workers share it: the result is that of one worker.

PyTorch has it for GPUs; on CPUs it refuses. Axes: B clips in a worker's part, C channels.
"""

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SynchronousBatchNorm(_BatchNorm):
    """Normalises by mean and variance over the parts of all workers, which are of one size; trains on the CPU."""

    after: nn.Module
    """What the layer that it replaces did next: timm's normalisations are followed by their activation."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (B, C, ...); in training every worker must call this at the same place."""
        normalised: Tensor = self.after(self._normalise(input) if self.training else super().forward(input))
        return normalised

    def _normalise(self, input: Tensor) -> Tensor:
        workers, axes = torch.distributed.get_world_size(), [0, *range(2, input.dim())]
        shape = (1, -1, *(1,) * (input.dim() - 2))
        # The gradient of a sum over workers is again summed over them, so each sees what it does to the others' losses.
        mean = all_reduce(input.mean(axes)) / workers  # type: ignore[no-untyped-call]
        centred = input - mean.view(shape)
        variance = all_reduce(centred.square().mean(axes)) / workers  # type: ignore[no-untyped-call]
        self._remember(mean.detach(), variance.detach(), workers * input.numel() // input.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised: Tensor = centred * scale.view(shape) + self.bias.view(shape)
        return normalised

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, as PyTorch does with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""


def synchronise(network: nn.Module, gpu: bool) -> None:
    """Make every batch normalisation of a network one over all workers; parameters and their names stay."""
    if gpu:
        import timm.layers  # PyTorch's own converter would drop the activations of timm's layers

        timm.layers.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and child.affine:
                setattr(module, name, _converted(child))


def _converted(normalisation: _BatchNorm) -> SynchronousBatchNorm:
    """Return one with the same parameters and statistics, not copies of them."""
    made = SynchronousBatchNorm(
        normalisation.num_features, normalisation.eps, normalisation.momentum, True, normalisation.track_running_stats
    )
    made.weight, made.bias = normalisation.weight, normalisation.bias
    made.running_mean, made.running_var = normalisation.running_mean, normalisation.running_var
    made.num_batches_tracked = normalisation.num_batches_tracked
    made.after = nn.Sequential(
        *(getattr(normalisation, name) for name in ("drop", "act") if hasattr(normalisation, name))
    )
    return made
