"""The Selector's network, what it is told of each clip, and its file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import selector_network, some_clips
from numpy.typing import NDArray
from torch import nn

from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.errors import SelectorFileError, SettingError
from l2a_ray.pairs.settings import EmbeddingSettings
from l2a_ray.pairs.vectors import class_agreement, label_vectors, pair_observation
from l2a_ray.selector.file import Selector, check_classes, hash_weights, load_selector, save_selector
from l2a_ray.selector.find import METADATA, WEIGHTS
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import (
    score_pairs,
)

CLASSES = ("brush hair", "catch", "clap")


@pytest.fixture
def network() -> SelectorNetwork:
    return selector_network()


# --- network


def test_equals_a_plain_mlp_on_the_scaled_concatenation(network: SelectorNetwork) -> None:
    clips = some_clips(20)
    plain = nn.Sequential(network.first, nn.ReLU(), network.deeper[0], nn.ReLU(), network.last)
    scaled = (clips.features_NF - network.feature_mean_F.numpy()) / network.feature_scale_F.numpy()
    f, b = np.arange(20), np.arange(20)[::-1]
    by_hand = torch.from_numpy(np.hstack([scaled[f], clips.labels_NL[f], scaled[b], clips.labels_NL[b]]))
    pairs = torch.from_numpy(pair_observation(clips, f, b.copy()))
    torch.testing.assert_close(network(pairs), plain(by_hand).squeeze(-1), atol=1e-5, rtol=0)
    assert network(pairs.reshape(4, 5, -1)).shape == (4, 5)


def test_halves_computed_once_a_clip_equal_forward(network: SelectorNetwork) -> None:
    clips = some_clips(30)
    f, b = np.random.default_rng(2).integers(30, size=(2, 100))
    scores = score_pairs(network, clips, f, b, batch=16)
    forward = network(torch.from_numpy(pair_observation(clips, f, b))).sigmoid()
    np.testing.assert_allclose(scores, forward.detach().numpy(), atol=1e-6)
    assert not np.allclose(scores, score_pairs(network, clips, b, f, batch=16), atol=1e-5), "the order must matter"


def test_standardise_uses_the_training_clips(network: SelectorNetwork) -> None:
    features = np.array([[1, 7, 0], [5, 7, 8]], dtype=np.float32)
    small = SelectorNetwork(3, 1, hidden=(4,))
    small.standardise(features, blocks=(2, 1))
    assert small.feature_mean_F.tolist() == [3, 7, 4]
    assert small.feature_scale_F.tolist() == pytest.approx([2 * np.sqrt(2), 1, 4]), "7 must not be divided by zero"


@pytest.mark.parametrize(("blocks", "lengths"), [(None, [1]), ((4, 1), [1, 1])])
def test_every_block_of_features_has_mean_square_length_1(blocks: tuple[int, ...] | None, lengths: list[int]) -> None:
    features = np.random.default_rng(0).normal(3, [1, 10, 0.1, 5, 2], (40, 5)).astype(np.float32)
    small = SelectorNetwork(5, 1, hidden=(4,))
    small.standardise(features, blocks)
    scaled = ((torch.from_numpy(features) - small.feature_mean_F) / small.feature_scale_F).square().mean(dim=0).numpy()
    parts = np.split(scaled, np.cumsum(blocks)[:-1]) if blocks else [scaled]
    assert [part.sum() for part in parts] == pytest.approx(lengths, abs=1e-5)


# --- clip vectors


def test_class_agreement_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([4] * 5 + [7] * 4 + [9])
    features = rng.normal(size=(10, 3)).astype(np.float32) + labels[:, None] * [1, -1, 0]
    centred = features - features.mean(axis=0)

    def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    expected = []
    for i in range(9):
        own = [j for j in range(10) if labels[j] == labels[i] and j != i]
        others = [centred[labels == label].mean(axis=0) for label in {4, 7, 9} - {labels[i]}]
        nearest = max(cosine(centred[i], other) for other in others)
        expected.append(cosine(centred[i], centred[own].mean(axis=0)) - nearest)
    found = class_agreement(features.astype(np.float32), labels)
    np.testing.assert_allclose(found, [*expected, 0], atol=1e-5)
    assert found.dtype == np.float32


def test_a_wrong_label_lowers_the_agreement() -> None:
    labels = np.repeat([0, 1], 10)
    features = (np.eye(2)[labels] + np.random.default_rng(0).normal(0, 0.1, (20, 2))).astype(np.float32)
    wrong = labels.copy()
    wrong[3] = 1
    assert class_agreement(features, labels).min() > 0.5
    assert class_agreement(features, wrong).argmin() == 3
    assert not class_agreement(features, np.zeros(20, dtype=np.int64)).any(), "one class: nothing to compare with"


def test_omega_starts_near_one_half() -> None:
    torch.manual_seed(3)
    scores = SelectorNetwork(512, 101)(torch.randn(64, 2 * 613)).sigmoid()
    assert 0.45 < scores.min() < scores.max() < 0.55
    assert scores.std() > 0


def test_gradients_reach_every_weight(network: SelectorNetwork) -> None:
    network(torch.randn(9, 16)).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_label_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EmbeddingSettings()
    assert label_vectors(CLASSES, "one_hot", settings).tolist() == np.eye(3).tolist()
    monkeypatch.setattr("l2a_ray.pairs.vectors.embed_names", lambda *asked: asked)
    assert label_vectors(CLASSES, "name", settings) == (CLASSES, settings)


@pytest.mark.parametrize("hidden", [(), (8, 0)])
def test_impossible_layers_are_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="hidden"):
        SelectorNetwork(5, 3, hidden)


# --- the file


@pytest.fixture
def selector(network: SelectorNetwork) -> Selector:
    settings = NetworkSettings(name="small3d", width=2)
    return Selector(
        agreement=False,
        network=network,
        encoding="one_hot",
        embedding=EmbeddingSettings(),
        classes=CLASSES,
        backbone=build_network(settings, len(CLASSES)).state_dict(),
        backbone_settings=settings,
        backbone_classes=len(CLASSES),
        crop=56,
        sampling=FrameSampling(count=4, kind="stretch"),
    )


def test_round_trip(selector: Selector, tmp_path: Path) -> None:
    save_selector(tmp_path / "new", selector)
    loaded = load_selector(tmp_path / "new")
    pairs = torch.randn(7, 16)
    assert torch.equal(loaded.network(pairs), selector.network(pairs))
    assert hash_weights(loaded.backbone) == hash_weights(selector.backbone)
    build_network(loaded.backbone_settings, loaded.backbone_classes).load_state_dict(loaded.backbone)
    assert all(weight.requires_grad for weight in loaded.network.parameters())
    assert (loaded.encoding, loaded.embedding) == ("one_hot", selector.embedding)
    assert (loaded.classes, loaded.crop, loaded.sampling) == (CLASSES, 56, selector.sampling)
    assert (loaded.network.hidden, loaded.network.label_size) == ((16, 8), 3)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [METADATA, WEIGHTS]


def test_the_file_says_which_network_makes_the_features(selector: Selector, tmp_path: Path) -> None:
    settings = NetworkSettings(name="timm", backbone="resnet18", temporal="mean")
    save_selector(tmp_path, replace(selector, backbone_settings=settings))
    assert load_selector(tmp_path).backbone_settings == settings
    about = json.loads((tmp_path / METADATA).read_text())
    for name in ("config", "backbone", "temporal"):  # the first files do not name them
        del about["backbone"][name]
    about["backbone"]["name"] = "small3d"
    (tmp_path / METADATA).write_text(json.dumps(about))
    assert load_selector(tmp_path).backbone_settings == NetworkSettings(name="small3d", width=settings.width)


def test_a_selector_of_before_frames_were_chosen_sees_all(selector: Selector, tmp_path: Path) -> None:
    save_selector(tmp_path, selector)
    metadata = json.loads((tmp_path / METADATA).read_text())
    backbone = metadata["backbone"]
    assert (backbone.pop("frames"), backbone.pop("sampling")) == (4, "stretch")
    edit(backbone=backbone)(tmp_path)
    assert load_selector(tmp_path).sampling == ALL_FRAMES
    edit(backbone=backbone | {"sampling": "some"})(tmp_path)
    with pytest.raises(SelectorFileError, match=r"kind=.some"):
        load_selector(tmp_path)


def test_equal_selectors_give_equal_files(selector: Selector, tmp_path: Path) -> None:
    save_selector(tmp_path, selector)
    first = [(tmp_path / name).read_bytes() for name in (METADATA, WEIGHTS)]
    save_selector(tmp_path, selector)
    assert [(tmp_path / name).read_bytes() for name in (METADATA, WEIGHTS)] == first


def test_hash_sees_names_values_and_shapes() -> None:
    state = {"a": torch.ones(2, 3), "b": torch.tensor(1)}
    others = [state | {"a": torch.ones(3, 2)}, {"c": state["a"], "b": state["b"]}, state | {"b": torch.tensor(2)}]
    assert len({hash_weights(weights) for weights in (state, *others)}) == 4
    assert hash_weights(dict(reversed(state.items()))) == hash_weights(state)


def edit(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> object:
        metadata = json.loads((folder / METADATA).read_text())
        return (folder / METADATA).write_text(json.dumps(metadata | changes))

    return change


def truncate(folder: Path) -> object:
    content = (folder / WEIGHTS).read_bytes()
    return (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def exchange_backbone(folder: Path) -> object:
    selector = load_selector(folder)
    metadata = (folder / METADATA).read_bytes()
    save_selector(folder, replace(selector, backbone={name: value + 1 for name, value in selector.backbone.items()}))
    return (folder / METADATA).write_bytes(metadata)


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (lambda folder: (folder / METADATA).unlink(), METADATA, "cannot be read"),
        (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS, "cannot be read"),
        (truncate, WEIGHTS, "truncated"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), WEIGHTS, "truncated"),
        (lambda folder: (folder / METADATA).write_bytes(b'{"version": 1'), METADATA, "not JSON"),
        (lambda folder: (folder / METADATA).write_bytes(b"\xff"), METADATA, "not JSON"),
        (lambda folder: (folder / METADATA).write_text("[1]"), METADATA, "version None"),
        (lambda folder: (folder / METADATA).write_text('{"version": 1}'), METADATA, "KeyError"),
        (edit(version=2), METADATA, "version 2, and this program reads version 1"),
        (edit(feature_size=6), METADATA, "size mismatch"),
        (edit(feature_size=10**9), METADATA, "size mismatch"),
        (edit(feature_size="5"), METADATA, "TypeError"),
        (edit(hidden=[16, 8, 4]), METADATA, "Missing key"),
        (edit(hidden=[]), METADATA, "hidden"),
        (edit(encoding="name"), METADATA, "encoding"),
        (edit(classes=None), METADATA, "encoding"),
        (edit(embedding={"kind": "minilm", "depth": 3}), METADATA, "depth"),
        (edit(backbone={"name": "r4d"}), METADATA, "does not describe"),
        (exchange_backbone, WEIGHTS, "replaced or changed"),
    ],
)
def test_damaged_files_are_refused_by_name(
    selector: Selector, tmp_path: Path, damage: Callable[[Path], object], file: str, message: str
) -> None:
    save_selector(tmp_path, selector)
    damage(tmp_path)
    with pytest.raises(SelectorFileError) as caught:
        load_selector(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / file))
    assert message in str(caught.value)


def test_one_hot_selectors_score_their_own_classes_only(selector: Selector, tmp_path: Path) -> None:
    check_classes(selector, list(CLASSES), tmp_path)
    with pytest.raises(SelectorFileError, match="does not know 'jump'"):
        check_classes(selector, ["catch", "jump"], tmp_path)
    with pytest.raises(SelectorFileError, match="another order"):
        check_classes(selector, CLASSES[::-1], tmp_path)
    check_classes(replace(selector, encoding="name", classes=None), ["jump"], tmp_path)
