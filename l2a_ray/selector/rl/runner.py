"""The env runner, whose iterations can be repeated exactly, and the record of what each step did.

Axes: B pairs in a state.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED, NUM_ENV_STEPS_SAMPLED_LIFETIME

from envs.held_out import Signal
from envs.pair_selection import PairSelectionEnv
from l2a_ray.errors import L2AError, StageError
from l2a_ray.selector.rl.credit import CREDIT
from l2a_ray.selector.rl.distribution import IndependentBernoulli
from l2a_ray.selector.rl.module import SelectorModule

STEPS = "selection_steps"


class SelectionRunner(SingleAgentEnvRunner):
    """Walks through one selection environment; its iterations can be repeated exactly.

    RLlib's own loop serves any number of environments and any space, with callbacks and timers around each step, which
    takes it longer than drawing a mask.

    What an environment raises RLlib takes for the death of its process: it logs it, starts another and goes on. An
    error of ours would come back with that one, so it is kept in ``failure`` for the driver to ask for
    (:func:`raise_failure`), and no more steps are taken.
    """

    failure: L2AError | None = None
    _iteration = _done = 0
    module: SelectorModule
    _running: SingleAgentEpisode
    _environment: gymnasium.Env[NDArray[np.float32], NDArray[np.int8]]

    def make_env(self) -> None:
        """Make RLlib's vector of environments, which has one."""
        # RLlib registers the same name for every Selector, and Gymnasium warns of the second in a process.
        gymnasium.registry.pop("rllib-single-agent-env-v0", None)
        super().make_env()
        (self._environment,) = self.env.unwrapped.envs

    def begin_iteration(self, seed: int, iteration: int) -> None:
        """Forget the running episode and seed what draws actions and pairs in this process.

        RLlib checkpoints neither the environment nor random generators. It does not need to when an iteration owes
        nothing to the one before it but the weights: then a run that was stopped and resumed equals one that never
        stopped.
        """
        self._iteration, self._done = iteration, 0
        mixed = np.random.SeedSequence([seed, self.worker_index or 0, iteration]).generate_state(1)[0]
        self._seed, self._needs_initial_reset = int(mixed), True
        torch.manual_seed(int(mixed))
        np.random.seed(int(mixed))  # noqa: NPY002 (RLlib's minibatches are shuffled by NumPy's global generator)

    def signal(self, seed: int, states: int) -> Signal | None:
        """Return whether the reward means anything, by the states that the first iteration begins with.

        So what it sees of their pairs is kept for that iteration.
        """
        self.begin_iteration(seed, 0)
        environment = self._environment.unwrapped
        assert isinstance(environment, PairSelectionEnv)
        try:
            return environment.signal(states, self._seed)
        except L2AError as error:
            self.failure = error
            return None

    def sample(self, **kwargs: Any) -> list[SingleAgentEpisode]:
        """Take ``rollout_fragment_length`` steps; an episode that they cut goes on in the next call."""
        num_steps = self.config.get_rollout_fragment_length(self.worker_index)
        chunks: list[SingleAgentEpisode] = []
        if self.failure is None:
            try:
                chunks = self._walk(num_steps)
            except L2AError as error:
                self.failure = error
        for row in (row for chunk in chunks for row in step_rows(chunk)):
            self.metrics.log_value(STEPS, row, reduce="item_series")
        # After a failure too: RLlib's algorithms ask until they know of as many steps as they want.
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, num_steps, reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, num_steps, reduce="lifetime_sum")
        return chunks

    def _walk(self, left: int) -> list[SingleAgentEpisode]:
        chunks = []
        while left:
            if self._needs_initial_reset or self._running.is_done:
                self._begin()
            chunk = self._running
            while left and not chunk.is_done:
                self._step(chunk)
                left -= 1
            if not chunk.is_done:
                self._running = chunk.cut()
            chunks.append(chunk.to_numpy())
        return chunks

    def _begin(self) -> None:
        self._running = SingleAgentEpisode()
        seed = self._seed if self._needs_initial_reset else None
        self._running.add_env_reset(*self._environment.reset(seed=seed))
        self._needs_initial_reset = False

    def _step(self, episode: SingleAgentEpisode) -> None:
        """Draw a mask (without exploration the most probable one), and do as it says."""
        with torch.inference_mode():
            state = torch.as_tensor(episode.get_observations(-1), device=self._device)[None]
            policy = IndependentBernoulli.from_logits(self.module.policy(state))
            drawn = (policy if self.config.explore else policy.to_deterministic()).sample()
            outputs = {Columns.ACTION_DIST_INPUTS: policy.logits, Columns.ACTION_LOGP: policy.logp(drawn)}
        mask = drawn[0].cpu().numpy()
        environment = self._environment.unwrapped
        if hasattr(environment, "scores"):
            environment.scores = policy.logits[0].sigmoid().cpu().numpy()
        observation, reward, terminated, truncated, info = self._environment.step(mask)
        told = {name: value[0].cpu().numpy() for name, value in outputs.items()}
        if CREDIT in info:  # so it reaches the learner: of infos a batch knows nothing
            told[CREDIT] = info.pop(CREDIT)
            if not np.isfinite(told[CREDIT]).all():
                raise StageError(
                    f"what a pair was worth is infinite or NaN in step {self._done} of iteration {self._iteration}: "
                    "a step of the classifier ends in no finite loss. Lower env.learning_rate"
                )
        self._done += 1
        episode.add_env_step(
            observation,
            mask,
            reward,
            info,
            terminated=terminated,
            truncated=truncated,
            extra_model_outputs=told,
        )


def raise_failure(algorithm: Algorithm) -> None:
    """Raise the error of ours that an environment has ended with, wherever it runs."""
    assert algorithm.env_runner_group is not None
    failures = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner.failure, local_env_runner=algorithm.config.num_env_runners == 0
    )
    for failure in failures:
        if failure is not None:
            raise failure


def step_rows(episode: SingleAgentEpisode) -> Iterator[dict[str, float]]:
    """Yield reward, infos, mean omega and its 5 and 95 % quantiles of each step in (a chunk of) an episode.

    The seconds of an episode's reset are added to those of its first step.
    """
    rewards, infos = episode.get_rewards(), episode.get_infos()[-len(episode) :]
    reset = _seconds(episode.get_infos(0)) if episode.t_started == 0 else {}
    logits = episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)
    for reward, info, step_logits in zip(rewards, infos, logits, strict=True):
        omega = 1 / (1 + np.exp(-np.asarray(step_logits, dtype=np.float64)))
        yield {
            "reward": float(reward),
            "num_pairs": omega.size,
            "mean_omega": float(omega.mean()),
            "omega_low": float(np.quantile(omega, 0.05)),
            "omega_high": float(np.quantile(omega, 0.95)),
            **{name: value for name, value in info.items() if name != "seconds"},
            **{name: value + reset.get(name, 0.0) for name, value in _seconds(info).items()},
        }
        reset = {}


def _seconds(info: dict[str, Any]) -> dict[str, float]:
    """Return what the parts took, if the environment tells: the tests' bandit does not."""
    return {f"seconds_{name}": value for name, value in asdict(info["seconds"]).items()} if "seconds" in info else {}
