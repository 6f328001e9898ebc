"""REINFORCE on RLlib's new API stack (paper, Eq. 3 to 5)."""

from functools import partial
from typing import Any, Self

import ray
import torch
from ray.rllib.algorithms import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.learner import ComputeReturnsToGo
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from l2a_ray.selector.rl.module import SelectorModule


class ReinforceConfig(AlgorithmConfig):
    """Settings of REINFORCE. ``gamma`` 0 makes each step's return its own reward: the paper's one-step episodes."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or Reinforce)
        self.gamma = 0.0
        self.updates_per_iteration = 1
        # A slow sample must be waited for: dropping it would throw away steps that the classifier has taken.
        self.sample_timeout_s = None

    def training(
        self,
        *,
        updates_per_iteration: int | Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Set training options.

        Args:
            updates_per_iteration: gradient steps in one ``train()`` call.
            **kwargs: RLlib's own options.
        """
        super().training(**kwargs)
        if updates_per_iteration is not NotProvided:
            self.updates_per_iteration = updates_per_iteration
        return self

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the module that ``rl_module(model_config=...)`` configures."""
        return RLModuleSpec(module_class=SelectorModule)

    def get_default_learner_class(self) -> type[TorchLearner]:
        """Return the learner with REINFORCE's loss."""
        return ReinforceLearner


class ReinforceLearner(TorchLearner):
    """Ascends E[G log pi(mask | pairs)]; the baseline delta is already in the environment's rewards."""

    def build(self) -> None:
        """Add the returns to what a batch holds."""
        super().build()
        self._learner_connector.prepend(ComputeReturnsToGo(gamma=self.config.gamma))

    def compute_loss_for_module(
        self, *, module_id: str, config: AlgorithmConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Return -mean over steps of G log pi; log pi is summed over the pairs (Eq. 5)."""
        distribution = (
            self.module[module_id].get_train_action_dist_cls().from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        )
        return reinforce_loss(distribution.logp(batch[Columns.ACTIONS]), batch[Columns.RETURNS_TO_GO])


def reinforce_loss(log_probs: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Return the loss whose gradient is minus Eq. 5, averaged over steps; both arguments hold one value a step."""
    return -(log_probs * returns).mean()


class Reinforce(Algorithm):
    """Hand the weights out, sample, update; several times in each ``train()`` call."""

    @classmethod
    def get_default_config(cls) -> ReinforceConfig:
        """Return the default settings."""
        return ReinforceConfig()

    def training_step(self) -> None:
        """Run ``updates_per_iteration`` gradient steps, each on ``rollout_fragment_length`` fresh steps a runner."""
        for _ in range(self.config.updates_per_iteration):
            sampled = self.env_runner_group.foreach_env_runner(
                partial(sample_with, weights=ray.put(self._weights())),
                local_env_runner=self.config.num_env_runners == 0,
                timeout_seconds=self.config.sample_timeout_s,
            )
            episodes = [episode for of_runner, _ in sampled for episode in of_runner]
            if not episodes:  # every env runner died, or has failed, in this round
                return
            self.metrics.aggregate([metrics for _, metrics in sampled], key=ENV_RUNNER_RESULTS)
            steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
            learned = self.learner_group.update(episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})
            self.metrics.aggregate(learned, key=LEARNER_RESULTS)
        # For those who ask the algorithm for its module.
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def _weights(self) -> dict[str, Any]:
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state: dict[str, Any] = self.learner_group.get_state(component, inference_only=True)[COMPONENT_LEARNER]
        return state


def sample_with(
    runner: EnvRunner, weights: "ray.ObjectRef[dict[str, Any]]"
) -> tuple[list[SingleAgentEpisode], dict[str, Any]]:
    """Return episodes drawn with these weights, and their metrics: one call where RLlib's own way makes two."""
    runner.set_state(ray.get(weights))
    return runner.sample(), runner.get_metrics()
