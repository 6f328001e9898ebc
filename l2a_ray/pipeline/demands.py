"""What the stages reserve of a Ray cluster."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from l2a_ray.classifier.settings import WorkerSettings
from l2a_ray.pairs.settings import SelectSettings
from l2a_ray.prepare.segment.settings import SegmentSettings
from l2a_ray.selector.rl.settings import SelectorSettings

if TYPE_CHECKING:
    from l2a_ray.runtime.cluster import Phase


def tasks() -> "Sequence[Phase]":
    """Return what Ray Data's tasks need."""
    from l2a_ray.runtime.cluster import Demand

    return [[Demand(spare=1)]]


def prepare(segment: SegmentSettings) -> "Sequence[Phase]":
    """Return what preparing videos needs."""
    from l2a_ray.runtime.cluster import Demand

    gpus = segment.gpus_per_worker
    return [*tasks(), [Demand(1, {"GPU": gpus}, {"GPU": ("segment.gpus_per_worker", gpus)})]]


def score(select: SelectSettings) -> "Sequence[Phase]":
    """Return what scoring pairs needs."""
    from l2a_ray.runtime.cluster import Demand

    return [*tasks(), [Demand(1, {"GPU": select.gpus}, {"GPU": ("select.gpus", select.gpus)})]]


def train(workers: WorkerSettings) -> "Sequence[Phase]":
    """Return what training classifiers needs; the tasks that make their samples take a CPU beside the workers."""
    from l2a_ray.runtime.cluster import Demand

    each = {"CPU": workers.cpus, "GPU": workers.gpus}
    names = {"CPU": "workers.cpus", "GPU": "workers.gpus"}
    return [*tasks(), [Demand(workers.count, each, {key: (names[key], each[key]) for key in each}, spare=1)]]


def network(workers: WorkerSettings) -> Mapping[str, float]:
    """Return what a process reserves that asks a classifier about clips: a GPU where it was trained on one."""
    return {"GPU": min(1.0, workers.gpus)} if workers.gpus else {}


def selector(settings: SelectorSettings) -> "Sequence[Phase]":
    """Return what training a Selector needs: env runners and a learner, at the same time."""
    from l2a_ray.runtime.cluster import Demand

    gpus, count = settings.gpus_per_env_runner, settings.env_runners
    fields = {"CPU": ("selector.env_runners", count), "GPU": ("selector.gpus_per_env_runner", gpus)}
    runners = Demand(count, {"CPU": 1, "GPU": gpus}, fields)
    gpus, count = settings.gpus_per_learner, settings.learners
    fields = {"CPU": ("selector.learners", count), "GPU": ("selector.gpus_per_learner", gpus)}
    # RLlib's own rule: a learner reserves a GPU or a CPU, never both.
    return [*tasks(), [runners, Demand(count, {"CPU": float(not gpus), "GPU": gpus}, fields)]]
