"""A Selector scores the pairs of a data set whose classes it has never heard of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CROP, NETWORK, name_selector, small_network, small_store

from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.cli import main
from l2a_ray.errors import SelectorFileError
from l2a_ray.pairs.settings import EmbeddingSettings
from l2a_ray.pairs.vectors import class_agreement, label_vectors
from l2a_ray.prepare.store import ClipStore, write_index
from l2a_ray.selector.describe import describe_for, write_vectors
from l2a_ray.selector.file import Selector, load_selector, save_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import score_pairs
from l2a_ray.storage.files import read_table
from l2a_ray.storage.run import find_result, read_stages

TRAINED = ("run", "jump")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """Clips of three classes: red, green and blue."""
    return small_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def selector() -> Selector:
    labels = label_vectors(TRAINED, "name", EmbeddingSettings())

    def network(features: int) -> SelectorNetwork:
        torch.manual_seed(1)
        made = SelectorNetwork(features, labels.shape[1], (16, 8))
        made.standardise(np.random.default_rng(0).normal(size=(20, features)).astype(np.float32))
        return made

    return name_selector(network, CROP)


def test_pairs_of_other_classes_are_scored_after_loading(selector: Selector, store: ClipStore, tmp_path: Path) -> None:
    save_selector(tmp_path, selector)
    loaded = load_selector(tmp_path)
    vectors = describe_for(loaded, store)
    rows = store.index[store.index["split"] != "test"]
    assert vectors.ids_N.astype(str).tolist() == rows["id"].tolist()
    assert vectors.labels_NL[0].tolist() == label_vectors(store.classes, "name", EmbeddingSettings())[0].tolist()
    labels = rows["label"].to_numpy(np.int64)
    np.testing.assert_array_equal(vectors.features_NF[:, -1], class_agreement(vectors.features_NF[:, :-1], labels))
    omega = score_pairs(loaded.network, vectors, np.array([0, 1, 2]), np.array([4, 5, 6]))
    assert omega.shape == (3,) and 0 < omega.min() < omega.max() < 1


def test_the_name_of_a_class_changes_its_scores(selector: Selector, store: ClipStore, tmp_path: Path) -> None:
    write_index(tmp_path, store.clips, ("pink", *store.classes[1:]), store.index, store.failed)
    here, renamed = describe_for(selector, store), describe_for(selector, ClipStore(tmp_path))
    first = store.index[store.index["split"] != "test"]["label"].to_numpy() == 0
    np.testing.assert_array_equal(here.features_NF, renamed.features_NF)
    assert ((here.labels_NL != renamed.labels_NL).any(axis=1) == first).all()


def test_features_are_computed_where_the_process_computes(
    selector: Selector, store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.nn.Module] = []
    monkeypatch.setattr("l2a_ray.selector.describe.best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(
        "l2a_ray.selector.describe.describe_clips", lambda store, rows, net, *_, **__: asked.append(net)
    )
    describe_for(selector, store)
    assert {parameter.device.type for parameter in asked[0].parameters()} == {"meta"}


def test_one_hot_labels_of_other_classes_are_refused(selector: Selector, store: ClipStore) -> None:
    with pytest.raises(SelectorFileError, match="does not know 'blue', 'green', 'red'"):
        describe_for(replace(selector, encoding="one_hot", classes=TRAINED), store)


def test_a_backbone_whose_config_would_be_run_is_not_built_unasked(
    selector: Selector, store: ClipStore, tmp_path: Path
) -> None:
    program = tmp_path / "config.py"
    program.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'run')!r}).touch()\nmodel = dict()\n")
    settings = NetworkSettings(name="mmaction2", config=str(program))
    save_selector(tmp_path, replace(selector, backbone_settings=settings))
    with pytest.raises(SelectorFileError, match=rf"{program}.*trust_config=True"):
        describe_for(load_selector(tmp_path), store)
    assert not (tmp_path / "run").exists()


def test_a_backbone_of_other_features_is_refused(selector: Selector, store: ClipStore) -> None:
    with pytest.raises(SelectorFileError, match="trained with 33 features a clip, its backbone makes 32"):
        describe_for(replace(selector, agreement=False), store)


def test_clips_too_small_for_the_selector_are_refused(selector: Selector, store: ClipStore) -> None:
    with pytest.raises(SelectorFileError, match=r"sees squares of 200 pixels.*decode\.size=200 or more"):
        describe_for(replace(selector, crop=200), store)


@pytest.mark.parametrize("path", ["describe_for", "write_vectors"])
def test_features_are_computed_where_networks_run_best(
    selector: Selector, store: ClipStore, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("selector.describe", "classifier.zoo"):
        monkeypatch.setattr(f"l2a_ray.{module}.best_device", lambda: torch.device("meta"))
    with pytest.raises(NotImplementedError, match="meta"):  # from whose tensors nothing can be read
        if path == "describe_for":
            describe_for(selector, store)
        else:
            save_network(tmp_path / "warm.safetensors", small_network())
            write_vectors(
                store,
                tmp_path / "warm.safetensors",
                NETWORK,
                CROP,
                "one_hot",
                EmbeddingSettings(),
                tmp_path / "vectors.safetensors",
                agreement=True,
            )


SMALL = """
data: {layout: jhmdb}
segment: {kind: precomputed}
decode: {frames: 4, size: 32}
classifier: &classifier {network: {name: small3d, width: 4}, epochs: 2, crop: 28}
warm_start: {classifier: *classifier}
selector: {steps: 160, hidden: [32]}
workers: {count: 0}
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_trained_on_half_of_jhmdbs_classes_it_scores_the_other_half(jhmdb: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (jhmdb / "videos").iterdir())
    (tmp_path / "small.yaml").write_text(SMALL)
    other = {"other": {"pairs": "selector", "selector": str(tmp_path / "seen")}}
    for half, classes, stage, arms in (
        ("seen", names[::2], "train-selector", ["selected"]),
        ("unseen", names[1::2], "select", other),
    ):
        (tmp_path / f"{half}.txt").write_text("\n".join(classes))
        data = ["--data.root", str(jhmdb), "--data.labels", str(tmp_path / f"{half}.txt"), "--arms", json.dumps(arms)]
        main([stage, "--config", str(tmp_path / "small.yaml"), "--name", half, "--runs", str(tmp_path), *data])
    assert "train-selector" not in {entry["stage"] for entry in read_stages(tmp_path / "unseen")["current"].values()}
    candidates = find_result(tmp_path / "unseen", "match") / "pairs.parquet"
    chosen = find_result(tmp_path / "unseen", "select-by-other")
    selected, drawn = (read_table(chosen / f"{name}.parquet") for name in ("selected", "sample"))
    assert len(selected) == len(drawn) == round(0.12 * len(read_table(candidates)))
    assert set(drawn["foreground_label"]) == set(range(len(names[1::2])))
    assert 0 < drawn["score"].min() < drawn["score"].max() < 1 and selected["score"].min() > drawn["score"].mean()
