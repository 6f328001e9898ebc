"""The oracle: the fall of the validation loss by a step on one pair, against a step written out by hand."""

import numpy as np
import pytest
import torch
from helpers import Problem, small_network, small_problem

from envs.oracle import one_step_gains
from envs.settings import EnvSettings
from l2a_ray.composites.loader import Sample

HEAD = EnvSettings(tune="head", learning_rate=2.0)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    torch.set_num_threads(1)
    return small_problem(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pairs(problem: Problem) -> list[Sample]:
    ends = zip(problem.foreground[::5].tolist(), problem.background[::5].tolist(), strict=True)
    return [Sample(*pair) for pair in ends]


def by_hand(problem: Problem, pair: Sample) -> float:
    """From a zero head all three classes have probability 1/3, so the step is lr (y - 1/3) x^T."""
    network = small_network().eval()

    def features(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        frames, label = problem.loader(sample, None)
        with torch.no_grad():
            return network.features(torch.from_numpy(frames.copy())[None])[0], torch.from_numpy(label)

    val = [features(Sample(clip_id)) for clip_id in problem.validation]
    inputs, truth = torch.stack([x for x, _ in val]), torch.stack([y for _, y in val])
    mean = inputs.mean(0)
    length = (inputs - mean).square().sum(1).mean().sqrt()
    x, y = features(pair)
    bias = HEAD.learning_rate * (y - 1 / 3)
    weight = torch.outer(bias, (x - mean) / length)
    logits = (inputs - mean) / length @ weight.T + bias
    after = -(truth * logits.log_softmax(dim=1)).sum(1).mean().item()
    return float(np.log(3)) - after


def test_gain_is_what_one_gets_by_hand(problem: Problem, pairs: list[Sample]) -> None:
    gains = one_step_gains(problem.trial(HEAD), pairs, np.random.default_rng(0))
    assert gains.dtype == np.float64 and gains.std() > 1e-3
    np.testing.assert_allclose(gains, [by_hand(problem, pair) for pair in pairs], atol=1e-5)


def test_neither_order_nor_what_was_tried_before_matters(problem: Problem, pairs: list[Sample]) -> None:
    trial, rng = problem.trial(HEAD), np.random.default_rng(0)
    gains = one_step_gains(trial, pairs, rng)
    trial.step(pairs[:3], rng)
    np.testing.assert_array_equal(one_step_gains(trial, pairs[::-1], rng)[::-1], gains)


def test_all_weights_depend_on_the_crops_alone(problem: Problem, pairs: list[Sample]) -> None:
    trial = problem.trial(EnvSettings(tune="all", learning_rate=0.1))
    first, again, other = (one_step_gains(trial, pairs[:3], np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
