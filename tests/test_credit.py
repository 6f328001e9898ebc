"""What each choice of a step was worth: against the steps themselves, and as what a Selector learns from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bandit import Bandit, initial, model_config, share_won
from helpers import Problem, small_problem
from numpy.typing import NDArray
from ray.tune.registry import register_env
from test_reinforce import assert_learned_alike

from envs.credit import step_weights, turned
from envs.pair_selection import PairSelectionEnv
from envs.settings import EnvSettings
from envs.trial import ClassifierTrial
from l2a_ray.classifier.step import balanced_weights
from l2a_ray.composites.loader import Sample
from l2a_ray.config import load
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stage import Stage
from l2a_ray.selector.rl import training
from l2a_ray.selector.rl.registry import configure
from l2a_ray.selector.rl.reinforce import credited_loss
from l2a_ray.selector.rl.runner import SelectionRunner
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.videos.settings import DataSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning")

ROOT = Path(__file__).parents[1]
B = 6
HEAD = EnvSettings(pairs=B, steps=3, learning_rate=2.0)
NOTHING = np.random.default_rng(0)
"""A generator for steps of a frozen body, which draw nothing."""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    torch.set_num_threads(1)
    return small_problem(tmp_path_factory.mktemp("store"))


def some_pairs(problem: Problem, seed: int = 1) -> list[Sample]:
    rows = np.random.default_rng(seed).integers(len(problem.foreground), size=B)
    return [Sample(str(problem.foreground[i]), str(problem.background[i])) for i in rows]


def by_steps(
    trial: Callable[[], ClassifierTrial], pairs: list[Sample], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """What the issue asks, the long way: for each pair one step with it and one without."""

    def loss(mask: NDArray[np.bool_]) -> float:
        return trial().step([pair for pair, taken in zip(pairs, mask, strict=True) if taken], NOTHING).val_loss

    found = []
    for i in range(B):
        with_it, without = chosen.copy(), chosen.copy()
        with_it[i], without[i] = True, False
        found.append(loss(without) - loss(with_it))
    return np.array(found)


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("mask", ["101101", "111111", "000000", "000100"])
def test_credit_is_the_difference_that_one_choice_makes(problem: Problem, balance: bool, mask: str) -> None:
    settings = replace(HEAD, balance=balance)
    trial, pairs, chosen = problem.trial(settings), some_pairs(problem), np.array([c == "1" for c in mask])

    def restarted() -> ClassifierTrial:
        trial.reset()
        return trial

    found = restarted().credit(pairs, chosen)
    assert found.dtype == np.float32 and found.shape == (B,)
    np.testing.assert_allclose(found, by_steps(restarted, pairs, chosen), rtol=0, atol=2e-6)
    assert np.abs(found).max() > 1e-3


def test_credit_knows_of_momentum_and_weight_decay(problem: Problem) -> None:
    """In the middle of an episode, where the head is no longer zero."""
    settings = replace(HEAD, restart="episode", momentum=0.6, weight_decay=0.05, learning_rate=0.5)
    pairs, chosen = some_pairs(problem, 2), np.array([True, False, True, True, False, False])

    def after_two_steps() -> ClassifierTrial:
        trial = problem.trial(settings)
        trial.step(some_pairs(problem, 3), NOTHING)
        trial.step(some_pairs(problem, 4)[:4], NOTHING)
        return trial

    found = after_two_steps().credit(pairs, chosen)
    np.testing.assert_allclose(found, by_steps(after_two_steps, pairs, chosen), rtol=0, atol=2e-6)


def test_to_ask_changes_nothing(problem: Problem) -> None:
    once, twice = problem.trial(HEAD), problem.trial(HEAD)
    pairs, chosen = some_pairs(problem), np.array([True, True, False, False, True, False])
    once.credit(pairs, chosen)
    chosen_pairs = [pair for pair, taken in zip(pairs, chosen, strict=True) if taken]
    assert once.step(chosen_pairs, NOTHING) == twice.step(chosen_pairs, NOTHING)


def test_the_environment_tells_of_each_step(problem: Problem) -> None:
    parts: dict[str, Any] = {
        "vectors": problem.vectors,
        "foreground": problem.vectors.rows(problem.foreground),
        "background": problem.vectors.rows(problem.background),
    }
    silent = PairSelectionEnv(trial=problem.trial(HEAD), settings=HEAD, **parts)
    telling = PairSelectionEnv(trial=problem.trial(HEAD), settings=HEAD, credit=True, **parts)
    for seed in range(3):
        (one, _), (other, info) = silent.reset(seed=seed), telling.reset(seed=seed)
        np.testing.assert_array_equal(one, other)
        assert "credit" not in info
        mask = np.random.default_rng(seed).integers(0, 2, B, dtype=np.int8)
        plain, told = silent.step(mask), telling.step(mask)
        np.testing.assert_array_equal(plain[0], told[0])
        credit = told[4].pop("credit")
        assert plain[1:] == told[1:] and credit.shape == (B,) and credit.any()
    everything = replace(HEAD, tune="all", learning_rate=0.05)
    with pytest.raises(SettingError, match=r"tune='all'.*exact"):
        PairSelectionEnv(trial=problem.trial(everything), settings=everything, credit=True, **parts)


def test_a_rate_at_which_the_loss_overflows_is_refused(problem: Problem) -> None:
    settings = replace(HEAD, learning_rate=1e39)
    with pytest.raises(SettingError, match=r"env\.learning_rate=1e\+39: a step ends in no finite loss"):
        problem.trial(settings).credit(some_pairs(problem), np.ones(B, np.bool_))


def test_weights_of_all_masks_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.dirichlet([0.3] * 4, size=B), dtype=torch.float32) * torch.tensor([1.0, 1, 1, 0])
    labels /= labels.sum(dim=1, keepdim=True)
    masks = turned(torch.tensor(rng.integers(0, 2, B) > 0))
    assert masks.shape == (B + 1, B) and (masks[1:] ^ masks[0]).equal(torch.eye(B, dtype=torch.bool))
    for mask, weights in zip(masks, step_weights(masks, labels, balance=True), strict=True):
        torch.testing.assert_close(weights[mask], balanced_weights(labels[mask]))
        assert not weights[~mask].any()


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.2, 0.0], [0.5, 2.0, -3.0]], requires_grad=True)
    credit = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.1, 0.3]])
    credited_loss(logits, credit).backward()  # type: ignore[no-untyped-call]
    omega = logits.detach().sigmoid()
    size = torch.tensor([(5.25 / 3) ** 0.5, (0.1 / 3) ** 0.5])[:, None]  # root mean squares
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, -omega * (1 - omega) * credit / size / 2)
    alike = torch.tensor([[0.3, -1.2]], requires_grad=True)
    credited_loss(alike, torch.full((1, 2), 0.2)).backward()  # type: ignore[no-untyped-call]
    assert alike.grad is not None and alike.grad.abs().max() < 1
    still = torch.tensor([[0.3, -1.2]], requires_grad=True)
    credited_loss(still, torch.zeros(1, 2)).backward()  # type: ignore[no-untyped-call]
    assert still.grad is not None and not still.grad.any()


def test_the_sampled_gradient_of_one_reward_is_in_the_mean_that_of_the_credits() -> None:
    """Both estimate the same gradient; here all masks can be listed."""
    torch.manual_seed(0)
    logits, pairs = torch.randn(4, dtype=torch.float64), 4
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * pairs)
    reward = torch.randn(len(masks), dtype=torch.float64)  # of any mask: with interactions
    omega = logits.sigmoid()
    probability = torch.where(masks, omega, 1 - omega).prod(dim=1)
    shared = (probability[:, None] * reward[:, None] * (masks.double() - omega)).sum(dim=0)
    index = {tuple(mask.tolist()): i for i, mask in enumerate(masks)}
    credited = torch.zeros(pairs, dtype=torch.float64)
    for mask, weight in zip(masks, probability, strict=True):
        for i in range(pairs):
            on, off = mask.clone(), mask.clone()
            on[i], off[i] = True, False
            worth = reward[index[tuple(on.tolist())]] - reward[index[tuple(off.tolist())]]
            credited[i] += weight * omega[i] * (1 - omega[i]) * worth
    torch.testing.assert_close(credited, shared)


class CreditedBandit(Bandit):
    """Tells what each pair is worth: its own part of the loss."""

    def step(self, action: NDArray[np.int8]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        credit = self.sign * np.where(self.state[:, 0] > 0, 1, -1) / len(self.state)
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | {"credit": credit.astype(np.float32)}


def bandit_config(steps_per_update: int, seed: int = 0) -> Any:
    register_env("credited", lambda config: CreditedBandit())
    settings = SelectorSettings(
        credit="pair", steps=320, steps_per_iteration=64, steps_per_update=steps_per_update, learning_rate=0.01
    )
    return configure(settings, "credited", {}, model_config(seed), seed)


@pytest.mark.ray
def test_updates_equal_plain_pytorch(session: None) -> None:
    algorithm = bandit_config(16).build_algo()
    try:
        plain = initial()
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
        algorithm.env_runner_group.foreach_env_runner(
            lambda runner: SelectionRunner.begin_iteration(runner, seed=0, iteration=0)
        )
        for _ in range(3):
            episodes = algorithm.env_runner.sample()
            observations = torch.from_numpy(np.concatenate([e.get_observations()[:-1] for e in episodes]))
            credit = torch.where(observations[..., 0] > 0, 1.0, -1.0) / observations.shape[1]
            optimizer.zero_grad()
            credited_loss(plain(observations), credit).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            algorithm.learner_group.update(episodes=episodes, timesteps={"num_env_steps_sampled_lifetime": 16})
        assert_learned_alike(algorithm, plain)
    finally:
        algorithm.stop()


@pytest.mark.ray
def test_the_hidden_rule_is_found_in_a_twentieth_of_the_steps(session: None) -> None:
    """With one reward for all choices 6,400 steps are given (tests/test_learning.py)."""
    for seed in range(3):
        algorithm = bandit_config(4, seed).build_algo()
        try:
            for iteration in range(5):
                rows = training.sample_and_learn(algorithm, seed, iteration)
                assert len(rows) == 64 and all("credit" not in row for row in rows)
            assert share_won(training.policy_weights(algorithm)) >= 0.9
        finally:
            algorithm.stop()


class Anywhere:
    """Inputs of a stage whose files need not be there."""

    store = scratch = Path("store")

    def folder(self, stage: Stage) -> Path:
        return self.store / stage.name

    def need_ray(self) -> None:
        raise AssertionError("no files are read")


@pytest.mark.parametrize("credit", ["shared", "pair"])
def test_a_run_asks_its_environment_for_what_its_selector_learns_from(credit: str) -> None:
    settings = load(ROOT / "configs/demo.yaml", **{"selector.credit": credit})
    assert Pipeline(settings).train_selector(0).files(Anywhere()).credit == (credit == "pair")


@pytest.mark.ray
def test_no_selector_learns_from_less_than_it_was_to(session: None) -> None:
    """An environment that tells no credits is not learned from as if it did."""
    register_env("silent", lambda config: Bandit())
    settings = SelectorSettings(credit="pair", steps=64, steps_per_iteration=64)
    algorithm = configure(settings, "silent", {}, model_config(), 0).build_algo()
    try:
        with pytest.raises(KeyError, match="credit"):
            training.sample_and_learn(algorithm, 0, 0)
    finally:
        algorithm.stop()


def test_where_credit_cannot_be_had_is_said() -> None:
    data = DataSettings(root="videos")
    pair = SelectorSettings(credit="pair")
    Settings(data=data, selector=pair)
    with pytest.raises(SettingError, match=r"selector\.credit='pair': is exact with env\.tune=head alone"):
        Settings(data=data, selector=pair, env=EnvSettings(tune="all"))
    with pytest.raises(SettingError, match=r"selector\.credit='pair': PPO learns from one reward"):
        Settings(data=data, selector=replace(pair, algorithm="PPO"))
    with pytest.raises(SettingError, match=r"selector\.credit='pair': .*discount must be 0"):
        Settings(data=data, selector=replace(pair, discount=0.5))
