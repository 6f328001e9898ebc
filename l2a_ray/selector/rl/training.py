"""Train the Selector: warm start, features, reinforcement learning, export.

Axes: N clips, F features of a clip, L length of a label vector.
"""

import io
import logging
import tarfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Self

import pandas as pd
import safetensors.torch
import torch
from ray.exceptions import RayActorError
from ray.rllib.algorithms import Algorithm
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from envs.pair_selection import EnvFiles, read_candidates
from envs.settings import EnvSettings
from l2a_ray.classifier.training import ClassifierSettings, TrainingRun, train_classifiers
from l2a_ray.classifier.zoo import load_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError, StageError
from l2a_ray.pairs.names import EmbeddingSettings
from l2a_ray.pairs.vectors import ClipVectors, label_vectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.telemetry import count, show
from l2a_ray.runtime.tracking import Tracker, TrackingSettings
from l2a_ray.selector.describe import describe_clips
from l2a_ray.selector.file import Selector, save_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.registry import build_config
from l2a_ray.selector.rl.runner import STEPS, SelectionRunner
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.tar"
PATIENCE = 300  # seconds without any step


@dataclass(frozen=True, kw_only=True)
class SelectorTraining:
    """All settings that training a Selector depends on."""

    selector: SelectorSettings
    env: EnvSettings
    classifier: ClassifierSettings
    composite: CompositeSettings
    embedding: EmbeddingSettings
    seed: int
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    name: str = "train-selector"
    """Of the run, for those who track it."""

    @classmethod
    def of(cls, run: Settings) -> Self:
        """Take what matters here from the settings of a run."""
        return cls(
            selector=run.selector,
            env=run.env,
            classifier=run.classifier,
            composite=run.composite,
            embedding=run.match.embedding,
            seed=run.seed,
            tracking=run.tracking,
            name=run.name,
        )


def train_selector(store: ClipStore, pairs: AnyPath, settings: SelectorTraining, out: AnyPath) -> None:
    """Train a Selector on the candidate pairs of a store.

    Writes ``warm/model.safetensors`` (the plain classifier), ``vectors.safetensors``, ``history.parquet`` (a row a
    step), ``selector.safetensors`` and ``selector.json`` to ``out``. Started again, it goes on where it stopped.

    Raises:
        LeakError: a test clip is in D_val or in a pair.
        StorageError: ``out`` cannot be written.
    """
    warm = TrainingRun("warm", settings.seed, _warm_pairs(pairs, settings, out))
    train_classifiers([warm], store.root, settings.classifier, settings.composite, out)
    _, network, files = begin(store, pairs, settings, out)
    weights, history = learn(network, files, settings, out)
    network.load_state_dict(weights)
    write_bytes(out / "history.parquet", history.to_parquet(index=False))
    save_selector(out, _bundle(network, store, settings, out))
    (out / CHECKPOINT).unlink(missing_ok=True)


def begin(
    store: ClipStore, pairs: AnyPath, settings: SelectorTraining, out: AnyPath
) -> tuple[ClipVectors, SelectorNetwork, EnvFiles]:
    """Return the clips' vectors, the untrained Selector and the environment's files; ``out`` holds the warm start."""
    vectors = _vectors(store, settings, out)
    return vectors, _initial(store, vectors, settings), env_files(store, pairs, settings, out)


def learn(
    network: SelectorNetwork, files: EnvFiles, settings: SelectorTraining, out: AnyPath
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Train from a network's weights, or from the checkpoint in ``out``; return the new weights and a row a step.

    A process that dies and cannot be spared, as a learner, costs the steps since the last checkpoint.

    Raises:
        StageError: that happened more often than ``selector.max_failures``.
    """
    failures = 0
    while True:
        algorithm = build_algorithm(network, files, settings)
        try:
            history = _learn(algorithm, settings, out)
            return _policy(algorithm), history
        except RayActorError as error:
            if failures == settings.selector.max_failures:
                raise StageError(
                    f"train-selector gave up after {failures} restarts: {_first_line(error)} The same command goes on "
                    "from the last checkpoint; selector.max_failures allows more restarts"
                ) from error
            failures += 1
            logger.warning("train-selector: back to the last checkpoint: %s", _first_line(error))
        finally:
            algorithm.stop()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def env_files(store: ClipStore, pairs: AnyPath, settings: SelectorTraining, out: AnyPath) -> EnvFiles:
    """Return what the environment is built from, once ``out`` holds the warm start and the vectors."""
    return EnvFiles(
        store=str(store.root.absolute()),
        pairs=str(pairs.absolute()),
        vectors=str((out / "vectors.safetensors").absolute()),
        warm_start=str((out / "warm" / "model.safetensors").absolute()),
        network=settings.classifier.network,
        composite=settings.composite,
        crop=settings.classifier.crop,
        settings=settings.env,
        seed=settings.seed,
    )


def build_algorithm(network: SelectorNetwork, files: EnvFiles, settings: SelectorTraining) -> Algorithm:
    """Build the algorithm that the settings name, with the network's weights as its start."""
    module = {
        "feature_size": network.feature_size,
        "label_size": network.label_size,
        "hidden": network.hidden,
        "initial": network.state_dict(),
    }
    return build_config(settings.selector, files, module, settings.seed).build_algo()


def _warm_pairs(pairs: AnyPath, settings: SelectorTraining, out: AnyPath) -> str | None:
    """Write the random pairs that the warm start is trained with; None if it sees real clips alone."""
    if settings.selector.warm_start == "real":
        return None
    foreground, background = read_candidates(pairs, settings.env.candidates, settings.seed)
    path = out / "warm_pairs.parquet"
    write_bytes(path, pd.DataFrame({"foreground": foreground, "background": background}).to_parquet(index=False))
    return str(path)


def _vectors(store: ClipStore, settings: SelectorTraining, out: AnyPath) -> ClipVectors:
    """Compute what the Selector knows of each clip, or read it if that is done."""
    path = out / "vectors.safetensors"
    if not path.is_file():
        network = load_network(out / "warm" / "model.safetensors", settings.classifier.network, len(store.classes))
        rows = store.index[store.index["split"] != "test"]
        labels_LD = label_vectors(store.classes, settings.selector.labels, settings.embedding)
        crop, agreement = settings.classifier.crop, settings.selector.agreement
        describe_clips(store, rows, network, crop, labels_LD, agreement=agreement).save(path)
    return ClipVectors.load(path)


def _initial(store: ClipStore, vectors: ClipVectors, settings: SelectorTraining) -> SelectorNetwork:
    """Return the untrained Selector; the spread of its features is that of the training clips."""
    torch.manual_seed(settings.seed)
    feature_size, label_size = vectors.features_NF.shape[1], vectors.labels_NL.shape[1]
    network = SelectorNetwork(feature_size, label_size, settings.selector.hidden)
    blocks = (feature_size - 1, 1) if settings.selector.agreement else None
    network.standardise(vectors.features_NF[vectors.rows(store.rows("train")["id"].tolist())], blocks)
    return network


def _learn(algorithm: Algorithm, settings: SelectorTraining, out: AnyPath) -> pd.DataFrame:
    """Run the iterations that are still to do; return a row for every step since the first."""
    selector = settings.selector
    rows = _restore(algorithm, out / CHECKPOINT)
    lost_before = int(rows[-1]["env_runners_lost"]) if rows else 0
    iteration = int(rows[-1]["iteration"]) + 1 if rows else 0
    total = selector.steps * max(1, selector.env_runners)
    tracker = Tracker(out / "tensorboard", settings.tracking, settings.name, asdict(settings), len(rows))
    with closing(tracker), Bar(total=total, initial=len(rows), desc="train-selector", unit="step") as bar:
        # Steps are counted, not iterations: those that died with their runner are made up for.
        since = time.monotonic()
        while len(rows) < total:
            new = _iterate(algorithm, settings, iteration, first_step=len(rows))
            new = [row | {"env_runners_lost": lost_before + _lost_runners(algorithm)} for row in new]
            if not new:  # all runners have died; RLlib is starting others
                _wait_for_runners(since, len(rows))
                continue
            since = time.monotonic()
            rows += new
            bar.update(len(new))
            told = progress(new)
            bar.set_postfix({name: f"{value:.3g}" for name, value in told.items()})
            count("l2a_selector_steps", len(new))
            for name, value in told.items():
                show(f"l2a_selector_{name}", value)
            tracker.log(len(rows), {f"selector/{name}": value for name, value in told.items()})
            if (iteration + 1) % selector.checkpoint_every == 0 and len(rows) < total:
                _save(algorithm, rows, out / CHECKPOINT)
            iteration += 1
    return pd.DataFrame(rows)


def _lost_runners(algorithm: Algorithm) -> int:
    """Return how many env runners have died: RLlib counts one only when another has taken its place."""
    group = algorithm.env_runner_group
    assert group is not None
    missing = group.num_remote_env_runners() - group.num_healthy_remote_env_runners()
    return int(group.num_remote_worker_restarts() + missing)


def _wait_for_runners(since: float, step: int) -> None:
    if time.monotonic() - since > PATIENCE:
        raise StageError(
            f"no env runner has brought a step for {PATIENCE} s after step {step}. The same command goes on from the "
            "last checkpoint; see Ray's logs for the cause, most often memory (env.validation_clips, env.candidates)"
        )
    time.sleep(1)


def progress(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Boil an iteration's steps down to what is shown while it goes on: means, and the share of pairs selected."""
    table = pd.DataFrame(rows)
    told = {name: float(table[name].mean()) for name in ("reward", "baseline", "val_loss", "mean_omega")}
    return told | {"share_selected": float(table["num_selected"].sum() / table["num_pairs"].sum())}


def _iterate(algorithm: Algorithm, settings: SelectorTraining, iteration: int, first_step: int) -> list[dict[str, Any]]:
    try:
        steps = sample_and_learn(algorithm, settings.seed, iteration)
    except RayActorError:
        raise  # the weights have died with the learner
    except Exception:
        _refuse_nan(algorithm, settings, first_step)
        raise
    _refuse_nan(algorithm, settings, first_step)
    return [{"step": first_step + i, "iteration": iteration, **row} for i, row in enumerate(steps)]


def sample_and_learn(algorithm: Algorithm, seed: int, iteration: int) -> list[dict[str, float]]:
    """Run one iteration of any of the algorithms; return what each step did (``step_rows``), none if all runners died.

    Its randomness depends on seed and iteration alone.
    """
    assert algorithm.env_runner_group is not None
    algorithm.env_runner_group.foreach_env_runner(
        partial(SelectionRunner.begin_iteration, seed=seed, iteration=iteration),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )
    steps: list[dict[str, float]] = algorithm.train()[ENV_RUNNER_RESULTS].get(STEPS, [])
    return steps


def _refuse_nan(algorithm: Algorithm, settings: SelectorTraining, step: int) -> None:
    """Stop a training that has diverged; the checkpoints before stay."""
    # Of the squares, for products of weights overflow before the weights do.
    if all(value.square().sum().isfinite() for value in _policy(algorithm).values()):
        return
    reason = (
        f"the Selector's weights became infinite or NaN between the steps {step} and "
        f"{step + settings.selector.steps_per_iteration}: lower it. The last checkpoint is kept"
    )
    raise SettingError("selector.learning_rate", settings.selector.learning_rate, reason)


def _save(algorithm: Algorithm, rows: list[dict[str, Any]], checkpoint: AnyPath) -> None:
    """Write a checkpoint in place of the one before, as one file: folders cannot be replaced in one step."""
    content = io.BytesIO()
    with TemporaryDirectory() as folder:
        algorithm.save_to_path(f"{folder}/algorithm")
        pd.DataFrame(rows).to_parquet(f"{folder}/history.parquet", index=False)
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(folder, arcname=".")
    write_bytes(checkpoint, content.getvalue())


def _restore(algorithm: Algorithm, checkpoint: AnyPath) -> list[dict[str, Any]]:
    """Load the checkpoint, if there is one; return the steps up to it."""
    if not checkpoint.is_file():
        return []
    content = io.BytesIO(read_bytes(checkpoint))
    with TemporaryDirectory() as folder:
        with tarfile.open(fileobj=content) as archive:
            archive.extractall(folder, filter="data")
        algorithm.restore_from_path(f"{folder}/algorithm")
        history = pd.read_parquet(f"{folder}/history.parquet")
    return [dict(zip(history.columns, row, strict=True)) for row in history.itertuples(index=False)]


def _policy(algorithm: Algorithm) -> dict[str, torch.Tensor]:
    """Return the learner's weights: with asynchronous algorithms the driver's own copy is stale."""
    assert algorithm.learner_group is not None
    state = algorithm.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]["default_policy"]
    return {
        name.removeprefix("policy."): torch.as_tensor(value)
        for name, value in state.items()
        if name.startswith("policy.")
    }


def _bundle(network: SelectorNetwork, store: ClipStore, settings: SelectorTraining, out: AnyPath) -> Selector:
    return Selector(
        network=network,
        agreement=settings.selector.agreement,
        encoding=settings.selector.labels,
        embedding=settings.embedding,
        classes=store.classes if settings.selector.labels == "one_hot" else None,
        backbone=safetensors.torch.load(read_bytes(out / "warm" / "model.safetensors")),
        backbone_settings=settings.classifier.network,
        backbone_classes=len(store.classes),
        crop=settings.classifier.crop,
    )
