"""The way of training samples from the clip store to the classifier: Ray Data tasks decode, composite, crop and flip.

Axes: B clips in a batch, T time, H height, W width, C channel, L classes.
"""

import functools
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.composites.schedule import BatchPlan, stack
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.session import quieten

STEPS_PER_BLOCK = 16  # a task's work: long against the 0.1 s until the next one, short against what is prefetched
STEPS_PER_EXECUTION = 4096  # Ray Data plans all tasks of an execution at once; to start one takes 0.3 to 1 s


@dataclass(frozen=True)
class Source:
    """What a task needs to make any step's samples.

    Args:
        store: folder of the clip store.
        composite: how composites are labelled.
        crop: side of the samples, pixels.
        plan: which samples each step sees.
    """

    store: str
    composite: CompositeSettings
    crop: int
    plan: BatchPlan


def feed(
    source: Source, first: int, last: int, rank: int, workers: int
) -> Generator[tuple[NDArray[np.uint8], NDArray[np.float32]], None, None]:
    """Yield the batches of steps first, ..., last - 1 in order: uint8 (B, T, crop, crop, C) and float32 (B, L).

    It runs ahead of the training as far as Ray Data's share of the object store allows.

    Args:
        source: where the samples come from.
        first: first step.
        last: one past the last step.
        rank: of this worker, which gets the rank-th of ``workers`` equal parts of every batch.
        workers: number of workers; must divide the batch size.
    """
    quieten()
    # The plan holds every pair: it goes to the object store once, not into each task.
    stored = ray.put(source)
    part = source.plan.batch_size // workers
    for start in range(first, last, STEPS_PER_EXECUTION):
        count = min(STEPS_PER_EXECUTION, last - start)
        steps = ray.data.range(count, override_num_blocks=-(-count // STEPS_PER_BLOCK))
        # `map`, not `map_batches`: Ray Data merges it with the range into one task.
        batches = steps.map(functools.partial(_make_batch, source=stored, first=start, rank=rank, part=part))
        batches.context.execution_options.preserve_order = True
        batches.context.raise_original_map_exception = True  # else our errors arrive as text
        for batch in batches.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
            yield batch["frames"][0], batch["labels"][0]


def _make_batch(
    row: dict[str, Any], source: "ray.ObjectRef[Source]", first: int, rank: int, part: int
) -> dict[str, NDArray[Any]]:
    """Make one step's samples (runs in a Ray Data task)."""
    known = ray.get(source)
    loader = _loader(known.store, known.composite, known.crop)
    frames_BTHWC, labels_BL = stack(loader, known.plan, first + row["id"], range(rank * part, (rank + 1) * part))
    return {"frames": frames_BTHWC, "labels": labels_BL}


@lru_cache(maxsize=2)
def _loader(store: str, composite: CompositeSettings, crop: int) -> SampleLoader:
    """Keep the store's index between the tasks of one process."""
    return SampleLoader(ClipStore(store), composite, crop)
