"""The Selector's network, its file, and the selection of the best pairs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import nn

from l2a_ray.classifier.networks import NetworkSettings, build_network
from l2a_ray.errors import SelectorFileError, SettingError, StageError
from l2a_ray.names import EmbeddingSettings
from l2a_ray.selector.file import METADATA, WEIGHTS, Selector, check_classes, hash_weights, load_selector, save_selector
from l2a_ray.selector.network import SelectorNetwork, label_vectors, pair_observation
from l2a_ray.selector.scoring import (
    Floats,
    PairScorer,
    RandomScorer,
    Rows,
    Scorer,
    Screen,
    make_screen,
    omega,
    pair_scorer,
    score_pairs,
)
from l2a_ray.selector.selection import SelectSettings, select
from l2a_ray.selector.tally import BINS, Batch, Tally, TopK, tally_pairs
from l2a_ray.selector.vectors import ClipVectors, class_agreement

RAYS_OWN = r"ignore::DeprecationWarning:ray\..*"
CLASSES = ("brush hair", "catch", "clap")


@pytest.fixture
def network() -> SelectorNetwork:
    torch.manual_seed(0)
    made = SelectorNetwork(5, 3, hidden=(16, 8))
    made.standardise(np.random.default_rng(0).normal(3, 2, (50, 5)).astype(np.float32))
    return made


def some_clips(count: int, seed: int = 1) -> ClipVectors:
    rng = np.random.default_rng(seed)
    return ClipVectors(
        ids_N=np.array([f"{i:016x}" for i in range(count)], dtype=np.bytes_),
        features_NF=rng.normal(3, 2, (count, 5)).astype(np.float32),
        labels_NL=np.eye(3, dtype=np.float32)[rng.integers(3, size=count)],
    )


# --- network


def test_equals_a_plain_mlp_on_the_scaled_concatenation(network: SelectorNetwork) -> None:
    clips = some_clips(20)
    plain = nn.Sequential(network.first, nn.ReLU(), network.deeper[0], nn.ReLU(), network.last)
    scaled = (clips.features_NF - network.feature_mean_F.numpy()) / network.feature_scale_F.numpy()
    f, b = np.arange(20), np.arange(20)[::-1]
    by_hand = torch.from_numpy(np.hstack([scaled[f], clips.labels_NL[f], scaled[b], clips.labels_NL[b]]))
    pairs = torch.from_numpy(pair_observation(clips.clips_NFL, f, b.copy()))
    torch.testing.assert_close(network(pairs), plain(by_hand).squeeze(-1), atol=1e-5, rtol=0)
    assert network(pairs.reshape(4, 5, -1)).shape == (4, 5)


def test_halves_computed_once_a_clip_equal_forward(network: SelectorNetwork) -> None:
    clips = some_clips(30).clips_NFL
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
    monkeypatch.setattr("l2a_ray.selector.network.embed_names", lambda *asked: asked)
    assert label_vectors(CLASSES, "name", settings) == (CLASSES, settings)


@pytest.mark.parametrize("hidden", [(), (8, 0)])
def test_impossible_layers_are_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"selector\.hidden"):
        SelectorNetwork(5, 3, hidden)


# --- the best K


def in_plain(scores: Floats, k: int) -> Rows:
    return np.array(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k])


@pytest.mark.parametrize("k", [1, 12, 300, 999, 1000, 1500])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_top_k_equals_sorting_everything(k: int, levels: int) -> None:
    rng = np.random.default_rng(k)
    scores: Floats = rng.integers(levels, size=1000).astype(np.float32)
    top, order = TopK(k), rng.permutation(1000)
    for rows in np.array_split(order, 37):
        top.update(scores[rows], rows)
    kept, rows = top.result()
    assert rows.tolist() == in_plain(scores, k).tolist()
    assert kept.tolist() == scores[rows].tolist()


def test_top_k_holds_no_more_than_twice_k_between_updates() -> None:
    top = TopK(10)
    for start in range(0, 5000, 50):
        top.update(np.linspace(start, start + 1, 50, dtype=np.float32), np.arange(start, start + 50))
        assert sum(len(rows) for _, rows in top._pending) < 20


def test_a_score_does_not_depend_on_the_pairs_beside_it(network: SelectorNetwork) -> None:
    clips = some_clips(30).clips_NFL
    f, b = np.random.default_rng(2).integers(30, size=(2, 200))
    together = score_pairs(network, clips, f, b, batch=64)
    apart = [score_pairs(network, clips, f[i : i + 7], b[i : i + 7], batch=64) for i in range(0, 200, 7)]
    assert together.tolist() == np.concatenate(apart).tolist()


def test_unusable_networks_and_clips_are_refused(network: SelectorNetwork) -> None:
    rows = np.zeros(1, np.int64)
    with pytest.raises(SelectorFileError, match=r"5 features and 3 label values.*have 9"):
        score_pairs(network, np.zeros((2, 9), np.float32), rows, rows)
    with torch.no_grad():
        network.last.bias.fill_(torch.nan)
    with pytest.raises(SelectorFileError, match="NaN"):
        score_pairs(network, some_clips(2).clips_NFL, rows, rows)


# --- screening


def screen_pairs(
    exact: PairScorer, screen: Screen | None, f: Rows, b: Rows, groups: Rows, share: float = 0.12
) -> tuple[Tally, int]:
    """Tally pairs that come 500 at a time; returns also how many were scored in float32."""
    budgets = {int(group): round(share * int((groups == group).sum())) for group in np.unique(groups)}
    drawn = np.sort(np.random.default_rng(3).choice(len(f), sum(budgets.values()), replace=False))
    scored = 0

    def stream(scorer: Scorer, rows: Rows | None) -> Iterator[Batch]:
        nonlocal scored
        for part in np.split(np.arange(len(f)), range(500, len(f), 500)):
            part = part if rows is None else np.intersect1d(part, rows)
            scored += len(part) * (scorer is exact)
            yield scorer(f[part], b[part]), part, groups[part]

    return tally_pairs(stream, exact, screen, budgets, drawn, len(f)), scored


def assert_same_kept(tally: Tally, plain: Tally) -> None:
    assert tally.best.keys() == plain.best.keys()
    for a, b in zip([tally.worst, *tally.best.values()], [plain.worst, *plain.best.values()], strict=True):
        assert [part.tolist() for part in a.result()] == [part.tolist() for part in b.result()]
    assert tally.drawn_scores_K.tolist() == plain.drawn_scores_K.tolist()


def random_scorer(seed: int, gain: float, clips: int = 300) -> PairScorer:
    torch.manual_seed(seed)
    network = SelectorNetwork(24, 3, hidden=(128, 64, 32))
    with torch.no_grad():
        network.last.weight.mul_(gain)
    vectors = np.random.default_rng(seed).normal(size=(clips, 27)).astype(np.float32)
    vectors[clips // 2 :] = vectors[: clips - clips // 2]  # every clip twice: ties
    scorer, rows = pair_scorer(network, vectors), np.arange(clips)
    with torch.no_grad():
        network.last.bias.sub_(float(scorer(rows, rows[::-1].copy()).mean()))
    return scorer


@pytest.mark.parametrize("gain", [1, 100_000])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_screening_keeps_what_float32_keeps(gain: float, per_class: bool, seed: int) -> None:
    exact = random_scorer(seed, gain)
    f, b = np.random.default_rng(seed).integers(300, size=(2, 20_000))
    f.sort()
    groups = f // 60 if per_class else np.zeros_like(f)
    plain, _ = screen_pairs(exact, None, f, b, groups)
    tally, scored = screen_pairs(exact, make_screen(exact, f[::20], b[::20]), f, b, groups)
    assert_same_kept(tally, plain)
    logits = exact(f, b)
    for group, best in plain.best.items():
        rows = np.flatnonzero(groups == group)
        assert best.result()[1].tolist() == rows[in_plain(logits[rows], best.k)].tolist()
    assert len(np.unique(logits)) < 18_000, "the test wants ties"
    assert (gain > 1) == ((omega(logits) == 1).sum() > 1000), "and omegas that cannot rank, or can"
    assert scored < 0.35 * len(f), "the screen must leave little"
    assert np.abs(tally.counts - plain.counts).sum() < 0.02 * len(f)
    assert tally.counts.sum() == len(f)


def test_a_screen_that_is_further_off_than_it_says_is_not_believed() -> None:
    exact = random_scorer(0, 1)
    f, b = np.random.default_rng(0).integers(300, size=(2, 20_000))
    groups = np.zeros_like(f)
    plain, _ = screen_pairs(exact, None, f, b, groups)
    honest = make_screen(exact, f, b)
    for screen in (replace(honest, margin=honest.margin / 1000), Screen(random_scorer(1, 1), honest.margin)):
        tally, scored = screen_pairs(exact, screen, f, b, groups)
        assert scored > len(f), "some again, then all"
        assert_same_kept(tally, plain)
        assert tally.counts.tolist() == plain.counts.tolist()


@pytest.mark.parametrize("margin", [1e3, np.nan])
def test_a_screen_that_rules_nothing_out_is_given_up(margin: float) -> None:
    exact = random_scorer(0, 1)
    f, b = np.random.default_rng(0).integers(300, size=(2, 20_000))
    groups = np.zeros_like(f)
    tally, _ = screen_pairs(exact, replace(make_screen(exact, f, b), margin=margin), f, b, groups)
    assert_same_kept(tally, screen_pairs(exact, None, f, b, groups)[0])


def test_equal_scores_do_not_fill_the_memory() -> None:
    top = TopK(10, slack=0.5)
    for start in range(0, 50_000, 500):
        top.update(np.ones(500, np.float32), np.arange(start, start + 500))
        assert sum(len(rows) for _, rows in top._pending) < 2000
    top.result()
    assert top.crowded


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
    assert (loaded.classes, loaded.crop) == (CLASSES, 56)
    assert (loaded.network.hidden, loaded.network.label_size) == ((16, 8), 3)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [METADATA, WEIGHTS]


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
        (edit(hidden=[]), METADATA, "selector.hidden"),
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


# --- select


@pytest.fixture
def exact(network: SelectorNetwork) -> SelectorNetwork:
    """A network of small whole numbers: its sums are exact in any order, and ties are many."""
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for values in network.state_dict().values():
            values.copy_(torch.from_numpy(rng.integers(-1, 2, size=tuple(values.shape))))
        network.feature_scale_F.fill_(1)
        network.last.weight.mul_(1 / 16)
    return network


def exact_clips() -> ClipVectors:
    return replace(some_clips(60), features_NF=np.random.default_rng(6).integers(-2, 3, (60, 5)).astype(np.float32))


def write_pairs(path: Path, clips: ClipVectors, count: int) -> pd.DataFrame:
    f, b = np.random.default_rng(7).integers(60, size=(2, count))
    names = clips.ids_N.astype(str)
    labels = clips.labels_NL.argmax(axis=1).astype(np.int32)
    columns = {"foreground": names[f], "background": names[b]}
    table = pa.table(columns | {"foreground_label": labels[f], "background_label": labels[b]})
    pq.write_table(table, path, row_group_size=700)
    frame: pd.DataFrame = table.to_pandas()
    return frame


@pytest.mark.ray
@pytest.mark.filterwarnings(RAYS_OWN)
@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("screened", [False, True])
def test_select_equals_the_plain_way(
    exact: SelectorNetwork, tmp_path: Path, screened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2a_ray.selector.selection.worth_screening", lambda k, total: screened)
    clips = exact_clips()
    pairs = write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    rows = [clips.rows(pairs[column].tolist()) for column in ("foreground", "background")]
    logits = exact(torch.from_numpy(pair_observation(clips.clips_NFL, *rows))).detach().numpy()
    pairs["score"] = omega(logits)
    expected = pairs.iloc[in_plain(logits, 480)].reset_index(drop=True)
    assert expected["score"].nunique() < 400, "the test wants ties"

    select(
        tmp_path / "pairs.parquet", clips, pair_scorer(exact, clips.clips_NFL), SelectSettings(), 11, tmp_path / "out"
    )
    selected, drawn, worst, histogram = (
        pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("selected", "random", "worst", "histogram")
    )
    pd.testing.assert_frame_equal(selected, expected, check_dtype=False)
    assert selected["score"].dtype == np.float32
    pd.testing.assert_frame_equal(worst, pairs.iloc[in_plain(-logits, 12)].reset_index(drop=True), check_dtype=False)
    lucky = np.sort(np.random.default_rng(11).choice(4000, 480, replace=False))
    pd.testing.assert_frame_equal(drawn, pairs.iloc[lucky].reset_index(drop=True), check_dtype=False)
    assert histogram["count"].tolist() == np.histogram(omega(logits), bins=BINS, range=(0, 1))[0].tolist()
    assert (histogram["left"][0], histogram["right"][49]) == (0, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == {"budget": 480, "candidates": 4000, "threshold": float(np.sort(omega(logits))[-480])}


@pytest.mark.ray
@pytest.mark.filterwarnings(RAYS_OWN)
@pytest.mark.usefixtures("session")
def test_select_refuses_pairs_of_clips_it_does_not_know(exact: SelectorNetwork, tmp_path: Path) -> None:
    clips = exact_clips()
    write_pairs(tmp_path / "pairs.parquet", clips, 20)
    fewer = ClipVectors(clips.ids_N[:40], clips.features_NF[:40], clips.labels_NL[:40])
    with pytest.raises(StageError, match="has no feature"):
        select(tmp_path / "pairs.parquet", fewer, pair_scorer(exact, fewer.clips_NFL), SelectSettings(), 0, tmp_path)


def test_select_refuses_a_missing_and_an_empty_table(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be read"):
        select(tmp_path / "pairs.parquet", exact_clips(), RandomScorer(0), SelectSettings(), 0, tmp_path)
    write_pairs(tmp_path / "pairs.parquet", exact_clips(), 0)
    with pytest.raises(StageError, match="no candidate pair"):
        select(tmp_path / "pairs.parquet", exact_clips(), RandomScorer(0), SelectSettings(), 0, tmp_path)


def test_random_scores_are_uniform_and_belong_to_pair_and_seed() -> None:
    rows = np.divmod(np.arange(10_000), 100)
    scores = omega(RandomScorer(0)(*rows))
    assert kstest(scores, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(scores[:-1], scores[1:])[0, 1]) < 0.05
    np.testing.assert_array_equal(omega(RandomScorer(0)(rows[0][::-1], rows[1][::-1])), scores[::-1])
    for other in (RandomScorer(1)(*rows), RandomScorer(0)(rows[1], rows[0])):
        assert (omega(other) == scores).mean() < 0.02


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, float("nan")])
def test_impossible_budgets_are_refused(budget: float) -> None:
    with pytest.raises(SettingError, match=r"select\.budget"):
        SelectSettings(budget=budget)
    assert SelectSettings(budget=1).budget == 1
