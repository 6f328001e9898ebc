"""From candidate pairs to those that are trained with: the warm start, the Selector, and other sources of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, ClassVar

from envs.settings import EnvSettings
from l2a_ray.classifier.files import MODEL
from l2a_ray.classifier.settings import WorkerSettings
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.errors import owned_by
from l2a_ray.fields import setting
from l2a_ray.pairs.settings import BudgetSettings, EmbeddingSettings, LabelEncoding, SelectSettings
from l2a_ray.pipeline import demands
from l2a_ray.pipeline.stage import Inputs, Job
from l2a_ray.pipeline.stages.clips import Clips, Match, SeededStage, open_store
from l2a_ray.pipeline.stages.together import jobs_of, samples, train_together
from l2a_ray.runtime.tracking import TrackingSettings
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.selector.settings import WarmStartSettings
from l2a_ray.storage.files import AnyPath, as_path

if TYPE_CHECKING:
    from envs.pair_selection import EnvFiles
    from l2a_ray.pairs.vectors import ClipVectors
    from l2a_ray.planning.counts import Counts
    from l2a_ray.runtime.cluster import Phase
    from l2a_ray.selector.scoring import Scorer


@dataclass(frozen=True, kw_only=True, eq=False)
class WarmStart(SeededStage):
    """The plain classifier that the Selector is trained against, and whose features describe the clips."""

    name: ClassVar[str] = "warm-start"
    prepare: Clips
    match: Match | None
    """None if it sees real clips alone."""
    warm_start: WarmStartSettings
    composite: CompositeSettings | None
    candidates: int
    """As ``env.candidates``: at most this many pairs are drawn; 0 if none are."""
    workers: WorkerSettings = setting(execution=True)

    def demands(self) -> "Sequence[Phase]":
        return demands.train(self.workers)

    def size(self, counts: "Counts") -> float:
        return samples(self.warm_start.classifier, counts, self.match is not None)

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        raise NotImplementedError("work_all does it")

    @classmethod
    def work_all(cls, jobs: Sequence[Job], inputs: Inputs) -> None:
        from l2a_ray.classifier.training import TrainingRun
        from l2a_ray.pairs.draw import draw_warm_pairs

        runs = []
        for stage, folder in jobs_of(cls, jobs):
            pairs = None
            if stage.match is not None:
                pairs = folder / "pairs.parquet"
                draw_warm_pairs(inputs.folder(stage.match) / "pairs.parquet", stage.candidates, stage.seed, pairs)
            runs.append(
                TrainingRun(
                    name=stage.title,
                    store=inputs.folder(stage.prepare),
                    folder=folder,
                    seed=stage.seed,
                    pairs=None if pairs is None else str(pairs),
                    composite=stage.composite or CompositeSettings(),
                    settings=stage.warm_start.classifier,
                )
            )
        first = jobs[0].stage
        assert isinstance(first, WarmStart)
        train_together(runs, first.workers, inputs, "warm_start.classifier")


@dataclass(frozen=True, kw_only=True, eq=False)
class Describe(SeededStage):
    """What a Selector knows of each clip: features of the warm start, label, agreement."""

    name: ClassVar[str] = "describe"
    warm_start: WarmStart
    labels: LabelEncoding
    embedding: EmbeddingSettings
    agreement: bool

    def reserves(self) -> Mapping[str, float]:
        return demands.network(self.warm_start.workers)

    def size(self, counts: "Counts") -> float:
        return counts.train + counts.val

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.selector.describe import write_vectors

        classifier = self.warm_start.warm_start.classifier
        write_vectors(
            open_store(inputs, self.warm_start.prepare),
            inputs.folder(self.warm_start) / MODEL,
            classifier.network,
            classifier.crop,
            self.labels,
            self.embedding,
            out / "vectors.safetensors",
            agreement=self.agreement,
            sampling=classifier.frame_sampling,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainSelector(SeededStage):
    """The Selector, by reinforcement learning."""

    name: ClassVar[str] = "train-selector"
    version: ClassVar[int] = 4
    describe: Describe
    match: Match
    composite: CompositeSettings
    env: EnvSettings
    selector: SelectorSettings
    tracking: TrackingSettings = setting(execution=True)
    run: str = setting(execution=True)
    """Name of the run, for those who track it."""

    def demands(self) -> "Sequence[Phase]":
        return demands.selector(self.selector)

    def files(self, inputs: Inputs) -> "EnvFiles":
        """Return what the selection environment is built from."""
        from envs.pair_selection import EnvFiles

        warm = self.describe.warm_start
        classifier = warm.warm_start.classifier
        return EnvFiles(
            store=str(inputs.folder(warm.prepare)),
            pairs=str(inputs.folder(self.match) / "pairs.parquet"),
            vectors=str(inputs.folder(self.describe) / "vectors.safetensors"),
            warm_start=str(inputs.folder(warm) / MODEL),
            network=classifier.network,
            composite=self.composite,
            crop=classifier.crop,
            sampling=classifier.frame_sampling,
            settings=self.env,
            credit=self.selector.credit == "pair",
            seed=self.seed,
        )

    def size(self, counts: "Counts") -> float:
        steps, held = self.selector.steps, max(1, min(self.env.candidates, counts.pairs))
        if self.env.tune == "head":
            # A pair is composited when it is first selected, and half of those drawn are, or to know what it would have
            # been worth or what all pairs had come to; the rest of a step is cheap.
            seen = self.env.pairs / (1 if self.selector.credit == "pair" or self.env.held_out else 2)
            return steps + held * (1 - exp(-steps * seen / held))
        judged = min(self.env.validation_clips, counts.val) * (2 if self.env.validation == "both" else 1)
        return steps * (self.env.pairs + judged)

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from envs.making import ENVIRONMENT, relative_files
        from l2a_ray.selector.rl.training import train_selector
        from l2a_ray.storage.files import write_json

        inputs.need_ray()
        files = self.files(inputs)
        write_json(out / ENVIRONMENT, relative_files(files, inputs.store))
        with owned_by("selector"):
            train_selector(files, self.selector, out, seed=self.seed, tracking=self.tracking, name=self.run)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSource(SeededStage):
    """Where the pairs of an arm come from; its result holds a table of them."""

    table: ClassVar[str] = "selected.parquet"
    match: Match

    def pairs(self, inputs: Inputs) -> AnyPath:
        """Return the table of the pairs."""
        return inputs.folder(self) / self.table


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw(PairSource):
    """Pairs drawn at random from the candidates, as many as a Selector would keep."""

    name: ClassVar[str] = "draw"
    table: ClassVar[str] = "random.parquet"
    select: BudgetSettings

    def size(self, counts: "Counts") -> float:
        return counts.pairs

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.pairs.draw import draw_pairs

        draw_pairs(inputs.folder(self.match) / "pairs.parquet", self.select, self.seed, out)


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawSound(Draw):
    """Pairs drawn at random from the candidates without a bad clip, which generated videos tell."""

    name: ClassVar[str] = "draw-sound"
    version: ClassVar[int] = 2
    root: str = setting("", execution=True)
    """As ``data.root``; the clips are those of ``match``."""

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.pairs.draw import draw_sound_pairs

        index = open_store(inputs, self.match.prepare).index
        draw_sound_pairs(inputs.folder(self.match) / "pairs.parquet", index, self.root, self.select, self.seed, out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored(PairSource):
    """The candidates that something scores highest."""

    select: SelectSettings

    def demands(self) -> "Sequence[Phase]":
        return demands.score(self.select)

    def size(self, counts: "Counts") -> float:
        return counts.pairs

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.selector.selection import select_pairs

        inputs.need_ray()
        vectors, scorer = self.score(inputs)
        with owned_by("select"):
            pairs = inputs.folder(self.match) / "pairs.parquet"
            select_pairs(pairs, vectors, scorer, self.select, self.seed, out, by_chance=self.by_chance(inputs))

    def by_chance(self, inputs: Inputs) -> bool:
        """Return whether random pairs are kept, because the scores are known to mean nothing."""
        return False

    def score(self, inputs: Inputs) -> "tuple[ClipVectors, Scorer]":
        """Return what is known of the clips, and what scores pairs of them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class Select(Scored):
    """The pairs that this run's Selector scores highest."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 2
    selector: TrainSelector

    def by_chance(self, inputs: Inputs) -> bool:
        from l2a_ray.selector.learned import carries_signal, read_learned

        learned = read_learned(inputs.folder(self.selector))
        return self.select.without_signal == "random" and carries_signal(learned) is False

    def score(self, inputs: Inputs) -> "tuple[ClipVectors, Scorer]":
        from l2a_ray.pairs.vectors import ClipVectors
        from l2a_ray.selector.file import load_selector
        from l2a_ray.selector.scoring import pair_scorer

        vectors = ClipVectors.load(inputs.folder(self.selector.describe) / "vectors.safetensors")
        network = load_selector(inputs.folder(self.selector)).network
        return vectors, pair_scorer(network, vectors)


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectByOther(Scored):
    """The pairs that the Selector of another run scores highest (paper, Table 3, "+Pre-training")."""

    name: ClassVar[str] = "select-by-other"
    weights: str = setting(content=True)
    """``selector.safetensors`` of the other run."""
    metadata: str = setting(content=True)
    """``selector.json`` beside it."""

    def size(self, counts: "Counts") -> float:
        return counts.train + counts.val  # describing a clip takes far longer than scoring its pairs

    def score(self, inputs: Inputs) -> "tuple[ClipVectors, Scorer]":
        from l2a_ray.selector.describe import describe_for
        from l2a_ray.selector.file import load_selector
        from l2a_ray.selector.scoring import pair_scorer

        selector = load_selector(as_path(self.weights).parent)
        vectors = describe_for(selector, open_store(inputs, self.match.prepare))
        return vectors, pair_scorer(selector.network, vectors)


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectByAgreement(Scored):
    """The pairs whose foreground agrees best with its own label: what a Selector is told, without a Selector."""

    name: ClassVar[str] = "select-by-agreement"
    describe: Describe

    def score(self, inputs: Inputs) -> "tuple[ClipVectors, Scorer]":
        from l2a_ray.pairs.vectors import ClipVectors
        from l2a_ray.selector.scoring import agreement_scorer

        vectors = ClipVectors.load(inputs.folder(self.describe) / "vectors.safetensors")
        return vectors, agreement_scorer(vectors, known=self.describe.agreement)
