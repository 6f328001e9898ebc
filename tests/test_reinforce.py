"""REINFORCE: distribution, loss and update against plain PyTorch, a rule to be learnt, and a run that was stopped."""

import os
import pickle
import signal
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
from bandit import OBSERVATIONS, B, Bandit, F, L, initial, model_config, share_won
from gymnasium import spaces
from helpers import CROP, NETWORK, small_network, small_problem
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.rllib.algorithms import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from envs.pair_selection import EnvFiles
from envs.settings import EnvSettings
from l2a_ray.classifier.network import save_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.errors import LeakError, SettingError, StageError, StorageError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl import training
from l2a_ray.selector.rl.distribution import IndependentBernoulli
from l2a_ray.selector.rl.exploration import exploration_penalty
from l2a_ray.selector.rl.module import SelectorModule
from l2a_ray.selector.rl.registry import build_config, configure
from l2a_ray.selector.rl.reinforce import ReinforceConfig, reinforce_loss
from l2a_ray.selector.rl.runner import SelectionRunner
from l2a_ray.selector.rl.settings import SelectorSettings

# RLlib warns of its own use of deprecated settings, and that a second algorithm replaces the first one's environment.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning")

STEPS = 32  # of all environments in one update
UPDATES = 200


def config(sign: float = 1.0, **training_options: Any) -> Any:
    register_env("bandit", lambda _: Bandit(sign))
    return (
        ReinforceConfig()
        .environment("bandit", disable_env_checking=True)
        .training(**training_options)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=STEPS // 4, rollout_fragment_length=4)
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=SelectorModule, model_config=model_config()))
        .debugging(seed=0, log_level="ERROR")
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
    )


# --- the parts, without Ray running


def test_distribution_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0], [0.0, 5.0, -0.7]])
    other = torch.tensor([[-0.4, 0.1, 1.0], [1.0, 4.0, 0.2]])
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.int8)
    p, q = logits.sigmoid(), other.sigmoid()
    distribution = IndependentBernoulli.from_logits(logits)
    log_prob = torch.where(mask == 1, p.log(), (1 - p).log()).sum(dim=1)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum(dim=1)
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1)
    torch.testing.assert_close(distribution.logp(mask), log_prob)
    torch.testing.assert_close(distribution.entropy(), entropy)
    torch.testing.assert_close(distribution.kl(IndependentBernoulli.from_logits(other)), kl, rtol=1e-4, atol=1e-5)
    assert distribution.to_deterministic().sample().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert IndependentBernoulli.required_input_dim(spaces.MultiBinary(7)) == 7


def test_distribution_draws_masks_of_the_action_space() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 2.0])
    drawn = IndependentBernoulli.from_logits(logits).sample(sample_shape=torch.Size((20_000,)))
    assert spaces.MultiBinary(3).contains(drawn[0].numpy())
    torch.testing.assert_close(drawn.float().mean(dim=0), logits.sigmoid(), atol=0.02, rtol=0)


def test_gradient_of_the_loss_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.2], [0.5, 2.0], [-0.1, 0.0]], requires_grad=True)
    mask, advantage = torch.tensor([[1, 0], [0, 1], [1, 1]]), torch.tensor([0.5, -2.0, 1.5])
    reinforce_loss(IndependentBernoulli.from_logits(logits).logp(mask), advantage).backward()  # type: ignore[no-untyped-call]
    # The gradient of log pi is m - omega; the loss falls where rewarded masks grow more probable.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, -advantage[:, None] * (mask - logits.detach().sigmoid()) / 3)


def test_order_of_the_pairs_does_not_matter() -> None:
    module = SelectorModule(
        observation_space=OBSERVATIONS,
        action_space=spaces.MultiBinary(B),
        inference_only=False,
        model_config=model_config(),
    )
    observation, order = torch.randn(4, B, 2 * F + 2 * L), torch.randperm(B)
    logits = module.forward_train({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS]
    shuffled = module.forward_train({Columns.OBS: observation[:, order]})[Columns.ACTION_DIST_INPUTS]
    assert logits.shape == (4, B) and logits.std() > 0
    torch.testing.assert_close(shuffled, logits[:, order])
    torch.testing.assert_close(logits, initial()(observation))
    values = module.compute_values({Columns.OBS: observation})
    assert values.shape == (4,)
    torch.testing.assert_close(module.compute_values({Columns.OBS: observation[:, order]}), values)


# --- through RLlib


@pytest.mark.ray
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_updates_equal_plain_pytorch(session: None, gamma: float) -> None:
    algorithm = config(lr=0.01, gamma=gamma).build_algo()
    try:
        plain = initial()
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
        for _ in range(3):
            episodes = algorithm.env_runner.sample(num_timesteps=STEPS)
            observations = torch.from_numpy(np.concatenate([e.get_observations()[:-1] for e in episodes]))
            actions = torch.from_numpy(np.concatenate([e.get_actions() for e in episodes])).float()
            returns = torch.from_numpy(np.concatenate([by_hand(e.get_rewards(), gamma) for e in episodes])).float()
            logits = plain(observations)
            log_prob = -torch.nn.functional.binary_cross_entropy_with_logits(logits, actions, reduction="none").sum(1)
            optimizer.zero_grad()
            (-(log_prob * returns).mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            algorithm.learner_group.update(episodes=episodes, timesteps={"num_env_steps_sampled_lifetime": STEPS})
        assert_learned_alike(algorithm, plain)
    finally:
        algorithm.stop()


@pytest.mark.ray
def test_a_second_selector_in_a_process_warns_of_nothing(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium.logger, "min_level", gymnasium.logger.WARN)
    warnings.filterwarnings("error", ".*Overriding environment")  # pytest takes it back after the test
    for _ in range(2):
        config().env_runners(env_runner_cls=SelectionRunner, num_envs_per_env_runner=1).build_algo().stop()


def assert_learned_alike(algorithm: Algorithm, plain: SelectorNetwork) -> None:
    """Both began as `initial()`, and neither has stayed there."""
    learnt, start = training.policy_weights(algorithm), initial().state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(learnt[name], value, atol=1e-6, rtol=0)
    assert (learnt["last.weight"] - start["last.weight"]).abs().min() > 1e-3


def by_hand(rewards: Any, gamma: float) -> NDArray[np.float64]:
    values = np.asarray(rewards, dtype=np.float64)
    return np.array([sum(gamma**k * r for k, r in enumerate(values[t:])) for t in range(len(values))])


@pytest.mark.ray
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_hidden_rule_is_learnt_and_its_opposite_from_opposite_rewards(session: None, sign: float) -> None:
    algorithm = config(sign, lr=0.01, updates_per_iteration=UPDATES).build_algo()
    try:
        algorithm.train()
        assert share_won(training.policy_weights(algorithm), sign) >= 0.9
    finally:
        algorithm.stop()


@pytest.mark.ray
def test_stopped_and_resumed_training_equals_one_that_never_stopped(session: None, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = SelectorSettings(
        steps=8, steps_per_update=1, steps_per_iteration=2, checkpoint_every=2, hidden=(8,), learning_rate=0.01
    )
    env = EnvSettings(pairs=4, steps=2, learning_rate=1.0)
    files = selection_files(tmp_path, env)
    once, history = learn(settings, files, tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints" / "checkpoint.safetensors").is_file(), "of the first two iterations"
    resumed, history_resumed = learn(settings, files, tmp_path / "checkpoints")
    other, _ = learn(settings, files, tmp_path / "elsewhere", seed=4)
    assert (once["last.weight"] - other["last.weight"]).abs().max() > 1e-4
    for name, value in once.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=0)
    told = ["step", "iteration", "reward", "baseline", "val_loss", "num_selected", "num_pairs", "mean_omega"]
    assert history["step"].tolist() == list(range(8))
    pd.testing.assert_frame_equal(history_resumed[told], history[told], atol=1e-6)


@pytest.mark.ray
@pytest.mark.parametrize(
    "options",
    [{}, {"num_epochs": 2, "kl_coeff": 0.5, "kl_target": 1e-9, "entropy_coeff": [[0, 0.1], [8, 0.0]]}],
    ids=["REINFORCE", "PPO"],
)
def test_a_checkpoint_holds_all_that_an_iteration_owes_to_the_ones_before(
    session: None, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    settings = SelectorSettings(
        algorithm="PPO" if options else "REINFORCE",
        options=options,
        steps=12,
        steps_per_update=2,
        steps_per_iteration=4,
        checkpoint_every=2,
        hidden=(8,),
        learning_rate=0.01,
    )
    files = selection_files(tmp_path, EnvSettings(pairs=4, steps=2, learning_rate=1.0, held_out=0.25))
    once, history = learn(settings, files, tmp_path / "checkpoints")
    saved = safetensors.numpy.load_file(tmp_path / "checkpoints" / "checkpoint.safetensors")
    assert {name.partition(".")[0] for name in saved} == {"module", "adam", "history", "objective", "kept"}
    resumed, history_resumed = learn(settings, files, tmp_path / "checkpoints")
    assert all(torch.equal(resumed[name], value) for name, value in once.items())
    told = [name for name in history.columns.astype(str) if not name.startswith("seconds")]
    pd.testing.assert_frame_equal(history_resumed[told], history[told], check_exact=True)


@pytest.mark.ray
def test_a_foreign_checkpoint_is_refused_and_nothing_in_it_is_run(session: None, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "run",)

    settings = SelectorSettings(steps=4, steps_per_update=2, steps_per_iteration=4, hidden=(8,))
    files = selection_files(tmp_path, EnvSettings(pairs=4, steps=2, learning_rate=1.0))
    for content, reason in (
        (pickle.dumps(Malicious()), "damaged or of another Selector"),
        (safetensors.numpy.save({"module.policy.first.bias": np.zeros(3, np.float32)}), "damaged or of another"),
    ):
        (tmp_path / "checkpoint.safetensors").write_bytes(content)
        (tmp_path / "checkpoint.tar").write_bytes(content)
        with pytest.raises(StorageError, match=reason):
            learn(settings, files, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("algorithm", "runners"),
    [("REINFORCE", 0), ("REINFORCE", 1), ("PPO", 1), pytest.param("IMPALA", 1, marks=pytest.mark.slow),
     pytest.param("APPO", 1, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_damaged_clip_ends_training_with_its_own_error(
    session: None, tmp_path: Path, algorithm: Any, runners: int
) -> None:
    settings = SelectorSettings(
        algorithm=algorithm, steps=16, steps_per_update=4, steps_per_iteration=8, hidden=(8,), env_runners=runners
    )
    files = selection_files(tmp_path, EnvSettings(pairs=8, steps=4, learning_rate=1.0))
    store = ClipStore(files.store)
    damaged = store.path(str(store.rows("train")["id"].iloc[0]))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(StorageError, match=f"{damaged.name}.*Run `l2a prepare --refresh`"):
        learn(settings, files, tmp_path / "out")


@pytest.mark.ray
@pytest.mark.parametrize("runners", [0, 1])
def test_an_environment_that_cannot_be_built_says_why(session: None, tmp_path: Path, runners: int) -> None:
    files = selection_files(tmp_path, EnvSettings(pairs=4, steps=2, learning_rate=1.0))
    pairs = pd.read_parquet(files.pairs)
    pairs.loc[0, "foreground"] = leaked = ClipStore(files.store).rows("test")["id"].iloc[0]
    pairs.to_parquet(files.pairs)
    settings = SelectorSettings(steps=4, steps_per_update=2, steps_per_iteration=4, hidden=(8,), env_runners=runners)
    with pytest.raises(LeakError, match=leaked):
        learn(settings, files, tmp_path / "out")


@pytest.mark.ray
def test_a_killed_env_runner_costs_its_episode_and_nothing_else(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SelectorSettings(steps=48, steps_per_update=2, steps_per_iteration=8, hidden=(8,), env_runners=2)
    env = EnvSettings(pairs=4, steps=4, learning_rate=1.0)
    real = training.sample_and_learn

    def killing(algorithm: Algorithm, seed: int, iteration: int) -> list[dict[str, float]]:
        if iteration == 1:
            assert algorithm.env_runner_group is not None
            pids = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
            threading.Timer(0.02, os.kill, (pids[0], signal.SIGKILL)).start()
        return real(algorithm, seed, iteration)

    monkeypatch.setattr(training, "sample_and_learn", killing)
    _, history = learn(settings, selection_files(tmp_path, env), tmp_path / "checkpoints")
    assert len(history) >= 2 * 48 and history["step"].tolist() == list(range(len(history)))
    sizes = history.groupby("iteration").size()
    assert sizes[0] == 16 and sizes.min() < 16, "an iteration must have lost steps, or nothing was killed in it"
    assert history["env_runners_lost"].iloc[0] == 0 and history["env_runners_lost"].iloc[-1] == 1


@pytest.mark.ray
def test_a_learning_rate_that_diverges_stops_training_and_says_where(session: None, tmp_path: Path) -> None:
    settings = SelectorSettings(
        steps=8, steps_per_update=2, steps_per_iteration=4, checkpoint_every=1, hidden=(8,), learning_rate=1e36
    )
    env = EnvSettings(pairs=4, steps=2, learning_rate=1.0)
    with pytest.raises(SettingError, match=r"^learning_rate=1e\+36.*between the steps 0 and 4"):
        learn(settings, selection_files(tmp_path, env), tmp_path / "checkpoints")


def selection_files(folder: Path, env: EnvSettings) -> EnvFiles:
    problem = small_problem(folder / "store")
    problem.vectors.save(folder / "vectors.safetensors")
    save_network(folder / "warm.safetensors", small_network())
    pairs = pd.DataFrame({"foreground": problem.foreground, "background": problem.background})
    pairs.to_parquet(folder / "pairs.parquet")
    return EnvFiles(
        store=str(problem.store.root),
        pairs=str(folder / "pairs.parquet"),
        vectors=str(folder / "vectors.safetensors"),
        warm_start=str(folder / "warm.safetensors"),
        network=NETWORK,
        composite=CompositeSettings(),
        crop=CROP,
        settings=env,
        seed=0,
    )


def learn(
    settings: SelectorSettings, files: EnvFiles, out: Path, seed: int = 3
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    torch.manual_seed(0)
    trained = training.learn(SelectorNetwork(5, 3, settings.hidden), files, settings, out, seed=seed)
    return trained.weights, trained.history


@pytest.mark.ray
def test_a_killed_learner_costs_the_steps_since_the_last_checkpoint(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SelectorSettings(
        steps=24,
        steps_per_update=2,
        steps_per_iteration=4,
        checkpoint_every=2,
        hidden=(8,),
        learning_rate=0.01,
        learners=1,
    )
    env = EnvSettings(pairs=4, steps=2, learning_rate=1.0)
    files = selection_files(tmp_path, env)
    in_the_driver = replace(settings, learners=0)
    undisturbed, history = learn(in_the_driver, files, tmp_path / "undisturbed")
    real, begun = training.sample_and_learn, list[int]()

    def killing(algorithm: Algorithm, seed: int, iteration: int) -> list[dict[str, float]]:
        begun.append(iteration)
        if begun == [0, 1, 2, 3]:
            assert algorithm.learner_group is not None
            os.kill(next(iter(algorithm.learner_group.foreach_learner(lambda _: os.getpid()))).get(), signal.SIGKILL)
        return real(algorithm, seed, iteration)

    monkeypatch.setattr(training, "sample_and_learn", killing)
    disturbed, history_disturbed = learn(settings, files, tmp_path / "disturbed")
    assert begun == [0, 1, 2, 3, 2, 3, 4, 5], "it goes on from the checkpoint after iteration 1, not from the start"
    for name, value in undisturbed.items():
        torch.testing.assert_close(disturbed[name], value, atol=1e-6, rtol=0)
    told = ["step", "iteration", "reward", "baseline", "val_loss", "num_selected"]
    pd.testing.assert_frame_equal(history_disturbed[told], history[told], atol=1e-6)

    def dying(*arguments: object) -> pd.DataFrame:
        begun.append(-1)
        raise RayActorError(error_msg="it died\nof something")

    monkeypatch.setattr(training, "run_iterations", dying)
    few = replace(in_the_driver, max_failures=2)
    with pytest.raises(StageError, match=r"gave up after 2 restarts: it died The same .* selector\.max_failures"):
        learn(few, files, tmp_path / "given_up")
    assert begun.count(-1) == 3


def test_unknown_algorithms_and_options_are_refused() -> None:
    with pytest.raises(SettingError, match=r"algorithm='DQN'.*REINFORCE, PPO, APPO, IMPALA"):
        SelectorSettings(algorithm="DQN")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"options.*PPO does not take them.*'clip'"):
        configure(SelectorSettings(algorithm="PPO", options={"clip": 0.2}), "bandit", {}, model_config(), 0)
    with pytest.raises(SettingError, match=r"^env_runners=0.*IMPALA"):
        SelectorSettings(algorithm="IMPALA")


def test_exploration_penalty_by_hand() -> None:
    logits = torch.tensor([[8.0, 8.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0], [-8.0, -8.0, -8.0, -8.0]])
    omega = torch.tensor(8.0).sigmoid().item()
    assert exploration_penalty(logits).item() == pytest.approx(2 * (omega - 0.9) / 3 / 4, abs=1e-6)
    assert exploration_penalty(logits, 0.6, 1.0).item() == pytest.approx((0.1 + omega - 0.4) / 3 / 4, abs=1e-6)


def test_returns_over_cut_episodes_are_refused() -> None:
    nowhere: dict[str, Any] = dict.fromkeys(("store", "pairs", "vectors", "warm_start"), "")
    env = EnvSettings(steps=3)
    files = EnvFiles(**nowhere, network=NETWORK, composite=CompositeSettings(), crop=CROP, settings=env, seed=0)
    settings = SelectorSettings(discount=0.5, steps=20, steps_per_iteration=20, steps_per_update=4)
    with pytest.raises(SettingError, match=r"discount=0\.5.*multiple of env\.steps=3"):
        build_config(settings, files, model_config(), 0)
