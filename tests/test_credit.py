"""What each choice of a step was worth: against the steps themselves, and as what a Selector learns from."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from bandit import OBSERVATIONS, Bandit, initial, model_config
from gymnasium import spaces
from helpers import CROP, Problem, small_network, small_problem
from numpy.typing import NDArray
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.tune.registry import register_env
from torch import nn

from envs.credit import HeadStep, NetworkStep, step_weights, turned, worth
from envs.pair_selection import PairSelectionEnv
from envs.settings import EnvSettings
from envs.trial import ClassifierTrial
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.step import balanced_weights, train_step
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.config import load
from l2a_ray.errors import SettingError, StageError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stage import Stage
from l2a_ray.selector.rl import training
from l2a_ray.selector.rl.credit import credited_loss
from l2a_ray.selector.rl.registry import CONFIGS, configure
from l2a_ray.selector.rl.runner import SelectionRunner
from l2a_ray.selector.rl.settings import SelectorSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning")

ROOT = Path(__file__).parents[1]
SPACES = {"default_policy": (OBSERVATIONS, spaces.MultiBinary(OBSERVATIONS.shape[0]))}
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

    found = restarted().credited_step(pairs, chosen, NOTHING)[1]
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

    found = after_two_steps().credited_step(pairs, chosen, NOTHING)[1]
    np.testing.assert_allclose(found, by_steps(after_two_steps, pairs, chosen), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mask", ["110010", "000000"])
@pytest.mark.parametrize("tune", ["head", "all"])
def test_to_ask_changes_nothing(problem: Problem, tune: Literal["head", "all"], mask: str) -> None:
    settings = replace(HEAD, tune=tune, learning_rate=0.05, momentum=0.5)
    once, twice = problem.trial(settings), problem.trial(settings)
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    pairs, chosen = some_pairs(problem), np.array([c == "1" for c in mask])
    for _ in range(2):
        told, _ = once.credited_step(pairs, chosen, rng)
        plain = twice.step([pair for pair, taken in zip(pairs, chosen, strict=True) if taken], other)
        assert told == plain and rng.bit_generator.state == other.bit_generator.state


WHOLE = replace(HEAD, tune="all", learning_rate=1e-3)


class Still(SampleLoader):
    """Draws no crop, so that every mask sees a pair alike."""

    def __call__(self, sample: Sample, rng: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        return super().__call__(sample, None)


def whole_trial(problem: Problem, settings: EnvSettings, network: Network) -> ClassifierTrial:
    loader = Still(problem.store, CompositeSettings(), CROP)
    return ClassifierTrial(
        network=network, num_classes=3, loader=loader, validation=problem.validation, settings=settings
    )


def without_normalisation() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 4, 3, (1, 2, 2)), nn.Tanh(), nn.AdaptiveAvgPool3d(2), nn.Flatten()]
    return Network(nn.Sequential(*layers), 32, 3)


@pytest.mark.parametrize("mask", ["101101", "000000", "000100"])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_of_all_weights_it_is_the_exact_one_to_first_order(problem: Problem, mask: str, momentum: float) -> None:
    """Whose error falls with the square of the learning rate, where what is measured falls with the rate itself."""
    pairs, chosen = some_pairs(problem), np.array([c == "1" for c in mask])
    errors = []
    for rate in (2e-3, 2e-4):
        settings = replace(WHOLE, restart="episode", momentum=momentum, weight_decay=0.1, learning_rate=rate)

        def after_a_step(settings: EnvSettings = settings) -> ClassifierTrial:
            trial = whole_trial(problem, settings, without_normalisation())
            trial.step(some_pairs(problem, 3), NOTHING)
            return trial

        exact = by_steps(after_a_step, pairs, chosen)
        found = after_a_step().credited_step(pairs, chosen, NOTHING)[1]
        errors.append(float(np.abs(found - exact).max() / np.abs(exact).max()))
    assert errors[0] < 0.2 and errors[1] < 0.02, errors


def test_with_batch_normalisation_it_is_near_the_exact_one(problem: Problem) -> None:
    """What a pair does to the others' statistics is left out."""
    found, exact = [], []
    for seed in range(6):
        trial = whole_trial(problem, replace(WHOLE, learning_rate=0.02), small_network())
        pairs = some_pairs(problem, seed)
        chosen = np.random.default_rng(seed).random(B) < 0.7

        def restarted(trial: ClassifierTrial = trial) -> ClassifierTrial:
            trial.reset()
            return trial

        found.append(restarted().credited_step(pairs, chosen, NOTHING)[1])
        exact.append(by_steps(restarted, pairs, chosen))

    assert np.corrcoef(np.concatenate(found), np.concatenate(exact))[0, 1] > 0.8


@pytest.mark.parametrize("balance", [True, False])
def test_of_a_head_alone_first_order_is_the_exact_one_at_a_small_rate(balance: bool) -> None:
    torch.manual_seed(0)
    head, inputs, val = nn.Linear(5, 4), torch.randn(B, 5), torch.randn(7, 5)
    labels, truth = torch.rand(B, 4).softmax(dim=1), torch.arange(7) % 4
    taken = torch.tensor([True, False, True, True, False, False])
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-2, momentum=0.5, weight_decay=0.1)
    weights = step_weights(turned(taken), labels, balance)
    exact, whole = HeadStep.of(head, optimizer), NetworkStep.of(head, optimizer)
    train_step(head, optimizer, inputs, labels, weights[0])
    loss = nn.functional.cross_entropy(head(val), truth)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    found = worth(whole.losses(head, inputs, labels, weights, loss.item()), taken)
    wanted = worth(exact.losses(inputs, labels, weights, val, truth), taken)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_slopes_are_the_products_of_each_pairs_own_gradient() -> None:
    """Also through attention, whose fused form cannot carry a derivative forward."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 4)).train()
    inputs, labels = torch.randn(B, 3, 8), torch.eye(4)[torch.arange(B) % 4]
    direction = {name: torch.randn_like(value) for name, value in network.named_parameters()}
    step = NetworkStep.of(network, torch.optim.SGD(network.parameters(), lr=1.0))
    wanted = []
    for i in range(B):
        network.zero_grad()
        nn.functional.cross_entropy(network(inputs[i : i + 1]), labels[i : i + 1]).backward()  # type: ignore[no-untyped-call]
        wanted.append(
            sum(float((v.grad * direction[n]).sum()) for n, v in network.named_parameters() if v.grad is not None)
        )
    torch.testing.assert_close(
        step.slopes(network, inputs, labels, direction), torch.tensor(wanted), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("settings", [HEAD, replace(HEAD, tune="all", learning_rate=0.05)], ids=["head", "all"])
def test_the_environment_tells_of_each_step(problem: Problem, settings: EnvSettings) -> None:
    parts: dict[str, Any] = {
        "vectors": problem.vectors,
        "foreground": problem.vectors.rows(problem.foreground),
        "background": problem.vectors.rows(problem.background),
    }
    silent = PairSelectionEnv(trial=problem.trial(settings), settings=settings, **parts)
    telling = PairSelectionEnv(trial=problem.trial(settings), settings=settings, credit=True, **parts)
    for seed in range(3):
        (one, _), (other, info) = silent.reset(seed=seed), telling.reset(seed=seed)
        np.testing.assert_array_equal(one, other)
        assert "credit" not in info
        mask = np.random.default_rng(seed).integers(0, 2, B, dtype=np.int8)
        plain, told = silent.step(mask), telling.step(mask)
        np.testing.assert_array_equal(plain[0], told[0])
        credit = told[4].pop("credit")
        assert plain[1:] == told[1:] and credit.shape == (B,) and credit.any()


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


def bandit_config(name: Any = "REINFORCE", worth: float = 1.0, seed: int = 0, **given: Any) -> Any:
    register_env("credited", lambda config: Bandit(**config))
    runners = int(name in ("APPO", "IMPALA"))
    given = {"steps": 320, "steps_per_iteration": 64, "steps_per_update": 16, "learning_rate": 0.01} | given
    settings = SelectorSettings(algorithm=name, credit="pair", env_runners=runners, **given)
    return configure(settings, "credited", {"credit": worth}, model_config(seed), seed)


def learned(config: Any, updates: int) -> tuple[list[SingleAgentEpisode], dict[str, torch.Tensor]]:
    """Return some episodes of the first policy, and a policy after so many updates with them."""
    runner, learner = SelectionRunner(config=config), config.build_learner(spaces=SPACES)
    try:
        runner.begin_iteration(seed=0, iteration=0)
        episodes = runner.sample()
        for _ in range(updates):
            Learner.update(learner, episodes=deepcopy(episodes), timesteps={})
        state = learner.module["default_policy"].policy.state_dict()
        return episodes, {name: value.clone() for name, value in state.items()}
    finally:
        runner.stop()
        learner.shutdown()


def plain_surrogate(
    name: str, log_prob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, omega_credit: torch.Tensor
) -> torch.Tensor:
    """Of each pair, by the algorithms' papers; the target policy of APPO is the one that chose."""
    ratio = (log_prob - old).exp()
    clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    v_trace = ratio.detach().clamp(max=1) * advantage * log_prob
    return {"REINFORCE": omega_credit, "PPO": clipped, "APPO": clipped, "IMPALA": v_trace}[name]


@pytest.mark.ray
@pytest.mark.parametrize("name", list(CONFIGS))
def test_updates_equal_plain_pytorch(session: None, name: str) -> None:
    """Three with the same steps: from the second on the policy that learns is not the one that chose."""
    options = {"REINFORCE": {}, "IMPALA": {"entropy_coeff": 0.02}}.get(
        name, {"entropy_coeff": 0.02, "use_kl_loss": True, "kl_coeff": 0.3, "kl_target": 0.01, "clip_param": 0.2}
    )
    episodes, found = learned(bandit_config(name, learning_rate=0.05, options=options), 3)
    observations = torch.from_numpy(np.concatenate([e.get_observations()[:-1] for e in episodes]))
    mask = torch.from_numpy(np.concatenate([e.get_actions() for e in episodes])).float()
    credit = torch.where(observations[..., 0] > 0, 1.0, -1.0)  # whose root mean square is 1
    plain = initial()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    old, kl_coeff = plain(observations).detach(), 0.3
    p = old.sigmoid()
    for _ in range(3):
        logits = plain(observations)
        q = logits.sigmoid()
        log_prob, old_log_prob = (
            -nn.functional.binary_cross_entropy_with_logits(x, mask, reduction="none") for x in (logits, old)
        )
        surrogate = plain_surrogate(name, log_prob, old_log_prob, credit * (mask - p), credit * q)
        entropy = -(q * q.log() + (1 - q) * (1 - q).log())
        kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1).mean()
        loss = (-surrogate - options.get("entropy_coeff", 0) * entropy).sum(dim=1).mean()
        optimizer.zero_grad()
        (loss + kl_coeff * kl * ("use_kl_loss" in options)).backward()
        optimizer.step()
        kl_coeff *= 1.5 if kl > 0.02 else 0.5 if kl < 0.005 else 1
    for part, value in plain.state_dict().items():
        torch.testing.assert_close(found[part], value, atol=1e-6, rtol=0)
    assert (found["last.weight"] - initial().state_dict()["last.weight"]).abs().min() > 1e-3


@pytest.mark.ray
@pytest.mark.parametrize("name", list(CONFIGS))
def test_credits_of_nothing_change_nothing(session: None, name: str) -> None:
    options = {"REINFORCE": {}, "PPO": {"use_kl_loss": False}}.get(name, {"entropy_coeff": 0.0})
    _, found = learned(bandit_config(name, worth=0.0, options=options), 2)
    for part, value in initial().state_dict().items():
        assert torch.equal(found[part], value)


@pytest.mark.ray
def test_a_credit_that_is_no_number_ends_training_and_says_where(session: None) -> None:
    algorithm = bandit_config(worth=np.nan).build_algo()
    try:
        with pytest.raises(StageError, match=r"NaN in step 0 of iteration 3.*Lower env\.learning_rate"):
            training.sample_and_learn(algorithm, 0, 3)
    finally:
        algorithm.stop()


@pytest.mark.ray
def test_no_row_of_the_history_holds_credits(session: None) -> None:
    algorithm = bandit_config().build_algo()
    try:
        rows = training.sample_and_learn(algorithm, 0, 0)
        assert len(rows) == 64 and all("credit" not in row for row in rows)
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


def test_credit_is_of_a_choices_own_step() -> None:
    with pytest.raises(SettingError, match=r"credit='pair': .*discount must be 0"):
        SelectorSettings(credit="pair", discount=0.5)


def test_a_state_may_hold_more_pairs_than_there_are(problem: Problem) -> None:
    """Then some are in it twice, each credited by itself."""
    settings = replace(HEAD, pairs=4 * B, candidates=2)
    env = PairSelectionEnv(
        trial=problem.trial(settings),
        vectors=problem.vectors,
        foreground=problem.vectors.rows(problem.foreground[:2]),
        background=problem.vectors.rows(problem.background[:2]),
        settings=settings,
        credit=True,
    )
    observation, _ = env.reset(seed=0)
    credit = env.step(np.ones(4 * B, np.int8))[4]["credit"]
    assert credit.shape == (4 * B,) and np.isfinite(credit).all()
    _, kind = np.unique(observation, axis=0, return_inverse=True)
    for one in range(2):
        np.testing.assert_allclose(credit[kind == one], credit[kind == one][0], rtol=1e-3, atol=1e-7)
