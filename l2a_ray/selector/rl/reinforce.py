"""REINFORCE on RLlib's new API stack (paper, Eq. 3 to 5)."""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from l2a_ray.selector.rl.module import SelectorModule


class ReinforceConfig(AlgorithmConfig):
    """Settings of REINFORCE. ``gamma`` 0 makes each step's return its own reward: the paper's one-step episodes."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or Reinforce)
        self.gamma = 0.0
        self.updates_per_iteration = 1
        self.baseline_decay = 0.95
        # A slow sample must be waited for: dropping it would throw away steps that the classifier has taken.
        self.sample_timeout_s = None

    def training(
        self,
        *,
        updates_per_iteration: int | Any = NotProvided,
        baseline_decay: float | Any = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Set training options.

        Args:
            updates_per_iteration: gradient steps in one ``train()`` call.
            baseline_decay: decay of the mean return that is subtracted from returns, in [0, 1).
            **kwargs: RLlib's own options.
        """
        super().training(**kwargs)
        if updates_per_iteration is not NotProvided:
            self.updates_per_iteration = updates_per_iteration
        if baseline_decay is not NotProvided:
            self.baseline_decay = baseline_decay
        return self

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the module that ``rl_module(model_config=...)`` configures."""
        return RLModuleSpec(module_class=SelectorModule)

    def get_default_learner_class(self) -> type[TorchLearner]:
        """Return the learner with REINFORCE's loss."""
        return ReinforceLearner


class ReturnsAboveBaseline(ConnectorV2):
    """Adds advantages to a batch: each step's return less the moving mean of the returns of earlier batches."""

    def __init__(
        self, input_observation_space: Any = None, input_action_space: Any = None, *, gamma: float, decay: float
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma, self.decay = gamma, decay
        self.baseline: float | None = None

    def __call__(self, *, episodes: list[Any], batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add the column ``Columns.ADVANTAGES``."""
        chunks = list(self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False))
        returns = [returns_to_go(np.asarray(chunk.get_rewards()), self.gamma) for chunk in chunks]
        mean = float(np.concatenate(returns).mean())
        baseline = mean if self.baseline is None else self.baseline
        for chunk, returns_T in zip(chunks, returns, strict=True):
            self.add_n_batch_items(batch, Columns.ADVANTAGES, returns_T - baseline, len(chunk), chunk)
        self.baseline = self.decay * baseline + (1 - self.decay) * mean
        return batch

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the moving mean."""
        return {"baseline": self.baseline}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the moving mean."""
        self.baseline = state["baseline"]


def returns_to_go(reward_T: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Return G_t = R_t + gamma G_(t+1); with gamma 0 each step's own reward."""
    return_T = np.array(reward_T, dtype=np.float64)
    for t in range(len(return_T) - 2, -1, -1):
        return_T[t] += gamma * return_T[t + 1]
    return return_T


class ReinforceLearner(TorchLearner):
    """Ascends E[(R - b) log pi(mask | pairs)]."""

    def build(self) -> None:
        """Add the returns to what a batch holds."""
        super().build()
        self._returns = ReturnsAboveBaseline(gamma=self.config.gamma, decay=self.config.baseline_decay)
        self._learner_connector.prepend(self._returns)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the learner's state, with the moving mean: RLlib leaves learner connectors out of checkpoints."""
        return {**super().get_state(*args, **kwargs), "returns": self._returns.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the learner's state."""
        super().set_state(state)
        if "returns" in state:  # a state may hold some components only
            self._returns.set_state(state["returns"])

    def compute_loss_for_module(
        self, *, module_id: str, config: AlgorithmConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Return -mean over steps of (R - b) log pi; log pi is summed over the pairs (Eq. 5)."""
        distribution = (
            self.module[module_id].get_train_action_dist_cls().from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        )
        return reinforce_loss(distribution.logp(batch[Columns.ACTIONS]), batch[Columns.ADVANTAGES])


def reinforce_loss(log_prob_N: torch.Tensor, advantage_N: torch.Tensor) -> torch.Tensor:
    """Return the loss whose gradient is minus Eq. 5, averaged over N steps."""
    return -(log_prob_N * advantage_N).mean()


class Reinforce(Algorithm):
    """Sample, update, hand the new weights out; several times in each ``train()`` call."""

    @classmethod
    def get_default_config(cls) -> ReinforceConfig:
        """Return the default settings."""
        return ReinforceConfig()

    def training_step(self) -> None:
        """Run ``updates_per_iteration`` gradient steps, each on ``rollout_fragment_length`` fresh steps a runner."""
        for _ in range(self.config.updates_per_iteration):
            episodes, results = synchronous_parallel_sample(
                worker_set=self.env_runner_group,
                sample_timeout_s=self.config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
            self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
            steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
            learned = self.learner_group.update(episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})
            self.metrics.aggregate(learned, key=LEARNER_RESULTS)
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
