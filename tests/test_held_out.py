"""The part of D_val that gives no reward: how it is cut, what it tells, and that the weights best on it are kept."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bandit import Bandit, model_config, share_won
from helpers import CROP, Problem, small_network, small_problem
from numpy.typing import NDArray
from ray.rllib.algorithms import Algorithm
from ray.tune.registry import register_env
from test_reinforce import selection_files

from envs.held_out import OBJECTIVE, Judged, Signal, agreement, hold_out
from envs.pair_selection import PairSelectionEnv, build_trial
from envs.settings import EnvSettings
from envs.trial import ClassifierTrial, Outcome
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.errors import SettingError
from l2a_ray.prepare.store import ClipStore, write_index
from l2a_ray.selector.learned import (
    LEARNED,
    WINDOW,
    best_iteration,
    carries_signal,
    judge,
    read_learned,
    tell,
    trailing,
)
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl import training
from l2a_ray.selector.rl.registry import configure
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.storage.files import write_json

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:.*Overriding environment:UserWarning")

HEAD = EnvSettings(pairs=6, steps=3, learning_rate=2.0, held_out=0.5)
ALL = replace(HEAD, tune="all", learning_rate=0.05)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    torch.set_num_threads(1)
    return small_problem(tmp_path_factory.mktemp("store"))


# --- how it is cut


def clips(*sources: str) -> pd.DataFrame:
    """A clip for each letter: of the class before the colon, of that source."""
    rows = [(name, group) for part in sources for name, _, groups in [part.partition(":")] for group in groups]
    table = pd.DataFrame(rows, columns=["class_name", "group"])
    return table.assign(id=[f"{i:02d}" for i in range(len(rows))])


@pytest.mark.parametrize(("share", "of_each"), [(0.25, 2), (0.33, 4), (0.5, 6)])
def test_no_source_is_in_both_parts_and_each_class_gives_its_share(share: float, of_each: int) -> None:
    table = clips("run:aabbccddeeff", "jump:gghhiijjkkll", "wave:mmnnooppqqrr")
    apart = table["id"].isin(hold_out(table, share))
    assert not set(table["group"][apart]) & set(table["group"][~apart])
    assert table[apart].groupby("class_name").size().tolist() == [of_each] * 3
    shuffled = table.sample(frac=1, random_state=0)
    assert hold_out(shuffled, share) == hold_out(table, share), "always the same ones"


def test_what_cannot_be_cut_stays_whole() -> None:
    table = clips("run:aaaaaa", "jump:bcdefghi", "wave:j")
    held_out = hold_out(table, 0.25)
    assert len(held_out) == 2 and set(table.set_index("id")["class_name"][held_out]) == {"jump"}
    assert hold_out(clips("run:aaaa", "jump:bbb"), 0.25) == [] == hold_out(clips("run:a", "jump:b"), 0.25)
    assert hold_out(table, 0.0) == []


def test_impossible_shares_are_refused() -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(SettingError, match="held_out="):
            EnvSettings(held_out=share)


@pytest.mark.parametrize("validation", ["real", "scenes", "both"])
def test_the_parts_of_a_trial_share_no_source_even_by_their_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: Any
) -> None:
    monkeypatch.setattr("envs.pair_selection.ClassifierTrial", lambda **parts: parts)
    files = selection_files(tmp_path, replace(HEAD, validation=validation))
    store = ClipStore(files.store)
    index = store.index.assign(foreground_ratio=0.2, foreground_frames=1.0)
    write_index(tmp_path / "store", tmp_path / "store" / "clips", store.classes, index, store.failed)
    trial: Any = build_trial(files)
    one = [*map(Sample, trial["validation"]), *trial["scenes"]]
    other = trial["held_out"]
    assert one and other and (validation == "real") == all(sample.background is None for sample in [*one, *other])
    ends = [{end for s in part for end in (s.foreground, s.background) if end is not None} for part in (one, other)]
    assert not ends[0] & ends[1] and ends[0] | ends[1] == set(index["id"][index["split"] == "val"])


# --- what is told of it


def split_trial(problem: Problem, settings: EnvSettings, held_out: bool = True) -> ClassifierTrial:
    return ClassifierTrial(
        network=small_network(),
        num_classes=3,
        loader=SampleLoader(problem.store, CompositeSettings(), CROP),
        validation=problem.validation[:3],
        held_out=list(map(Sample, problem.validation[3:])) if held_out else [],
        settings=settings,
    )


def env_of(problem: Problem, trial: ClassifierTrial, settings: EnvSettings, credit: bool) -> PairSelectionEnv:
    rows = (problem.vectors.rows(ids) for ids in (problem.foreground, problem.background))
    foreground, background = rows
    return PairSelectionEnv(
        trial=trial,
        vectors=problem.vectors,
        foreground=foreground,
        background=background,
        settings=settings,
        credit=credit,
    )


@pytest.mark.parametrize("credit", [False, True])
@pytest.mark.parametrize("restart", ["step", "episode"])
@pytest.mark.parametrize("settings", [HEAD, ALL], ids=["head", "all"])
def test_the_reward_knows_nothing_of_it(problem: Problem, settings: EnvSettings, restart: Any, credit: bool) -> None:
    """All that an environment did before is, bit for bit, as if the held-out clips did not exist."""
    settings = replace(settings, restart=restart, momentum=0.5)
    with_it, without = (
        env_of(problem, split_trial(problem, settings, held), settings, credit) for held in (True, False)
    )
    for seed in range(2):
        assert np.array_equal(with_it.reset(seed=seed)[0], without.reset(seed=seed)[0])
        for mask in np.random.default_rng(seed).integers(0, 2, (3, 6), dtype=np.int8):
            told, plain = with_it.step(mask), without.step(mask)
            np.testing.assert_array_equal(told[0], plain[0])
            assert told[1:4] == plain[1:4] and not any("held" in name for name in plain[4])
            for name, value in plain[4].items():
                np.testing.assert_array_equal(told[4][name], value)


@pytest.mark.parametrize("credit", [False, True])
@pytest.mark.parametrize("restart", ["step", "episode"])
def test_what_is_told_is_what_steps_come_to(problem: Problem, restart: Any, credit: bool) -> None:
    """Against steps that are really taken; pairs of scores 0 and 1 are those left out and taken."""
    settings = replace(HEAD, restart=restart, momentum=0.5)
    env = env_of(problem, split_trial(problem, settings), settings, credit)
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    taken: list[list[Sample]] = []

    def after(last: list[Sample]) -> Outcome:
        trial = split_trial(problem, settings)
        for before in taken if restart == "episode" else []:
            trial.step(before, rng)
        return trial.step(last, rng)

    for mask, other in rng.integers(0, 2, (3, 2, 6), dtype=np.int8):
        pairs = env._pairs(env._state)
        chosen, liked = ([p for p, used in zip(pairs, one, strict=True) if used] for one in (mask, other))
        env.scores = other.astype(np.float32)
        info = env.step(mask)[4]
        for name, last in (("loss", chosen), ("all", pairs), ("weighted", liked)):
            outcome = after(last)
            assert outcome.held_out is not None
            assert info[f"held_out_{name}"] == pytest.approx(outcome.held_out.mean().item(), abs=2e-6)
            assert info[f"val_{name}"] == pytest.approx(outcome.val_loss, abs=2e-6)
        taken.append(chosen)
        assert info["held_out_none"] == pytest.approx(np.log(3), abs=1e-6) == info["val_none"]
        assert info[OBJECTIVE].shape == (3,)
        assert info[OBJECTIVE].mean() == pytest.approx(info["held_out_weighted"] - info["held_out_all"], abs=1e-6)
        assert len({info[f"held_out_{name}"] for name in ("loss", "all", "weighted", "none")}) == 4


def test_of_all_weights_the_loss_alone_is_told(problem: Problem) -> None:
    env = env_of(problem, split_trial(problem, ALL), ALL, credit=True)
    env.reset(seed=0)
    info = env.step(np.ones(6, np.int8))[4]
    assert "held_out_all" not in info and info[OBJECTIVE].mean() == pytest.approx(info["held_out_loss"], abs=1e-6)
    assert env.signal(3, 0) is None


# --- whether the reward means anything


def planted(seed: int, shared: float) -> tuple[Judged, Judged]:
    """Credits of 400 pairs by 36 and by 12 clips of 3 classes: noise of each clip, and what is true of each pair."""
    rng = np.random.default_rng(seed)
    truth = shared * rng.normal(size=400)
    one, other = (
        Judged(
            (truth + rng.normal(size=(count, 400))).astype(np.float32),
            [str(i) for i in range(count)],
            [i % 3 for i in range(count)],
        )
        for count in (36, 12)
    )
    return one, other


def test_a_signal_that_both_parts_share_is_found_and_none_where_there_is_none() -> None:
    found = [
        [agreement(*planted(seed, shared), np.random.default_rng(0)) for seed in range(40)] for shared in (0.0, 0.5)
    ]
    assert all(one is not None and one.sources == 12 and one.pairs == 400 for part in found for one in part)
    none, some = ([(one.low, one.correlation, one.high) for one in part if one] for part in found)
    assert sum(low > 0 for low, _, _ in none) <= 4, "a 95 % interval leaves out zero, on that side, once in 40"
    # Of means over 36 and 12 clips: 0.25 / sqrt((0.25 + 1 / 36) (0.25 + 1 / 12)).
    assert np.mean([value for _, value, _ in some]) == pytest.approx(0.82, abs=0.05)
    assert min(low for low, _, _ in some) > 0


@pytest.mark.parametrize("classes", [1, 6])
def test_a_few_sources_of_many_clips_are_no_more_than_a_few(classes: int) -> None:
    """What one video's clips share is no proof of anything, also where each is the only one of its class."""
    rng = np.random.default_rng(0)
    names, labels = [str(i // 6) for i in range(36)], [i // 6 % classes for i in range(36)]
    surely = 0
    for _ in range(40):
        one, other = (np.repeat(rng.normal(size=(6, 3)), 6, axis=0).astype(np.float32) for _ in range(2))
        found = agreement(Judged(one, names, labels), Judged(other, names, labels), rng)
        surely += found is not None and found.low > 0
    assert surely <= 4
    still, alone = Judged(np.zeros((36, 3), np.float32), names, labels), Judged(one, ["0"] * 36, labels)
    assert agreement(still, Judged(one, names, labels), rng) is None
    assert agreement(alone, Judged(one, names, labels), rng) is None, "one video tells no interval"


def test_the_signal_is_of_the_environments_own_credits(problem: Problem) -> None:
    """The mean over a part's clips of what is correlated is what `info` calls credit; the states are the first ones."""
    trial = split_trial(problem, HEAD)
    env = env_of(problem, trial, HEAD, credit=True)
    env.reset(seed=5)
    pairs, mask = env._pairs(env._state), np.array([1, 0, 1, 1, 0, 1], np.int8)
    trial.reset()
    by_clip = trial.credits_by_clip(pairs, mask.astype(bool))[0]
    np.testing.assert_allclose(by_clip.mean(axis=0), env.step(mask)[4]["credit"], atol=1e-6)
    one, other = env.signal(4, 5), env.signal(4, 5)
    assert one == other and one is not None and one.pairs == 24 and -1 <= one.low <= one.correlation <= one.high <= 1


def test_with_nothing_held_out_the_signal_is_of_two_halves(problem: Problem) -> None:
    whole, loader = replace(HEAD, held_out=0.0), SampleLoader(problem.store, CompositeSettings(), CROP)

    def signal(clips: list[str]) -> Signal | None:
        trial = ClassifierTrial(network=small_network(), num_classes=3, loader=loader, validation=clips, settings=whole)
        return env_of(problem, trial, whole, credit=False).signal(4, 5)

    found = signal(problem.validation)
    assert found is not None and (found.pairs, found.sources) == (24, 3) and -1 <= found.correlation <= 1
    assert signal(problem.validation[:3]) is None, "a clip of each class cannot be cut in two"


def test_halves_share_no_source_and_are_the_whole() -> None:
    credit = np.arange(24, dtype=np.float32).reshape(8, 3)
    one, other = Judged(credit, list("aabbccdd"), [0, 0, 0, 0, 1, 1, 1, 1]).halves()
    assert len(one.sources) == len(other.sources) == 4 and not set(one.sources) & set(other.sources)
    assert sorted(one.labels) == sorted(other.labels) == [0, 0, 1, 1]
    for half in (one, other):
        np.testing.assert_array_equal(
            half.credit_NB, credit[["aabbccdd".index(s) + i % 2 for i, s in enumerate(half.sources)]]
        )


# --- which weights are kept


class Overfitting(Bandit):
    """Rewards what the held-out part does not want.

    Its loss falls with what the scores win of the reward up to ``turn``, a share of all that there is to win, and rises
    beyond: below 0 from the start, above 1 never.
    """

    def __init__(self, turn: float) -> None:
        super().__init__(credit=1.0)
        self.turn = turn
        self.scores: NDArray[np.float32] | None = None

    def step(self, action: NDArray[np.int8]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        assert self.scores is not None
        won = float((np.sign(self.state[:, 0]) * (2 * self.scores - 1)).mean())
        result = super().step(action)
        objective = np.full(4, abs(won - self.turn), np.float32)
        told = {"held_out_loss": float(objective.mean()), "held_out_none": 1.0, OBJECTIVE: objective}
        result[4].update(told, baseline=0.0, val_loss=-won, num_selected=int(action.sum()))
        return result


def train_bandit(
    out: Path, monkeypatch: pytest.MonkeyPatch, turn: float, **given: Any
) -> tuple[training.Trained, list[dict[str, torch.Tensor]]]:
    """Train in that environment; return what is kept and the weights that each iteration began with."""
    began: list[dict[str, torch.Tensor]] = []
    settings = SelectorSettings(
        credit="pair",
        steps=20 * 64,
        steps_per_iteration=64,
        steps_per_update=16,
        learning_rate=0.005,
        **given,
    )
    real = training.sample_and_learn

    def build(*_: Any) -> Algorithm:
        register_env("overfitting", lambda config: Overfitting(**config))
        return configure(settings, "overfitting", {"turn": turn}, model_config(), 0).build_algo()

    def watching(algorithm: Algorithm, seed: int, iteration: int) -> list[dict[str, float]]:
        began.append(training.policy_weights(algorithm))
        return real(algorithm, seed, iteration)

    files: Any = SimpleNamespace(settings=ALL)
    with monkeypatch.context() as patch:
        patch.setattr(training, "build_algorithm", build)
        patch.setattr(training, "sample_and_learn", watching)
        return training.learn(SelectorNetwork(3, 2, (16,)), files, settings, out, seed=0), began


@pytest.mark.ray
@pytest.mark.parametrize(("turn", "lowest", "highest"), [(-1.0, 0, 0), (0.25, 2, 14), (2.0, 19, 19)])
def test_the_weights_are_kept_that_are_best_on_what_was_held_out(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: float, lowest: int, highest: int
) -> None:
    """Untrained ones where learning harms from the start, the last measured where it never does, else early ones."""
    trained, began = train_bandit(tmp_path, monkeypatch, turn)
    found = trained.judgement
    assert found is not None and len(began) == 20
    kept = found["kept_step"] // 64
    assert lowest <= kept <= highest and found["learned"] == (kept > 0)
    assert all(torch.equal(trained.weights[name], value) for name, value in began[kept].items())
    assert trained.history["step"][trained.history["kept"]].tolist() == [64 * kept]
    # Of the reward itself the last weights win more than early ones.
    last = share_won(began[-1])
    assert last > 0.8 and (kept == 19 or share_won(trained.weights) < last)
    measured = trained.history.groupby("iteration")["held_out_loss"].mean()
    assert kept == measured.rolling(WINDOW, min_periods=1).mean().idxmin()


@pytest.mark.ray
def test_what_was_kept_before_a_stop_is_kept_after_it(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed after the best iteration: what is kept cannot be measured again."""
    trained, _ = train_bandit(tmp_path / "whole", monkeypatch, 0.25, checkpoint_every=19)
    resumed, began = train_bandit(tmp_path / "whole", monkeypatch, 0.25, checkpoint_every=19)
    assert len(began) == 1, "it goes on from the checkpoint after the 19th iteration"
    assert resumed.judgement == trained.judgement
    assert all(torch.equal(resumed.weights[name], value) for name, value in trained.weights.items())
    told = [name for name in trained.history if not str(name).startswith("seconds")]
    pd.testing.assert_frame_equal(resumed.history[told], trained.history[told], check_exact=True)


@pytest.mark.ray
@pytest.mark.parametrize("runners", [0, 1])
@pytest.mark.parametrize("settings", [HEAD, replace(ALL, pairs=2)], ids=["head", "all"])
def test_a_selector_in_its_own_environment(
    session: None, tmp_path: Path, settings: EnvSettings, runners: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Through files, as a run does it: what is told, and the same after a stop."""
    torch.set_num_threads(1)
    selector = SelectorSettings(
        steps=16, steps_per_update=2, steps_per_iteration=4, checkpoint_every=3, hidden=(8,), env_runners=runners
    )
    files = selection_files(tmp_path, settings)
    trained, resumed = (
        training.learn(SelectorNetwork(5, 3, (8,)), files, selector, tmp_path / "out", seed=1) for _ in range(2)
    )
    assert resumed.judgement == trained.judgement
    assert ("signal" in trained.judgement) == (settings.tune == "head") and trained.judgement["sources"] == 3
    assert trained.judgement["against"] == ("all" if settings.tune == "head" else "untrained")
    assert all(torch.equal(resumed.weights[name], value) for name, value in trained.weights.items())
    assert ("held_out_weighted" in trained.history) == (settings.tune == "head")
    assert OBJECTIVE not in trained.history and trained.history["kept"].sum() == 1
    assert trained.history["omega_low"].le(trained.history["omega_high"]).all()


@pytest.mark.ray
def test_with_nothing_held_out_the_last_weights_are_kept(session: None, tmp_path: Path) -> None:
    files = selection_files(tmp_path, replace(HEAD, held_out=0.0))
    selector = SelectorSettings(steps=8, steps_per_update=2, steps_per_iteration=4, hidden=(8,))
    trained = training.learn(SelectorNetwork(5, 3, (8,)), files, selector, tmp_path / "out", seed=1)
    assert list(trained.judgement) == ["signal"] and not [
        name for name in map(str, trained.history) if "held" in name or name == "kept"
    ]


def test_a_d_val_that_cannot_be_cut_is_told_and_gone_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = selection_files(tmp_path, HEAD)
    store = ClipStore(files.store)
    caplog.set_level(logging.INFO)
    assert training.holding_out(files, store) is files and "holds out 3 clips of 3 source videos" in caplog.text
    index = store.index.assign(group="one film")
    write_index(tmp_path / "store", tmp_path / "store" / "clips", store.classes, index, store.failed)
    assert training.holding_out(files, ClipStore(files.store)).settings == replace(HEAD, held_out=0.0)
    assert "no part of D_val is held out: its 6 clips of 1 source videos are too few" in caplog.text
    assert PairSelectionEnv.from_files({"files": files})._trial.sources[1] == []


# --- what is said of it


def judged(objective: list[list[float]], kept: int, compared: bool = True) -> dict[str, Any]:
    steps = 2 * len(objective)
    history = pd.DataFrame({"step": range(steps), "iteration": np.arange(steps) // 2, "held_out_none": 2.0})
    history = history.assign(held_out_loss=1.5, omega_low=0.3, omega_high=0.8)
    if compared:
        history = history.assign(held_out_all=1.6)
    return judge(history, np.array(objective, np.float32), kept)


def test_whether_it_learned_is_asked_of_the_sources() -> None:
    flat = [[0.0] * 12] * 4
    surely = judged([*flat, *[[-0.1] * 6 + [-0.2] * 6] * 6], 9)
    assert surely["learned"] and surely["difference"] == pytest.approx(-0.15) and surely["high"] < -0.1
    assert "ends 9.4 % below one on all pairs alike" in tell(surely)[0] and tell(surely)[0].endswith("it learned")
    assert "kept as before step 18 of 20" in tell(surely)[0] and "scores from 0.30 to 0.80" in tell(surely)[0]
    one_video = judged([*flat, *[[-1.8] + [0.0] * 11] * 6], 9)
    assert one_video["difference"] == pytest.approx(-0.15) and not one_video["learned"]
    assert "nothing that surely shows" in tell(one_video)[0]
    untrained = judged([[-0.1] * 12, *flat], 0)
    assert not untrained["learned"] and "kept untrained" in tell(untrained)[0]
    alone = judged([[0.0], [-0.1]], 1)
    assert not alone["learned"] and "tells no interval" in tell(alone)[0]


def test_where_all_pairs_are_not_known_the_untrained_selector_is_the_measure() -> None:
    found = judged([[1.5] * 4, *[[1.4, 1.4, 1.2, 1.2]] * 6], 6, compared=False)
    assert found["difference"] == pytest.approx(-0.2) and found["learned"]
    assert "a step on chosen pairs ends 13 % below the untrained Selector's" in tell(found)[0]


def test_the_trailing_mean_is_of_what_there_is() -> None:
    assert trailing(np.array([4.0, 2.0, 0.0, 2.0]), 2).tolist() == [4.0, 3.0, 1.0, 1.0]
    assert best_iteration(np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)) == 0


def test_what_was_told_is_found_again_and_no_signal_is_not_an_unknown_one(tmp_path: Path) -> None:
    assert read_learned(tmp_path) == {} and carries_signal({}) is None
    for low, surely in ((0.1, True), (0.0, False), (-0.1, False)):
        write_json(tmp_path / LEARNED, {"signal": {"low": low}})
        assert carries_signal(read_learned(tmp_path)) is surely


@pytest.mark.parametrize(("low", "said"), [(0.1, "carries signal"), (-0.1, "random pairs are the honest choice")])
def test_a_reward_without_a_sure_signal_is_named(low: float, said: str) -> None:
    found = judged([[0.0] * 4, [-0.1] * 4], 1)
    signal = {"correlation": 0.4, "low": low, "high": 0.6, "pairs": 9, "sources": 4}
    assert said in tell(found | {"signal": signal})[1] and len(tell(found)) == 1
