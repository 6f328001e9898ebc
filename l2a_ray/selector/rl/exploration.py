"""A term that keeps a policy from taking all pairs, or none; added to the loss of whichever algorithm learns.

Axes: B pairs in a state; leading dimensions are batch (and time).
"""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

LOW, HIGH = 0.1, 0.9
WEIGHT = "exploration"


def exploration_penalty(logits_NB: torch.Tensor) -> torch.Tensor:
    """Return how far a state's mean omega lies outside [0.1, 0.9], averaged over states and divided by B.

    From DVRL's code (https://github.com/google-research/google-research/tree/master/dvrl), which weighs it by 1000.
    """
    mean_N = logits_NB.sigmoid().mean(dim=-1)
    return ((mean_N - HIGH).clamp(min=0) + (LOW - mean_N).clamp(min=0)).mean() / logits_NB.shape[-1]


def exploring(learner: type[TorchLearner]) -> type[TorchLearner]:
    """Return the learner with ``config.learner_config_dict["exploration"]`` times the penalty in its loss."""

    class Exploring(learner):
        def compute_loss_for_module(self, *, config: Any, fwd_out: dict[str, Any], **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().compute_loss_for_module(config=config, fwd_out=fwd_out, **kwargs)
            weight: float = config.learner_config_dict[WEIGHT]
            return loss + weight * exploration_penalty(fwd_out[Columns.ACTION_DIST_INPUTS])

    Exploring.__name__ = Exploring.__qualname__ = f"Exploring{learner.__name__}"
    return Exploring
