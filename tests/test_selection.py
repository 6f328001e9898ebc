"""Scoring pairs and keeping the best: equal to sorting all scores, screened or not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import selector_network, some_clips
from scipy.stats import kstest

from l2a_ray.errors import SelectorFileError, SettingError, StageError
from l2a_ray.pairs.vectors import ClipVectors, pair_observation
from l2a_ray.selector.network import SelectorNetwork
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

RAYS_OWN = r"ignore::DeprecationWarning:ray\..*"


@pytest.fixture
def network() -> SelectorNetwork:
    return selector_network()


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
