"""The way of training samples from the clip store to the classifier: Ray Data tasks composite, crop and flip."""

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.schedule import Drawn, Schedule, Stacked, stack
from l2a_ray.composites.settings import ALL_FRAMES, UNCHANGED, AugmentSettings, FrameSampling
from l2a_ray.pairs.labels import Labels
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.session import quieten
from l2a_ray.runtime.streams import reading
from l2a_ray.storage.files import as_path

if TYPE_CHECKING:
    from l2a_ray.classifier.teacher import Teacher

BATCHES_PER_BLOCK = 16  # a task's work: long against the wait for the next one, short against what is prefetched
BATCHES_PER_EXECUTION = 4096  # Ray Data plans all tasks of an execution at once; to start one takes about a second


@dataclass(frozen=True)
class Source:
    """What a task needs to make any step's samples.

    Args:
        store: folder of the clip store.
        composite: how composites are labelled.
        crop: side of the samples, pixels.
        labels: of the clips; sent along, so that no task reads the store's index.
        schedule: which samples each step sees.
        sampling: which of the stored frames a sample shows.
        augment: what is done to strong views.
        teacher: folder with the probabilities of a teacher for each real clip; None: no teacher is asked.
    """

    store: str
    composite: CompositeSettings
    crop: int
    labels: Labels
    schedule: Schedule
    sampling: FrameSampling = ALL_FRAMES
    augment: AugmentSettings = UNCHANGED
    teacher: str | None = None


Place = tuple[int, int]
"""A step, and a position in its batch."""


def feed(source: Source, first: int, last: int, rank: int, workers: int) -> Generator[Stacked, None, None]:
    """Yield one worker's samples of steps first, ..., last - 1 in order.

    It runs ahead of the training as far as Ray Data's share of the object store allows, until it is closed.

    Args:
        source: where the samples come from.
        first: first step.
        last: one past the last step.
        rank: of this worker, which gets the rank-th of ``workers`` equal parts (``Schedule.part``).
        workers: number of workers.
    """
    return make_batches(source, functools.partial(_part, first, source.schedule.part(rank, workers)), last - first)


def _part(first: int, positions: Sequence[int], number: int) -> list[Place]:
    return [(first + number, position) for position in positions]


def make_batches(
    source: Source, places: Callable[[int], Sequence[Place]], count: int
) -> Generator[Stacked, None, None]:
    """Yield ``count`` batches of samples in order, the i-th of those at ``places(i)``; closes what it started."""
    quieten()
    # The schedule holds every pair: it goes to the object store once, not into each task.
    stored = ray.put((source, places))
    for start in range(0, count, BATCHES_PER_EXECUTION):
        planned = min(BATCHES_PER_EXECUTION, count - start)
        numbers = ray.data.range(planned, override_num_blocks=-(-planned // BATCHES_PER_BLOCK))
        # `map`, not `map_batches`: Ray Data merges it with the range into one task.
        batches = numbers.map(functools.partial(_make_batch, stored=stored, start=start))
        batches.context.execution_options.preserve_order = True
        batches.context.raise_original_map_exception = True  # else our errors arrive as text
        with reading(batches.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2)) as made:
            for batch in made:
                yield Stacked(**{name: batch[name][0] for name in Stacked._fields if name in batch})


def _make_batch(
    row: dict[str, Any], stored: "ray.ObjectRef[tuple[Source, Callable[[int], Sequence[Place]]]]", start: int
) -> dict[str, NDArray[Any]]:
    """Make one batch of samples (runs in a Ray Data task)."""
    source, places = ray.get(stored)
    loader = SampleLoader(_store(source.store), source.composite, source.crop, source.labels, source.sampling)
    samples = source.schedule.at(places(start + row["id"]))
    stacked = stack(loader, source.schedule, samples, source.augment)
    if source.teacher is not None:
        stacked = stacked._replace(teacher=_targets(_teacher(source.teacher), source.schedule, samples))
    return {name: value for name, value in stacked._asdict().items() if value is not None}


def _targets(teacher: "Teacher", schedule: Schedule, samples: Sequence[Drawn]) -> NDArray[np.float32]:
    """Return what a teacher says of one frame of each real clip, a row a view, float32 (B, K); 0 for composites."""
    rows = []
    for drawn in samples:
        found = teacher.of([drawn.sample.foreground])[0]
        target = found[schedule.frame(drawn, len(found))] if drawn.sample.background is None else 0 * found[0]
        rows += [target] * len(drawn.stream.views)
    return np.stack(rows)


@lru_cache(maxsize=2)
def _store(root: str) -> ClipStore:
    """Keep the store's description between the tasks of one process."""
    return ClipStore(root)


@lru_cache(maxsize=2)
def _teacher(folder: str) -> "Teacher":
    from l2a_ray.classifier.teacher import Teacher  # brings PyTorch: most tasks do without

    return Teacher(as_path(folder))
