"""The environment: its API, its reward against plain PyTorch, and that seeds alone decide what happens."""

import pickle
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random
from gymnasium.vector import SyncVectorEnv
from helpers import CROP, NETWORK, Problem, small_network, small_problem
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.pair_selection import (
    EnvFiles,
    PairSelectionEnv,
    build_trial,
    moving_average,
    read_candidates,
    validation_clips,
)
from envs.settings import EnvSettings
from l2a_ray.classifier.network import save_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.errors import LeakError, SettingError, StageError
from l2a_ray.pairs.draw import draw_candidates

B = 6
HEAD = EnvSettings(pairs=B, steps=3, tune="head", learning_rate=2.0, balance=True)
ALL = EnvSettings(
    pairs=B, steps=3, restart="episode", tune="all", learning_rate=0.05, momentum=0.5, weight_decay=0.01, balance=False
)
every = pytest.mark.parametrize(
    "settings",
    [HEAD, ALL, replace(HEAD, restart="episode"), replace(ALL, restart="step")],
    ids=["head", "all-episode", "head-episode", "all"],
)
MASKS = np.random.default_rng(5).integers(0, 2, (3, B), dtype=np.int8)
Row = tuple[NDArray[np.float32], float, float]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    torch.set_num_threads(1)
    return small_problem(tmp_path_factory.mktemp("store"))


def rollout(env: gymnasium.Env[Any, Any], seed: int, masks: NDArray[np.int8] = MASKS) -> list[Row]:
    """Observation, reward and validation loss of reset and every step."""
    observation, info = env.reset(seed=seed)
    rows: list[Row] = [(observation, 0.0, info["val_loss"])]
    for mask in masks:
        observation, reward, terminated, truncated, info = env.step(mask)
        rows.append((observation, float(reward), info["val_loss"]))
        assert not terminated and truncated == (len(rows) == 4)
    return rows


def assert_equal(one: list[Row], other: list[Row]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]


# --- Gymnasium's API


@every
@pytest.mark.filterwarnings("ignore:.*infinity.*:UserWarning")
def test_gymnasiums_own_check_passes(problem: Problem, settings: EnvSettings) -> None:
    check_env(problem.env(settings), skip_render_check=True)


@pytest.mark.filterwarnings("ignore:.*infinity.*:UserWarning")
def test_make_builds_the_registered_environment(problem: Problem) -> None:
    parts: dict[str, Any] = {
        "trial": problem.trial(HEAD),
        "vectors": problem.vectors,
        "foreground": problem.vectors.rows(problem.foreground),
        "background": problem.vectors.rows(problem.background),
        "settings": HEAD,
    }
    env = gymnasium.make("l2a/PairSelection-v0", **parts)
    assert isinstance(env.unwrapped, PairSelectionEnv)
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (B, 2 * (5 + 3)), np.float32)
    assert env.action_space == gymnasium.spaces.MultiBinary(B)
    assert_equal(rollout(env, 3), rollout(problem.env(HEAD), 3))


def test_vectorised_environments_equal_single_ones(problem: Problem) -> None:
    vector = SyncVectorEnv([lambda: problem.env(HEAD), lambda: problem.env(HEAD)])
    observations: Any = vector.reset(seed=[8, 9])[0]
    singles = [rollout(problem.env(HEAD), seed) for seed in (8, 9)]
    for step, mask in enumerate(MASKS):
        for lane in range(2):
            np.testing.assert_array_equal(observations[lane], singles[lane][step][0])
        observations, rewards, _, truncations, _ = vector.step(np.stack([mask, mask]))
        np.testing.assert_allclose(rewards, [single[step + 1][1] for single in singles], rtol=1e-6)
    assert truncations.all()


# --- the reward, by hand


def by_hand(problem: Problem, settings: EnvSettings, seed: int) -> list[float]:
    """Rewards R_t = delta_(t-1) - L_t, with the SGD step, the losses and the average written out."""
    network, rng = small_network(), np_random(seed)[0]
    val = [problem.loader(Sample(clip_id), None) for clip_id in problem.validation]
    clips = torch.stack([torch.from_numpy(frames.copy()) for frames, _ in val])
    truth = torch.from_numpy(np.stack([label for _, label in val]))
    with torch.no_grad():
        features = network.eval().features(clips)
    mean = features.mean(0)
    length = ((features - mean) ** 2).sum(1).mean().sqrt()
    weight, bias = torch.zeros(3, features.shape[1]), torch.zeros(3)
    learnt = [weight, bias] if settings.tune == "head" else list(network.parameters())
    memory = [torch.zeros_like(parameter) for parameter in learnt]
    start = deepcopy((network.state_dict(), [parameter.detach() for parameter in learnt]))

    def restart() -> None:
        network.load_state_dict(start[0])
        for parameter, value, velocity in zip(learnt, start[1], memory, strict=True):
            parameter.detach().copy_(value)
            velocity.zero_()

    def logits(x: Tensor, train: bool) -> Tensor:
        if settings.tune == "all":
            return nn.Module.__call__(network.train(train), x)  # type: ignore[no-any-return]
        with torch.no_grad():
            normalised = (network.eval().features(x) - mean) / length
        return normalised @ weight.T + bias

    def loss(x: Tensor, y: Tensor, share: Tensor, train: bool) -> Tensor:
        return -(share * (y * logits(x, train).log_softmax(dim=1)).sum(dim=1)).sum()

    def alike(y: Tensor) -> Tensor:
        return torch.full((len(y),), 1 / len(y))

    def balanced(y: Tensor) -> Tensor:
        present = [row for row in y.T if row.sum() > 0]  # each class that occurs has the same share in the loss
        return torch.stack([row / row.sum() for row in present]).mean(dim=0)

    view = rng if settings.tune == "all" else None  # a frozen body sees the centre of each composite, not flipped

    def validation_loss() -> float:
        with torch.no_grad():
            return loss(clips, truth, alike(truth), train=False).item()

    def after_a_step_on(chosen: NDArray[np.int64]) -> float:
        made = [problem.loader(Sample(str(problem.foreground[i]), str(problem.background[i])), view) for i in chosen]
        x = torch.stack([torch.from_numpy(frames.copy()) for frames, _ in made])
        y = torch.from_numpy(np.stack([label for _, label in made]))
        for parameter in learnt:
            parameter.requires_grad_(True)
        share = balanced(y) if settings.balance else alike(y)
        gradients = torch.autograd.grad(loss(x, y, share, train=True), learnt)
        with torch.no_grad():
            for parameter, gradient, velocity in zip(learnt, gradients, memory, strict=True):
                velocity.mul_(settings.momentum).add_(gradient + settings.weight_decay * parameter)
                parameter.sub_(settings.learning_rate * velocity)
        return validation_loss()

    state, rewards = rng.integers(len(problem.foreground), size=B), []
    delta = after_a_step_on(state) if settings.restart == "step" else validation_loss()
    for mask in MASKS:
        if settings.restart == "step":
            restart()
        new = after_a_step_on(state[mask == 1])
        rewards.append(delta - new)
        delta = 4 / 5 * delta + 1 / 5 * new
        state = rng.integers(len(problem.foreground), size=B)
    return rewards


@every
def test_reward_equals_plain_pytorch(problem: Problem, settings: EnvSettings) -> None:
    assert MASKS.any(axis=1).all()
    rewards = [row[1] for row in rollout(problem.env(settings), 2)[1:]]
    assert rewards == pytest.approx(by_hand(problem, settings, 2), abs=2e-5)
    assert sum(abs(reward) > 2e-4 for reward in rewards) >= 2


def test_frozen_body_composites_each_pair_once(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, made = problem.trial(HEAD), Counter[Sample]()
    real = SampleLoader.__call__

    def counting(self: SampleLoader, sample: Sample, rng: np.random.Generator | None) -> Any:
        made[sample] += 1
        return real(self, sample, rng)

    monkeypatch.setattr(SampleLoader, "__call__", counting)
    pairs = [Sample(str(problem.foreground[i]), str(problem.background[i])) for i in (0, 1, 2, 1)]
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(2):
        trial.reset()
        losses.append(trial.step(pairs, rng).val_loss)
    assert losses[0] == losses[1] and made == Counter(pairs[:3])


def test_moving_average_by_hand() -> None:
    assert moving_average(2.0, 1.0, 5) == pytest.approx(1.8)
    assert moving_average(2.0, 1.0, 1) == 1.0


def test_observation_holds_feature_and_label_of_either_clip(problem: Problem) -> None:
    observation, _ = problem.env(HEAD).reset(seed=4)
    state = np_random(4)[0].integers(len(problem.foreground), size=B)
    for row, i in zip(observation, state, strict=True):
        f, b = (problem.vectors.rows([str(ids[i])])[0] for ids in (problem.foreground, problem.background))
        vectors = problem.vectors
        expected = [vectors.features_NF[f], vectors.labels_NL[f], vectors.features_NF[b], vectors.labels_NL[b]]
        np.testing.assert_array_equal(row, np.concatenate(expected))


@every
def test_choosing_nothing_leaves_the_classifier_as_it_is(problem: Problem, settings: EnvSettings) -> None:
    env = problem.env(settings)
    unchanged = problem.trial(settings).reset().val_loss
    _, start = env.reset(seed=0)
    _, first, _, _, info = env.step(MASKS[0])
    _, second, _, _, after = env.step(np.zeros(B, dtype=np.int8))
    assert first == start["val_loss"] - info["val_loss"] and info["num_selected"] == MASKS[0].sum()
    assert after["val_loss"] == (unchanged if settings.restart == "step" else info["val_loss"])
    baseline = moving_average(start["val_loss"], info["val_loss"], 5)
    assert second == pytest.approx(baseline - after["val_loss"]) and after["num_selected"] == 0


@every
def test_an_empty_step_leaves_optimiser_and_rng_alone(problem: Problem, settings: EnvSettings) -> None:
    trial, rng = problem.trial(settings), np.random.default_rng(0)
    pair = [Sample(str(problem.foreground[0]), str(problem.background[0]))] * 2
    plain = problem.trial(settings).step(pair, np.random.default_rng(0)).val_loss
    trial.step([], rng)
    assert trial.step(pair, rng).val_loss == plain


@every
def test_reset_restores_the_start_exactly(problem: Problem, settings: EnvSettings) -> None:
    env = problem.env(settings)
    first = rollout(env, 1)
    rollout(env, 7)
    env.reset(seed=3)
    env.step(MASKS[1])  # left in the middle of an episode
    assert_equal(rollout(env, 1), first)


def test_seeds_decide(problem: Problem) -> None:
    first = rollout(problem.env(ALL), 1)
    assert_equal(rollout(problem.env(ALL), 1), first)
    other = rollout(problem.env(ALL), 2)
    assert not np.array_equal(first[0][0], other[0][0]) and first[1][1] != other[1][1]


@every
def test_pickled_environment_goes_on_alike(problem: Problem, settings: EnvSettings) -> None:
    env = problem.env(settings)
    env.reset(seed=6)
    env.step(MASKS[0])
    copy = pickle.loads(pickle.dumps(env))
    for mask in MASKS[1:]:
        here, there = env.step(mask), copy.step(mask)
        np.testing.assert_array_equal(here[0], there[0])
        assert here[1:4] == there[1:4]


# --- built from files


@pytest.fixture(scope="module")
def files(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> EnvFiles:
    folder = tmp_path_factory.mktemp("files")
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
        settings=HEAD,
        seed=0,
    )


def test_environment_from_files_is_the_same(problem: Problem, files: EnvFiles) -> None:
    assert_equal(rollout(PairSelectionEnv.from_files({"files": files}), 5), rollout(problem.env(HEAD), 5))


def test_the_classifier_is_where_its_process_computes(files: EnvFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2a_ray.classifier.zoo.best_device", lambda: torch.device("meta"))
    monkeypatch.setattr("envs.pair_selection.ClassifierTrial", lambda **parts: parts["network"])
    network = cast(Any, build_trial(files))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize("column", ["foreground", "background"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_clip_that_may_not_be_paired_is_refused(
    problem: Problem, files: EnvFiles, tmp_path: Path, column: str, split: str
) -> None:
    leaked = str(problem.store.rows(split)["id"].iloc[0])
    pairs = pd.read_parquet(files.pairs)
    pairs.loc[3, column] = leaked
    pairs.to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(LeakError, match=leaked):
        PairSelectionEnv.from_files({"files": replace(files, pairs=str(tmp_path / "pairs.parquet"))})


def test_candidates_are_held_as_rows(problem: Problem, files: EnvFiles) -> None:
    for ids, rows in zip(
        (problem.foreground, problem.background), read_candidates(files, problem.store, problem.vectors), strict=True
    ):
        assert rows.dtype == np.int32 and problem.vectors.ids_N[rows].astype(str).tolist() == ids.tolist()


def write_pairs(path: Path, count: int) -> list[tuple[str, str]]:
    pairs = [(f"f{i:03d}", f"b{i:03d}") for i in range(count)]
    columns = [pa.array([pair[end] for pair in pairs], pa.string()) for end in (0, 1)]
    table = pa.table(columns, names=["foreground", "background"])
    pq.write_table(table, path, row_group_size=7)
    return pairs


def drawn(path: Path, most: int, seed: int) -> list[tuple[str, str]]:
    pairs = draw_candidates(path, most, seed)
    return list(zip(pairs["foreground"].to_pylist(), pairs["background"].to_pylist(), strict=True))


def test_few_candidates_are_all_taken_in_order(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "p.parquet", 20)
    for most in (20, 1000):
        assert drawn(tmp_path / "p.parquet", most, 0) == pairs


def test_many_candidates_are_thinned_evenly(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pairs, counts = write_pairs(path, 40), Counter[str]()
    for seed in range(200):
        taken = drawn(path, 10, seed)
        assert len(set(taken)) == 10 and taken == sorted(taken) and set(taken) <= set(pairs)
        counts.update(foreground for foreground, _ in taken)
    # Each is taken with probability 1/4: 50 times of 200, give or take 6.1 (one standard deviation).
    assert len(counts) == 40 and 50 - 5 * 6.1 < min(counts.values()) <= max(counts.values()) < 50 + 5 * 6.1
    assert drawn(path, 10, 3) == drawn(path, 10, 3)


def test_no_candidate_is_an_error(tmp_path: Path) -> None:
    write_pairs(tmp_path / "p.parquet", 0)
    with pytest.raises(StageError, match="no candidate pair"):
        drawn(tmp_path / "p.parquet", 10, 0)


def index_of(counts: dict[str, int], split: str = "val") -> pd.DataFrame:
    names = [name for name, count in counts.items() for _ in range(count)]
    return pd.DataFrame({"id": [f"{i:03d}" for i in range(len(names))], "class_name": names, "split": split})


@pytest.mark.parametrize(
    ("most", "expected"),
    [(9, {"a": 3, "b": 3, "c": 3}), (14, {"a": 6, "b": 3, "c": 5}), (38, {"a": 30, "b": 3, "c": 5})],
)
def test_validation_clips_are_even_over_the_classes(most: int, expected: dict[str, int]) -> None:
    index = pd.concat([index_of({"a": 30, "b": 3, "c": 5}), index_of({"d": 9}, "train").assign(id="t")])
    chosen = validation_clips(index, most, 0)
    assert len(set(chosen)) == most and chosen == sorted(chosen)
    assert Counter(index.set_index("id")["class_name"][chosen]) == expected
    assert chosen == validation_clips(index, most, 0)
    assert most == 38 or chosen != validation_clips(index, most, 1)


def test_no_validation_clip_is_an_error() -> None:
    with pytest.raises(StageError, match=r"data\.val_fraction"):
        validation_clips(index_of({"a": 3}, "train"), 5, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pairs", 0),
        ("steps", 0),
        ("window", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("tune", "haed"),
        ("restart", "stpe"),
    ],
)
def test_impossible_settings(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{name}={value!r}"):
        replace(HEAD, **{name: value})
