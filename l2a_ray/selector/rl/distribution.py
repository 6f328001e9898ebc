"""Independent Bernoulli over the B pairs of a state; RLlib's own catalog refuses MultiBinary actions.

Axes: B pairs; leading dimensions are batch and time.
"""

from typing import Any

import gymnasium
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchDistribution


class IndependentBernoulli(TorchDistribution):
    """Mask of B independent choices; log-probability, entropy and KL are summed over the pairs."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits
        super().__init__(logits=logits)

    def _get_torch_distribution(self, logits: torch.Tensor) -> torch.distributions.Distribution:
        bernoulli = torch.distributions.Bernoulli(logits=logits, validate_args=False)
        return torch.distributions.Independent(bernoulli, 1, validate_args=False)

    def logp(self, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return log pi(mask), summed over B. ``value``: (..., B) of 0 and 1 in any dtype."""
        log_prob: torch.Tensor = self._dist.log_prob(value.float())
        return log_prob

    def sample(self, *, sample_shape: torch.Size | None = None) -> torch.Tensor:
        """Draw masks as int8, the dtype of ``gymnasium.spaces.MultiBinary``."""
        drawn: torch.Tensor = self._dist.sample(sample_shape or torch.Size())
        return drawn.to(torch.int8)

    def to_deterministic(self) -> TorchDeterministic:
        """Return the most probable mask: the pairs whose logit is positive."""
        return TorchDeterministic(loc=(self.logits > 0).to(torch.int8))

    @staticmethod
    def required_input_dim(space: gymnasium.Space[Any], **kwargs: Any) -> int:
        """Return the number of logits: one a pair."""
        assert isinstance(space, gymnasium.spaces.MultiBinary)
        return int(space.shape[0])
