"""Training classifiers under Ray Train (V2): the arms and seeds of an experiment, one after the other, in one `fit`.

A `fit` takes 14 to 50 s to start, so there is one for all runs; with ``workers=0`` it runs in this process at once.
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

from l2a_ray.classifier.network import check_input
from l2a_ray.classifier.settings import ClassifierSettings as ClassifierSettings
from l2a_ray.classifier.worker import MODEL, Job, make_plan, train_all
from l2a_ray.classifier.worker import TrainingRun as TrainingRun
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.errors import L2AError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.session import raise_cause
from l2a_ray.storage.files import AnyPath, as_path, remove_folder


def train_classifiers(
    runs: Sequence[TrainingRun],
    store: AnyPath,
    settings: ClassifierSettings,
    composite: CompositeSettings,
    out: AnyPath,
) -> None:
    """Train classifiers; each leaves ``out/<name>/model.safetensors`` and ``history.parquet`` (a row an epoch).

    Runs that have their model are skipped; a run that was interrupted goes on from its last checkpoint.

    Args:
        runs: the arms and seeds of an experiment.
        store: folder of the clip store; its ``train`` split is learned.
        settings: the same for all runs.
        composite: how pairs are labelled.
        out: parent of the runs' folders.

    Raises:
        SettingError: the network does not fit the clips, or the loss is no longer finite.
        LeakError: a pair uses a clip outside the training split.
        L2AError: workers died more often than ``max_failures``.
    """
    waiting = tuple(_absolute(run) for run in runs if not (out / run.name / MODEL).is_file())
    if not waiting:
        return
    clips = ClipStore(store)
    steps = _check(waiting, clips, settings, composite)
    with _progress(steps * len(waiting)) as progress:
        settings = dataclasses.replace(settings, network=settings.network.with_absolute_paths())
        failure = _fit(Job(waiting, str(store.absolute()), settings, composite, out.absolute(), progress))
    if failure is not None:
        raise failure


def _absolute(run: TrainingRun) -> TrainingRun:
    """Ray Train's workers have another working directory."""
    return run if run.pairs is None else dataclasses.replace(run, pairs=str(as_path(run.pairs).absolute()))


def _fit(job: Job) -> L2AError | None:
    """Run Ray Train; return what went wrong."""
    settings, scratch = job.settings, job.out / ".train"
    resources = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    trainer = ray.train.torch.TorchTrainer(
        cast(Callable[[], None], functools.partial(train_all, job)),  # the stubs know no returned value
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            # A worker that reserves nothing is refused: one byte of memory is next to nothing.
            resources_per_worker={name: amount for name, amount in resources.items() if amount} or {"memory": 1},
        ),
        run_config=ray.train.RunConfig(
            **_storage(scratch),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # stubs are of V1
        ),
    )
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        return _failure(error, settings)
    finally:
        remove_folder(scratch)
    return cast(L2AError | None, result.return_value)


def _storage(folder: AnyPath) -> dict[str, Any]:
    """Name a folder as Ray Train wants it: a path, and what it is a path of."""
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


@contextmanager
def _progress(total_steps: int) -> Iterator[Queue]:
    """Show a progress bar; it follows what is put into the queue: the run's name, steps done in all runs, the loss."""
    # On the command's own node: with any other node the run would die.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def follow() -> None:
        for name, done, loss in iter(queue.get, None):
            bar.set_description(f"train {name}", refresh=False)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.n = done
            bar.refresh()

    with Bar(desc="train", total=total_steps, unit="step") as bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield queue
        finally:
            queue.put(None)
            thread.join()
            queue.shutdown()


def _check(
    runs: Sequence[TrainingRun], store: ClipStore, settings: ClassifierSettings, composite: CompositeSettings
) -> int:
    """Refuse before Ray Train starts what would fail after; return the number of steps of each run."""
    plans = [make_plan(run, store, settings) for run in runs]
    first = Sample(str(store.rows("train")["id"].iloc[0]))
    frames_THWC, _ = SampleLoader(store, composite, settings.crop)(first, None)
    network = build_network(settings.network, len(store.classes))
    check_input(network, settings.network.name, len(frames_THWC), settings.crop)
    return plans[0].steps_per_epoch * settings.epochs


def _failure(error: ray.train.TrainingFailedError, settings: ClassifierSettings) -> L2AError:
    """Return the error of ours behind Ray Train's, or one that says what happened."""
    for cause in getattr(error, "worker_failures", {}).values():
        try:
            raise_cause(cause)
        except L2AError as ours:
            return ours
        except Exception:  # not one of ours: the next worker's may be
            continue
    return L2AError(
        f"training gave up after {settings.max_failures} restarts: {error}\nThe same command goes on from the last "
        "checkpoint; classifier.max_failures allows more restarts"
    )
