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

    def forward(self, input_BC: Tensor) -> Tensor:
        """Return the normalised input; in training every worker must call this at the same place."""
        if not self.training:
            return super().forward(input_BC)
        workers, axes = torch.distributed.get_world_size(), [0, *range(2, input_BC.dim())]
        shape = (1, -1, *(1,) * (input_BC.dim() - 2))
        # The gradient of a sum over workers is again summed over them, so each sees what it does to the others' losses.
        mean_C = all_reduce(input_BC.mean(axes)) / workers  # type: ignore[no-untyped-call]
        centred_BC = input_BC - mean_C.view(shape)
        variance_C = all_reduce(centred_BC.square().mean(axes)) / workers  # type: ignore[no-untyped-call]
        self._remember(mean_C.detach(), variance_C.detach(), workers * input_BC.numel() // input_BC.shape[1])
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        normalised_BC: Tensor = centred_BC * scale_C.view(shape) + self.bias.view(shape)
        return normalised_BC

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        """Move the running statistics, as PyTorch does with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * count / max(1, count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""


def synchronise(network: nn.Module, gpu: bool) -> None:
    """Make every batch normalisation of a network one over all workers; parameters and their names stay."""
    if gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
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
    return made
