"""From videos to clips and candidate pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from l2a_ray.classifier.settings import TeacherSettings
from l2a_ray.errors import owned_by
from l2a_ray.fields import setting
from l2a_ray.pairs.settings import MatchSettings
from l2a_ray.pipeline import demands
from l2a_ray.pipeline.stage import Inputs, Stage
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.storage.files import AnyPath
from l2a_ray.videos.settings import DataSettings

if TYPE_CHECKING:
    from l2a_ray.planning.counts import Counts
    from l2a_ray.prepare.store import ClipStore
    from l2a_ray.runtime.cluster import Phase


@dataclass(frozen=True, kw_only=True, eq=False)
class Clips(Stage):
    """A stage whose result is a clip store; what comes after depends on what is in it, not on how it came about."""

    def content(self, folder: AnyPath) -> str | None:
        from l2a_ray.prepare.store import ClipStore

        return ClipStore(folder).content


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepare(Clips):
    """Each video decoded, segmented and inpainted once; the clips lie in a folder that other data sets share."""

    name: ClassVar[str] = "prepare"
    root: str
    """As ``data.root``. What is in a folder is known when it has been looked at, so each has a result of its own; what
    comes after depends on what was found there."""
    masks: str | None
    """As ``segment.masks``, if masks are read from there."""
    data: DataSettings
    clips: PrepareSettings

    def keeps(self) -> Sequence[str]:
        return (f"clips/{self.clips.key}",)

    def demands(self) -> "Sequence[Phase]":
        return demands.prepare(self.clips.segment)

    def size(self, counts: "Counts") -> float:
        return counts.clips

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.prepare.job import prepare_clips
        from l2a_ray.videos.catalog import read_catalog

        with owned_by("data"):
            catalog = read_catalog(self.data)
        clips = inputs.store / "clips" / self.clips.key
        prepare_clips(catalog, self.clips, clips, out, inputs.need_ray)


@dataclass(frozen=True, kw_only=True, eq=False)
class Teach(Stage):
    """What a network of images says of each clip's frames."""

    name: ClassVar[str] = "teach"
    prepare: Prepare
    teacher: TeacherSettings

    def size(self, counts: "Counts") -> float:
        return counts.clips

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.classifier.teacher import write_probabilities

        write_probabilities(open_store(inputs, self.prepare), self.teacher, out)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeededStage(Stage):
    """A stage of one repetition."""

    seed: int
    round: int = setting(0, execution=True)
    """Of the pseudo-labels that it leads to, from 1; 0: it comes after them all."""

    @property
    def title(self) -> str:
        return f"{self.name}-{self.seed}@{self.round}" if self.round else f"{self.name}-{self.seed}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Match(SeededStage):
    """The candidate pairs."""

    name: ClassVar[str] = "match"
    prepare: Clips
    match: MatchSettings
    objects: Literal["all", "people"] = "all"
    """As ``composite.objects``: whose pixels must be there for a clip to serve as foreground."""

    @property
    def title(self) -> str:
        # Of clips that each repetition has its own of, though nothing else is drawn.
        own = self.prepare.seed if isinstance(self.prepare, SeededStage) else self.seed
        return f"{self.name}-{own}@{self.round}" if self.round else f"{self.name}-{own}"

    def size(self, counts: "Counts") -> float:
        return counts.pairs

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.pairs.match import write_candidates

        store = open_store(inputs, self.prepare)
        with owned_by("match"):
            write_candidates(
                store.index,
                store.classes,
                self.match,
                self.seed,
                out,
                "people" if self.objects == "people" else "foreground",
            )


def open_store(inputs: Inputs, prepare: Clips) -> "ClipStore":
    """Open a clip store."""
    from l2a_ray.prepare.store import ClipStore

    return ClipStore(inputs.folder(prepare))
