"""An env runner whose iterations can be repeated exactly, and the record of what each step did.

Axes: B pairs in a state.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

STEPS = "selection_steps"


class RepeatableEnvRunner(SingleAgentEnvRunner):
    """Begins each iteration with a fresh episode and randomness that depends on seed, runner and iteration alone.

    RLlib checkpoints neither the environment nor random generators. It does not need to when an iteration owes nothing
    to the one before it but the weights: then a run that was stopped and resumed equals one that never stopped.
    """

    def begin_iteration(self, seed: int, iteration: int) -> None:
        """Forget the running episode and seed what draws actions and pairs in this process."""
        mixed = np.random.SeedSequence([seed, self.worker_index or 0, iteration]).generate_state(1)[0]
        self._seed, self._needs_initial_reset = int(mixed), True
        torch.manual_seed(int(mixed))
        np.random.seed(int(mixed))  # noqa: NPY002 (RLlib's minibatches are shuffled by NumPy's global generator)


class StepRecorder(RLlibCallback):
    """Hands what each step did to the driver, through RLlib's own metrics."""

    def on_sample_end(
        self, *, metrics_logger: MetricsLogger | None = None, samples: list[SingleAgentEpisode], **kwargs: Any
    ) -> None:
        """Log one dictionary a step."""
        assert metrics_logger is not None
        for episode in samples:
            for row in step_rows(episode):
                metrics_logger.log_value(STEPS, row, reduce="item_series")


def step_rows(episode: SingleAgentEpisode) -> Iterator[dict[str, float]]:
    """Yield reward, infos and mean omega of each step in (a chunk of) an episode.

    The seconds of an episode's reset are added to those of its first step.
    """
    rewards, infos = episode.get_rewards(), episode.get_infos()[-len(episode) :]
    reset = _seconds(episode.get_infos(0)) if episode.t_started == 0 else {}
    logits = episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)
    for reward, info, logits_B in zip(rewards, infos, logits, strict=True):
        omega_B = 1 / (1 + np.exp(-np.asarray(logits_B, dtype=np.float64)))
        yield {
            "reward": float(reward),
            "num_pairs": omega_B.size,
            "mean_omega": float(omega_B.mean()),
            **{name: value for name, value in info.items() if name != "seconds"},
            **{name: value + reset.get(name, 0.0) for name, value in _seconds(info).items()},
        }
        reset = {}


def _seconds(info: dict[str, Any]) -> dict[str, float]:
    """Return what the parts took, if the environment tells: the tests' bandit does not."""
    return {f"seconds_{name}": value for name, value in asdict(info["seconds"]).items()} if "seconds" in info else {}
