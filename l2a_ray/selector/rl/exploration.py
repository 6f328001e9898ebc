"""A term that keeps a policy from taking all pairs, or none; added to the loss of whichever algorithm learns.

Axes: B pairs in a state; leading dimensions are batch (and time).
"""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

WEIGHT, LOW, HIGH = "exploration", "exploration_low", "exploration_high"


def exploration_penalty(logits: torch.Tensor, low: float = 0.1, high: float = 0.9) -> torch.Tensor:
    """Return how far a state's mean omega lies outside [low, high], averaged over states and divided by B.

    ``logits``: float (..., B).

    From DVRL's code (https://github.com/google-research/google-research/tree/master/dvrl), which weighs it by 1000.
    """
    mean = logits.sigmoid().mean(dim=-1)
    return ((mean - high).clamp(min=0) + (low - mean).clamp(min=0)).mean() / logits.shape[-1]


def exploring(learner: type[TorchLearner]) -> type[TorchLearner]:
    """Return the learner with the penalty in its loss, as ``config.learner_config_dict`` says."""

    class Exploring(learner):
        def compute_loss_for_module(self, *, config: Any, fwd_out: dict[str, Any], **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().compute_loss_for_module(config=config, fwd_out=fwd_out, **kwargs)
            options: dict[str, float] = config.learner_config_dict
            penalty = exploration_penalty(fwd_out[Columns.ACTION_DIST_INPUTS], options[LOW], options[HIGH])
            weight: float = options[WEIGHT]
            return loss + weight * penalty

    Exploring.__name__ = Exploring.__qualname__ = f"Exploring{learner.__name__}"
    return Exploring
