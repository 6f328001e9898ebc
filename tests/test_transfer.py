"""A Selector scores the pairs of a data set whose classes it has never heard of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import CROP, NETWORK, small_network, small_store

from l2a_ray.cli import main
from l2a_ray.errors import SelectorFileError
from l2a_ray.pairs.names import EmbeddingSettings
from l2a_ray.pairs.vectors import class_agreement, label_vectors
from l2a_ray.prepare.store import ClipStore, write_index
from l2a_ray.runtime.session import ray_session
from l2a_ray.selector.describe import describe_for
from l2a_ray.selector.file import Selector, load_selector, save_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import pair_scorer, score_pairs
from l2a_ray.selector.selection import SelectSettings, select

TRAINED = ("run", "jump")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """Clips of three classes: red, green and blue."""
    return small_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def selector() -> Selector:
    backbone = small_network()
    labels = label_vectors(TRAINED, "name", EmbeddingSettings())
    torch.manual_seed(1)
    network = SelectorNetwork(backbone.feature_size + 1, labels.shape[1], (16, 8))
    network.standardise(np.random.default_rng(0).normal(size=(20, network.feature_size)).astype(np.float32))
    return Selector(
        network=network,
        agreement=True,
        encoding="name",
        embedding=EmbeddingSettings(),
        classes=None,
        backbone=backbone.state_dict(),
        backbone_settings=NETWORK,
        backbone_classes=3,
        crop=CROP,
    )


def test_pairs_of_other_classes_are_scored_after_loading(selector: Selector, store: ClipStore, tmp_path: Path) -> None:
    save_selector(tmp_path, selector)
    loaded = load_selector(tmp_path)
    vectors = describe_for(loaded, store)
    rows = store.index[store.index["split"] != "test"]
    assert vectors.ids_N.astype(str).tolist() == rows["id"].tolist()
    assert vectors.labels_NL[0].tolist() == label_vectors(store.classes, "name", EmbeddingSettings())[0].tolist()
    labels = rows["label"].to_numpy(np.int64)
    np.testing.assert_array_equal(vectors.features_NF[:, -1], class_agreement(vectors.features_NF[:, :-1], labels))
    omega = score_pairs(loaded.network, vectors.clips_NFL, np.array([0, 1, 2]), np.array([4, 5, 6]))
    assert omega.shape == (3,) and 0 < omega.min() < omega.max() < 1


def test_the_name_of_a_class_changes_its_scores(selector: Selector, store: ClipStore, tmp_path: Path) -> None:
    write_index(tmp_path, "data", ("pink", *store.classes[1:]), store.index, store.failed)
    (tmp_path / "data").symlink_to(store.data)
    here, renamed = describe_for(selector, store), describe_for(selector, ClipStore(tmp_path))
    first = store.index[store.index["split"] != "test"]["label"].to_numpy() == 0
    np.testing.assert_array_equal(here.features_NF, renamed.features_NF)
    assert ((here.labels_NL != renamed.labels_NL).any(axis=1) == first).all()


def test_one_hot_labels_of_other_classes_are_refused(selector: Selector, store: ClipStore) -> None:
    with pytest.raises(SelectorFileError, match="does not know 'blue', 'green', 'red'"):
        describe_for(replace(selector, encoding="one_hot", classes=TRAINED), store)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_trained_on_half_of_jhmdbs_classes_it_scores_the_other_half(jhmdb: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (jhmdb / "videos").iterdir())
    for half, classes in (("seen", names[::2]), ("unseen", names[1::2])):
        (tmp_path / f"{half}.txt").write_text("\n".join(classes))
        run = ["--name", half, "--runs", str(tmp_path), "--data.labels", str(tmp_path / f"{half}.txt")]
        data = ["--data.layout", "jhmdb", "--data.root", str(jhmdb), "--segment.kind", "precomputed"]
        small = ["--decode.frames", "4", "--decode.size", "32", "--classifier.crop", "28", "--classifier.epochs", "2"]
        network = ["--classifier.network.name", "small3d", "--classifier.network.width", "4"]
        selector = ["--selector.steps", "160", "--selector.hidden", "[32]", "--classifier.workers", "0"]
        for stage in ("prepare", "match", *(["train-selector"] if half == "seen" else [])):
            main([stage, *run, *data, *small, *network, *selector])
    selector_file, unseen = load_selector(tmp_path / "seen" / "train-selector"), ClipStore(tmp_path / "unseen/prepare")
    vectors = describe_for(selector_file, unseen)
    pairs = tmp_path / "unseen" / "match" / "pairs.parquet"
    scorer = pair_scorer(selector_file.network, vectors.clips_NFL)
    with ray_session():
        select(pairs, vectors, scorer, SelectSettings(), 0, tmp_path / "out")
    selected, drawn = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("selected", "random"))
    assert len(selected) == len(drawn) == round(0.12 * len(pd.read_parquet(pairs)))
    assert set(drawn["foreground_label"]) == set(range(len(names[1::2])))
    assert 0 < drawn["score"].min() < drawn["score"].max() < 1 and selected["score"].min() > drawn["score"].mean()
