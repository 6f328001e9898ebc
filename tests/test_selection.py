"""Scoring pairs and keeping the best: equal to sorting all scores; and drawing pairs at random."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import selector_network, some_clips

from l2a_ray.errors import DatasetError, SelectorFileError, SettingError, StageError
from l2a_ray.pairs.draw import draw_pairs, draw_sound_pairs
from l2a_ray.pairs.groups import Groups
from l2a_ray.pairs.settings import SelectSettings, Within
from l2a_ray.pairs.table import ENDS, spans
from l2a_ray.pairs.vectors import ClipVectors, Floats, Rows, class_agreement, pair_observation
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import Scorer, agreement_scorer, omega, pair_scorer, score_pairs
from l2a_ray.selector.selection import begin_tally, score_group, select_pairs
from l2a_ray.selector.tally import BINS, TopK

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
        top.update(scores[rows], rows, -scores[rows])
    negated, rows = top.result()
    kept = -negated
    assert rows.tolist() == in_plain(scores, k).tolist()
    assert kept.tolist() == scores[rows].tolist()


def test_top_k_holds_no_more_than_twice_k_between_updates() -> None:
    top = TopK(10)
    for start in range(0, 5000, 50):
        scores = np.linspace(start, start + 1, 50, dtype=np.float32)
        top.update(scores, np.arange(start, start + 50), scores)
        assert len(top) < 20


def test_a_score_does_not_depend_on_the_pairs_beside_it(network: SelectorNetwork) -> None:
    clips = some_clips(30)
    f, b = np.random.default_rng(2).integers(30, size=(2, 200))
    together = score_pairs(network, clips, f, b, batch=64)
    apart = [score_pairs(network, clips, f[i : i + 7], b[i : i + 7], batch=64) for i in range(0, 200, 7)]
    assert together.tolist() == np.concatenate(apart).tolist()


def test_unusable_networks_and_clips_are_refused(network: SelectorNetwork) -> None:
    rows = np.zeros(1, np.int64)
    with pytest.raises(SelectorFileError, match=r"5 features and 3 label values.*have 4 and 3"):
        score_pairs(network, replace(some_clips(2), features_NF=np.zeros((2, 4), np.float32)), rows, rows)
    with torch.no_grad():
        network.last.bias.fill_(torch.nan)
    with pytest.raises(SelectorFileError, match="NaN"):
        score_pairs(network, some_clips(2), rows, rows)


def test_scoring_runs_where_networks_run_best(network: SelectorNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = pair_scorer(network, some_clips(4))
    monkeypatch.setattr("l2a_ray.selector.scoring.best_device", lambda: torch.device("meta"))
    rows = np.arange(4)
    with pytest.raises(NotImplementedError, match="meta"):  # from whose tensors nothing can be read
        scorer(rows, rows)
    assert network.first.weight.device.type == "cpu", "the caller's network stays where it was"


@pytest.mark.parametrize("known", [False, True])
def test_agreement_scores_a_pair_by_its_foreground(known: bool) -> None:
    clips = some_clips(30)
    agreement = class_agreement(clips.features_NF, clips.labels_NL.argmax(axis=1))
    if known:
        clips = replace(clips, features_NF=np.column_stack([clips.features_NF, agreement]))
    f, b = np.random.default_rng(2).integers(30, size=(2, 100))
    np.testing.assert_array_equal(agreement_scorer(clips, known=known)(f, b), agreement[f])


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
def test_select_equals_the_plain_way(exact: SelectorNetwork, tmp_path: Path) -> None:
    clips = exact_clips()
    pairs = write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    rows = [clips.rows(pairs[column].tolist()) for column in ("foreground", "background")]
    logits = exact(torch.from_numpy(pair_observation(clips, *rows))).detach().numpy()
    pairs["score"] = omega(logits)
    expected = pairs.iloc[in_plain(logits, 480)].reset_index(drop=True)
    assert expected["score"].nunique() < 400, "the test wants ties"

    settings = SelectSettings(worst=7)
    select_pairs(tmp_path / "pairs.parquet", clips, pair_scorer(exact, clips), settings, 11, tmp_path / "out")
    draw_pairs(tmp_path / "pairs.parquet", settings, 11, tmp_path / "out")
    selected, drawn, worst, histogram = (
        pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("selected", "sample", "worst", "histogram")
    )
    pd.testing.assert_frame_equal(selected, expected, check_dtype=False)
    assert selected["score"].dtype == np.float32
    pd.testing.assert_frame_equal(worst, pairs.iloc[in_plain(-logits, 7)].reset_index(drop=True), check_dtype=False)
    lucky = np.sort(np.random.default_rng(11).choice(4000, 480, replace=False))
    pd.testing.assert_frame_equal(drawn, pairs.iloc[lucky].reset_index(drop=True), check_dtype=False)
    unscored = pd.read_parquet(tmp_path / "out" / "random.parquet")
    pd.testing.assert_frame_equal(unscored, drawn.drop(columns="score"))
    assert histogram["count"].tolist() == np.histogram(omega(logits), bins=BINS, range=(0, 1))[0].tolist()
    assert (histogram["left"][0], histogram["right"][49]) == (0, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    threshold = float(np.sort(omega(logits))[-480])
    assert summary == {"budget": 480, "candidates": 4000, "threshold": threshold, "by_chance": False}


@pytest.mark.ray
@pytest.mark.filterwarnings(RAYS_OWN)
@pytest.mark.usefixtures("session")
def test_select_refuses_pairs_of_clips_it_does_not_know(exact: SelectorNetwork, tmp_path: Path) -> None:
    clips = exact_clips()
    write_pairs(tmp_path / "pairs.parquet", clips, 20)
    fewer = ClipVectors(clips.ids_N[:40], clips.features_NF[:40], clips.labels_NL[:40])
    with pytest.raises(StageError, match="has no feature"):
        select_pairs(tmp_path / "pairs.parquet", fewer, pair_scorer(exact, fewer), SelectSettings(), 0, tmp_path)


def test_select_refuses_a_missing_and_an_empty_table(tmp_path: Path) -> None:
    pairs, clips = tmp_path / "pairs.parquet", exact_clips()
    scorer = agreement_scorer(clips, known=True)
    with pytest.raises(StageError, match="cannot be read"):
        select_pairs(pairs, clips, scorer, SelectSettings(), 0, tmp_path)
    write_pairs(pairs, clips, 0)
    with pytest.raises(StageError, match="no candidate pair"):
        select_pairs(pairs, clips, scorer, SelectSettings(), 0, tmp_path)
    with pytest.raises(StageError, match="no candidate pair"):
        draw_pairs(pairs, SelectSettings(), 0, tmp_path)


def tallied(folder: Path, clips: ClipVectors, scorer: Scorer, settings: SelectSettings, seed: int = 0) -> pd.DataFrame:
    """Select in this process, a row group after another; returns the selected pairs."""
    path, groups = folder / "pairs.parquet", Groups.of(folder / "pairs.parquet", settings.within)
    tally = begin_tally(path, clips, settings, seed)
    for group, (start, _) in reversed(list(enumerate(spans(path)))):
        rng = np.random.default_rng([seed, group]) if settings.draw == "omega" else None
        tally.update(*score_group(path, group, start, clips, scorer, groups, rng))
    tally.write(path, folder / "out")
    return pd.read_parquet(folder / "out" / "selected.parquet")


@pytest.mark.parametrize("within", ["all", "class", "foreground"])
def test_each_group_keeps_the_best_of_its_own(within: Within, exact: SelectorNetwork, tmp_path: Path) -> None:
    clips = exact_clips()
    pairs = write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    logits = pair_scorer(exact, clips)(*(clips.rows(pairs[end].tolist()) for end in ENDS))
    ranked = pairs.assign(score=omega(logits), key=-logits).sort_values("key", kind="stable")
    column = {"class": "foreground_label", "foreground": "foreground"}.get(within)
    grouped = ranked.assign(all=0).groupby(column or "all")
    budget = np.maximum(1, (0.2 * grouped["key"].transform("size")).round())
    expected = ranked[grouped.cumcount() < budget].drop(columns="key")
    found = tallied(tmp_path, clips, pair_scorer(exact, clips), SelectSettings(budget=0.2, within=within))
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
    draw_pairs(tmp_path / "pairs.parquet", SelectSettings(budget=0.2, within=within), 3, tmp_path)
    drawn = pd.read_parquet(tmp_path / "random.parquet")
    if column:
        assert drawn.groupby(column).size().to_dict() == found.groupby(column).size().to_dict()
    assert len(drawn) == len(found)


def test_of_scores_that_mean_nothing_random_pairs_are_kept(exact: SelectorNetwork, tmp_path: Path) -> None:
    clips, settings = exact_clips(), SelectSettings(budget=0.2, within="class")
    write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    tally = begin_tally(tmp_path / "pairs.parquet", clips, settings, 3)
    for group, (start, _) in enumerate(spans(tmp_path / "pairs.parquet")):
        tally.update(
            *score_group(tmp_path / "pairs.parquet", group, start, clips, pair_scorer(exact, clips), Groups("class"))
        )
    tally.write(tmp_path / "pairs.parquet", tmp_path, by_chance=True)
    draw_pairs(tmp_path / "pairs.parquet", settings, 3, tmp_path)
    kept, drawn = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("selected", "random"))
    pd.testing.assert_frame_equal(kept.drop(columns="score"), drawn)
    assert json.loads((tmp_path / "summary.json").read_text())["by_chance"]


def test_no_clip_is_used_more_often_than_its_cap(exact: SelectorNetwork, tmp_path: Path) -> None:
    clips = exact_clips()
    pairs = write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    settings = SelectSettings(budget=0.2, within="class", most_per_clip=15)
    found = tallied(tmp_path, clips, pair_scorer(exact, clips), settings)
    assert all(found[end].value_counts().max() == 15 for end in ENDS)
    # Greedily, pair by pair, from the best to the worst.
    logits = pair_scorer(exact, clips)(*(clips.rows(pairs[end].tolist()) for end in ENDS))
    left = (0.2 * pairs.groupby("foreground_label").size()).round().to_dict()
    fronts, backs, expected = Counter[str](), Counter[str](), set()
    for row in np.argsort(-logits, kind="stable"):
        front, back, label = pairs.loc[row, [*ENDS, "foreground_label"]]
        if left[label] and fronts[front] < 15 and backs[back] < 15:
            expected.add((front, back))
            left[label], fronts[front], backs[back] = left[label] - 1, fronts[front] + 1, backs[back] + 1
    assert set(found[ENDS].itertuples(index=False, name=None)) == expected
    draw_pairs(tmp_path / "pairs.parquet", settings, 3, tmp_path)
    drawn = pd.read_parquet(tmp_path / "random.parquet")
    assert all(drawn[end].value_counts().max() <= 15 for end in ENDS) and len(drawn) > 0.95 * len(found)


def test_a_cap_that_leaves_less_than_the_budget_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = exact_clips()
    write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    scorer = agreement_scorer(clips, known=True)
    found = tallied(tmp_path, clips, scorer, SelectSettings(budget=0.5, most_per_clip=3))
    assert len(found) <= 180 and f"lets {len(found)} pairs be kept, the budget 2000" in caplog.text


def test_pairs_drawn_by_omega_are_there_in_proportion_to_it(tmp_path: Path) -> None:
    """Of four pairs one has omega 0.9, the others 0.1. It is among two drawn without replacement with a chance of
    0.75 at first and, if not, of 0.9 in 1.1 then."""
    pairs = pa.table({"foreground": [f"{n:016x}" for n in range(4)], "background": ["0" * 16] * 4})
    labels = pa.array([0] * 4, pa.int32())
    pairs = pairs.append_column("foreground_label", labels).append_column("background_label", labels)
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    clips = ClipVectors(np.array([f"{n:016x}" for n in range(4)], np.bytes_), *[np.zeros((4, 0), np.float32)] * 2)
    logits = np.log(np.array([9, 1 / 9, 1 / 9, 1 / 9], np.float32))
    settings = SelectSettings(budget=0.5, draw="omega")
    count = 600
    kept = [tallied(tmp_path, clips, lambda front, back: logits[front], settings, seed) for seed in range(count)]
    share = np.mean([f"{0:016x}" in set(found["foreground"]) for found in kept])
    exactly = 0.75 + 0.25 * 0.9 / 1.1
    assert abs(share - exactly) < 4 * np.sqrt(exactly * (1 - exactly) / count)
    assert {round(float(score), 4) for found in kept for score in found["score"]} == {0.9, 0.1}


# --- drawing


@pytest.mark.parametrize("within", ["all", "class"])
def test_sound_pairs_are_drawn_among_sound_clips_alone(tmp_path: Path, within: Within) -> None:
    clips = exact_clips()
    pairs = write_pairs(tmp_path / "pairs.parquet", clips, 4000)
    names = clips.ids_N.astype(str)
    index = pd.DataFrame({"id": names, "path": [f"{name}.mp4" for name in names], "class_name": "run"})
    truth = pd.DataFrame({"path": index["path"], "bad": ["wrong_label", "lost", "", "", "", ""] * 10})
    truth["true_class"] = np.where(truth["bad"] == "wrong_label", "jump", "run")
    truth.assign(split="train").to_parquet(tmp_path / "truth.parquet")
    index["path"] = [str(tmp_path / path) for path in index["path"]]
    sound = set(names[truth["bad"] == ""])
    settings = SelectSettings(budget=0.1, within=within)
    draw_sound_pairs(tmp_path / "pairs.parquet", index, str(tmp_path), settings, 3, tmp_path)
    drawn = pd.read_parquet(tmp_path / "random.parquet")
    assert set(drawn["foreground"]) | set(drawn["background"]) <= sound
    assert drawn.columns.tolist() == pairs.columns.tolist()
    budgets = (0.1 * pairs.groupby("foreground_label").size()).round()
    if within == "class":
        assert drawn.groupby("foreground_label").size().tolist() == budgets.tolist()
    assert abs(len(drawn) - 400) <= 1 and drawn["foreground"].nunique() == 40
    with pytest.raises(StageError, match="no candidate pair of two sound clips"):
        draw_sound_pairs(tmp_path / "pairs.parquet", index[:0], str(tmp_path), settings, 3, tmp_path)
    with pytest.raises(DatasetError, match=r"no truth\.parquet"):
        draw_sound_pairs(tmp_path / "pairs.parquet", index, str(tmp_path / "none"), settings, 3, tmp_path)


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, float("nan")])
def test_impossible_budgets_are_refused(budget: float) -> None:
    with pytest.raises(SettingError, match=r"^budget="):
        SelectSettings(budget=budget)
    assert SelectSettings(budget=1).budget == 1
