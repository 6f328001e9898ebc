"""Proof of learning: every algorithm finds a hidden rule within its stated number of steps, and cannot if blind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bandit import Bandit, model_config, share_won
from ray.tune.registry import register_env

from l2a_ray.runtime.session import own_ray
from l2a_ray.selector.rl import training
from l2a_ray.selector.rl.registry import CONFIGS, configure
from l2a_ray.selector.rl.settings import SelectorSettings

# RLlib warns of its own use of deprecated settings, and that a second algorithm replaces the first one's environment.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning"),
]

SEEDS = (0, 1, 2)
ENOUGH = 0.9
PPO = {"num_epochs": 4, "use_kl_loss": False}
# What each is given: steps of all runners together, and its settings.
SHARED: dict[str, tuple[int, dict[str, Any]]] = {
    "REINFORCE": (6400, {"learning_rate": 0.01, "steps_per_update": 32}),
    "PPO": (6400, {"learning_rate": 0.003, "steps_per_update": 64, "options": PPO}),
    "APPO": (9600, {"learning_rate": 0.003, "steps_per_update": 32, "env_runners": 1}),
    "IMPALA": (9600, {"learning_rate": 0.003, "steps_per_update": 32, "env_runners": 1}),
}
PAIR: dict[str, tuple[int, dict[str, Any]]] = {
    "REINFORCE": (320, {"learning_rate": 0.01, "steps_per_update": 4}),
    "PPO": (320, {"learning_rate": 0.01, "steps_per_update": 16, "options": PPO}),
    "APPO": (640, {"learning_rate": 0.01, "steps_per_update": 8, "env_runners": 1}),
    "IMPALA": (640, {"learning_rate": 0.01, "steps_per_update": 8, "env_runners": 1}),
}
GIVEN = {"shared": SHARED, "pair": PAIR}


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # env runners import the bandit
    with own_ray(num_cpus=3, include_dashboard=False, runtime_env=here):
        yield


def won(name: Any, credit: Any, seed: int, blind: bool = False) -> tuple[float, int]:
    """Train until enough is won, or the stated steps are done; return the most won, and the steps that it took."""
    steps, given = GIVEN[credit][name]
    every = 320 if credit == "shared" else 32
    settings = SelectorSettings(algorithm=name, credit=credit, steps=steps, steps_per_iteration=every, **given)
    register_env("bandit", lambda config: Bandit(**config))
    about = {"blind": blind, "credit": 1.0 if credit == "pair" else None}
    algorithm = configure(settings, "bandit", about, model_config(seed), seed).build_algo()
    try:
        done, most = 0, 0.0
        while done < steps and most < ENOUGH:
            done += len(training.sample_and_learn(algorithm, seed, done))
            most = max(most, share_won(training.policy_weights(algorithm), blind=blind))
        return most, done
    finally:
        algorithm.stop()


# Asynchronous learners take a minute and more: their first iterations wait for processes.
@pytest.mark.parametrize("credit", list(GIVEN))
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("APPO", "IMPALA"))) for name in CONFIGS]
)
def test_hidden_rule_is_found(session: None, name: str, credit: str) -> None:
    shares, steps = zip(*(won(name, credit, seed) for seed in SEEDS), strict=True)
    print(f"{name}, {credit}: {steps} steps")  # for docs/benchmarks.md
    assert min(shares) >= ENOUGH, f"{name} won {shares} of what is to be won in {GIVEN[credit][name][0]} steps"


@pytest.mark.slow
@pytest.mark.parametrize("credit", list(GIVEN))
def test_a_policy_that_cannot_see_the_pairs_wins_nothing(session: None, credit: str) -> None:
    assert max(won("REINFORCE", credit, seed, blind=True)[0] for seed in SEEDS) < 0.2
