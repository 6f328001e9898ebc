"""Training one classifier after the other, inside a Ray Train worker.

Checkpoints are ours and not Ray Train's: Ray Train's record of its checkpoints is rewritten in place, so that a kill
can leave half of it, and it knows nothing of a fit with several runs. Rank 0 replaces one file of each run atomically;
who starts again, be it Ray Train after a worker's death or the user after the driver's, goes on from that file. On CPUs
it ends with the same bits as a run that was never stopped; on GPUs with the same samples and, as PyTorch's sums there
have no fixed order, other last bits.
"""

import functools
import io
import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pandas as pd
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from ray.util.queue import Queue
from safetensors import SafetensorError

from l2a_ray.classifier.data import read_data
from l2a_ray.classifier.feed import Source, feed
from l2a_ray.classifier.files import CHECKPOINT, HISTORY, MODEL, STUDENT, TRACKED
from l2a_ray.classifier.frozen import FrozenFeed, KeptFeatures, backbone_is_frozen
from l2a_ray.classifier.methods import METHODS
from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import ClassifierSettings, WorkerSettings
from l2a_ray.classifier.step import (
    cosine_rate,
    descend,
    make_optimizer,
    restore_state,
    set_learning_rate,
    training_state,
)
from l2a_ray.classifier.synchronous import synchronise
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.schedule import Schedule, Stacked
from l2a_ray.errors import L2AError, SettingError, StorageError, owned_by
from l2a_ray.pairs.labels import NONE, Labels
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.session import raise_cause
from l2a_ray.runtime.telemetry import count, show
from l2a_ray.runtime.tracking import Tracker, TrackingSettings
from l2a_ray.storage.files import AnyPath, header_metadata, read_bytes, write_bytes

Feed = Callable[[int, int, int, int], Generator[Stacked, None, None]]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One classifier to train.

    Args:
        name: what progress and messages call it.
        store: folder of the clip store.
        folder: where its results and its checkpoint lie.
        seed: of its first weights, its batches, crops and flips.
        pairs: a parquet file with the pairs to composite (columns foreground, background), or None for real clips only.
        composite: how pairs are composited and labelled.
        settings: what it is and how it is trained.
        teacher: folder of a teacher's probabilities (:mod:`l2a_ray.classifier.teacher`), or None.
    """

    name: str
    store: AnyPath
    folder: AnyPath
    seed: int
    pairs: str | None
    composite: CompositeSettings
    settings: ClassifierSettings
    teacher: str | None = None

    @property
    def done(self) -> bool:
        """Whether its model is there."""
        return (self.folder / MODEL).is_file()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers get; all paths are absolute, for Ray Train changes the working directory.

    Args:
        runs: what is to be trained, in that order.
        workers: the machines.
        scratch: Ray Train's own folder.
        progress: receives a run's title, its steps done and in all, and figures of its last steps by name.
    """

    runs: tuple[TrainingRun, ...]
    workers: WorkerSettings
    scratch: AnyPath
    progress: Queue


def train_all(job: Job) -> L2AError | None:
    """Train all runs in one Ray Train worker; return an error that starting again would not mend."""
    threads = torch.get_num_threads()
    torch.set_num_threads(job.workers.threads)
    kept = KeptFeatures()
    try:
        for number, run in enumerate(job.runs, start=1):
            if not run.done:
                _Training(run, f"{run.name} ({number} of {len(job.runs)})", job, kept).run()
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


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of what a worker's network draws in an epoch, as dropout; each worker has its own."""
    return seed * 1_000_003 + rank * 10_007 + epoch  # the CPU's generator keeps 32 bits


class _Training:
    """One run in one worker: state, checkpoint and the loop over epochs."""

    def __init__(self, run: TrainingRun, title: str, job: Job, kept: KeptFeatures) -> None:
        context, store = ray.train.get_context(), ClipStore(run.store)
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.about, self.settings, self.checkpoint_every = run, run.settings, job.workers.checkpoint_every
        self.title, self.progress, self.reported = title, job.progress, 0.0
        torch.manual_seed(run.seed)
        with owned_by("network"):
            self.network = build_network(self.settings.network, len(store.classes))
        self.network.freeze(self.settings.freeze)
        if self.workers > 1:
            synchronise(self.network, gpu=job.workers.gpus > 0)
        # Ray shows a node's workers all GPUs of the node, and says which is whose; GPUs that are made up say nothing.
        self.device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        if job.workers.gpus and self.device.type == "cpu":
            self.title += " on the CPU, for PyTorch sees no GPU"  # what a worker logs, nobody is shown
        self.network.to(self.device)  # before there is an optimiser
        self.method = METHODS[self.settings.method](self.settings, self.network)
        data = read_data(store, run.pairs, self.settings, run.teacher)
        self.schedule = Schedule(
            data.ids, tuple(self.method.streams(data)), self.settings.batch_size, run.seed, self.settings.looks
        )
        hidden = data.ids[data.unlabelled]
        labels = Labels.given(store.columns("id", "label")).without(hidden)
        self.truth = Labels.true(hidden, data.truth)
        self.source = Source(
            str(run.store),
            run.composite,
            self.settings.crop,
            labels,
            self.schedule,
            self.settings.frame_sampling,
            self.settings.augment,
            run.teacher if self.settings.numbers.distill else None,
        )
        self.feed: Feed = functools.partial(feed, self.source)
        known = self.settings.looks is not None and backbone_is_frozen(self.network)
        if known:
            self.feed = FrozenFeed(self.network, self.settings.network, self.source, kept)
        learner = self.method.learner(self.network, data, known)
        self.optimizer = make_optimizer(self.network, self.settings)
        self.model = ray.train.torch.prepare_model(learner, move_to_device=self.device)  # wraps it for several workers
        self.tally = torch.zeros(4, dtype=torch.int64)  # guesses of an epoch: all, kept, with a known truth, right
        self.epochs = self.settings.passes(self.schedule.steps_per_epoch)
        self.total_steps = self.epochs * self.schedule.steps_per_epoch
        self.history = self._resume()

    def run(self) -> None:
        """Train from the last checkpoint, or from the start, to the end."""
        first = len(self.history) * self.schedule.steps_per_epoch
        with ExitStack() as stack:
            tracker = stack.enter_context(closing(self._tracker())) if self.rank == 0 else None
            batches = stack.enter_context(closing(self.feed(first, self.total_steps, self.rank, self.workers)))
            for epoch in range(len(self.history), self.epochs):
                # Dropout, where a network has it, must not depend on what was drawn before a restart.
                torch.manual_seed(epoch_seed(self.about.seed, epoch, self.rank))
                self.history.append(self._epoch(epoch, batches))
                if tracker is not None:
                    self._track(tracker, self.history[-1])
                if self.rank == 0 and (epoch + 1) % self.checkpoint_every == 0:
                    self._save_checkpoint()
        if self.rank == 0:
            self._finish()

    def _tracker(self) -> Tracker:
        """Begin the curves, with what is known of them: a process that was killed may not have sent it all."""
        tracker = Tracker(self.about.folder / TRACKED, TrackingSettings(), self.about.name, {}, first_step=0)
        for row in self.history:
            self._track(tracker, row)
        return tracker

    @staticmethod
    def _track(tracker: Tracker, row: dict[str, float]) -> None:
        values = {name: value for name, value in row.items() if name not in ("epoch", "step") and math.isfinite(value)}
        tracker.log(int(row["step"]), {f"train/{name}": value for name, value in values.items()})

    def _epoch(self, epoch: int, batches: Generator[Stacked, None, None]) -> dict[str, float]:
        started, waited, losses = time.perf_counter(), 0.0, []
        self.tally.zero_()
        steps = range(epoch * self.schedule.steps_per_epoch, (epoch + 1) * self.schedule.steps_per_epoch)
        for step in steps:
            asked = time.perf_counter()
            stacked = next(batches)
            waited += time.perf_counter() - asked
            losses.append(self._step(step, Batch.of(stacked, self.device)))
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
        } | self._guessed()

    def _step(self, step: int, batch: Batch) -> float:
        """Take one step; return the loss, the mean over all workers."""
        set_learning_rate(self.optimizer, cosine_rate(self.settings.learning_rate, step, self.total_steps))
        clip = self.settings.gradient_clip
        loss = descend(
            self.model, self.optimizer, lambda: self.method.loss(self.model, batch, step, self.total_steps), clip
        )
        self.method.after_step(self.network)
        self._count_guesses(step)
        if self.workers > 1:
            shared = torch.tensor(loss, device=self.device)
            torch.distributed.all_reduce(shared)
            loss = shared.item() / self.workers
        if not math.isfinite(loss):
            reason = f"the loss of {self.about.name} became {loss} at step {step}; lower it or enlarge batch_size"
            raise SettingError("learning_rate", self.settings.learning_rate, reason)
        return loss

    def _count_guesses(self, step: int) -> None:
        """Count what the method took unlabelled clips for. Here alone are their true labels looked up."""
        if (guesses := self.method.guesses()) is None:
            return
        places = [(step, position) for position in self.schedule.part(self.rank, self.workers)]
        shown = [drawn for drawn in self.schedule.at(places) if not drawn.stream.labelled]
        truth = torch.from_numpy(self.truth.of([drawn.sample.foreground for drawn in shown]))
        label, kept = guesses.label.cpu(), guesses.kept.cpu()
        known = kept & (truth != NONE)
        self.tally += torch.stack([torch.tensor(len(kept)), kept.sum(), known.sum(), (known & (label == truth)).sum()])

    def _guessed(self) -> dict[str, float]:
        """Return the share of an epoch's guesses that was kept, over all workers, and how many of those are right."""
        if self.method.guesses() is None:
            return {}
        tally = self.tally.to(self.device)
        if self.workers > 1:
            torch.distributed.all_reduce(tally)
        seen, kept, known, right = tally.tolist()
        return {"kept_share": kept / seen, "kept_precision": right / known if known else math.nan}

    def _tell(self, done: int, loss: float) -> None:
        """Pass on how many steps are done: once a second, and at the end."""
        now = time.monotonic()
        if self.rank == 0 and (now > self.reported + 1 or done == self.total_steps):
            self.reported = now
            seen, kept = self.tally[:2].tolist()
            figures = {"loss": loss} | ({"kept_share": kept / seen} if seen else {})
            self.progress.put((self.title, done, self.total_steps, figures))
            for name, value in figures.items():
                show(f"l2a_train_{name}", value)

    def _save_checkpoint(self) -> None:
        state = training_state(self.network, self.optimizer)
        state |= {f"method.{name}": value for name, value in self.method.state().items()}
        tensors = {name: value.cpu().contiguous() for name, value in state.items()}
        content = safetensors.torch.save(tensors, {"history": json.dumps(self.history)})
        write_bytes(self.about.folder / CHECKPOINT, content)

    def _resume(self) -> list[dict[str, float]]:
        """Go back to the last checkpoint if there is one; return the history so far."""
        path, prefix = self.about.folder / CHECKPOINT, "method."
        if not path.is_file():
            return []
        try:
            content = read_bytes(path)
            state = safetensors.torch.load(content)
            restore_state(self.network, self.optimizer, state)
            self.method.restore({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
            history: list[dict[str, float]] = json.loads(header_metadata(io.BytesIO(content))["history"])
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise StorageError(
                f"{path}: not a checkpoint of this run ({error}). Delete it to train {self.about.name} from the start"
            ) from error
        return history

    def _finish(self) -> None:
        """Write the results, the model last: where it is, all is there."""
        folder = self.about.folder
        table = pd.DataFrame(self.history).astype({"epoch": "int32", "step": "int64"})
        write_bytes(folder / HISTORY, table.to_parquet(index=False))
        if (student := self.method.student(self.network)) is not None:
            save_network(folder / STUDENT, student)
        save_network(folder / MODEL, self.method.predictor(self.network))
        (folder / CHECKPOINT).unlink(missing_ok=True)
