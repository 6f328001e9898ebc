"""From pairs to classifiers, what they are worth, which one is recommended, and composites as files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from l2a_ray.classifier.files import MODEL, STUDENT
from l2a_ray.classifier.settings import ClassifierSettings, EvaluateSettings, Looks, WorkerSettings
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.fields import setting
from l2a_ray.outputs.settings import ExportSettings
from l2a_ray.pipeline import demands
from l2a_ray.pipeline.stage import Inputs, Job, Stage
from l2a_ray.pipeline.stages.clips import Clips, Prepare, Teach, open_store
from l2a_ray.pipeline.stages.selection import PairSource
from l2a_ray.pipeline.stages.together import jobs_of, samples, train_together
from l2a_ray.storage.files import AnyPath, write_json

if TYPE_CHECKING:
    from l2a_ray.composites.scenes import ClipSet
    from l2a_ray.planning.counts import Counts
    from l2a_ray.prepare.store import ClipStore
    from l2a_ray.runtime.cluster import Phase

logger = logging.getLogger(__name__)
OF_STUDENT = "student"
"""Folder with what is known of the student, in the result of a stage that looks at a classifier."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Train(Stage):
    """The classifier of one arm and seed."""

    name: ClassVar[str] = "train"
    prepare: Clips
    pairs: PairSource | None
    """None: real clips alone."""
    file: str | None = setting(None, content=True)
    """A table of pairs that the user made, in place of ``pairs``."""
    composite: CompositeSettings | None
    teacher: Teach | None = None
    """Whose opinions it learns too; None where it distils none."""
    classifier: ClassifierSettings
    seed: int
    arm: str = setting(execution=True)
    workers: WorkerSettings = setting(execution=True)

    @property
    def title(self) -> str:
        return f"train/{self.arm}-{self.seed}"

    def demands(self) -> "Sequence[Phase]":
        return demands.train(self.workers)

    def size(self, counts: "Counts") -> float:
        return samples(self.classifier, counts, self.composite is not None)

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        raise NotImplementedError("work_all does it")

    @classmethod
    def work_all(cls, jobs: Sequence[Job], inputs: Inputs) -> None:
        from l2a_ray.classifier.training import TrainingRun

        runs = [
            TrainingRun(
                name=f"{stage.arm}-{stage.seed}",
                store=inputs.folder(stage.prepare),
                folder=folder,
                seed=stage.seed,
                pairs=stage.file if stage.pairs is None else str(stage.pairs.pairs(inputs)),
                composite=stage.composite or CompositeSettings(),
                settings=stage.classifier,
                teacher=None if stage.teacher is None else str(inputs.folder(stage.teacher)),
            )
            for stage, folder in jobs_of(cls, jobs)
        ]
        first = jobs[0].stage
        assert isinstance(first, Train)
        train_together(runs, first.workers, inputs, "classifier")


@dataclass(frozen=True, kw_only=True, eq=False)
class OfClassifier(Stage):
    """A stage that looks at a classifier."""

    train: Train
    evaluate: Looks

    @property
    def title(self) -> str:
        return f"{self.name}/{self.train.arm}-{self.train.seed}"

    def reserves(self) -> Mapping[str, float]:
        return demands.network(self.train.workers)

    def sets(self, store: "ClipStore") -> "list[ClipSet]":
        """Return the clips that it is tested on."""
        raise NotImplementedError

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        raise NotImplementedError("work_all does it")

    @classmethod
    def work_all(cls, jobs: Sequence[Job], inputs: Inputs) -> None:
        from l2a_ray.classifier.evaluation import BackboneFeatures, evaluate_model
        from l2a_ray.runtime.progress import Bar

        first = jobs[0].stage
        assert isinstance(first, OfClassifier)
        store = open_store(inputs, first.train.prepare)
        sets = first.sets(store)
        if lost := [f"{one.name} {one.left_out}" for one in sets if one.left_out]:
            about = "left out, for want of an actor in most frames or of a scene of another class and source"
            logger.warning("%s: of %d clips %s: %s", cls.name, len(sets[0].clips), about, ", ".join(lost))
        kept, looks = BackboneFeatures(), []
        for stage, folder in jobs_of(OfClassifier, jobs):
            trained = inputs.folder(stage.train)
            looks.append((stage, trained / MODEL, sets, folder))
            if isinstance(stage, Evaluate) and stage.student:
                looks.append((stage, trained / STUDENT, sets[:1], folder / OF_STUDENT))
        clips = sum(len(one.clips) for _, _, chosen, _ in looks for one in chosen)
        with Bar(total=clips, desc=cls.name, unit="clip") as bar:
            for stage, model, chosen, out in looks if sets else []:
                evaluate_model(model, store, stage.train.classifier, chosen, out, stage.evaluate, bar.update, kept)


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluate(OfClassifier):
    """What a classifier does on the test split, which nothing before has seen."""

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    student: bool = False
    """Whether the weights that were trained are tested too, on the clips as they are: the result is their average."""

    def size(self, counts: "Counts") -> float:
        return counts.test * self.evaluate.views * self.evaluate.sets

    def sets(self, store: "ClipStore") -> "list[ClipSet]":
        from l2a_ray.composites.scenes import clip_sets

        return clip_sets(store, "test", self.evaluate.scenes, self.evaluate.stripes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Validate(OfClassifier):
    """What a classifier does on D_val, by which one is chosen; nothing if no clip is there."""

    name: ClassVar[str] = "validate"
    evaluate: Looks = field(default_factory=Looks)

    def size(self, counts: "Counts") -> float:
        return counts.val * self.evaluate.views

    def sets(self, store: "ClipStore") -> "list[ClipSet]":
        from l2a_ray.composites.scenes import clip_sets

        return [] if store.rows("val").empty else clip_sets(store, "validate")


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommend(Stage):
    """The arm and the seed whose classifier the run hands over."""

    name: ClassVar[str] = "recommend"
    prepare: Prepare
    models: tuple[Validate, ...]
    """All arms of the first seed, then of the next; none where D_val was learned."""
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str | None
    """The arm of real clips alone."""
    sureness: float

    def size(self, counts: "Counts") -> float:
        return counts.val

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.deploy.choose import read_scores, recommend, without_scores

        folders = [(model.train.arm, inputs.folder(model)) for model in self.models]
        scores, ids = read_scores(folders)
        if ids:
            clips = open_store(inputs, self.prepare).columns("id", "group").set_index("id")
            sources = clips.loc[ids, "group"].tolist()
            found = recommend(scores, self.seeds, sources, self.baseline, self.sureness)
        else:
            found = without_scores(self.arms, self.seeds, self.baseline, self.sureness)
        write_json(out / "recommendation.json", found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Export(Stage):
    """The composites of an arm as video files, with annotations."""

    name: ClassVar[str] = "export"
    prepare: Clips
    pairs: PairSource
    composite: CompositeSettings
    export: ExportSettings

    @property
    def title(self) -> str:
        return f"export/{self.export.arm}"

    def demands(self) -> "Sequence[Phase]":
        return demands.tasks()

    def size(self, counts: "Counts") -> float:
        return counts.pairs

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.outputs.export import export
        from l2a_ray.pairs.table import open_pairs

        inputs.need_ray()
        pairs = open_pairs(self.pairs.pairs(inputs)).read().to_pandas()
        export(open_store(inputs, self.prepare), pairs, self.composite, self.export, out)
