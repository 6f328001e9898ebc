"""Neighbours and candidate pairs of small made-up indices, by hand."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2a_ray.errors import DatasetError, LeakError, SettingError, StorageError
from l2a_ray.pairs.match import PAIR_SCHEMA, Pools, candidate_pairs, nearest_neighbours, write_candidates
from l2a_ray.pairs.names import embed_names
from l2a_ray.pairs.settings import EmbeddingSettings, MatchSettings

CLASSES = ("wave_hand", "clap_hands", "climb_stairs")
Pairs = list[tuple[str, str]]


def make_index(*rows: tuple[str, int, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["id", "label", "split", "foreground_ratio"])
    return frame.assign(foreground_frames=1.0, remark="", class_name=[CLASSES[label] for label in frame["label"]])


INDEX = make_index(
    ("a1", 0, "train", 0.2),
    ("a2", 0, "train", 0.001),  # too little to paste
    ("a3", 0, "val", 0.2),
    ("a4", 0, "test", 0.2),
    ("b1", 1, "train", 0.2),
    ("b2", 1, "train", 0.95),  # no background left
    ("b3", 1, "train", 0.1),
    ("c1", 2, "train", 0.2),
    ("c2", 2, "train", 0.3),
    ("c3", 2, "test", 0.3),
)


def pairs_of(table: pa.Table) -> Pairs:
    return list(zip(table["foreground"].to_pylist(), table["background"].to_pylist(), strict=True))


def tables(kind: str, neighbours: list[int] | None, seed: int = 0, index: pd.DataFrame = INDEX) -> list[pa.Table]:
    known = None if neighbours is None else np.array(neighbours)
    return list(candidate_pairs(Pools(index, CLASSES, MatchSettings(kind=kind)), known, seed))  # type: ignore[arg-type]


def test_neighbours_by_hand() -> None:
    embeddings = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], dtype=np.float32)
    neighbours, similarity = nearest_neighbours(embeddings)
    assert neighbours.tolist() == [1, 0, 1, 2]
    np.testing.assert_allclose(similarity, [0.8, 0.8, 0.6, 0], atol=1e-6)
    assert similarity.dtype == np.float32


def test_ties_go_to_the_lower_label() -> None:
    row = np.random.default_rng(0).normal(size=384).astype(np.float32)
    neighbours, _ = nearest_neighbours(np.repeat(row[None] / np.linalg.norm(row), 37, axis=0))
    assert neighbours.tolist() == [1] + [0] * 36


def test_one_class_has_no_neighbour() -> None:
    with pytest.raises(DatasetError, match="one class"):
        nearest_neighbours(np.ones((1, 4), dtype=np.float32))


def test_names_of_alike_actions_are_neighbours() -> None:
    classes = ["wave_hand", "clap_hands", "walk", "golf", "throw", "swing_baseball", "catch"]
    neighbours, _ = nearest_neighbours(embed_names(classes, EmbeddingSettings()))
    found = {name: classes[label] for name, label in zip(classes, neighbours, strict=True)}
    for one, other in (("wave_hand", "clap_hands"), ("golf", "swing_baseball"), ("throw", "catch")):
        assert (found[one], found[other]) == (other, one)


def test_semantic_pairs_by_hand() -> None:
    chunks = tables("semantic", [1, 0, 0])
    assert [pairs_of(chunk) for chunk in chunks] == [
        [("a1", "b1"), ("a1", "b3")],
        [("b1", "a1"), ("b1", "a2"), ("b2", "a1"), ("b2", "a2"), ("b3", "a1"), ("b3", "a2")],
        [("c1", "a1"), ("c1", "a2"), ("c2", "a1"), ("c2", "a2")],
    ]
    assert all(chunk.schema == PAIR_SCHEMA for chunk in chunks)
    assert chunks[2]["foreground_label"].to_pylist() == [2] * 4
    assert chunks[2]["background_label"].to_pylist() == [0] * 4


def test_same_class_never_pairs_a_clip_with_itself() -> None:
    chunks = tables("same_class", None)
    assert [pairs_of(chunk) for chunk in chunks] == [
        [("a1", "a2")],
        [("b1", "b3"), ("b2", "b1"), ("b2", "b3"), ("b3", "b1")],
        [("c1", "c2"), ("c2", "c1")],
    ]
    assert chunks[1]["background_label"].to_pylist() == [1] * 4


def test_random_pairs_are_of_other_classes_and_distinct() -> None:
    labels = {row.id: row.label for row in INDEX.itertuples()}
    chunks = tables("random", None)
    assert [len(chunk) for chunk in chunks] == [2, 6, 4]  # foregrounds 1, 3, 2; 4 backgrounds in the other 2 classes
    for label, chunk in enumerate(chunks):
        pairs = pairs_of(chunk)
        assert len(set(pairs)) == len(pairs)
        assert chunk["background_label"].to_pylist() == [labels[background] for _, background in pairs]
        assert label not in chunk["background_label"].to_pylist()
        assert not {"b2", "a3", "a4", "c3"} & {background for _, background in pairs}


def test_random_pairs_follow_the_seed_and_reach_every_class() -> None:
    rows = [(f"{label}{clip:02d}", label, "train", 0.2) for label in range(3) for clip in range(30)]
    index = make_index(*rows)
    first, again, other = (pa.concat_tables(tables("random", None, seed, index)) for seed in (7, 7, 8))
    assert first.equals(again)
    assert not first.equals(other)
    # 900 pairs a class, the background's class a fair coin: within 5 standard deviations of 15.
    drawn = pairs_of(first.slice(0, 900))
    assert abs(sum(background.startswith("1") for _, background in drawn) - 450) < 75


def test_pairs_grow_linearly_with_classes() -> None:
    def count(classes: int) -> int:
        rows = [(f"{label}-{clip}", label, "train", 0.2) for label in range(classes) for clip in range(4)]
        frame = pd.DataFrame(rows, columns=["id", "label", "split", "foreground_ratio"])
        frame = frame.assign(foreground_frames=1.0, remark="")
        names = [str(label) for label in range(classes)]
        neighbours = (np.arange(classes) + 1) % classes
        return sum(map(len, candidate_pairs(Pools(frame, names, MatchSettings()), neighbours, 0)))

    assert (count(5), count(10), count(20)) == (80, 160, 320)


def left_out(folder: Path) -> list[tuple[str, str, str]]:
    table = pq.read_table(folder / "left_out.parquet").to_pandas()
    assert list(table) == ["class_name", "role", "reason"]
    return [(str(row.class_name), str(row.role), str(row.reason)) for row in table.itertuples()]


def written(folder: Path) -> set[tuple[str, str]]:
    return set(pairs_of(pq.read_table(folder / "pairs.parquet")))


WITHOUT_ACTORS = INDEX[INDEX["id"] != "a1"]
WITHOUT_SCENES = INDEX[~INDEX["id"].isin(["b1", "b3"])]


@pytest.mark.parametrize("kind", ["semantic", "random", "same_class"])
def test_a_class_without_actors_is_left_out_and_the_others_are_paired(
    kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_candidates(WITHOUT_ACTORS, CLASSES, MatchSettings(kind=kind), 0, tmp_path)
    reason = (
        "the masks of all its 1 training clips cover less than match.min_foreground=0.005 of the pixels, "
        "or less than match.min_actor_frames=0.5 of the frames"
    )
    assert left_out(tmp_path) == [("wave_hand", "foreground", reason)]
    assert {foreground[0] for foreground, _ in written(tmp_path)} == {"b", "c"}
    told = [record.message for record in caplog.records]
    assert told == [f"match: without composites (left_out.parquet): class 'wave_hand' as foreground: {reason}"]


def test_the_next_nearest_class_lends_scenes_where_the_nearest_has_none(tmp_path: Path) -> None:
    write_candidates(WITHOUT_SCENES, CLASSES, MatchSettings(), 0, tmp_path)
    reason = "the masks of all its 1 training clips cover more than match.max_foreground=0.9 of the pixels"
    assert left_out(tmp_path) == [("clap_hands", "background", reason)]
    table = pq.read_table(tmp_path / "neighbours.parquet").to_pandas().set_index("class_name")
    assert (table.loc["wave_hand", "neighbour"], table.loc["wave_hand", "nearest"]) == ("climb_stairs", "clap_hands")
    assert table.loc["clap_hands", "neighbour"] == table.loc["clap_hands", "nearest"] == "wave_hand"
    pairs = written(tmp_path)
    assert {("a1", "c1"), ("a1", "c2"), ("b2", "a1")} <= pairs
    assert not any(background.startswith("b") for _, background in pairs)


def test_random_pairs_of_the_others_are_what_they_were() -> None:
    nobody = INDEX.assign(foreground_ratio=INDEX["foreground_ratio"].where(INDEX["label"] != 0, 0.0))
    assert [table.to_pydict() for table in tables("random", None, index=nobody)] == [
        table.to_pydict() for table in tables("random", None)[1:]
    ]


def test_a_class_without_training_clips_is_left_out(tmp_path: Path) -> None:
    write_candidates(INDEX[INDEX["label"] != 2], CLASSES, MatchSettings(), 0, tmp_path)
    reason = "it has no training clip"
    assert left_out(tmp_path) == [("climb_stairs", role, reason) for role in ("foreground", "background")]
    assert len(written(tmp_path)) == 2 + 6


def test_a_class_with_one_clip_cannot_be_paired_with_itself(tmp_path: Path) -> None:
    write_candidates(INDEX[INDEX["id"] != "a2"], CLASSES, MatchSettings(kind="same_class"), 0, tmp_path)
    assert left_out(tmp_path) == [
        ("wave_hand", "foreground", "no clip of its own class but itself can serve as background")
    ]


@pytest.mark.parametrize("kind", ["semantic", "random", "same_class"])
def test_without_any_pair_the_stage_ends_and_says_why(kind: Any, tmp_path: Path) -> None:
    nobody = INDEX.assign(foreground_ratio=0.0)
    with pytest.raises(DatasetError, match=r"not one pair .*'wave_hand' as foreground: .*match\.min_foreground=0\.005"):
        write_candidates(nobody, CLASSES, MatchSettings(kind=kind), 0, tmp_path)
    assert not (tmp_path / "pairs.parquet").exists()


def test_where_all_classes_are_usable_none_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_candidates(INDEX, CLASSES, MatchSettings(), 0, tmp_path)
    assert left_out(tmp_path) == [] and not caplog.records
    table = pq.read_table(tmp_path / "neighbours.parquet").to_pandas()
    assert (table["neighbour"] == table["nearest"]).all()


def test_pairs_that_cannot_be_written_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_candidates(INDEX, CLASSES, MatchSettings(kind="random"), 0, tmp_path)
    before = (tmp_path / "pairs.parquet").read_bytes()

    def full(self: pq.ParquetWriter, table: pa.Table) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match=r"pairs\.parquet: cannot be written \(No space left on device\)"):
        write_candidates(INDEX, CLASSES, MatchSettings(kind="random"), 1, tmp_path)
    assert (tmp_path / "pairs.parquet").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.parquet", "left_out.parquet"}


def test_match_writes_pairs_and_neighbours(tmp_path: Path) -> None:
    write_candidates(INDEX, CLASSES, MatchSettings(), 0, tmp_path / "match")
    neighbours = pq.read_table(tmp_path / "match" / "neighbours.parquet").to_pandas()
    assert neighbours["class_name"].tolist() == list(CLASSES)
    assert neighbours["neighbour"].tolist()[:2] == ["clap_hands", "wave_hand"]
    assert neighbours["similarity"].dtype == np.float32
    labels = [CLASSES.index(name) for name in neighbours["neighbour"]]
    pairs = pq.read_table(tmp_path / "match" / "pairs.parquet")
    assert pairs.equals(pa.concat_tables(tables("semantic", labels)))


@pytest.mark.parametrize(("kind", "pairs"), [("same_class", 7), ("random", 12)])
def test_only_the_semantic_kind_needs_an_embedding(
    kind: Any, pairs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("l2a_ray.pairs.match.embed_names")
    write_candidates(INDEX, CLASSES, MatchSettings(kind=kind), 0, tmp_path)
    assert not (tmp_path / "neighbours.parquet").exists()
    assert pq.read_metadata(tmp_path / "pairs.parquet").num_rows == pairs


def test_one_class_alone_cannot_be_paired_at_random(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'wave_hand' as foreground: no clip of another class"):
        write_candidates(INDEX[INDEX["label"] == 0], CLASSES[:1], MatchSettings(kind="random"), 0, tmp_path)


@pytest.mark.parametrize("leaked", ["a1", "b3"])
def test_a_training_clip_that_is_also_a_test_clip_is_refused(leaked: str, tmp_path: Path) -> None:
    index = pd.concat([INDEX, make_index((leaked, 0, "test", 0.2))], ignore_index=True)
    with pytest.raises(LeakError, match=leaked):
        write_candidates(index, CLASSES, MatchSettings(kind="same_class"), 0, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("kind", "nearest"), ("min_foreground", -0.1), ("max_foreground", 1.5)])
def test_impossible_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"^{name}={value!r}"):
        MatchSettings(**{name: value})  # type: ignore[arg-type]


def test_a_clip_whose_actor_is_mostly_away_gives_none_but_still_a_scene(tmp_path: Path) -> None:
    away = INDEX.assign(foreground_frames=[0.4 if name in ("c1", "c2") else 0.5 for name in INDEX["id"]])
    assert {front for table in tables("random", None, index=away) for front, _ in pairs_of(table)} == {
        "a1",
        "b1",
        "b2",
        "b3",
    }
    write_candidates(away, CLASSES, MatchSettings(kind="random"), 0, tmp_path)
    (name, role, reason), *others = left_out(tmp_path)
    assert (name, role, others) == ("climb_stairs", "foreground", []) and "match.min_actor_frames=0.5" in reason
    assert {back for _, back in written(tmp_path)} >= {"c1", "c2"}
    every = MatchSettings(kind="random", min_actor_frames=0.4)
    assert sum(map(len, candidate_pairs(Pools(away, CLASSES, every), None, 0))) == sum(map(len, tables("random", None)))
