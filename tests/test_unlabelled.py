"""Clips without labels on their way from the store to a trained classifier: no label of theirs is looked at."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from test_samples import make_store
from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData, read_data
from l2a_ray.classifier.methods import METHODS
from l2a_ray.classifier.methods.actorcut import ActorCut
from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.semi import SemiSettings
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.schedule import COMPOSITES, REAL, UNLABELLED, Schedule, Stacked, stack
from l2a_ray.composites.views import _times
from l2a_ray.errors import LeakError, StageError
from l2a_ray.pairs.labels import Labels
from l2a_ray.prepare.store import ClipStore, write_index
from l2a_ray.videos.splits import Role, refuse_others

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

SETTINGS = ClassifierSettings(
    network=NetworkSettings(name="small3d", width=4),
    method="actorcut",
    semi=SemiSettings(threshold=0.0, ema=0.9),
    distill=1.0,
    epochs=3,
    batch_size=6,
    learning_rate=0.05,
    crop=24,
)


def relabelled(store: ClipStore, root: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> ClipStore:
    """The same clips in a store whose index is another."""
    write_index(root, store.clips, store.classes, change(store.index), store.failed)
    return ClipStore(root)


def hide(index: pd.DataFrame) -> pd.DataFrame:
    """Take their labels from all training clips but six."""
    hidden = index.loc[index["split"] == "train", "id"].iloc[6:]
    return index.assign(split=index["split"].mask(index["id"].isin(hidden), "unlabelled"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 24)


@pytest.fixture(scope="module")
def store(whole: ClipStore, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return relabelled(whole, tmp_path_factory.mktemp("hidden"), hide)


@pytest.fixture(scope="module")
def teacher(store: ClipStore) -> Path:
    """A teacher of four classes that is sure of another one in each frame."""
    folder = Path(str(store.root)) / "teach"
    folder.mkdir()
    ids = store.columns("id")["id"]
    said = np.tile(np.eye(4, dtype=np.float16), (len(ids), 1, 1))
    safetensors.numpy.save_file({"probabilities": said}, folder / "probabilities-00000.safetensors")
    pd.DataFrame({"id": ids}).to_parquet(folder / "clips.parquet")
    return folder


def drawn(store: ClipStore, data: TrainingData, settings: ClassifierSettings) -> Stacked:
    """Return the samples of the first step, with labels that know nothing of hidden clips."""
    network = build_network(settings.network, 3)
    streams = tuple(METHODS[settings.method](settings, network).streams(data))
    labels = Labels.given(store.columns("id", "label")).without(data.ids[data.unlabelled])
    plan = Schedule(data.ids, streams, settings.batch_size, seed=0)
    assert plan.steps_per_epoch == -(-len(data.real) // settings.batch_size), "as many as supervised training takes"
    return stack(SampleLoader(store, CompositeSettings(), settings.crop, labels), plan, plan.batch(0), settings.augment)


def test_hidden_clips_are_read_apart(whole: ClipStore, store: ClipStore, teacher: Path) -> None:
    table = store.columns("id", "label", "split")
    data = read_data(store, None, SETTINGS, str(teacher))
    assert table["split"].iloc[data.real].eq("train").all() and len(data.real) == 6
    assert table["split"].iloc[data.unlabelled].eq("unlabelled").all() and len(data.unlabelled) == 12
    assert data.truth.tolist() == table["label"].iloc[data.unlabelled].tolist()
    with pytest.raises(StageError, match=r"actorcut learns from clips without labels, .* data\.unlabelled=keep"):
        read_data(whole, None, SETTINGS, str(teacher))
    with pytest.raises(StageError, match="method supervised with distill=1 needs a teacher"):
        read_data(store, None, replace(SETTINGS, method="supervised"))


def test_nothing_else_may_look_at_them(store: ClipStore, tmp_path: Path) -> None:
    index = store.columns("id", "split")
    ids = index.loc[index["split"] == "unlabelled", "id"]
    roles: tuple[Role, ...] = ("train", "pair", "validate", "test")
    for role in roles:
        with pytest.raises(LeakError, match="an unlabelled clip"):
            refuse_others(ids, index, role, "this")
    pd.DataFrame({"foreground": ids.iloc[:1], "background": ids.iloc[1:2].to_numpy()}).to_parquet(
        tmp_path / "p.parquet"
    )
    with pytest.raises(LeakError):
        read_data(store, str(tmp_path / "p.parquet"), replace(SETTINGS, method="supervised", distill=0.0))


def test_unlabelled_samples_show_no_label_and_their_boxes_follow_crop_and_flip(store: ClipStore, teacher: Path) -> None:
    data = read_data(store, None, SETTINGS, str(teacher))
    found = drawn(store, data, replace(SETTINGS, semi=SemiSettings(mu=2.0)))
    mine = found.streams == UNLABELLED
    assert mine.sum() == 2 * 12 and (found.streams == REAL).sum() == 6
    assert not found.labels[mine].any() and (found.labels[~mine].sum(axis=1) == 1).all()
    weak = found.views == "weak"
    assert found.boxes is not None and not found.boxes[~(mine & weak)].any()
    for clip, boxes in zip(found.clips[mine & weak], found.boxes[mine & weak], strict=True):
        np.testing.assert_array_equal(boxes, (clip == 200).all(axis=3))  # the actor's colour
    other = drawn(store, data, replace(SETTINGS, method="supervised", distill=0.0))
    np.testing.assert_array_equal(other.clips, found.clips[~mine])  # they are drawn as if there were no others
    assert other.boxes is None


def test_a_hidden_clip_in_a_pair_is_found_out(store: ClipStore, teacher: Path) -> None:
    data = read_data(store, None, SETTINGS, str(teacher))
    pairs = np.stack([data.real, data.unlabelled[: len(data.real)]], axis=1)
    settings = replace(SETTINGS, method="supervised", distill=0.0, composite_mode="add", composite_share=1.0)
    with pytest.raises(StageError, match="has no label"):
        drawn(store, replace(data, pairs=pairs), settings)


def test_frames_are_repeated_turned_back_or_lost() -> None:
    rng = np.random.default_rng(0)
    assert [_times(5, kind, rng).tolist() for kind in (0, 1, 2)] == [[0, 1, 2, 3, 4], [0, 0, 2, 2, 4], [4, 3, 2, 1, 0]]
    lost = _times(200, 3, rng)
    stays = lost == np.arange(200)
    assert lost[0] == 0 and 70 < stays.sum() < 130 and (lost[1:][~stays[1:]] == lost[:-1][~stays[1:]]).all()


class Stops(ActorCut):
    """Stops before some step, once; keeps what it was given of the teacher."""

    stops: ClassVar[list[int]] = []
    said: ClassVar[list[tuple[NDArray[np.str_], NDArray[np.float32]]]] = []

    def loss(self, model: nn.Module, batch: Batch, step: int, steps: int) -> Tensor:
        if step in self.stops:
            self.stops.remove(step)
            raise StageError("stopped")
        assert batch.teacher is not None
        self.said.append((batch.streams, batch.teacher.numpy()))
        return super().loss(model, batch, step, steps)


@pytest.mark.ray
def test_training_never_looks_at_a_hidden_label_and_survives_a_stop(
    store: ClipStore, teacher: Path, session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from test_training import HERE, make_run, train

    from l2a_ray.classifier import worker

    monkeypatch.setattr(worker, "METHODS", {"actorcut": Stops})
    known = store.rows("train")["id"]
    pairs = tmp_path / "pairs.parquet"
    pd.DataFrame({"foreground": known, "background": np.roll(known, 1)}).to_parquet(pairs)

    def trained(name: str, store: ClipStore, stop: int | None = None) -> tuple[dict[str, Tensor], pd.DataFrame]:
        run = replace(make_run(tmp_path / name, str(pairs), SETTINGS), teacher=str(teacher))
        if stop is not None:
            Stops.stops.append(stop)
            with pytest.raises(StageError, match="stopped"):
                train([run], store, HERE)
        train([run], store, HERE)
        files = [run.folder / file for file in ("model.safetensors", "student.safetensors")]
        for file in files:
            load_network(file, SETTINGS.network, 3, torch.device("cpu"))
        weights = [safetensors.torch.load_file(str(file)) for file in files]
        assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
        return weights[0], pd.read_parquet(str(run.folder / "history.parquet"))

    once, history = trained("once", store)
    assert (history["kept_share"] == 1).all() and history["kept_precision"].between(0, 1).all()
    for streams, said in Stops.said:
        assert set(streams) == {REAL, COMPOSITES, UNLABELLED}
        assert (said.sum(axis=1) == (streams != COMPOSITES)).all()

    def shuffled(index: pd.DataFrame) -> pd.DataFrame:
        hidden = index["split"] == "unlabelled"
        return index.assign(label=index["label"].mask(hidden, (index["label"] + 1) % 3))

    twice, other = trained("twice", relabelled(store, tmp_path / "other", shuffled), stop=2)
    assert (history["kept_precision"] + other["kept_precision"] <= 1).all(), "it is measured by the truth that is given"
    assert all(torch.equal(once[name], twice[name]) for name in once)
