"""What methods learn from clips without labels: known answers, a planted problem, and that no label is looked at."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods import METHODS
from l2a_ray.classifier.methods.actorcut import ActorCut, cut_actors
from l2a_ray.classifier.methods.base import Batch, Method
from l2a_ray.classifier.methods.fixmatch import FixMatch
from l2a_ray.classifier.methods.learner import Average, Seen
from l2a_ray.classifier.methods.losses import distillation, masked_cross_entropy, nt_xent
from l2a_ray.classifier.methods.mean_teacher import MeanTeacher
from l2a_ray.classifier.methods.s4l import S4L, quarter_turns
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.methods.tcl import group_contrast
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.semi import SEMI, MethodName, SemiSettings
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings, WorkerSettings, check_workers
from l2a_ray.classifier.step import descend, make_optimizer, predict
from l2a_ray.classifier.synchronous import synchronise
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.schedule import REAL, UNLABELLED
from l2a_ray.errors import SettingError
from l2a_ray.fields import relevant

SETTINGS = ClassifierSettings(
    network=NetworkSettings(name="small3d", width=4), epochs=4, batch_size=6, learning_rate=0.05, crop=24
)
CLASSES = 3
DATA = TrainingData(
    np.array([b"a", b"b", b"c"]), np.zeros(1, np.int32), None, np.arange(1, 3, dtype=np.int32), teacher_classes=5
)


def settings_of(method: MethodName, **semi: Any) -> ClassifierSettings:
    return replace(SETTINGS, method=method, semi=SemiSettings(**semi))


def make_network() -> Network:
    torch.manual_seed(0)
    return build_network(SETTINGS.network, CLASSES)


def make_batch(method: Method, labelled: int = 4, unlabelled: int = 5, seed: int = 0) -> Batch:
    """Return random clips in the views that a method asks for; labels only where there are labels."""
    parts = []
    for number, stream in enumerate(method.streams(DATA)):
        made, hidden = torch.Generator().manual_seed(2 * seed + number), stream.name == UNLABELLED
        count = (unlabelled if hidden else labelled) * len(stream.views)
        size = (count, 4, 16, 16)
        clips = torch.randint(256, (*size, 3), dtype=torch.uint8, generator=made)
        labels = torch.zeros(count, CLASSES) if hidden else torch.eye(CLASSES)[torch.arange(count) % CLASSES]
        teacher = torch.rand((count, 5), generator=made).softmax(dim=1)
        views = np.array(stream.views * (count // len(stream.views)))
        boxes = torch.rand(size, generator=made) < 0.3
        parts.append((clips, labels, np.full(count, stream.name), views, boxes, teacher))
    clip, label, name, view, box, said = zip(*parts, strict=True)
    names, views = np.concatenate(name), np.concatenate(view)
    return Batch(torch.cat(clip), torch.cat(label), names, views, torch.cat(box), torch.cat(said))


def gradients(network: Network) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


def step(settings: ClassifierSettings, done: int = 9) -> tuple[Network, float]:
    """Return a network after the tenth of ten losses of a method and their gradients, and the loss."""
    network = make_network()
    method = METHODS[settings.method](settings, network)
    learner = method.learner(network, DATA, known=False).train()
    loss = method.loss(learner, make_batch(method), done, 10)
    loss.backward()  # type: ignore[no-untyped-call]
    return network, loss.item()


def test_the_average_is_the_plain_mean_of_all_weights_until_the_decay_is_reached() -> None:
    network = make_network()
    nn.init.zeros_(network.head.bias)
    average = Average(network, 0.999)
    for number, expected in ((1.0, 0.5), (2.0, 1.0), (3.0, 1.5)):
        nn.init.constant_(network.head.bias, number)
        network.get_buffer("backbone.1.running_mean").fill_(number)
        average.update(network)
        assert average.network.head.bias.tolist() == pytest.approx([expected] * CLASSES)
    assert (average.network.get_buffer("backbone.1.running_mean") == 3).all(), "the student's own"
    other = Average(network, 0.999)
    other.restore(average.state())
    for one in (average, other):
        nn.init.constant_(network.head.bias, 4.0)
        one.update(network)
    assert average.network.head.bias.tolist() == pytest.approx([2.0] * CLASSES)
    assert torch.equal(average.network.head.bias, other.network.head.bias)
    quick = Average(network, 0.25)  # of 4
    nn.init.zeros_(network.head.bias)
    quick.update(network)
    assert quick.network.head.bias.tolist() == pytest.approx([1.0] * CLASSES)


@pytest.mark.parametrize(("count", "expected"), [(2, 0.239545), (4, 0.594438), (8, 1.062879)])
def test_contrast_of_vectors_that_share_nothing(count: int, expected: float) -> None:
    vectors = torch.eye(count)
    assert nt_xent(vectors, 3 * vectors).item() == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(math.log(1 + (2 * count - 2) * math.exp(-2)), abs=1e-6)


def test_classes_that_both_views_see_are_contrasted() -> None:
    fast = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    assert group_contrast(fast[:2], fast[:2]).item() == 0, "a single class has no other to be told from"
    assert group_contrast(fast[:2], fast[2:]).item() == 0, "no class in both"
    means = torch.tensor([[0.75, 0.15, 0.1], [0.1, 0.8, 0.1]])
    assert group_contrast(fast, fast).item() == pytest.approx(nt_xent(means, means).item())


def test_what_is_not_kept_counts_in_the_mean() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 1], [0, 2, 1]])
    label, kept = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([1.0, 0, 1, 0, 0])
    both = nn.functional.cross_entropy(logits[[0, 2]], label[[0, 2]])
    assert masked_cross_entropy(logits, label, kept).item() == pytest.approx(2 / 5 * both.item())


def test_distillation_pulls_to_the_teachers_probabilities() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.1, 0.2, 0.7]])  # the second clip has no opinion
    logits = torch.randn((3, 3), generator=torch.Generator().manual_seed(0), requires_grad=True)
    distillation(logits, teacher).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[[0, 2]], (logits.detach().softmax(1) - teacher)[[0, 2]] / 2)
    assert not logits.grad[1].any()
    entropy = -(teacher[0] * teacher[0].log()).sum()
    assert distillation(teacher[:1].log(), teacher[:1]).item() == pytest.approx(entropy.item())


def test_fixmatch_learns_from_the_strong_view_what_the_weak_one_is_sure_of() -> None:
    method = FixMatch(settings_of("fixmatch", threshold=0.8), make_network())
    weak = torch.tensor([[5.0, 0, 0], [0, 0.1, 0], [0, 0, 5]], requires_grad=True)
    strong = torch.zeros((3, 3), requires_grad=True)
    method.unlabelled_loss([Seen(logits, {}) for logits in (weak, weak, strong)], [], []).backward()  # type: ignore[no-untyped-call]
    assert weak.grad is None and strong.grad is not None
    third = 1 / 3
    rows = [[third - 1, third, third], [0, 0, 0], [third, third, third - 1]]
    torch.testing.assert_close(strong.grad, torch.tensor(rows) / 3)
    guesses = method.guesses()
    assert guesses is not None and guesses.label.tolist() == [0, 1, 2] and guesses.kept.tolist() == [True, False, True]
    soft = FixMatch(settings_of("fixmatch", targets="soft"), make_network())
    assert soft.numbers.threshold == 0.8, "UDA's"
    torch.testing.assert_close(soft.sharpened(weak), (weak.detach() / 0.4).softmax(1))


@pytest.mark.parametrize("method", ["pseudo_label", "fixmatch", "actorcut"])
def test_where_nothing_is_kept_the_network_learns_as_from_labels_alone(method: MethodName) -> None:
    apart: dict[str, Any] = {"threshold": 1.01, "batch_norm": "freeze"}
    found, loss = step(settings_of(method, **apart))
    expected, supervised = step(SETTINGS)
    assert loss == supervised
    one, other = gradients(found), gradients(expected)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items() if "running" in name)
    together, _ = step(settings_of(method, threshold=1.01))
    name = "backbone.1.running_mean"
    assert not torch.equal(together.get_buffer(name), state[name]), "unlabelled clips are normalised with the others"


def test_the_teacher_gets_no_gradient_and_the_student_does() -> None:
    network = make_network()
    method = METHODS["mean_teacher"](settings_of("mean_teacher"), network)
    batch = make_batch(method)
    batch = replace(batch, labels=torch.full_like(batch.labels, 0))  # the labelled loss is 0: consistency is left
    learner = method.learner(network, DATA, known=False).train()
    for value in method.predictor(network).parameters():
        value.data += 0.1
    method.loss(learner, batch, 9, 10).backward()  # type: ignore[no-untyped-call]
    teacher = method.predictor(network)
    assert all(value.grad is None for value in teacher.parameters())
    assert all(value.abs().max() > 0 for value in gradients(network).values())
    name = "backbone.1.running_mean"
    assert torch.equal(teacher.get_buffer(name), make_network().get_buffer(name)), "its own passes leave no trace"
    method.after_step(network)
    assert torch.equal(teacher.get_buffer(name), network.get_buffer(name)), "the student's"


def test_four_quarter_turns_lead_back_and_a_blind_head_loses_ln_4() -> None:
    clips = torch.randint(256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    turned = quarter_turns(clips)
    assert torch.equal(turned[:2], clips) and torch.equal(quarter_turns(turned[6:])[2:4], clips)
    assert not torch.equal(turned[2:4], clips)
    network = make_network()
    method = S4L(settings_of("s4l"), network)
    learner = method.learner(network, DATA, known=False)
    for value in network.get_submodule("other_heads.rotation").parameters():
        nn.init.zeros_(value)
    batch = make_batch(method)
    seen = learner(*method.parts([batch.only(REAL)], [batch.only(UNLABELLED)]))
    assert method.unlabelled_loss(seen, [], []).item() == pytest.approx(math.log(4))


def test_an_actor_weighs_more_than_its_area_and_clips_without_one_stay() -> None:
    """Boxes of 0, 1/4, 1/2 and all pixels in clips of one grey level each, and the middle of an odd batch."""
    clips = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1, 1).expand(5, 2, 4, 4, 3)
    boxes = torch.zeros((5, 2, 4, 4), dtype=torch.bool)
    boxes[1, :, 0] = boxes[2, :, 0] = boxes[3, :, :2] = boxes[4] = True
    cut, share = cut_actors(clips, boxes)
    assert share.tolist() == pytest.approx([1, 0.683594, 1, 0.9375, 1], abs=1e-6)
    assert all(torch.equal(cut[row], clips[row]) for row in (0, 2, 4))
    assert (cut[1, :, 0] == 1).all() and (cut[1, :, 1:] == 3).all()
    assert (cut[3, :, :2] == 3).all() and (cut[3, :, 2:] == 1).all()


def test_a_cut_clip_has_both_labels_by_the_actors_share() -> None:
    method = ActorCut(settings_of("actorcut", cut=1, threshold=0.9), make_network())
    batch = make_batch(method, unlabelled=2)
    weak, strong = batch.only(UNLABELLED), batch.only(UNLABELLED, "strong_in_time")
    parts = method.parts([batch.only(REAL)], [weak, strong])
    assert weak.boxes is not None
    share = (1 - (1 - weak.boxes.float().mean((1, 2, 3))) ** 4).tolist()
    assert torch.equal(parts[2], cut_actors(weak.clips, weak.boxes)[0])
    sure = torch.tensor([[9.0, 0, 0], [0, 1, 0]])  # the second one's label counts behind the first, but it is not kept
    found = method.unlabelled_loss([Seen(sure, {}), Seen(sure, {}), Seen(sure, {})], [], [])
    chance = sure.log_softmax(1)
    assert found.item() == pytest.approx(-(share[0] * chance[0, 0] + (1 - share[0]) * chance[0, 1]).item() / 2)
    never = ActorCut(settings_of("actorcut", cut=0), make_network())
    assert torch.equal(never.parts([batch.only(REAL)], [weak, strong])[2], strong.clips)


@pytest.mark.parametrize("method", SEMI)
@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_every_method_goes_on_from_its_state_bit_for_bit(method: MethodName, distill: float) -> None:
    settings = replace(settings_of(method, threshold=0.0, ema=0.9), distill=distill)

    def losses(first: int, last: int) -> list[float]:
        found = []
        for number in range(first, last):
            torch.manual_seed(number)
            batch = make_batch(made, seed=number)
            found.append(descend(learner, optimizer, lambda: made.loss(learner, batch, number, 8), 1.0))  # noqa: B023
            made.after_step(network)
        return found

    network = make_network()
    made = METHODS[method](settings, network)
    learner = made.learner(network, DATA, known=False)
    optimizer = make_optimizer(network, replace(settings, momentum=0.0))
    losses(0, 5)
    state = copy.deepcopy((dict(made.state()), network.state_dict()))
    expected = losses(5, 8)
    assert all(map(math.isfinite, expected)) and (made.guesses() is None) == (method in ("mean_teacher", "s4l"))
    network = make_network()
    made = METHODS[method](settings, network)
    learner = made.learner(network, DATA, known=False)
    optimizer = make_optimizer(network, replace(settings, momentum=0.0))
    made.restore(state[0])
    network.load_state_dict(state[1])
    assert losses(5, 8) == expected
    student = made.student(network)
    assert student is not None
    assert (
        made.predictor(network).state_dict().keys() == student.state_dict().keys() == make_network().state_dict().keys()
    )


def halves(batch: Batch, method: Method, rank: int) -> Batch:
    """Return one of two workers' part of each stream of a batch."""
    rows = [np.flatnonzero(batch.streams == stream.name) for stream in method.streams(DATA)]
    return batch.rows(np.concatenate([mine.reshape(2, -1)[rank] for mine in rows]))


def learned(method: MethodName, batch_norm: str, rank: int | None) -> dict[str, Tensor]:
    """Return the weights after three steps: of one worker, or as one of two that share them."""
    settings = replace(settings_of(method, threshold=0.3, ema=0.9, batch_norm=batch_norm), distill=1.0)
    network = make_network()
    if rank is not None:
        synchronise(network, gpu=False)
    made = METHODS[method](settings, network)
    learner = made.learner(network, DATA, known=False)
    optimizer = make_optimizer(network, settings)
    model = learner if rank is None else nn.parallel.DistributedDataParallel(learner)
    for number in range(3):
        batch = make_batch(made, labelled=4, unlabelled=6, seed=number)
        mine = batch if rank is None else halves(batch, made, rank)
        descend(model, optimizer, lambda: made.loss(model, mine, number + 3, 8))  # noqa: B023
        made.after_step(network)
    return dict(made.predictor(network).state_dict())


SHARED: tuple[MethodName, ...] = ("pseudo_label", "mean_teacher", "s4l", "fixmatch")  # the others contrast a whole part


def work(rank: int, folder: str) -> None:
    """Learn as one of two workers, by each method in turn (runs in a process of its own)."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for method in SHARED:
        for batch_norm in ("update", "freeze"):
            found = learned(method, batch_norm, rank)
            if rank == 0:
                torch.save(found, f"{folder}/{method}-{batch_norm}.pt")


@pytest.mark.slow
def test_two_workers_learn_as_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    for method in SHARED:
        for batch_norm in ("update", "freeze"):
            one, two = learned(method, batch_norm, None), torch.load(tmp_path / f"{method}-{batch_norm}.pt")
            assert one.keys() == two.keys()
            for name, value in one.items():
                torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=f"{method} {batch_norm} {name}")


def scenes(count: int, rng: np.random.Generator, tells: bool = True) -> tuple[Tensor, Tensor]:
    """Return clips of one pixel whose red tells the class and whose green is the scene, and the classes.

    Red is bimodal, green is not and varies more. ``tells``: whether red tells anything.
    """
    label = np.arange(count) % 2
    red = rng.normal(100 + 60 * label if tells else np.full(count, 130), 6)
    places = np.stack([red, rng.uniform(0, 255, count), np.full(count, 100)], axis=1).clip(0, 255)
    return torch.from_numpy(places).round().byte().view(count, 1, 1, 1, 3), torch.from_numpy(label)


def learn_scenes(method: MethodName, seed: int, tells: bool = True, steps: int = 100) -> float:
    """Return the accuracy on other scenes, after one labelled clip a class, each in a scene of its own, and 200 others.

    The strong view changes the scene.
    """
    settings = replace(SETTINGS, method=method, learning_rate=0.1, semi=SemiSettings(threshold=0.8, ema=0.0))
    rng, made = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    few, many = scenes(2, rng)[0], scenes(200, rng, tells)[0]
    few[:, ..., 1] = torch.tensor([20, 235]).view(2, 1, 1, 1)
    torch.manual_seed(seed)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(3, 16), nn.ReLU()), 16, 2)
    trained = METHODS[method](settings, network)
    learner, optimizer = trained.learner(network, DATA, known=False), make_optimizer(network, settings)
    for number in range(steps):
        clips, names = [few.repeat(4, 1, 1, 1, 1)], [REAL] * 8
        if method != "supervised":
            weak = many[torch.randint(len(many), (24,), generator=made)]
            strong = weak.clone()
            strong[..., 1] = torch.randint(256, strong.shape[:-1], generator=made)
            clips.append(torch.stack([weak, strong], dim=1).flatten(0, 1))
            names += [UNLABELLED] * 48
        labels = torch.zeros(len(names), 2)
        labels[:8] = torch.eye(2).repeat(4, 1)
        batch = Batch(torch.cat(clips), labels, np.array(names), np.array(names))
        descend(learner, optimizer, lambda: trained.loss(learner, batch, number, steps))  # noqa: B023
    clips_seen, truth = scenes(400, np.random.default_rng(1000 + seed))
    return float((predict(network, clips_seen, 400).argmax(1) == truth).float().mean())


def test_clips_without_labels_teach_what_a_class_is_where_labels_leave_it_open() -> None:
    seeds = range(5)
    supervised = np.array([learn_scenes("supervised", seed) for seed in seeds])
    matched = np.array([learn_scenes("fixmatch", seed) for seed in seeds])
    blind = np.array([learn_scenes("fixmatch", seed, tells=False) for seed in seeds])
    assert (matched > supervised + 0.3).all(), (supervised, matched)
    # That scenes do not matter can be learned from any clips; what a class is, not from those that tell nothing.
    assert blind.mean() < matched.mean() - 0.2, (matched, blind)


def test_numbers_are_the_authors_unless_they_are_given() -> None:
    assert ClassifierSettings(method="fixmatch", batch_size=8).unlabelled == 56 and SETTINGS.unlabelled == 0
    given = ClassifierSettings(method="fixmatch", semi=SemiSettings(mu=0.5, ema=0.0), distill=2.0).numbers
    assert (given.mu, given.ema, given.threshold, given.distill) == (0.5, 0.0, 0.95, 2.0)
    assert ClassifierSettings(method="videossl").numbers.distill == 1 and SETTINGS.numbers.distill == 0
    assert relevant(ClassifierSettings(semi=SemiSettings(mu=2.0))) == {}, "supervised training has no such clips"
    check_workers(ClassifierSettings(method="fixmatch"), WorkerSettings(count=4))
    odd = ClassifierSettings(method="fixmatch", semi=SemiSettings(mu=0.6))
    with pytest.raises(SettingError, match=r"^semi.mu=0.6: makes 5 unlabelled clips a step: .*workers \(4\)"):
        check_workers(odd, WorkerSettings(count=4))
    for name, value in (("mu", 0.0), ("threshold", -0.1), ("ema", 1.0), ("warm_up", 2.0), ("batch_norm", "thaw")):
        with pytest.raises(SettingError, match=f"^{name}="):
            SemiSettings(**{name: value})  # type: ignore[arg-type]


def test_the_weight_of_unlabelled_clips_grows_after_the_warm_up() -> None:
    method = FixMatch(settings_of("fixmatch", weight=2.0, warm_up=0.5, ramp=0.2), make_network())
    assert [method.weight(done) for done in (0, 0.49, 0.5, 0.9)] == [0, 0, 0, 2]
    assert method.weight(0.6) == pytest.approx(1)
    teacher = MeanTeacher(settings_of("mean_teacher"), make_network())
    assert teacher.weight(0) == pytest.approx(CLASSES * math.exp(-5)) and teacher.weight(0.1) == CLASSES


def test_a_method_that_cannot_work_is_refused() -> None:
    alone = replace(DATA, unlabelled=np.zeros(0, np.int32), teacher_classes=None)
    network = make_network()
    for method, field in (("s4l", "freeze"), ("tcl", "freeze"), ("actorcut", "freeze"), ("videossl", "distill")):
        settings = settings_of(method)  # type: ignore[arg-type]
        with pytest.raises(SettingError, match=f"^{field}="):
            METHODS[settings.method](settings, network).learner(network, DATA, known=True)
    with pytest.raises(SettingError, match=r"^semi\.ema=0"):
        MeanTeacher(settings_of("mean_teacher", ema=0.0), network)
    for settings in (SETTINGS, replace(SETTINGS, composite_mode="add")):
        one, other = (Supervised(settings, network).streams(data) for data in (DATA, alone))
        assert [stream.name for stream in one] == [stream.name for stream in other] == [REAL]
