"""Pseudo-labels: which guesses are kept, and what a clip may be used for once it bears one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_samples import make_store
from test_unlabelled import SETTINGS, hide, relabelled

from envs.pair_selection import EnvFiles, PairSelectionEnv
from envs.settings import EnvSettings
from l2a_ray.classifier.data import read_data
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.pseudo import guess, write_pool
from l2a_ray.classifier.settings import PseudoSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config import load
from l2a_ray.errors import LeakError, SettingError, StageError
from l2a_ray.pairs.labels import GUESSES
from l2a_ray.pairs.match import Pools, candidate_pairs, write_candidates
from l2a_ray.pairs.settings import EmbeddingSettings, MatchSettings
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import _next, closure
from l2a_ray.pipeline.stage import Stage
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.describe import write_vectors
from l2a_ray.videos.splits import Role, refuse_others

SUPERVISED = replace(SETTINGS, method="supervised", distill=0.0)
CHANCES = np.array([[0.5, 0.5, 0.0], [0.1, 0.0, 0.9], [0.0, 0.2, 0.8], [0.6, 0.0, 0.4], [0.05, 0.0, 0.95]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 24)


@pytest.fixture(scope="module")
def store(whole: ClipStore, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return relabelled(whole, tmp_path_factory.mktemp("hidden"), hide)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_network(path, build_network(SETTINGS.network, 3))
    return path


def pool(store: ClipStore, model: Path, out: Path, settings: PseudoSettings) -> tuple[ClipStore, pd.DataFrame]:
    out.mkdir()
    write_pool(store, model, SUPERVISED, settings, out)
    return ClipStore(out), pd.read_parquet(out / GUESSES)


def paired(store: ClipStore, settings: MatchSettings) -> pd.DataFrame:
    seen = store.index.assign(foreground_ratio=0.2, foreground_frames=1.0)
    tables = list(candidate_pairs(Pools(seen, store.classes, settings), None, 0))
    return pd.DataFrame(pd.concat([table.to_pandas() for table in tables], ignore_index=True))


def test_the_surest_guesses_are_kept_by_threshold_share_or_share_of_each_class() -> None:
    found = guess(CHANCES, PseudoSettings(threshold=0.9))
    assert found.label.tolist() == [0, 2, 2, 0, 2]
    assert found.kept.tolist() == [False, True, False, False, True], "what reaches the threshold is kept"
    assert not guess(CHANCES, PseudoSettings(threshold=1.01)).kept.any()
    assert guess(CHANCES, PseudoSettings(keep_share=0.4)).kept.tolist() == [False, True, False, False, True]
    each = guess(CHANCES, PseudoSettings(keep_share=0.5, per_class=True))
    assert each.kept.tolist() == [False, True, False, True, True]
    rare = guess(CHANCES, PseudoSettings(keep_share=0.1, per_class=True))
    assert rare.kept.tolist() == [False, False, False, True, True], "of each class that is guessed, one"
    alike = guess(np.full((4, 2), 0.5), PseudoSettings(keep_share=0.5))
    assert alike.kept.tolist() == [True, True, False, False] and not alike.label.any()
    with pytest.raises(SettingError, match="per_class"):
        PseudoSettings(per_class=True)


def test_a_kept_clip_bears_the_guess_and_is_learned_and_paired(store: ClipStore, model: Path, tmp_path: Path) -> None:
    made, table = pool(store, model, tmp_path / "pool", PseudoSettings(keep_share=0.5))
    before, after = (one.columns("id", "label", "class_name", "split").set_index("id") for one in (store, made))
    kept = table[table["kept"]].set_index("id")
    assert len(table) == 12 and len(kept) == 6
    assert kept["confidence"].min() >= table.loc[~table["kept"], "confidence"].max()
    assert (after.loc[kept.index, "split"] == "pseudo").all()
    assert after.loc[kept.index, "label"].tolist() == kept["label"].tolist()
    assert after.loc[kept.index, "class_name"].tolist() == [made.classes[label] for label in kept["label"]]
    assert table["truth"].tolist() == before.loc[table["id"], "label"].tolist()
    pd.testing.assert_frame_equal(before.drop(kept.index), after.drop(kept.index))
    may: dict[Role, bool] = {"train": True, "pair": True, "validate": False, "test": False, "unlabelled": False}
    for role, allowed in may.items():
        if allowed:
            refuse_others(kept.index, made.index, role, "this")
        else:
            with pytest.raises(LeakError, match="a pseudo clip"):
                refuse_others(kept.index, made.index, role, "this")
    labelled = read_data(store, None, SUPERVISED)
    assert set(read_data(made, None, SUPERVISED).real) == {
        *labelled.real,
        *np.flatnonzero(after.index.isin(kept.index)),
    }
    assert (read_data(made, None, replace(SUPERVISED, pseudo_labels=False)).real == labelled.real).all()
    assert len(read_data(made, None, SUPERVISED).unlabelled) == 6


def test_clips_of_the_videos_of_d_val_are_not_kept(store: ClipStore, model: Path, tmp_path: Path) -> None:
    def share_source(index: pd.DataFrame) -> pd.DataFrame:
        hidden = index.loc[index["split"] == "unlabelled", "id"].iloc[:2]
        source = index.loc[index["split"] == "test", "group"].iloc[0]
        group = index["group"].mask(index["id"].isin(hidden), source)
        return index.assign(group=group, split=index["split"].replace("test", "val"))

    shared = relabelled(store, tmp_path / "shared", share_source)
    _, table = pool(shared, model, tmp_path / "pool", PseudoSettings(keep_share=1.0))
    assert table["kept"].tolist() == [False] * 2 + [True] * 10


def test_no_true_label_of_a_hidden_clip_makes_a_difference(store: ClipStore, model: Path, tmp_path: Path) -> None:
    def turn(index: pd.DataFrame) -> pd.DataFrame:
        return index.assign(label=index["label"].mask(index["split"] == "unlabelled", (index["label"] + 1) % 3))

    settings = PseudoSettings(keep_share=0.5)
    one, told = pool(store, model, tmp_path / "one", settings)
    other, told_other = pool(relabelled(store, tmp_path / "turned", turn), model, tmp_path / "other", settings)
    pd.testing.assert_frame_equal(told.drop(columns="truth"), told_other.drop(columns="truth"))
    assert (told["truth"] != told_other["truth"]).all()
    for kind in ("random", "same_class"):
        match = MatchSettings(kind=kind)
        pd.testing.assert_frame_equal(paired(one, match), paired(other, match))


def test_no_true_label_of_a_hidden_clip_enters_a_reward(store: ClipStore, model: Path, tmp_path: Path) -> None:
    """Nor what the Selector is told of a clip. That the guesses do enter shows that this could fail."""

    def turn(index: pd.DataFrame) -> pd.DataFrame:
        return index.assign(label=index["label"].mask(index["split"] == "unlabelled", (index["label"] + 1) % 3))

    def guess_otherwise(index: pd.DataFrame) -> pd.DataFrame:
        return index.assign(label=index["label"].mask(index["split"] == "pseudo", (index["label"] + 1) % 3))

    judged = relabelled(
        store, tmp_path / "judged", lambda index: index.assign(split=index["split"].replace("test", "val"))
    )
    settings = PseudoSettings(keep_share=0.5)
    one, _ = pool(judged, model, tmp_path / "one", settings)
    other, _ = pool(relabelled(judged, tmp_path / "turned", turn), model, tmp_path / "other", settings)
    here, there = rewards(one, model, tmp_path / "here"), rewards(other, model, tmp_path / "there")
    assert here == there and len(set(here)) > 1
    assert (tmp_path / "here/vectors.safetensors").read_bytes() == (tmp_path / "there/vectors.safetensors").read_bytes()
    assert rewards(relabelled(one, tmp_path / "otherwise", guess_otherwise), model, tmp_path / "elsewhere") != here


def rewards(store: ClipStore, model: Path, folder: Path) -> list[float]:
    """What the steps of an episode give, whose pairs are drawn and chosen as in every other."""
    folder.mkdir()
    seen = store.index.assign(foreground_ratio=0.2, foreground_frames=1.0)
    write_candidates(seen, store.classes, MatchSettings(kind="random"), 0, folder)
    vectors, network, crop = folder / "vectors.safetensors", SUPERVISED.network, SUPERVISED.crop
    write_vectors(store, model, network, crop, "one_hot", EmbeddingSettings(), vectors, agreement=True)
    files = EnvFiles(
        store=str(store.root),
        pairs=str(folder / "pairs.parquet"),
        vectors=str(vectors),
        warm_start=str(model),
        network=network,
        composite=CompositeSettings(),
        crop=crop,
        settings=EnvSettings(pairs=16, steps=4),
        seed=0,
    )
    env, rng = PairSelectionEnv.from_files({"files": files}), np.random.default_rng(0)
    env.reset(seed=0)
    return [float(env.step(rng.integers(0, 2, 16, dtype=np.int8))[1]) for _ in range(4)]


def test_above_every_probability_all_is_as_without_and_with_the_truth_as_with_all_labels(
    whole: ClipStore, store: ClipStore, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    none, _ = pool(store, model, tmp_path / "none", PseudoSettings(threshold=1.01))
    assert none.content == store.content, "so that all that follows is found again by its key"
    assert "none was sure enough" in caplog.text and "pseudo.threshold" in caplog.text

    def reveal(index: pd.DataFrame) -> pd.DataFrame:
        return index.assign(split=index["split"].replace("unlabelled", "pseudo"))

    true, match = relabelled(store, tmp_path / "true", reveal), MatchSettings(kind="random")
    pd.testing.assert_frame_equal(paired(true, match), paired(whole, match))
    assert (read_data(true, None, SUPERVISED).real == read_data(whole, None, SUPERVISED).real).all()


def test_origins_say_which_roles_kept_clips_have(store: ClipStore, model: Path, tmp_path: Path) -> None:
    made, table = pool(store, model, tmp_path / "pool", PseudoSettings(keep_share=1.0))
    hidden = set(table["id"])

    def roles(settings: MatchSettings) -> tuple[bool, bool]:
        found = paired(made, settings)
        return not hidden.isdisjoint(found["foreground"]), not hidden.isdisjoint(found["background"])

    assert roles(MatchSettings(kind="random", origins="any")) == (True, True)
    assert roles(MatchSettings(kind="random", origins="labelled_foreground")) == (False, True)
    assert roles(MatchSettings(kind="random", origins="labelled")) == (False, False)
    # Where there is no actor at all, of a class of guesses alone, of one of both kinds, and of one of labels alone.
    parts = {0: ["pseudo"] * 3, 1: ["train", "pseudo", "train"], 2: ["train"] * 3}
    empty = pd.concat([made.index[:3].assign(label=label, split=split) for label, split in parts.items()])
    empty = empty.assign(foreground_ratio=0.0, foreground_frames=0.0)
    left_out = Pools(empty, made.classes, MatchSettings(kind="random", origins="labelled")).left_out(frozenset())
    reasons = left_out[left_out["role"] == "foreground"]["reason"].tolist()
    assert reasons[0] == "its 3 training clips have pseudo-labels, and match.origins=labelled"
    assert reasons[1].startswith("the masks of all its 2 training clips with labels of their own cover less than")
    assert reasons[2].startswith("the masks of all its 3 training clips cover less than")


def test_a_store_without_hidden_clips_is_refused(whole: ClipStore, model: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'unlabelled'"):
        pool(whole, model, tmp_path / "pool", PseudoSettings())


@pytest.mark.parametrize("kind", ["random", "same_class"])
def test_rounds_and_repetitions_have_titles_of_their_own_and_are_made_in_order(kind: str, tmp_path: Path) -> None:
    settings = load(
        **{
            "name": "a",
            "runs": str(tmp_path),
            "seeds": [0, 1],
            "match.kind": kind,
            "data": {"labelled_share": 0.5, "unlabelled": "keep"},
            "pseudo.rounds": 2,
        }
    )
    wanted = [stage for stage in closure(Pipeline(settings).answers) if stage.name != "recommend"]
    assert len({stage.title for stage in wanted}) == len(wanted)
    assert sum(stage.name == "pseudo-label" for stage in wanted) == 2 * 2
    done: set[Stage] = set()
    while left := [stage for stage in wanted if stage not in done]:
        batch = _next(left)
        assert batch and all(done.issuperset(stage.reads().values()) for stage in batch)
        done.update(batch)
        if batch[0].name in ("warm-start", "train"):
            assert len(batch) == (2 if batch[0].name == "warm-start" else 6), "what trains together is trained together"
