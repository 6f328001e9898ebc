"""Samples that come back, and what a frozen backbone makes of them once."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from test_samples import make_store
from test_training import HERE, SETTINGS, make_run, pairs_of, train
from torch import Tensor

from l2a_ray.classifier import worker
from l2a_ray.classifier.feed import Source, feed
from l2a_ray.classifier.frozen import FrozenFeed, KeptFeatures
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings, WorkerSettings
from l2a_ray.classifier.training import TrainingRun
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule, Stream, stack
from l2a_ray.errors import SettingError, StageError
from l2a_ray.pairs.labels import Labels
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import read_bytes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

FROZEN = replace(SETTINGS, freeze=("backbone",), looks=2, epochs=8)
CROP = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 24)


@pytest.fixture(scope="module")
def pairs(store: ClipStore) -> str:
    return pairs_of(store)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips the networks of this process have seen, a number a call."""
    calls: list[int] = []
    run = Network.run_backbone

    def counted(network: Network, clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return run(network, clips)

    monkeypatch.setattr(Network, "run_backbone", counted)
    return calls


def weights(run: TrainingRun) -> dict[str, Tensor]:
    return safetensors.torch.load(read_bytes(run.folder / "model.safetensors"))


def make_source(store: ClipStore, looks: int | None, views: tuple[str, ...] = ("weak",)) -> Source:
    ids = store.columns("id")["id"].to_numpy().astype(np.bytes_)
    real, behind = np.arange(8, dtype=np.int32), np.arange(8, 16, dtype=np.int32)
    composites = Stream(COMPOSITES, np.stack([real, behind], axis=1), 0.5, views=views)
    plan = Schedule(ids, (composites, Stream(REAL, real, views=views)), 4, seed=3, looks=looks)
    return Source(str(store.root), CompositeSettings(), CROP, Labels.given(store.index), plan)


def test_looks_come_back_after_as_many_passes_and_none_is_another(store: ClipStore) -> None:
    source, loader = make_source(store, looks=3), SampleLoader(store, CompositeSettings(), CROP)
    frames: dict[object, list[bytes]] = {}
    for step in range(28):  # seven passes over eight clips and eight pairs
        made = stack(loader, source.schedule, source.schedule.batch(step))
        for drawn, clip in zip(source.schedule.batch(step), made.clips, strict=True):
            frames.setdefault(drawn.sample, []).append(clip.tobytes())
    assert len(frames) == 16
    for first, second, third, *later in frames.values():
        assert len({first, second, third}) == 3
        assert later == [first, second, third, first]


def test_what_comes_back_depends_on_the_seed_and_not_on_the_step(store: ClipStore) -> None:
    source = make_source(store, looks=1)
    loader = SampleLoader(store, CompositeSettings(), CROP)
    other = replace(source.schedule, seed=4)
    here, there = (
        {drawn.sample: stack(loader, plan, [drawn]).clips for step in range(4) for drawn in plan.batch(step)}
        for plan in (source.schedule, other)
    )
    assert here.keys() == there.keys() and any((here[one] != there[one]).any() for one in here)


@pytest.mark.ray
@pytest.mark.parametrize("views", [("weak",), ("weak", "weak")])
def test_features_are_those_of_the_clips_that_the_feed_brings(
    store: ClipStore, session: None, seen: list[int], views: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    network = build_network(SETTINGS.network, 3).eval()
    source, kept = make_source(store, 2, views), KeptFeatures()
    steps, looks = (3, 75), 2 * 16 * len(views)
    for _ in range(2):  # found, the second time
        brought = FrozenFeed(network, SETTINGS.network, source, kept)
        with closing(brought(*steps, 0, 1)) as features, closing(feed(source, *steps, 0, 1)) as clips:
            came = list(zip(features, clips, strict=True))
        assert seen == [1] * looks
    assert len(came) == 72
    for found, expected in came:
        with torch.no_grad():
            wanted = network.features(torch.tensor(expected.clips))
        np.testing.assert_allclose(found.clips, wanted.numpy(), atol=1e-5)
        for one, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.ray
def test_other_weights_labels_or_composites_are_other_samples(store: ClipStore, session: None, seen: list[int]) -> None:
    network, source, kept = build_network(SETTINGS.network, 3).eval(), make_source(store, 1), KeptFeatures()

    def computed(source: Source, network: Network = network) -> int:
        seen.clear()
        for _ in FrozenFeed(network, SETTINGS.network, source, kept)(0, 8, 0, 1):
            pass
        return sum(seen)

    assert computed(source) == 16 and computed(source) == 0
    assert computed(replace(source, composite=CompositeSettings(feather=2.0))) == 8  # the pairs alone
    assert computed(replace(source, crop=CROP - 1)) == 16
    assert computed(replace(source, schedule=replace(source.schedule, seed=4))) == 16
    assert computed(replace(source, labels=replace(source.labels, label=2 - source.labels.label))) >= 8
    assert computed(source, build_network(SETTINGS.network, 3).eval()) == 16
    assert computed(source) == 0


@pytest.mark.ray
def test_little_memory_costs_time_and_nothing_else(store: ClipStore, session: None, seen: list[int]) -> None:
    network, source = build_network(SETTINGS.network, 3).eval(), make_source(store, 1)
    much, little = (
        [step.clips for step in FrozenFeed(network, SETTINGS.network, source, KeptFeatures(memory))(0, 40, 0, 1)]
        for memory in (2**20, 100)
    )
    assert sum(seen) == 16 + 2 * 16  # 40 steps are computed in two goes
    np.testing.assert_array_equal(much, little)


@pytest.mark.ray
def test_a_head_alone_is_trained_with_each_look_seen_once(
    store: ClipStore, pairs: str, session: None, seen: list[int], tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / name, table, FROZEN) for name, table in (("real-0", None), ("random-0", pairs))]
    train(runs, store, HERE)
    looks = 2 * 18 + 2 * 18  # of the clips, which both runs show, and of the pairs
    assert sum(seen) == 1 + looks  # one looks whether the network takes the clips
    for run in runs:
        torch.manual_seed(0)
        first = build_network(FROZEN.network, 3)
        trained = weights(run)
        for name, value in first.state_dict().items():
            assert torch.equal(trained[name], value) == name.startswith("backbone.")


@pytest.mark.ray
def test_a_head_alone_learns_what_it_learns_with_the_backbone_before_it(
    store: ClipStore, pairs: str, session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = make_run(tmp_path / "kept" / "random-0", pairs, FROZEN)
    train([kept], store, HERE)
    monkeypatch.setattr(worker, "backbone_is_frozen", lambda network: False)
    whole = make_run(tmp_path / "whole" / "random-0", pairs, FROZEN)
    train([whole], store, HERE)
    one, other = (weights(run) for run in (kept, whole))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.ray
def test_two_workers_train_a_head_as_one_does(store: ClipStore, pairs: str, session: None, tmp_path: Path) -> None:
    heads = []
    for workers in (HERE, WorkerSettings(count=2, cpus=0.5)):
        run = make_run(tmp_path / str(workers.count) / "random-0", pairs, FROZEN)
        train([run], store, workers)
        heads.append(weights(run)["head.weight"])
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-4, atol=1e-5)


class Stops(Supervised):
    """Stops at some step, once."""

    stops: ClassVar[list[int]] = []

    def after_step(self, network: Network) -> None:
        self.stops[0] -= 1
        if not self.stops[0]:
            raise StageError("stopped")


@pytest.mark.ray
def test_a_stopped_training_of_a_head_computes_its_looks_anew_and_ends_with_the_same_bits(
    store: ClipStore, pairs: str, session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = replace(FROZEN, epochs=16)  # of 3 steps each: the looks of all steps are computed in two goes
    whole, stopped = (make_run(tmp_path / name / "random-0", pairs, settings) for name in ("whole", "stopped"))
    train([whole], store, HERE)
    monkeypatch.setattr(worker, "METHODS", {"supervised": Stops})
    Stops.stops = [40]
    with pytest.raises(StageError, match="stopped"):
        train([stopped], store, HERE)
    monkeypatch.undo()
    train([stopped], store, HERE)
    once, twice = weights(whole), weights(stopped)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_no_number_of_looks_below_one() -> None:
    with pytest.raises(SettingError, match="looks=0"):
        ClassifierSettings(looks=0)
