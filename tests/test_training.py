import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from test_samples import make_store

from l2a_ray.classifier.evaluation import evaluate, extract_features, score
from l2a_ray.classifier.feed import Source, feed
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings
from l2a_ray.classifier.training import TrainingRun, train_classifiers
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.schedule import BatchPlan, stack
from l2a_ray.errors import LeakError, SettingError, StageError, StorageError
from l2a_ray.prepare.store import ClipStore, clip_path

# Ray Data warns of its own use of its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

EPOCHS = 200
SETTINGS = ClassifierSettings(
    network=NetworkSettings(name="small3d", width=4), epochs=EPOCHS, batch_size=6, learning_rate=0.05, crop=24
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 24)


@pytest.fixture(scope="module")
def pairs(store: ClipStore) -> str:
    ids = store.rows("train")["id"].to_numpy()
    path = store.root / "pairs.parquet"
    pd.DataFrame({"foreground": ids, "background": np.roll(ids, 1)}).to_parquet(str(path))
    return str(path)


def train(runs: list[TrainingRun], store: ClipStore, out: Path, settings: ClassifierSettings = SETTINGS) -> None:
    train_classifiers(runs, store.root, settings, CompositeSettings(), out)


@pytest.fixture(scope="module")
def trained(store: ClipStore, pairs: str, session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train([TrainingRun("real-0", 0, None), TrainingRun("random-0", 0, pairs)], store, out)
    return out


@pytest.mark.ray
def test_feed_brings_every_workers_part_in_order(store: ClipStore, pairs: str, session: None) -> None:
    ids = store.rows("train")["id"].to_numpy(dtype=np.str_)
    plan = BatchPlan(ids, pd.read_parquet(pairs).to_numpy(dtype=np.str_), 6, 0.5, 0)
    source = Source(str(store.root), CompositeSettings(), 24, plan)
    loader = SampleLoader(store, CompositeSettings(), 24)
    for rank in range(2):
        came = list(feed(source, 5, 45, rank, 2))
        assert len(came) == 40
        for step, (frames, labels) in enumerate(came, start=5):
            expected = stack(loader, plan, step, range(3 * rank, 3 * rank + 3))
            np.testing.assert_array_equal(frames, expected[0])
            np.testing.assert_array_equal(labels, expected[1])


@pytest.mark.ray
def test_each_run_leaves_its_model_and_history(store: ClipStore, trained: Path) -> None:
    histories = [pd.read_parquet(trained / name / "history.parquet") for name in ("real-0", "random-0")]
    for history in histories:
        assert list(history) == ["epoch", "step", "loss", "learning_rate", "clips_per_s", "wait_share"]
        assert history["epoch"].to_list() == list(range(1, EPOCHS + 1))
        assert history["step"].to_list() == list(range(3, 3 * EPOCHS + 1, 3))  # 18 clips in batches of 6
        assert history["wait_share"].between(0, 1).all()
    assert histories[0]["loss"].iloc[-1] < 0.1 < histories[1]["loss"].iloc[-1]  # mixed labels keep an entropy
    assert sorted(path.name for path in trained.rglob("*")) == sorted(
        ["real-0", "random-0", *["model.safetensors", "history.parquet"] * 2]
    )


@pytest.mark.ray
def test_local_mode_gives_the_same_bits(store: ClipStore, pairs: str, trained: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    settings = replace(SETTINGS, workers=0)
    train([TrainingRun("random-0", 0, pairs)], store, tmp_path, settings)
    here, there = (
        safetensors.torch.load_file(folder / "random-0" / "model.safetensors") for folder in (tmp_path, trained)
    )
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert torch.get_num_threads() == threads
    with pytest.raises(SettingError, match=r"learning_rate=1e\+30"):
        train([TrainingRun("real-0", 0, None)], store, tmp_path, replace(settings, learning_rate=1e30))


@pytest.mark.ray
def test_two_workers_train_as_one_does_with_all_of_the_batch(
    store: ClipStore, pairs: str, session: None, tmp_path: Path
) -> None:
    one = replace(SETTINGS, epochs=20, batch_size=18, workers=0)  # an epoch is a step
    two = replace(one, workers=2, cpus_per_worker=0.5)
    histories = []
    for settings in (one, two):
        train([TrainingRun("random-0", 0, pairs)], store, tmp_path / str(settings.workers), settings)
        histories.append(pd.read_parquet(tmp_path / str(settings.workers) / "random-0" / "history.parquet"))
    assert histories[1]["step"].iloc[-1] == 20
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=0, atol=1e-4)
    assert histories[0]["loss"].iloc[-1] < histories[0]["loss"].iloc[0] - 0.1
    here, there = (load_network(tmp_path / n / "random-0" / "model.safetensors", one.network, 3) for n in "02")
    for (name, value), other in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3, msg=name)


def test_finished_runs_are_not_trained_again(store: ClipStore, pairs: str, trained: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in trained.rglob("*.*")}
    train([TrainingRun("real-0", 0, None), TrainingRun("random-0", 0, pairs)], store, trained)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.*")} == files


@pytest.mark.ray
def test_evaluation_of_a_trained_model(store: ClipStore, trained: Path, tmp_path: Path) -> None:
    evaluate([("real", 0, trained / "real-0" / "model.safetensors")], store, SETTINGS, tmp_path)
    metrics = pd.read_parquet(tmp_path / "metrics.parquet").iloc[0]
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert metrics["clips"] == len(predictions) == 6 and metrics["top1"] == metrics["top5"] == 1
    assert predictions["id"].to_list() == store.rows("test")["id"].to_list()
    assert (predictions["predicted"] == predictions["label"]).all()
    # Where all are right, the loss is that of the probabilities.
    assert -np.log(predictions["probability"]).mean() == pytest.approx(metrics["loss"], rel=1e-4)


@pytest.mark.ray
def test_killed_driver_goes_on_where_it_was_and_ends_with_the_same_bits(
    store: ClipStore, pairs: str, trained: Path, tmp_path: Path
) -> None:
    run = TrainingRun("random-0", 0, pairs)
    script = (
        "import ray; from pathlib import Path; from test_training import SETTINGS, ClipStore, TrainingRun, train\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        f"train([{run!r}], ClipStore({str(store.root)!r}), Path({str(tmp_path)!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "random-0" / "checkpoint.safetensors"
    while not checkpoint.is_file():
        assert driver.poll() is None, driver.stderr and driver.stderr.read().decode()
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    time.sleep(5)  # Ray's processes notice that the driver is gone, and go
    before = history_of(checkpoint)
    assert 0 < len(before) < EPOCHS
    time.sleep(1)
    assert history_of(checkpoint) == before
    train([run], store, tmp_path)
    assert pd.read_parquet(tmp_path / "random-0" / "history.parquet").to_dict("records")[: len(before)] == before
    once = safetensors.torch.load_file(trained / "random-0" / "model.safetensors")
    twice = safetensors.torch.load_file(tmp_path / "random-0" / "model.safetensors")
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_last_epoch_and_ends_with_the_same_bits(
    store: ClipStore, pairs: str, trained: Path, session: None, tmp_path: Path
) -> None:
    checkpoint, killed = tmp_path / "random-0" / "checkpoint.safetensors", list[int]()

    def kill() -> None:
        while not checkpoint.is_file():
            time.sleep(0.01)
        killed.append(len(history_of(checkpoint)))
        os.kill(descendant("RayTrainWorker"), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    train([TrainingRun("random-0", 0, pairs)], store, tmp_path)
    thread.join()
    history, undisturbed = (pd.read_parquet(folder / "random-0" / "history.parquet") for folder in (tmp_path, trained))
    assert 0 < killed[0] < EPOCHS and history["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert history["loss"].tolist() == undisturbed["loss"].tolist()
    once, twice = (safetensors.torch.load_file(f / "random-0" / "model.safetensors") for f in (trained, tmp_path))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def descendant(name: str) -> int:
    """Return the id of the process, among those that this one started or they did, with a title that holds a name."""
    parents = {int(path.name): int((path / "stat").read_text().rsplit(")")[-1].split()[1]) for path in processes()}

    def ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and ours(parents[process]))

    titles = {process: (Path("/proc") / str(process) / "cmdline").read_bytes() for process in filter(ours, parents)}
    return next(process for process, title in titles.items() if name.encode() in title)


def processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def history_of(checkpoint: Path) -> list[dict[str, float]]:
    with safe_open(checkpoint, framework="pt") as file:
        rows: list[dict[str, float]] = json.loads(file.metadata()["history"])
    return rows


@pytest.mark.ray
def test_damaged_clip_ends_training_with_its_name(session: None, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 8)
    clip_path(store.data, "0002").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"0002\.safetensors: .*run `l2a prepare` again"):
        train([TrainingRun("real-0", 0, None)], store, tmp_path / "out")


def test_pairs_outside_the_training_split_are_refused(store: ClipStore, tmp_path: Path) -> None:
    train_id, test_id = (store.rows(split)["id"].iloc[0] for split in ("train", "test"))
    path = tmp_path / "pairs.parquet"
    pd.DataFrame({"foreground": [train_id], "background": [test_id]}).to_parquet(path)
    with pytest.raises(LeakError, match=test_id):
        train([TrainingRun("random-0", 0, str(path))], store, tmp_path)
    pd.DataFrame({"foreground": [], "background": []}).to_parquet(path)
    with pytest.raises(StageError, match="no pairs"):
        train([TrainingRun("random-0", 0, str(path))], store, tmp_path)


def test_networks_that_cannot_take_the_clips_are_refused(store: ClipStore, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"s3d.*4 frames of 24x24 pixels"):
        train([TrainingRun("r", 0, None)], store, tmp_path, replace(SETTINGS, network=NetworkSettings(name="s3d")))
    with pytest.raises(SettingError, match=r"classifier\.crop=40"):
        train([TrainingRun("r", 0, None)], store, tmp_path, replace(SETTINGS, crop=40))


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
