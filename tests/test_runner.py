"""The env runner: it walks as RLlib's own does, cut episodes go on, and its record tells all seconds."""

import numpy as np
import pytest
from bandit import EPISODE, B, Bandit, model_config
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.tune.registry import register_env

from envs.trial import Seconds
from l2a_ray.selector.rl.registry import configure
from l2a_ray.selector.rl.runner import SelectionRunner, step_rows
from l2a_ray.selector.rl.settings import SelectorSettings

# RLlib warns of its own use of deprecated settings, and that a second runner replaces the first one's environment.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning")


def test_an_episodes_first_step_tells_its_resets_seconds_too() -> None:
    def step(episode: SingleAgentEpisode) -> None:
        info = {"seconds": Seconds(composite=1.0, train=2.0)}
        logits = {Columns.ACTION_DIST_INPUTS: np.zeros(B, np.float32)}
        episode.add_env_step(np.zeros(1), np.zeros(B, np.int8), 0.5, info, extra_model_outputs=logits)

    def told(episode: SingleAgentEpisode) -> list[tuple[float, float]]:
        return [(row["seconds_composite"], row["seconds_train"]) for row in step_rows(episode)]

    begun = SingleAgentEpisode()
    begun.add_env_reset(np.zeros(1), {"seconds": Seconds(composite=10.0)})
    step(begun)
    step(begun)
    goes_on = begun.cut(len_lookback_buffer=1)
    step(goes_on)
    assert told(begun) == told(begun.to_numpy()) == [(11.0, 2.0), (1.0, 2.0)]
    assert told(goes_on) == told(goes_on.to_numpy()) == [(1.0, 2.0)]


@pytest.mark.ray
@pytest.mark.parametrize("explore", [True, False])
def test_our_runner_walks_as_rllibs_own_would(session: None, explore: bool) -> None:
    def sampled(runner_class: type[SingleAgentEnvRunner]) -> SingleAgentEpisode:
        runner = runner_class(config=bandit(steps_per_update=EPISODE).env_runners(explore=explore))
        SelectionRunner.begin_iteration(runner, seed=1, iteration=0)
        (episode,) = runner.sample()
        return episode

    ours, rllibs = sampled(SelectionRunner), sampled(SingleAgentEnvRunner)
    np.testing.assert_array_equal(ours.get_observations(), rllibs.get_observations())
    np.testing.assert_array_equal(ours.get_rewards(), rllibs.get_rewards())
    np.testing.assert_array_equal(ours.get_actions(), rllibs.get_actions())
    assert ours.is_truncated and rllibs.is_truncated and not ours.is_terminated
    assert ours.get_actions().dtype == np.int8 and 0 < ours.get_actions().mean() < 1
    # Without exploration RLlib calls a mask certain; the Selector's own probability of it is what the learner wants.
    for name in (Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP)[: 1 + explore]:
        np.testing.assert_array_equal(ours.get_extra_model_outputs(name), rllibs.get_extra_model_outputs(name))


@pytest.mark.ray
def test_an_episode_that_is_cut_goes_on_in_the_next_sample(session: None) -> None:
    def sampled(steps_per_update: int, samples: int) -> list[SingleAgentEpisode]:
        runner = SelectionRunner(config=bandit(steps_per_update=steps_per_update))
        runner.begin_iteration(seed=1, iteration=0)
        return [chunk for _ in range(samples) for chunk in runner.sample()]

    whole, another = sampled(2 * EPISODE, 1)
    one, rest, next_one = sampled(EPISODE - 2, 2)
    assert [(e.t_started, len(e), e.is_done) for e in (one, rest, next_one)] == [
        (0, 6, False),
        (6, 2, True),
        (0, 4, False),
    ]
    assert one.id_ == rest.id_ != next_one.id_
    np.testing.assert_array_equal(one.get_observations(-1), rest.get_observations(0))
    rewards = np.concatenate([chunk.get_rewards() for chunk in (one, rest, next_one)])
    np.testing.assert_array_equal(rewards, np.concatenate([whole.get_rewards(), another.get_rewards()[:4]]))
    assert not np.array_equal(whole.get_observations(0), another.get_observations(0))


def bandit(steps_per_update: int) -> AlgorithmConfig:
    register_env("bandit", lambda _: Bandit())
    settings = SelectorSettings(steps_per_update=steps_per_update, steps_per_iteration=steps_per_update, steps=480)
    return configure(settings, "bandit", {}, model_config(), 0)
