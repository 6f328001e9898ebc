"""Train the Selector by reinforcement learning, from the clips' vectors, a warm classifier and candidate pairs."""

import logging
import time
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from ray.exceptions import RayActorError
from ray.rllib.algorithms import Algorithm
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from envs.held_out import OBJECTIVE, Signal
from envs.pair_selection import EnvFiles, PairSelectionEnv, parts_of
from l2a_ray.errors import SettingError, StageError
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.telemetry import count, show
from l2a_ray.runtime.tracking import Tracker, TrackingSettings
from l2a_ray.selector.file import Selector, save_selector
from l2a_ray.selector.learned import LEARNED, judge
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.checkpoint import CHECKPOINT, Kept, Row, restore_checkpoint, save_checkpoint
from l2a_ray.selector.rl.registry import build_config
from l2a_ray.selector.rl.runner import STEPS, SelectionRunner, raise_failure
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, write_bytes, write_json

logger = logging.getLogger(__name__)
SIGNAL_STATES = 20
"""States that the reward's signal is measured on (ours): its interval is of D_val's source videos, which are far fewer
than the pairs of so many states."""


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

    Writes ``history.parquet`` (a row a step), ``selector.safetensors``, ``selector.json`` and ``learned.json`` (whether
    there was anything to learn and whether it was learned, where that is known) to ``out``. Started again, it goes on
    where it stopped.

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
    files = holding_out(files, store)
    trained = learn(network, files, settings, out, seed=seed, tracking=tracking, name=name)
    network.load_state_dict(trained.weights)
    if trained.judgement:
        write_json(out / LEARNED, trained.judgement)
    write_bytes(out / "history.parquet", trained.history.to_parquet(index=False))
    save_selector(out, _bundle(network, files, store, settings, trained.judgement.get("kept_step")))
    (out / CHECKPOINT).unlink(missing_ok=True)


def holding_out(files: EnvFiles, store: ClipStore) -> EnvFiles:
    """Say what is held out of D_val; return the same files, asking for none where none can be."""
    if not files.settings.held_out:
        return files
    index = store.columns("id", "class_name", "group")
    parts = [index[index["id"].isin(part)] for part in parts_of(files, store)]
    kept, held_out = (f"{len(part)} clips of {part['group'].nunique()} source videos" for part in parts)
    if parts[1].empty:
        logger.warning(
            "train-selector: no part of D_val is held out: its %s are too few to leave a class some of each. The last "
            "weights are kept, and whether they learned anything is not known",
            kept,
        )
        return replace(files, settings=replace(files.settings, held_out=0.0))
    classes = " and ".join(str(part["class_name"].nunique()) for part in parts)
    logger.info("train-selector: D_val rewards by %s and holds out %s, of %s classes", kept, held_out, classes)
    return files


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training came to.

    Args:
        weights: that are kept.
        history: a row a step.
        judgement: whether it learned, and whether there was anything to learn, as ``l2a_ray.selector.learned`` has it;
            empty where neither is known.
    """

    weights: dict[str, torch.Tensor]
    history: pd.DataFrame
    judgement: dict[str, Any]


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
) -> Trained:
    """Train from a network's weights, or from the checkpoint in ``out``.

    Where part of D_val is held out, the weights of the iteration with the best held-out objective are kept, the first
    one's, which are untrained, included; else the last.

    A process that dies and cannot be spared, as a learner, costs the steps since the last checkpoint.

    Raises:
        StageError: that happened more often than ``selector.max_failures``.
    """
    failures = 0
    while True:
        algorithm = build_algorithm(network, files, settings, seed)
        try:
            rows, kept = restore_checkpoint(algorithm, out / CHECKPOINT)
            if not rows and files.settings.tune == "head":
                kept.signal = measure_signal(algorithm, settings, seed)
            about = {"selector": asdict(settings), "env": asdict(files.settings), "seed": seed}
            tracker = Tracker(out / "tensorboard", tracking or TrackingSettings(), name, about, len(rows))
            with closing(tracker):
                history = run_iterations(algorithm, settings, seed, rows, out, tracker, kept)
            found = {} if kept.signal is None else {"signal": asdict(kept.signal)}
            if not kept.objective:
                return Trained(policy_weights(algorithm), history, found)
            found |= judge(history, np.stack(kept.objective), kept.iteration)
            return Trained(kept.weights, history.assign(kept=history["step"] == found["kept_step"]), found)
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


def measure_signal(algorithm: Algorithm, settings: SelectorSettings, seed: int) -> Signal | None:
    """Ask an environment whether the reward means anything; nothing is learned.

    Raises:
        L2AError: what the environment has ended with.
    """
    assert algorithm.env_runner_group is not None
    found = algorithm.env_runner_group.foreach_env_runner(
        partial(SelectionRunner.signal, seed=seed, states=min(SIGNAL_STATES, settings.steps_per_iteration)),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )
    raise_failure(algorithm)
    return next(iter(found), None)


def run_iterations(
    algorithm: Algorithm,
    settings: SelectorSettings,
    seed: int,
    rows: list[Row],
    out: AnyPath,
    tracker: Tracker,
    kept: Kept,
) -> pd.DataFrame:
    """Run the iterations that are still to do after these steps; return a row for every step since the first.

    What is to be kept of them goes into ``kept``, where part of D_val is held out.
    """
    lost_before = int(rows[-1]["env_runners_lost"]) if rows else 0
    iteration = int(rows[-1]["iteration"]) + 1 if rows else 0
    total = settings.steps * max(1, settings.env_runners)
    with Bar(total=total, initial=len(rows), desc="train-selector", unit="step") as bar:
        # Steps are counted, not iterations: those that died with their runner are made up for.
        since = time.monotonic()
        while len(rows) < total:
            began_with = policy_weights(algorithm)
            new = _iterate(algorithm, settings, seed, iteration, first_step=len(rows))
            objective = [row.pop(OBJECTIVE) for row in new if OBJECTIVE in row]
            new = [row | {"env_runners_lost": lost_before + _lost_runners(algorithm)} for row in new]
            if not new:  # all runners have died; RLlib is starting others
                _wait_for_runners(since, len(rows), settings.patience)
                continue
            since = time.monotonic()
            if objective:
                kept.see(began_with, objective)
            rows += new
            bar.update(len(new))
            bar.set_postfix({name: f"{value:.3g}" for name, value in progress(new).items()})
            _tell(tracker, len(rows), new)
            if (iteration + 1) % settings.checkpoint_every == 0 and len(rows) < total:
                save_checkpoint(algorithm, rows, out / CHECKPOINT, kept)
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
    """Boil an iteration's steps down to what is shown while it goes on: means, and the share of pairs selected.

    Where part of D_val is held out, also what the scores do to its loss: that after a step on pairs weighted by them
    less that on all alike.
    """
    table = pd.DataFrame(rows)
    means = {name: float(table[name].mean()) for name in ("reward", "baseline", "val_loss", "mean_omega")}
    if "held_out_weighted" in table:
        means["held_out_difference"] = float((table["held_out_weighted"] - table["held_out_all"]).mean())
    elif "held_out_loss" in table:
        means["held_out_loss"] = float(table["held_out_loss"].mean())
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
    """Return a copy of the weights as the learner has them: with asynchronous algorithms the driver's are stale."""
    assert algorithm.learner_group is not None
    state = algorithm.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]["default_policy"]
    return {
        name.removeprefix("policy."): torch.as_tensor(value).clone()
        for name, value in state.items()
        if name.startswith("policy.")
    }


def _bundle(
    network: SelectorNetwork, files: EnvFiles, store: ClipStore, settings: SelectorSettings, kept_step: int | None
) -> Selector:
    return Selector(
        kept_step=kept_step,
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
