import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_samples import make_store
from torch import Tensor, nn

from l2a_ray.classifier import training, worker
from l2a_ray.classifier.data import TrainingData, read_data
from l2a_ray.classifier.evaluation import evaluate_model, score
from l2a_ray.classifier.features import extract_features
from l2a_ray.classifier.feed import Source, feed
from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.network import Network, save_network
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings, WorkerSettings
from l2a_ray.classifier.training import TrainingRun, train_classifiers
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.scenes import clip_sets
from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule, Stream, stack
from l2a_ray.errors import LeakError, SettingError, StageError, StorageError
from l2a_ray.pairs.labels import Labels
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.settings import WarmStartSettings

# Ray Data warns of its own use of its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

EPOCHS = 200
SETTINGS = ClassifierSettings(
    network=NetworkSettings(name="small3d", width=4), epochs=EPOCHS, batch_size=6, learning_rate=0.05, crop=24
)
HERE, ONE = WorkerSettings(count=0), WorkerSettings()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 24)


@pytest.fixture(scope="module")
def pairs(store: ClipStore) -> str:
    return pairs_of(store)


def pairs_of(store: ClipStore) -> str:
    """Each training clip on the one before it."""
    ids = store.rows("train")["id"].to_numpy()
    path = store.root / "pairs.parquet"
    pd.DataFrame({"foreground": ids, "background": np.roll(ids, 1)}).to_parquet(str(path))
    return str(path)


def make_run(folder: Path, pairs: str | None, settings: ClassifierSettings = SETTINGS) -> TrainingRun:
    """A run whose name is its folder's; ``train`` says of which clips."""
    return TrainingRun(
        name=folder.name,
        store=Path(),
        folder=folder,
        seed=0,
        pairs=pairs,
        composite=CompositeSettings(),
        settings=settings,
    )


def train(runs: list[TrainingRun], store: ClipStore, workers: WorkerSettings = ONE) -> None:
    train_classifiers([replace(run, store=store.root) for run in runs], workers, runs[0].folder.parent / "scratch")


def curve(folder: Path) -> dict[int, float]:
    """The loss as TensorBoard shows it, by step."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = events.Scalars("train/loss")
    assert len({event.step for event in shown}) == len(shown)
    return {event.step: event.value for event in shown}


@pytest.fixture(scope="module")
def trained(store: ClipStore, pairs: str, session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train([make_run(out / "real-0", None), make_run(out / "random-0", pairs)], store)
    return out


@pytest.mark.ray
def test_feed_brings_every_workers_part_in_order(store: ClipStore, pairs: str, session: None) -> None:
    data = read_data(store, pairs, SETTINGS)
    assert data.pairs is not None and data.pairs.dtype == np.int32
    streams = Stream(COMPOSITES, data.pairs, 0.5), Stream(REAL, data.real)
    plan = Schedule(data.ids, streams, 6, 0)
    source = Source(str(store.root), CompositeSettings(), 24, Labels.given(store.index), plan)
    loader = SampleLoader(store, CompositeSettings(), 24)
    for rank in range(2):
        came = list(feed(source, 5, 45, rank, 2))
        assert len(came) == 40
        for step, found in enumerate(came, start=5):
            expected = stack(loader, plan, plan.batch(step)[3 * rank : 3 * rank + 3])
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.ray
def test_each_run_leaves_its_model_and_history(store: ClipStore, trained: Path) -> None:
    histories = [pd.read_parquet(trained / name / "history.parquet") for name in ("real-0", "random-0")]
    for history in histories:
        assert list(history) == ["epoch", "step", "loss", "learning_rate", "clips_per_s", "wait_share"]
        assert history["epoch"].to_list() == list(range(1, EPOCHS + 1))
        assert history["step"].to_list() == list(range(3, 3 * EPOCHS + 1, 3))  # 18 clips in batches of 6
        assert history["wait_share"].between(0, 1).all()
    assert histories[0]["loss"].iloc[-1] < 0.1 < histories[1]["loss"].iloc[-1]  # mixed labels keep an entropy
    assert {str(path.relative_to(trained)) for path in trained.glob("*/*")} == {
        f"{run}/{name}"
        for run in ("real-0", "random-0")
        for name in ("model.safetensors", "history.parquet", "tensorboard")
    }
    for history, run in zip(histories, ("real-0", "random-0"), strict=True):
        assert curve(trained / run) == pytest.approx(history.set_index("step")["loss"].to_dict())


@pytest.mark.ray
def test_local_mode_gives_the_same_bits(store: ClipStore, pairs: str, trained: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    train([make_run(tmp_path / "random-0", pairs)], store, HERE)
    here, there = (
        safetensors.torch.load_file(folder / "random-0" / "model.safetensors") for folder in (tmp_path, trained)
    )
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert torch.get_num_threads() == threads
    with pytest.raises(SettingError, match=r"learning_rate=1e\+30"):
        train([make_run(tmp_path / "real-0", None, replace(SETTINGS, learning_rate=1e30))], store, HERE)


@pytest.mark.ray
def test_two_workers_train_as_one_does_with_all_of_the_batch(
    store: ClipStore, pairs: str, session: None, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, epochs=20, batch_size=18)  # an epoch is a step
    histories = []
    for workers in (HERE, WorkerSettings(count=2, cpus=0.5)):
        run = make_run(tmp_path / str(workers.count) / "random-0", pairs, settings)
        train([run], store, workers)
        histories.append(pd.read_parquet(str(run.folder / "history.parquet")))
    assert histories[1]["step"].iloc[-1] == 20
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=0, atol=1e-4)
    assert histories[0]["loss"].iloc[-1] < histories[0]["loss"].iloc[0] - 0.1
    here, there = (load_network(tmp_path / n / "random-0" / "model.safetensors", settings.network, 3) for n in "02")
    for (name, value), other in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3, msg=name)


def test_finished_runs_are_not_trained_again(store: ClipStore, pairs: str, trained: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in trained.rglob("*.*")}
    train([make_run(trained / "real-0", None), make_run(trained / "random-0", pairs)], store)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.*")} == files


@pytest.mark.ray
def test_evaluation_of_a_trained_model(store: ClipStore, trained: Path, tmp_path: Path) -> None:
    evaluate_model(trained / "real-0" / "model.safetensors", store, SETTINGS, clip_sets(store, "test"), tmp_path)
    (_, metrics), *others = pd.read_parquet(tmp_path / "metrics.parquet").iterrows()
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert not others and list(metrics.index) == ["set", "top1", "top5", "loss", "clips", "left_out"]
    assert metrics["clips"] == len(predictions) == 6 and metrics["top1"] == metrics["top5"] == 1
    assert predictions["id"].to_list() == store.rows("test")["id"].to_list()
    assert (predictions["predicted"] == predictions["label"]).all()
    # Where all are right, the loss is that of the probabilities.
    assert -np.log(predictions["probability"]).mean() == pytest.approx(metrics["loss"], rel=1e-4)


@pytest.mark.ray
def test_killed_driver_goes_on_where_it_was_and_ends_with_the_same_bits(
    store: ClipStore, pairs: str, trained: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "random-0", pairs)
    script = (
        "import ray; from pathlib import Path; from test_training import ClipStore, make_run, train\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        f"train([make_run(Path({str(run.folder)!r}), {pairs!r})], ClipStore({str(store.root)!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "random-0" / "checkpoint.safetensors"
    while not checkpoint.is_file():
        assert driver.poll() is None, driver.stderr and driver.stderr.read().decode()
        time.sleep(0.01)
    worker = descendant(driver.pid, "RayTrainWorker")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    while parent_of(worker) is not None:
        time.sleep(0.05)  # Ray's processes notice that the driver is gone, and go
    before = history_of(checkpoint)
    assert 0 < len(before) < EPOCHS
    train([run], store)
    assert pd.read_parquet(tmp_path / "random-0" / "history.parquet").to_dict("records")[: len(before)] == before
    once = safetensors.torch.load_file(trained / "random-0" / "model.safetensors")
    twice = safetensors.torch.load_file(tmp_path / "random-0" / "model.safetensors")
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.ray
def test_a_killed_worker_goes_on_from_its_last_epoch_and_ends_with_the_same_bits(
    store: ClipStore, pairs: str, trained: Path, session: None, tmp_path: Path
) -> None:
    checkpoint, killed = tmp_path / "random-0" / "checkpoint.safetensors", list[int]()

    def kill() -> None:
        while not checkpoint.is_file():
            time.sleep(0.01)
        killed.append(len(history_of(checkpoint)))
        os.kill(descendant(os.getpid(), "RayTrainWorker"), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    train([make_run(tmp_path / "random-0", pairs)], store)
    thread.join()
    history, undisturbed = (pd.read_parquet(folder / "random-0" / "history.parquet") for folder in (tmp_path, trained))
    assert 0 < killed[0] < EPOCHS and history["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert history["loss"].tolist() == undisturbed["loss"].tolist()
    assert curve(tmp_path / "random-0") == curve(trained / "random-0")
    once, twice = (safetensors.torch.load_file(f / "random-0" / "model.safetensors") for f in (trained, tmp_path))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def descendant(ancestor: int, name: str) -> int:
    """Return the id of the process, among those that one started or they did, with a title that holds a name."""
    parents = {int(path.name): parent_of(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}

    def belongs(process: int | None) -> bool:
        return process is not None and (process == ancestor or belongs(parents.get(process)))

    titles = {process: title_of(process) for process in parents if belongs(process)}
    return next(process for process, title in titles.items() if name in title)


def parent_of(process: int) -> int | None:
    """Return the parent's id; None if the process has ended."""
    try:
        state, parent = (Path("/proc") / str(process) / "stat").read_text().rsplit(")")[-1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(parent)


def title_of(process: int) -> str:
    try:
        return (Path("/proc") / str(process) / "cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def history_of(checkpoint: Path) -> list[dict[str, float]]:
    with safe_open(checkpoint, framework="pt") as file:
        rows: list[dict[str, float]] = json.loads(file.metadata()["history"])
    return rows


class SlowTeacher(Supervised):
    """A method that has all that a method may have: a stream and views of its own, a state, another predictor."""

    stops: ClassVar[list[int]] = []

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        super().__init__(settings, network)
        self.teacher = copy.deepcopy(network)

    def streams(self, data: TrainingData) -> list[Stream]:
        return [*super().streams(data), Stream("other", data.real, per_step=2, views=("weak", "weak"))]

    def loss(self, model: nn.Module, batch: Batch, step: int, steps: int) -> Tensor:
        if step in self.stops:
            self.stops.remove(step)
            raise StageError("stopped")
        real, other = batch.only(REAL), batch.only("other")
        assert len(batch.labels) == 10 and len(real.labels) == 3 and len(other.labels) == 4
        return super().loss(model, real, step, steps) + super().loss(model, other, step, steps)

    def after_step(self, network: Network) -> None:
        for mean, value in zip(self.teacher.parameters(), network.parameters(), strict=True):
            mean.data.lerp_(value.data, 0.1)

    def state(self) -> dict[str, Tensor]:
        return self.teacher.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.teacher.load_state_dict(state)

    def predictor(self, network: Network) -> Network:
        return self.teacher


@pytest.mark.ray
def test_a_methods_state_survives_a_stop_and_its_predictor_is_the_result(
    store: ClipStore, pairs: str, session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "METHODS", {"supervised": SlowTeacher})
    settings = replace(SETTINGS, epochs=4)  # of 3 steps each
    whole, stopped = (make_run(tmp_path / name, pairs, settings) for name in ("whole", "stopped"))
    train([whole], store, HERE)
    SlowTeacher.stops.append(7)
    with pytest.raises(StageError, match="stopped"):
        train([stopped], store, HERE)
    state = safetensors.torch.load_file(str(stopped.folder / "checkpoint.safetensors"))
    train([stopped], store, HERE)
    once, twice = (safetensors.torch.load_file(str(run.folder / "model.safetensors")) for run in (whole, stopped))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert not torch.equal(state["method.head.weight"], state["network.head.weight"])
    torch.manual_seed(0)
    first = build_network(settings.network, 3)  # running statistics are the student's alone: the teacher has its first
    assert torch.equal(once["backbone.1.running_mean"], first.state_dict()["backbone.1.running_mean"])


@pytest.mark.ray
def test_frozen_parts_end_as_they_began(store: ClipStore, session: None, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2, freeze=("backbone.0", "backbone.1"))  # convolution, normalisation
    run = make_run(tmp_path / "real-0", None, settings)
    train([run], store, HERE)
    trained = safetensors.torch.load_file(str(run.folder / "model.safetensors"))
    torch.manual_seed(run.seed)
    first = build_network(settings.network, 3).state_dict()
    same = {name for name in first if torch.equal(first[name], trained[name])}
    assert same == {name for name in first if name.startswith(("backbone.0.", "backbone.1."))}
    wrong = make_run(tmp_path / "real-1", None, replace(settings, freeze=("backbone.layer1",)))
    with pytest.raises(SettingError, match=r"^freeze='backbone\.layer1': is no part of the network"):
        train([wrong], store, HERE)


@pytest.mark.ray
def test_damaged_clip_ends_training_with_its_name(session: None, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 8)
    store.path("0002").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"0002-0\.safetensors: .*Run `l2a prepare --refresh`"):
        train([make_run(tmp_path / "out" / "real-0", None)], store)


def test_pairs_outside_the_training_split_are_refused(store: ClipStore, tmp_path: Path) -> None:
    train_id, test_id = (store.rows(split)["id"].iloc[0] for split in ("train", "test"))
    path = tmp_path / "pairs.parquet"
    pd.DataFrame({"foreground": [train_id], "background": [test_id]}).to_parquet(path)
    run = make_run(tmp_path / "random-0", str(path))
    for settings in (SETTINGS, replace(SETTINGS, train_on="train+val")):
        with pytest.raises(LeakError, match=test_id):
            train([replace(run, settings=settings)], store)
    pd.DataFrame({"foreground": [train_id, "ffff"], "background": [train_id, train_id]}).to_parquet(path)
    with pytest.raises(LeakError, match=r"ffff \(no clip of this store\)"):
        train([run], store)
    pd.DataFrame({"foreground": [], "background": []}).to_parquet(path)
    with pytest.raises(StageError, match="no pairs"):
        train([run], store)


def test_networks_that_cannot_take_the_clips_are_refused(store: ClipStore, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^network\.name='s3d'.*4 frames of 24x24 pixels"):
        train([make_run(tmp_path / "r", None, replace(SETTINGS, network=NetworkSettings(name="s3d")))], store)
    with pytest.raises(SettingError, match=r"^crop=40"):
        train([make_run(tmp_path / "r", None, replace(SETTINGS, crop=40))], store)
    with pytest.raises(SettingError, match=r"^batch_size=6: .*workers \(4\)"):
        train([make_run(tmp_path / "r", None)], store, WorkerSettings(count=4))


def with_validation(root: Path) -> ClipStore:
    """A store in which every second test clip is a clip of D_val."""
    store = make_store(root, 24)
    index = store.index.copy()
    index.loc[index.index[3::8], "split"] = "val"
    index.to_parquet(str(root / "index.parquet"), index=False)
    return ClipStore(root)


def test_d_val_can_be_given_back_to_the_training(tmp_path: Path) -> None:
    store = with_validation(tmp_path)
    for train_on, splits in (("train", {"train"}), ("train+val", {"train", "val"})):
        data = read_data(store, None, ClassifierSettings(train_on=train_on))  # type: ignore[arg-type]
        rows = store.index.iloc[data.real]
        assert set(rows["split"]) == splits and len(rows) == store.index["split"].isin(splits).sum()
        assert data.ids[data.real].astype(str).tolist() == rows["id"].to_list()


def test_the_warm_start_never_learns_d_val() -> None:
    with pytest.raises(SettingError, match=r"^classifier\.train_on='train\+val': must be train"):
        WarmStartSettings(classifier=replace(SETTINGS, train_on="train+val"))


def test_a_pair_with_a_clip_of_d_val_is_refused_even_where_it_is_learned(tmp_path: Path) -> None:
    store = with_validation(tmp_path)
    train_id, val_id = (store.rows(split)["id"].iloc[0] for split in ("train", "val"))
    pd.DataFrame({"foreground": [train_id], "background": [val_id]}).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(LeakError, match=rf"{val_id} \(a val clip\)"):
        read_data(store, str(tmp_path / "pairs.parquet"), replace(SETTINGS, train_on="train+val"))


def test_pairs_are_rows_of_the_clips(store: ClipStore, pairs: str, tmp_path: Path) -> None:
    table, path = pd.concat([pd.read_parquet(pairs)] * 5), tmp_path / "pairs.parquet"
    table.to_parquet(path, row_group_size=7)
    data = read_data(store, str(path), SETTINGS)
    assert data.pairs is not None and data.pairs.dtype == np.int32
    np.testing.assert_array_equal(data.ids[data.pairs].astype(str), table.to_numpy(dtype=np.str_))


def test_one_table_of_pairs_is_in_memory_at_a_time(
    store: ClipStore, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[TrainingData]] = []

    def counted(*arguments: Any) -> TrainingData:
        assert not any(data() for data in alive)
        data = read_data(*arguments)
        alive.append(weakref.ref(data))
        return data

    monkeypatch.setattr(training, "read_data", counted)
    monkeypatch.setattr(training, "_fit", lambda job: StageError("everything was checked"))
    monkeypatch.setattr(training, "_progress", lambda: nullcontext(None))
    with pytest.raises(StageError, match="everything was checked"):
        train([make_run(tmp_path / str(i), pairs) for i in range(4)], store)
    assert len(alive) == 4


def test_scores_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02], [0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02]]))
    result = score(logits, np.array([0, 6]))
    assert result["top1"] == 0.5 and result["top5"] == 0.5 and result["clips"] == 2
    assert result["loss"] == pytest.approx(-(np.log(0.7) + np.log(0.02)) / 2)
    assert score(logits[:, :3], np.array([2, 1]))["top5"] == 1  # fewer than five classes


def test_features_do_not_depend_on_the_batch(store: ClipStore, tmp_path: Path) -> None:
    save_network(tmp_path / "model.safetensors", build_network(SETTINGS.network, 3))
    network = load_network(tmp_path / "model.safetensors", SETTINGS.network, 3)
    ids = store.index["id"].to_list()
    whole, parts = extract_features(network, store, ids, 24), extract_features(network, store, ids, 24, batch=5)
    assert whole.shape == (24, 32) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole.round(5), axis=0)) == 24
