"""All stages of a run, really made on a sample of its data, and what each of them took."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.config.settings import Settings
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stage import Stage
from l2a_ray.pipeline.stages import Describe, open_store
from l2a_ray.planning.counts import Counts
from l2a_ray.runtime.nodes import resources
from l2a_ray.runtime.session import ray_session
from l2a_ray.runtime.tracking import TrackingSettings
from l2a_ray.storage.files import AnyPath
from l2a_ray.videos.settings import DataSettings

Targets = Callable[[Pipeline], Sequence[Stage]]
"""Says which results of a run are made of a sample, with all that they need."""
Chosen = tuple[Settings, Counts, Targets]
"""A sample: its settings, its size, and what is made of it."""


def answers(pipeline: Pipeline) -> Sequence[Stage]:
    """Return what a whole run is to come to."""
    return pipeline.answers


def tests(pipeline: Pipeline) -> Sequence[Stage]:
    """Return what its classifiers do on the test split."""
    return pipeline.all("evaluate")


@dataclass(frozen=True)
class Measured:
    """What one result of a sample took.

    Args:
        stage: name of the stage.
        size: ``Stage.size`` of it.
        seconds: that it took, a part of the stage's where several were made together.
        bytes: of its folder and of those that it keeps.
    """

    stage: str
    size: float
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Sample:
    """What all stages took.

    Args:
        start: seconds that Ray took to start.
        cpus: that Ray has.
        gpus: that Ray has.
        failed: videos that could not be used.
        peak: bytes that the command's own process had at most.
        values: numbers that describe a clip to a Selector, F + L; 0 if nothing describes it.
        results: each result.
    """

    start: float
    cpus: float
    gpus: float
    failed: int
    peak: int
    values: int
    results: tuple[Measured, ...]


def sample_data(settings: Settings, times: int) -> DataSettings:
    """Return the data of a sample: ``times`` the clips that ``plan`` says."""
    limit = times * settings.plan.clips_per_class
    return replace(settings.data, limit=min(limit, settings.data.limit or limit))


def sample_settings(settings: Settings, counts: Counts, times: int, runs: AnyPath, name: str = "sample") -> Settings:
    """Return the settings of a sample: ``times`` the clips, steps and iterations that ``plan`` says.

    Args:
        settings: of the run.
        counts: of the sample.
        times: size of the sample.
        runs: folder of the sample's run and store.
        name: of the sample's run.
    """
    plan, selector, warm = settings.plan, settings.selector, settings.warm_start
    steps = min(selector.steps, times * plan.iterations * selector.steps_per_iteration)

    def shortened(classifier: ClassifierSettings) -> ClassifierSettings:
        each_epoch = -(-counts.train // classifier.batch_size)
        epochs = min(classifier.passes(each_epoch), -(-times * plan.steps // each_epoch))
        return replace(classifier, epochs=epochs, steps=None)

    return replace(
        settings,
        name=name,
        runs=str(runs),
        store=None,
        seeds=settings.seeds[:1],
        data=sample_data(settings, times),
        classifier=shortened(settings.classifier),
        warm_start=replace(warm, classifier=shortened(warm.classifier)),
        selector=replace(selector, steps=steps),
        tracking=TrackingSettings(),
    )


def measure(chosen: Sequence[Chosen]) -> list[Sample]:
    """Make all results of some samples. Call it in a process of its own: a run, too, imports everything once.

    Args:
        chosen: the samples, which share a store.

    Raises:
        L2AError: as the stages' work.
    """
    began = time.perf_counter()
    with ray_session(settings=chosen[0][0].runtime):
        start, there = time.perf_counter() - began, resources()
        return [_measure(*one, start, there) for one in chosen]


def _measure(settings: Settings, counts: Counts, choose: Targets, start: float, there: Mapping[str, float]) -> Sample:
    pipeline = Pipeline(settings if there.get("GPU") else _without_gpus(settings))
    targets = choose(pipeline)
    pipeline.results.make(targets)
    results, values = [], 0
    for stage, record in pipeline.results.records(targets):
        folder = pipeline.results.folder(stage)
        size = _bytes(folder) + sum(_bytes(pipeline.results.store / kept) for kept in stage.keeps())
        results.append(Measured(stage.name, stage.size(counts), record["seconds"] / record["together"], size))
        if isinstance(stage, Describe):
            values = ClipVectors.load(folder / "vectors.safetensors").clip_size
    return Sample(
        start=start,
        cpus=there.get("CPU", 0),
        gpus=there.get("GPU", 0),
        failed=len(open_store(pipeline.results, pipeline.prepare).failed),
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        values=values,
        results=tuple(results),
    )


def _bytes(folder: AnyPath) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _without_gpus(settings: Settings) -> Settings:
    return replace(
        settings,
        segment=replace(settings.segment, gpus_per_worker=0),
        workers=replace(settings.workers, gpus=0),
        selector=replace(settings.selector, gpus_per_env_runner=0, gpus_per_learner=0),
        select=replace(settings.select, gpus=0),
    )
