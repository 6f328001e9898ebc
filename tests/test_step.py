import copy
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings, WorkerSettings, check_workers
from l2a_ray.classifier.step import (
    cosine_rate,
    make_optimizer,
    predict,
    restore_state,
    set_learning_rate,
    soft_cross_entropy,
    train_step,
    training_state,
)
from l2a_ray.classifier.worker import epoch_seed
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule
from l2a_ray.errors import SettingError
from l2a_ray.fields import relevant

SETTINGS = ClassifierSettings(network=NetworkSettings(name="small3d", width=4), learning_rate=0.05)


def make_network() -> Network:
    torch.manual_seed(0)
    return build_network(SETTINGS.network, 2)


def moving_bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright bar that moves to the right (class 0) or to the left (class 1): single frames tell nothing."""
    rng = np.random.default_rng(seed)
    clips = rng.integers(0, 40, (count, 4, 16, 16, 3), dtype=np.uint8)
    classes = rng.integers(2, size=count)
    for clip, label in zip(clips, classes, strict=True):
        start = rng.integers(16)
        for t in range(4):
            clip[t, :, (start + (3 * t if label == 0 else -3 * t)) % 16] = 255
    return torch.from_numpy(clips), torch.eye(2)[torch.from_numpy(classes)]


def test_motion_is_learned() -> None:
    network = make_network()
    optimizer = make_optimizer(network, SETTINGS)
    for step in range(120):
        set_learning_rate(optimizer, cosine_rate(0.05, step, 120))
        train_step(network, optimizer, *moving_bars(16, seed=step))
    clips, labels = moving_bars(100, seed=10_000)
    accuracy = (predict(network, clips, 32).argmax(1) == labels.argmax(1)).float().mean()
    assert accuracy > 0.95


def test_step_is_sgd_with_momentum_and_weight_decay_on_the_mean_loss() -> None:
    layer = torch.nn.Linear(4, 2, bias=False)
    network = torch.nn.Sequential(torch.nn.Flatten(), layer).double()
    weight = layer.weight.detach().clone()
    velocity = torch.zeros_like(weight)
    optimizer = make_optimizer(network, ClassifierSettings(learning_rate=0.1, momentum=0.9, weight_decay=0.001))
    for step in range(3):
        clips = torch.rand((5, 1, 1, 1, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        labels = torch.tensor([[0.25, 0.75]], dtype=torch.float64).expand(5, 2)
        x = clips.flatten(1)
        chances = (x @ weight.T).softmax(1)
        loss = -(labels * chances.log()).sum(1).mean()
        velocity = 0.9 * velocity + (chances - labels).T @ x / 5 + 0.001 * weight
        weight = weight - 0.1 * velocity
        assert train_step(network, optimizer, clips, labels) == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-12, atol=0)


def test_one_hot_labels_give_the_usual_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    expected = math.log(math.exp(2) + 1 + math.exp(-1))
    assert soft_cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(expected)


def test_learning_rate_falls_to_nothing_along_a_cosine() -> None:
    rates = [cosine_rate(0.1, step, 100) for step in range(100)]
    assert rates[0] == 0.1 and rates[50] == pytest.approx(0.05) and 0 < rates[99] < 1e-4
    assert rates == sorted(rates, reverse=True)


def test_prediction_leaves_the_network_as_it_was() -> None:
    network = make_network().train()
    before = copy.deepcopy(network.state_dict())
    clips, _ = moving_bars(10, seed=0)
    whole, parts = predict(network, clips, 10), predict(network, clips, 3)
    torch.testing.assert_close(whole, parts)
    assert network.training and whole.shape == (10, 2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_restored_training_goes_on_bit_for_bit() -> None:
    network = make_network()
    optimizer = make_optimizer(network, SETTINGS)
    for step in range(3):
        train_step(network, optimizer, *moving_bars(8, seed=step))
    saved = {name: value.clone() for name, value in training_state(network, optimizer).items()}
    losses = [train_step(network, optimizer, *moving_bars(8, seed=step)) for step in range(3, 6)]
    other = build_network(SETTINGS.network, 2)
    other_optimizer = make_optimizer(other, SETTINGS)
    restore_state(other, other_optimizer, saved)
    assert [train_step(other, other_optimizer, *moving_bars(8, seed=step)) for step in range(3, 6)] == losses
    ended = training_state(other, other_optimizer)
    assert all(torch.equal(value, ended[name]) for name, value in training_state(network, optimizer).items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("epochs", 0),
        ("composite_share", 1.5),
        ("composite_weight", -0.5),
        ("composite_mode", "beside"),
        ("learning_rate", math.inf),
        ("method", "supervized"),
        ("train_on", "val"),
        ("batch_size", 1),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"^{field}={value!r}"):
        ClassifierSettings(**{field: value})  # type: ignore[arg-type]


def test_batch_must_be_divisible_among_the_workers() -> None:
    check_workers(ClassifierSettings(batch_size=8), WorkerSettings(count=4))
    for count in (3, 8):
        with pytest.raises(SettingError, match=rf"^batch_size=8: .*workers \({count}\)"):
            check_workers(ClassifierSettings(batch_size=8), WorkerSettings(count=count))
    for field, value in (("count", -1), ("gpus", -0.5), ("threads", 0), ("cpus", math.nan)):
        with pytest.raises(SettingError, match=f"^{field}="):
            WorkerSettings(**{field: value})  # type: ignore[arg-type]


def test_added_composites_are_whole_samples_that_the_workers_share() -> None:
    def added(share: float, mode: Literal["replace", "add"] = "add") -> int:
        return ClassifierSettings(batch_size=10, composite_share=share, composite_mode=mode).added_composites

    assert [added(share) for share in (0, 0.01, 0.7, 1)] == [0, 1, 7, 10] and added(0.7, "replace") == 0
    settings = ClassifierSettings(batch_size=12, composite_mode="add", composite_share=0.25)
    check_workers(settings, WorkerSettings(count=3))
    with pytest.raises(SettingError, match=r"^composite_share=0.25: adds 3 composites a step: .*workers \(2\)"):
        check_workers(settings, WorkerSettings(count=2))
    with pytest.raises(SettingError, match=r"^composite_weight=0: must be above 0"):
        ClassifierSettings(composite_weight=0, composite_share=1)


def test_composites_replace_real_clips_or_are_added_to_them() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 0]], dtype=np.int32)
    data = TrainingData(np.array([b"a", b"b", b"c", b"d"]), np.arange(4, dtype=np.int32), pairs)

    def drawn(data: TrainingData, **changes: Any) -> list[list[str]]:
        settings = replace(SETTINGS, batch_size=4, **changes)
        streams = tuple(Supervised(settings, make_network()).streams(data))
        schedule = Schedule(data.ids, streams, settings.batch_size, seed=0)
        assert schedule.steps_per_epoch == 1
        return [[one.stream.name for one in schedule.batch(step)] for step in range(2)]

    assert drawn(data) == [[REAL, COMPOSITES, REAL, COMPOSITES]] * 2
    assert drawn(data, composite_mode="add") == [[REAL] * 4 + [COMPOSITES] * 2] * 2
    none = replace(data, pairs=None)
    alone = drawn(none)
    assert alone == [[REAL] * 4] * 2 == drawn(none, composite_mode="add")
    for mode in ("replace", "add"):
        assert drawn(data, composite_mode=mode, composite_share=0) == alone


@pytest.mark.parametrize(("mode", "real", "composites"), [("replace", 2, 2), ("add", 4, 2)])
def test_a_composite_weighs_in_the_loss_as_said(mode: Literal["replace", "add"], real: int, composites: int) -> None:
    clips, labels = moving_bars(real + composites, seed=0)
    names = np.array([REAL] * real + [COMPOSITES] * composites)
    batch = Batch(clips, labels, names, np.full(len(names), "weak"))
    network = make_network()
    pairs = np.zeros((3, 2), np.int32)
    data = TrainingData(np.array([b"a"]), np.zeros(1, np.int32), pairs)

    def loss(weight: float) -> float:
        settings = replace(SETTINGS, batch_size=4, composite_mode=mode, composite_weight=weight)
        method = Supervised(settings, network)
        method.streams(data)
        return method.loss(network.eval(), batch, 0, 1).item()

    with torch.inference_mode():
        each = nn.functional.cross_entropy(network.eval()(clips), labels, reduction="none")
    assert loss(1) == soft_cross_entropy(network(clips), labels).item(), "to the last bit"
    assert loss(0) == pytest.approx(each[:real].mean().item())
    expected = (each[:real].sum() + 3 * each[real:].sum()) / (real + 3 * composites)
    assert loss(3) == pytest.approx(expected.item())


def test_a_key_knows_what_a_classifier_is_and_not_on_what_it_is_made() -> None:
    workers = WorkerSettings(count=4, gpus=1, cpus=2, threads=3, max_failures=0, checkpoint_every=9)
    assert relevant(workers) == {} == relevant(ClassifierSettings(evaluation_batch=4))
    wide = NetworkSettings(name="r3d_18", width=4)  # a width of another network
    assert relevant(ClassifierSettings(network=wide, train_on="train+val")) == {"train_on": "train+val"}
    assert relevant(SETTINGS) == {"network.name": "small3d", "network.width": 4, "learning_rate": 0.05}


def test_every_worker_draws_dropout_of_its_own() -> None:
    def dropped(rank: int, epoch: int = 3) -> Tensor:
        torch.manual_seed(epoch_seed(7, epoch, rank))
        return nn.functional.dropout(torch.ones(100))

    assert not torch.equal(dropped(0), dropped(1)) and not torch.equal(dropped(1), dropped(2))
    assert not torch.equal(dropped(1), dropped(1, epoch=4))
    assert epoch_seed(7, 3, rank=0) == 7 * 1_000_003 + 3  # what one worker always drew
