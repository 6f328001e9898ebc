"""Training classifiers under Ray Train (V2): the arms and seeds of an experiment, one after the other, in one `fit`.

A `fit` takes half a minute to start, so there is one for all runs; without workers it runs in this process at once.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import ray.train
import ray.train.torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from l2a_ray.classifier.data import read_data
from l2a_ray.classifier.network import check_input
from l2a_ray.classifier.settings import ClassifierSettings, NetworkSettings, WorkerSettings, check_workers
from l2a_ray.classifier.worker import Job, train_all
from l2a_ray.classifier.worker import TrainingRun as TrainingRun
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.settings import FrameSampling
from l2a_ray.errors import L2AError, owned_by
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.session import raise_cause
from l2a_ray.storage.files import AnyPath, as_path, remove_folder


def train_classifiers(runs: Sequence[TrainingRun], workers: WorkerSettings, scratch: AnyPath) -> None:
    """Train classifiers; each leaves ``model.safetensors`` and ``history.parquet`` (a row an epoch) in its folder.

    Runs that have their model are skipped; a run that was interrupted goes on from its last checkpoint.

    Args:
        runs: the arms and seeds of an experiment; each has its own settings.
        workers: the machines, the same for all runs.
        scratch: a folder for Ray Train, that all workers see; it is removed at the end.

    Raises:
        SettingError: of :class:`ClassifierSettings`: the network does not fit the clips, the workers cannot share a
            batch, or the loss is no longer finite.
        LeakError: a pair uses a clip that may not be paired.
        L2AError: workers died more often than ``max_failures``.
    """
    waiting = tuple(_absolute(run) for run in runs if not run.done)
    if not waiting:
        return
    _check(waiting, workers)
    with _progress() as progress:
        failure = _fit(
            Job(
                runs=waiting,
                workers=workers,
                scratch=scratch.absolute(),
                progress=progress,
            )
        )
    if failure is not None:
        raise failure


def _absolute(run: TrainingRun) -> TrainingRun:
    """Ray Train's workers have another working directory."""
    return dataclasses.replace(
        run,
        store=run.store.absolute(),
        folder=run.folder.absolute(),
        pairs=_whole(run.pairs),
        teacher=_whole(run.teacher),
        settings=dataclasses.replace(run.settings, network=run.settings.network.with_absolute_paths()),
    )


def _whole(path: str | None) -> str | None:
    return None if path is None else str(as_path(path).absolute())


def _fit(job: Job) -> L2AError | None:
    """Run Ray Train; return what went wrong."""
    workers = job.workers
    resources = {"CPU": workers.cpus, "GPU": workers.gpus}
    trainer = ray.train.torch.TorchTrainer(
        cast(Callable[[], None], functools.partial(train_all, job)),  # the stubs know no returned value
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            # A worker that reserves nothing is refused: one byte of memory is next to nothing.
            resources_per_worker={name: amount for name, amount in resources.items() if amount} or {"memory": 1},
        ),
        # One worker has nobody to talk to, by whatever way.
        torch_config=ray.train.torch.TorchConfig(backend="gloo" if workers.count < 2 else None),
        run_config=ray.train.RunConfig(
            **_storage(job.scratch),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # stubs are of V1
        ),
    )
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        return _failure(error, workers)
    finally:
        remove_folder(job.scratch)
    return cast(L2AError | None, result.return_value)


def _storage(folder: AnyPath) -> dict[str, Any]:
    """Name a folder as Ray Train wants it: a path, and what it is a path of."""
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


@contextmanager
def _progress() -> Iterator[Queue]:
    """Show a progress bar; the queue takes what it shows: a run's title, its steps done and in all, figures."""
    # On the command's own node: with any other node the run would die.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def follow() -> None:
        for title, done, total, figures in iter(queue.get, None):
            bar.set_description(f"train {title}", refresh=False)
            bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()}, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

    with Bar(desc="train", total=0, unit="step") as bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield queue
        finally:
            queue.put(None)
            thread.join()
            queue.shutdown()


def _check(runs: Sequence[TrainingRun], workers: WorkerSettings) -> None:
    """Refuse before Ray Train starts what would fail after; one run's pairs are in memory at a time."""
    fits: set[tuple[NetworkSettings, int, FrameSampling, tuple[str, ...]]] = set()
    for run in runs:
        settings, store = run.settings, ClipStore(run.store)
        check_workers(settings, workers)
        first = read_data(store, run.pairs, settings, run.teacher).real[0]
        seen = settings.network, settings.crop, settings.frame_sampling, settings.freeze
        if seen not in fits:
            _check_network(store, str(store.columns("id")["id"].iloc[first]), settings)
            fits.add(seen)


def _check_network(store: ClipStore, clip_id: str, settings: ClassifierSettings) -> None:
    loader = SampleLoader(store, CompositeSettings(), settings.crop, sampling=settings.frame_sampling)
    frames, _ = loader(Sample(clip_id), None)
    with owned_by("network"):
        network = build_network(settings.network, len(store.classes))
        check_input(network, settings.network.name, len(frames), settings.crop)
    network.freeze(settings.freeze)


def _failure(error: ray.train.TrainingFailedError, workers: WorkerSettings) -> L2AError:
    """Return the error of ours behind Ray Train's, or one that says what happened."""
    for cause in getattr(error, "worker_failures", {}).values():
        try:
            raise_cause(cause)
        except L2AError as ours:
            return ours
        except Exception:  # not one of ours: the next worker's may be
            continue
    return L2AError(
        f"training gave up after {workers.max_failures} restarts: {error}\nThe same command goes on from the last "
        "checkpoint; max_failures of the workers allows more restarts"
    )
