"""Train the Selector by reinforcement learning, from the clips' vectors, a warm classifier and candidate pairs."""

import logging
import time
import warnings
from contextlib import closing
from dataclasses import asdict
from functools import partial

import pandas as pd
import safetensors.torch
import torch
from ray.exceptions import RayActorError
from ray.rllib.algorithms import Algorithm
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from envs.pair_selection import EnvFiles, PairSelectionEnv
from l2a_ray.errors import SettingError, StageError
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.telemetry import count, show
from l2a_ray.runtime.tracking import Tracker, TrackingSettings
from l2a_ray.selector.file import Selector, save_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.checkpoint import CHECKPOINT, Row, restore_checkpoint, save_checkpoint
from l2a_ray.selector.rl.registry import build_config
from l2a_ray.selector.rl.runner import STEPS, SelectionRunner, raise_failure
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, write_bytes

logger = logging.getLogger(__name__)


def train_selector(
    files: EnvFiles,
    settings: SelectorSettings,
    out: AnyPath,
    *,
    seed: int,
    tracking: TrackingSettings | None = None,
    name: str = "train-selector",
) -> None:
    """Train a Selector on the candidate pairs of a store.

    Writes ``history.parquet`` (a row a step), ``selector.safetensors`` and ``selector.json`` to ``out``. Started again,
    it goes on where it stopped.

    Args:
        files: what the environment is built from; the warm start's weights go into the Selector's file.
        settings: the Selector and its training.
        out: folder to write to.
        seed: of its first weights and of all that is drawn.
        tracking: where the progress is reported, besides TensorBoard.
        name: of the run, for them.

    Raises:
        LeakError: a test clip is in D_val or in a pair.
        StageError: learners, or all env runners, died too often.
        StorageError: a clip's file is damaged, or ``out`` cannot be written.
    """
    store = ClipStore(files.store)
    network = initial_network(store, ClipVectors.load(as_path(files.vectors)), settings, seed)
    weights, history = learn(network, files, settings, out, seed=seed, tracking=tracking, name=name)
    network.load_state_dict(weights)
    write_bytes(out / "history.parquet", history.to_parquet(index=False))
    save_selector(out, _bundle(network, files, store, settings))
    (out / CHECKPOINT).unlink(missing_ok=True)


def initial_network(store: ClipStore, vectors: ClipVectors, settings: SelectorSettings, seed: int) -> SelectorNetwork:
    """Return the untrained Selector; the spread of its features is that of the training clips."""
    torch.manual_seed(seed)
    feature_size, label_size = vectors.features_NF.shape[1], vectors.labels_NL.shape[1]
    network = SelectorNetwork(feature_size, label_size, settings.hidden)
    blocks = (feature_size - 1, 1) if settings.agreement else None
    network.standardise(vectors.features_NF[vectors.rows(store.rows("train")["id"].tolist())], blocks)
    return network


def learn(
    network: SelectorNetwork,
    files: EnvFiles,
    settings: SelectorSettings,
    out: AnyPath,
    *,
    seed: int,
    tracking: TrackingSettings | None = None,
    name: str = "train-selector",
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Train from a network's weights, or from the checkpoint in ``out``; return the new weights and a row a step.

    A process that dies and cannot be spared, as a learner, costs the steps since the last checkpoint.

    Raises:
        StageError: that happened more often than ``selector.max_failures``.
    """
    failures = 0
    while True:
        algorithm = build_algorithm(network, files, settings, seed)
        try:
            rows = restore_checkpoint(algorithm, out / CHECKPOINT)
            about = {"selector": asdict(settings), "env": asdict(files.settings), "seed": seed}
            tracker = Tracker(out / "tensorboard", tracking or TrackingSettings(), name, about, len(rows))
            with closing(tracker):
                history = run_iterations(algorithm, settings, seed, rows, out, tracker)
            return policy_weights(algorithm), history
        except RayActorError as error:
            if failures == settings.max_failures:
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


def build_algorithm(network: SelectorNetwork, files: EnvFiles, settings: SelectorSettings, seed: int) -> Algorithm:
    """Build the algorithm that the settings name, with the network's weights as its start.

    Raises:
        L2AError: the environment cannot be built.
    """
    module = {
        "feature_size": network.feature_size,
        "label_size": network.label_size,
        "hidden": network.hidden,
        "initial": network.state_dict(),
    }
    try:
        with warnings.catch_warnings():  # RLlib registers its environment anew for the Selector of each repetition
            warnings.filterwarnings("ignore", ".*Overriding environment")
            return build_config(settings, files, module, seed).build_algo()
    except Exception:
        # Of an environment that cannot be built in another process RLlib says next to nothing: here it says why.
        PairSelectionEnv.from_files({"files": files})
        raise


def run_iterations(
    algorithm: Algorithm, settings: SelectorSettings, seed: int, rows: list[Row], out: AnyPath, tracker: Tracker
) -> pd.DataFrame:
    """Run the iterations that are still to do after these steps; return a row for every step since the first."""
    lost_before = int(rows[-1]["env_runners_lost"]) if rows else 0
    iteration = int(rows[-1]["iteration"]) + 1 if rows else 0
    total = settings.steps * max(1, settings.env_runners)
    with Bar(total=total, initial=len(rows), desc="train-selector", unit="step") as bar:
        # Steps are counted, not iterations: those that died with their runner are made up for.
        since = time.monotonic()
        while len(rows) < total:
            new = _iterate(algorithm, settings, seed, iteration, first_step=len(rows))
            new = [row | {"env_runners_lost": lost_before + _lost_runners(algorithm)} for row in new]
            if not new:  # all runners have died; RLlib is starting others
                _wait_for_runners(since, len(rows), settings.patience)
                continue
            since = time.monotonic()
            rows += new
            bar.update(len(new))
            bar.set_postfix({name: f"{value:.3g}" for name, value in progress(new).items()})
            _tell(tracker, len(rows), new)
            if (iteration + 1) % settings.checkpoint_every == 0 and len(rows) < total:
                save_checkpoint(algorithm, rows, out / CHECKPOINT)
            iteration += 1
    return pd.DataFrame(rows)


def _tell(tracker: Tracker, step: int, new: list[Row]) -> None:
    """Tell all who watch of an iteration's steps."""
    values = progress(new)
    count("l2a_selector_steps", len(new))
    for name, value in values.items():
        show(f"l2a_selector_{name}", value)
    tracker.log(step, {f"selector/{name}": value for name, value in values.items()})


def _lost_runners(algorithm: Algorithm) -> int:
    """Return how many env runners have died: RLlib counts one only when another has taken its place."""
    group = algorithm.env_runner_group
    assert group is not None
    missing = group.num_remote_env_runners() - group.num_healthy_remote_env_runners()
    return int(group.num_remote_worker_restarts() + missing)


def _wait_for_runners(since: float, step: int, patience: float) -> None:
    if time.monotonic() - since > patience:
        raise StageError(
            f"no env runner has brought a step for {patience:g} s after step {step}. The same command goes on from the "
            "last checkpoint; see Ray's logs for the cause, most often memory (env.validation_clips, env.candidates)"
        )
    time.sleep(1)


def progress(rows: list[Row]) -> dict[str, float]:
    """Boil an iteration's steps down to what is shown while it goes on: means, and the share of pairs selected."""
    table = pd.DataFrame(rows)
    means = {name: float(table[name].mean()) for name in ("reward", "baseline", "val_loss", "mean_omega")}
    return means | {"share_selected": float(table["num_selected"].sum() / table["num_pairs"].sum())}


def _iterate(algorithm: Algorithm, settings: SelectorSettings, seed: int, iteration: int, first_step: int) -> list[Row]:
    try:
        steps = sample_and_learn(algorithm, seed, iteration)
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

    Raises:
        L2AError: what an environment has ended with.
    """
    assert algorithm.env_runner_group is not None
    algorithm.env_runner_group.foreach_env_runner(
        partial(SelectionRunner.begin_iteration, seed=seed, iteration=iteration),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )
    try:
        steps: list[dict[str, float]] = algorithm.train()[ENV_RUNNER_RESULTS].get(STEPS, [])
    finally:
        raise_failure(algorithm)  # rather than what it led to: a learner without episodes, say
    return steps


def _refuse_nan(algorithm: Algorithm, settings: SelectorSettings, step: int) -> None:
    """Stop a training that has diverged; the checkpoints before stay."""
    # Of the squares, for products of weights overflow before the weights do.
    if all(value.square().sum().isfinite() for value in policy_weights(algorithm).values()):
        return
    reason = (
        f"the Selector's weights became infinite or NaN between the steps {step} and "
        f"{step + settings.steps_per_iteration}: lower it. The last checkpoint is kept"
    )
    raise SettingError("learning_rate", settings.learning_rate, reason)


def policy_weights(algorithm: Algorithm) -> dict[str, torch.Tensor]:
    """Return the Selector's weights as the learner has them: with asynchronous algorithms the driver's are stale."""
    assert algorithm.learner_group is not None
    state = algorithm.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]["default_policy"]
    return {
        name.removeprefix("policy."): torch.as_tensor(value)
        for name, value in state.items()
        if name.startswith("policy.")
    }


def _bundle(network: SelectorNetwork, files: EnvFiles, store: ClipStore, settings: SelectorSettings) -> Selector:
    return Selector(
        network=network,
        agreement=settings.agreement,
        encoding=settings.labels,
        embedding=settings.embedding,
        classes=store.classes if settings.labels == "one_hot" else None,
        backbone=safetensors.torch.load(read_bytes(as_path(files.warm_start))),
        backbone_settings=files.network,
        backbone_classes=len(store.classes),
        crop=files.crop,
        sampling=files.sampling,
    )
