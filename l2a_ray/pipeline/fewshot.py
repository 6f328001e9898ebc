"""From the settings of a few-shot run to its stages, and from their results to what page and table are made of."""

import json
from dataclasses import dataclass, replace
from functools import cache, cached_property

import safetensors.numpy

from l2a_ray.classifier.settings import TIMM
from l2a_ray.errors import SettingError, owned_by
from l2a_ray.fewshot.outcome import Cell, Json, Measured
from l2a_ray.fewshot.settings import PAIRED, FewshotArm, FewshotSettings
from l2a_ray.fewshot.splits import ClassSplit, split_classes
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stages import FewshotEvaluate, FewshotFeatures, FewshotPairs, FewshotTrain
from l2a_ray.selector.find import METADATA, WEIGHTS, find_selector
from l2a_ray.selector.learned import carries_signal, read_learned
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, read_table, write_bytes


@dataclass(frozen=True, eq=False)
class FewshotPipeline:
    """The stages of a few-shot run. Each method returns the same stage for the same arguments.

    Args:
        run: the run; its clips are there.
        classes: of its clips.
    """

    run: Pipeline
    classes: tuple[str, ...]

    @property
    def settings(self) -> FewshotSettings:
        """The section of the settings."""
        return self.run.settings.fewshot

    @cached_property
    def split(self) -> ClassSplit:
        """The classes by role."""
        with owned_by("fewshot.classes"):
            return split_classes(self.settings.classes, self.classes, self.run.settings.data.seed)

    @cached_property
    def base(self) -> Pipeline | None:
        """A run of the base classes alone, in a folder of its own: it trains the Selector as any run does.

        None: no arm needs it.

        Raises:
            SettingError: its Selector could not score pairs of other classes.
        """
        settings = self.run.settings
        if "selected" not in self.settings.arms or self.settings.selector is not None:
            return None
        if settings.selector.labels != "name":
            reason = (
                "must be `name`: a Selector of one-hot labels knows its own classes alone, and novel ones are others"
            )
            raise SettingError("selector.labels", settings.selector.labels, reason)
        name = f"{settings.name}-base"
        labels = as_path(settings.runs).absolute() / name / "classes.txt"
        write_bytes(labels, "".join(f"{one}\n" for one in self.split.base).encode())
        return Pipeline(replace(settings, name=name, data=replace(settings.data, labels=str(labels))))

    @cache  # noqa: B019 (a pipeline lives as long as its process)
    def pairs(self, arm: FewshotArm, seed: int) -> FewshotPairs:
        """The backgrounds of the novel clips."""
        settings, weights, metadata = self.run.settings, None, None
        if arm == "selected":
            weights, metadata = (str(path) for path in self._selector(seed))
        return FewshotPairs(
            prepare=self.run.prepare,
            classes=self.split,
            match=settings.match,
            composite=settings.composite,
            neighbours=self.settings.neighbours,
            depth=max(self.settings.k),
            seed=seed,
            arm=arm,
            weights=weights,
            metadata=metadata,
        )

    def _selector(self, seed: int) -> tuple[AnyPath, AnyPath]:
        if self.base is None:
            return find_selector(as_path(str(self.settings.selector)))
        folder = self.base.results.folder(self.base.train_selector(seed))
        return folder / WEIGHTS, folder / METADATA

    @cache  # noqa: B019
    def features(self, arm: FewshotArm | None = None, seed: int = 0) -> FewshotFeatures:
        """Features of the clips or, of an arm that has them, of the composites."""
        return FewshotFeatures(
            prepare=self.run.prepare,
            pairs=None if arm is None else self.pairs(arm, seed),
            network=self.settings.network.with_absolute_paths(),
            crop=self.settings.crop,
            crops=self.settings.crops,
            composite=None if arm is None else self.run.settings.composite,
            threads=self.settings.threads,
        )

    @cache  # noqa: B019
    def train(self, shot: int, seed: int) -> FewshotTrain:
        """TRX's head, trained with the shots that it is tested with."""
        return FewshotTrain(
            features=self.features(),
            classes=self.split,
            trx=self.settings.trx,
            way=self.settings.episodes.way,
            shot=shot,
            seed=seed,
            threads=self.settings.threads,
        )

    @cache  # noqa: B019
    def evaluate(self, cell: Cell, seed: int) -> FewshotEvaluate:
        """A cell of the table, of one repetition."""
        return FewshotEvaluate(
            features=self.features(),
            composites=self.features(cell.arm, seed) if cell.arm in PAIRED else None,
            head=self.train(cell.shot, seed) if cell.learner == "trx" else None,
            classes=self.split,
            episodes=self.settings.episodes,
            shot=cell.shot,
            learner=cell.learner,
            arm=cell.arm,
            k=cell.k,
            seed=seed,
            threads=self.settings.threads,
        )

    @property
    def cells(self) -> dict[Cell, list[FewshotEvaluate]]:
        """The table: what is tested, in each repetition; where nothing is drawn or trained there is one."""
        found = {}
        for learner in self.settings.learners:
            for shot in self.settings.shots:
                for arm in self.settings.arms:
                    for k in (0,) if arm == "none" else self.settings.k:
                        drawn = learner == "trx" or arm in PAIRED
                        seeds = self.run.settings.seeds if drawn else self.run.settings.seeds[:1]
                        cell = Cell(learner, shot, arm, k)
                        found[cell] = [self.evaluate(cell, seed) for seed in seeds]
        return found

    def measured(self) -> dict[Cell, Measured]:
        """Read what has come out."""
        return {cell: self._measured(stages) for cell, stages in self.cells.items()}

    def _measured(self, stages: list[FewshotEvaluate]) -> Measured:
        folders = [self.run.results.folder(stage) for stage in stages]
        first = folders[0] / "first.parquet"
        return Measured(
            accuracy={
                stage.seed: safetensors.numpy.load(read_bytes(folder / "accuracy.safetensors"))["accuracy"]
                for stage, folder in zip(stages, folders, strict=True)
            },
            about=json.loads(read_bytes(folders[0] / "about.json")),
            first=read_table(first) if first.is_file() else None,
        )

    @property
    def features_told(self) -> str:
        """What learners see, in words."""
        network = self.settings.network
        name = network.backbone if network.name == TIMM else network.name
        trained = "random weights" if network.weights is None else f"weights {network.weights}"
        return f"features of frames of the frozen network {name}, {trained}"

    def notes(self, metrics: Json) -> list[str]:
        """Say what a reader of the numbers must know."""
        about, split = self.settings.episodes, self.split
        kept = "queries share no source video with supports" if about.source_disjoint else "clips drawn freely"
        notes = [
            f"{metrics['way']}-way, {metrics['queries']} queries a class, {metrics['episodes']} episodes, {kept}; "
            f"split {split.name}: {len(split.base)} base, {len(split.validation)} validation and {len(split.novel)} "
            f"novel classes; {self.features_told}"
        ]
        if len(split.novel) == metrics["way"]:
            notes.append("every episode has the same classes, so intervals over episodes tell of clips, not of classes")
        bare = max((row["without_composites"] / row["supports"] for row in metrics["rows"]), default=0)
        if bare:
            notes.append(f"{100 * bare:.1f} % of the supports show no actor and are not composited")
        if seeds := self._without_signal():
            which = ", ".join(map(str, seeds))
            notes.append(
                f"the Selector's reward carries no sure signal (repetitions {which}): read `selected` as chance"
            )
        return notes

    def _without_signal(self) -> list[int]:
        """Return the repetitions whose Selector was trained on rewards that do not surely mean anything."""
        if self.base is None:
            return []
        folders = {seed: self.base.results.folder(self.base.train_selector(seed)) for seed in self.run.settings.seeds}
        return [seed for seed, folder in folders.items() if carries_signal(read_learned(folder)) is False]
