"""Training several classifiers at once."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from l2a_ray.classifier.settings import ClassifierSettings, WorkerSettings
from l2a_ray.errors import owned_by
from l2a_ray.pipeline.stage import Inputs, Job, Stage
from l2a_ray.storage.files import AnyPath

if TYPE_CHECKING:
    from l2a_ray.classifier.training import TrainingRun
    from l2a_ray.planning.counts import Counts

StageT = TypeVar("StageT", bound=Stage)


def samples(classifier: ClassifierSettings, counts: "Counts", pairs: bool) -> int:
    """Return how many samples the backbone of a classifier sees in its training, which has ``pairs`` or not."""
    real = counts.train + (counts.val if classifier.train_on == "train+val" else 0)
    each = max(1, -(-real // classifier.batch_size))
    steps = classifier.passes(each) * each
    shown, composites = steps * classifier.batch_size, 0
    if pairs and classifier.composite_mode == "add":
        composites = steps * classifier.added_composites
    elif pairs:
        composites = round(shown * classifier.composite_share)
        shown -= composites
    if classifier.looks is None or "backbone" not in classifier.freeze:
        return shown + composites
    # Of the pairs, those that are chosen are seen: how many, is not known here.
    return min(shown, classifier.looks * real) + min(composites, classifier.looks * counts.pairs)


def jobs_of(kind: type[StageT], jobs: Sequence[Job]) -> Iterator[tuple[StageT, AnyPath]]:
    """Yield the stages of some jobs, which are all of one class, and their folders."""
    for job in jobs:
        assert isinstance(job.stage, kind)
        yield job.stage, job.folder


def train_together(runs: "Sequence[TrainingRun]", workers: WorkerSettings, inputs: Inputs, owner: str) -> None:
    """Train classifiers in one ``fit``: Ray Train takes half a minute to start."""
    from l2a_ray.classifier.training import train_classifiers

    inputs.need_ray()
    with owned_by(owner):
        train_classifiers(runs, workers, inputs.scratch)
