"""Training one classifier after the other, inside a Ray Train worker.

Checkpoints are ours and not Ray Train's: Ray Train's record of its checkpoints is rewritten in place, so that a kill
can leave half of it, and it knows nothing of a fit with several runs. Rank 0 replaces one file of each run atomically;
who starts again, be it Ray Train after a worker's death or the user after the driver's, goes on from that file and ends
with the same bits as a run that was never stopped.
"""

import io
import json
import math
import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from numpy.typing import NDArray
from ray.util.queue import Queue
from safetensors import SafetensorError
from torch import Tensor

from l2a_ray.classifier.feed import Source, feed
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.classifier.step import (
    cosine_rate,
    make_optimizer,
    restore_state,
    set_learning_rate,
    train_step,
    training_state,
)
from l2a_ray.classifier.synchronous import synchronise
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.schedule import BatchPlan
from l2a_ray.errors import L2AError, LeakError, SettingError, StageError, StorageError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.session import raise_cause
from l2a_ray.runtime.telemetry import count, show
from l2a_ray.storage.files import AnyPath, as_path, header_metadata, read_bytes, read_table, write_bytes

MODEL, HISTORY, CHECKPOINT = "model.safetensors", "history.parquet", "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainingRun:
    """One classifier to train.

    Args:
        name: its folder's name.
        seed: of its first weights, its batches, crops and flips.
        pairs: a parquet file with the pairs to composite (columns foreground, background), or None for real clips only.
    """

    name: str
    seed: int
    pairs: str | None


@dataclass(frozen=True)
class Job:
    """What the workers are told; all paths are absolute, for Ray Train changes the working directory."""

    runs: tuple[TrainingRun, ...]
    store: str
    settings: ClassifierSettings
    composite: CompositeSettings
    out: AnyPath
    progress: Queue


def make_plan(run: TrainingRun, store: ClipStore, settings: ClassifierSettings) -> BatchPlan:
    """Return which samples each step of a run sees."""
    real = store.rows("train")["id"].to_numpy(dtype=np.str_)
    if not len(real):
        raise StageError(f"{store.root}: no clip of the training split was prepared; its failed.parquet says why")
    pairs = None if run.pairs is None else _read_pairs(as_path(run.pairs), real)
    return BatchPlan(real, pairs, settings.batch_size, settings.composite_share, run.seed)


def _read_pairs(path: AnyPath, train: NDArray[np.str_]) -> NDArray[np.str_]:
    pairs = read_table(path, columns=["foreground", "background"]).to_numpy(dtype=np.str_)
    if not len(pairs):
        raise StageError(f"{path}: no pairs in it. Run `l2a match` and `l2a select` again")
    strangers = np.setdiff1d(pairs, train)
    if len(strangers):
        raise LeakError(
            f"{path}: {len(strangers)} clips of its pairs, {strangers[0]} say, are not in the training split. "
            "Run `l2a match` and `l2a select` again on this clip store"
        )
    return pairs


def train_all(job: Job) -> L2AError | None:
    """Train all runs in one Ray Train worker; return an error that starting again would not mend."""
    threads = torch.get_num_threads()
    torch.set_num_threads(job.settings.threads)
    store = ClipStore(job.store)
    try:
        for position, run in enumerate(job.runs):
            if not (job.out / run.name / MODEL).is_file():
                _Training(position, job, store).run()
    except Exception as error:
        try:
            raise_cause(error)
        except L2AError as cause:
            if ray.train.get_context().get_world_size() > 1:
                raise  # the other workers would wait for this one for ever
            return cause
    finally:
        torch.set_num_threads(threads)  # in local mode this process has other work to do
    return None


class _Training:
    """One run in one worker: state, checkpoint and the loop over epochs."""

    def __init__(self, position: int, job: Job, store: ClipStore) -> None:
        context, run = ray.train.get_context(), job.runs[position]
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.name, self.seed, self.settings, self.folder = run.name, run.seed, job.settings, job.out / run.name
        self.plan = make_plan(run, store, job.settings)
        self.source = Source(job.store, job.composite, job.settings.crop, self.plan)
        self.total_steps = job.settings.epochs * self.plan.steps_per_epoch
        self.progress, self.steps_before, self.told = job.progress, position * self.total_steps, 0.0
        torch.manual_seed(run.seed)
        self.network = build_network(job.settings.network, len(store.classes))
        if self.workers > 1:
            synchronise(self.network, gpu=job.settings.gpus_per_worker > 0)
        # Moves the network to its device, and wraps it for several workers; the optimiser comes after that.
        self.model = ray.train.torch.prepare_model(self.network)
        self.optimizer = make_optimizer(self.network, job.settings)
        self.history = self._resume()

    def run(self) -> None:
        """Train from the last checkpoint, or from the start, to the end."""
        first = len(self.history) * self.plan.steps_per_epoch
        batches = feed(self.source, first, self.total_steps, self.rank, self.workers)
        for epoch in range(len(self.history), self.settings.epochs):
            # Dropout, where a network has it, must not depend on what was drawn before a restart.
            torch.manual_seed(self.seed * 1_000_003 + epoch)
            self.history.append(self._epoch(epoch, batches))
            if self.rank == 0 and (epoch + 1) % self.settings.checkpoint_every == 0:
                self._save_checkpoint()
        batches.close()
        if self.rank == 0:
            self._finish()

    def _epoch(
        self, epoch: int, batches: Generator[tuple[NDArray[np.uint8], NDArray[np.float32]], None, None]
    ) -> dict[str, float]:
        started, waited, losses = time.perf_counter(), 0.0, []
        steps = range(epoch * self.plan.steps_per_epoch, (epoch + 1) * self.plan.steps_per_epoch)
        for step in steps:
            asked = time.perf_counter()
            clips_BTHWC, labels_BL = next(batches)
            waited += time.perf_counter() - asked
            losses.append(self._step(step, torch.tensor(clips_BTHWC), torch.tensor(labels_BL)))
            self._tell(step + 1, losses[-1])
            count("l2a_train_steps", self.rank == 0)
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1,
            "step": steps.stop,
            "loss": sum(losses) / len(losses),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "clips_per_s": len(steps) * self.settings.batch_size / seconds,
            "wait_share": waited / seconds,
        }

    def _step(self, step: int, clips_BTHWC: Tensor, labels_BL: Tensor) -> float:
        """Take one step; return the loss, the mean over all workers."""
        set_learning_rate(self.optimizer, cosine_rate(self.settings.learning_rate, step, self.total_steps))
        loss = train_step(self.model, self.optimizer, clips_BTHWC, labels_BL)
        if self.workers > 1:
            shared = torch.tensor(loss, device=self.network.mean.device)
            torch.distributed.all_reduce(shared)
            loss = shared.item() / self.workers
        if not math.isfinite(loss):
            reason = f"the loss of {self.name} became {loss} at step {step}; lower it or enlarge classifier.batch_size"
            raise SettingError("classifier.learning_rate", self.settings.learning_rate, reason)
        return loss

    def _tell(self, done: int, loss: float) -> None:
        """Pass on how many steps are done: once a second, and at the end."""
        now = time.monotonic()
        if self.rank == 0 and (now > self.told + 1 or done == self.total_steps):
            self.told = now
            self.progress.put((self.name, self.steps_before + done, loss))
            show("l2a_train_loss", loss)

    def _save_checkpoint(self) -> None:
        state = {name: value.cpu().contiguous() for name, value in training_state(self.network, self.optimizer).items()}
        content = safetensors.torch.save(state, {"history": json.dumps(self.history)})
        write_bytes(self.folder / CHECKPOINT, content)

    def _resume(self) -> list[dict[str, float]]:
        """Go back to the last checkpoint if there is one; return the history so far."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return []
        try:
            content = read_bytes(path)
            restore_state(self.network, self.optimizer, safetensors.torch.load(content))
            history: list[dict[str, float]] = json.loads(header_metadata(io.BytesIO(content))["history"])
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise StorageError(
                f"{path}: not a checkpoint of this run ({error}). Delete it to train {self.name} from the start"
            ) from error
        return history

    def _finish(self) -> None:
        """Write the results, the model last: where it is, all is there."""
        table = pd.DataFrame(self.history).astype({"epoch": "int32", "step": "int64"})
        write_bytes(self.folder / HISTORY, table.to_parquet(index=False))
        save_network(self.folder / MODEL, self.network)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
