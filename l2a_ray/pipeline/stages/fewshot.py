"""From clips to what learners of new classes come to, with and without composites of the supports."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.errors import owned_by
from l2a_ray.fewshot.settings import EpisodeSettings, FewshotArm, Learner, TrxSettings
from l2a_ray.fewshot.splits import ClassSplit
from l2a_ray.fields import setting
from l2a_ray.pairs.settings import MatchSettings
from l2a_ray.pipeline.stage import Inputs, Stage
from l2a_ray.pipeline.stages.clips import Prepare, open_store
from l2a_ray.storage.files import AnyPath, as_path, read_table, write_bytes, write_json

if TYPE_CHECKING:
    import pandas as pd

    from l2a_ray.fewshot.backgrounds import Scores
    from l2a_ray.planning.counts import Counts
    from l2a_ray.prepare.store import ClipStore


@dataclass(frozen=True, kw_only=True, eq=False)
class FewshotPairs(Stage):
    """The backgrounds of every novel clip, the best first: drawn, or by a Selector that has seen base classes alone."""

    name: ClassVar[str] = "fewshot-pairs"
    prepare: Prepare
    classes: ClassSplit
    match: MatchSettings
    composite: CompositeSettings
    neighbours: int
    depth: int
    seed: int
    arm: FewshotArm
    weights: str | None = setting(None, content=True)
    """``selector.safetensors`` of the arm `selected`."""
    metadata: str | None = setting(None, content=True)
    """``selector.json`` beside it."""

    @property
    def title(self) -> str:
        return f"{self.name}/{self.arm}-{self.seed}"

    def size(self, counts: "Counts") -> float:
        return counts.clips * self.depth

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.fewshot.backgrounds import choose_backgrounds

        store = open_store(inputs, self.prepare)
        with owned_by("match"):
            pairs = choose_backgrounds(
                store.index,
                self.classes,
                self.match,
                "people" if self.composite.objects == "people" else "foreground",
                self.neighbours,
                self.depth,
                self._scores(store),
            )
        write_bytes(out / "pairs.parquet", pairs.to_parquet(index=False))

    def _scores(self, store: "ClipStore") -> "Scores":
        from l2a_ray.fewshot.backgrounds import random_scores, selector_scores
        from l2a_ray.selector.file import load_selector

        if self.weights is None:
            return random_scores(self.seed)
        return selector_scores(load_selector(as_path(self.weights).parent), store, self.classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class FewshotFeatures(Stage):
    """Features of frames: of all clips or, where there are pairs, of their composites."""

    name: ClassVar[str] = "fewshot-features"
    prepare: Prepare
    pairs: FewshotPairs | None
    network: NetworkSettings
    crop: int
    crops: int
    composite: CompositeSettings | None
    """None: there are no pairs."""
    threads: int = setting(1, execution=True)

    @property
    def title(self) -> str:
        return self.name if self.pairs is None else f"{self.name}/{self.pairs.arm}-{self.pairs.seed}"

    def size(self, counts: "Counts") -> float:
        return counts.clips * self.crops * (1 if self.pairs is None else self.pairs.depth)

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        import torch

        from l2a_ray.composites.loader import Sample
        from l2a_ray.fewshot.backgrounds import refuse_pairs
        from l2a_ray.fewshot.features import write_features

        torch.set_num_threads(self.threads)
        store, pairs = open_store(inputs, self.prepare), self.table(inputs)
        if pairs is None or self.pairs is None:
            samples = [Sample(clip) for clip in store.columns("id")["id"]]
        else:
            refuse_pairs(pairs, store.index, self.pairs.classes)
            samples = [Sample(*ends) for ends in zip(pairs["foreground"], pairs["background"], strict=True)]
        with owned_by("fewshot"):
            composite = self.composite or CompositeSettings()
            write_features(store, samples, self.network, self.crop, self.crops, composite, out, self.title)

    def table(self, inputs: Inputs) -> "pd.DataFrame | None":
        """Read the pairs, in the order of their features; None: the features are of clips."""
        return None if self.pairs is None else read_table(inputs.folder(self.pairs) / "pairs.parquet")


@dataclass(frozen=True, kw_only=True, eq=False)
class FewshotTrain(Stage):
    """TRX's head, trained on base classes and chosen by validation classes."""

    name: ClassVar[str] = "fewshot-train"
    features: FewshotFeatures
    classes: ClassSplit
    trx: TrxSettings
    way: int
    shot: int
    seed: int
    threads: int = setting(1, execution=True)

    @property
    def title(self) -> str:
        return f"{self.name}/trx-{self.shot}shot-{self.seed}"

    def size(self, counts: "Counts") -> float:
        return self.trx.episodes

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        import torch

        from l2a_ray.fewshot.bank import read_clips
        from l2a_ray.fewshot.features import read_features
        from l2a_ray.fewshot.training import train_head

        torch.set_num_threads(self.threads)
        clips = read_clips(open_store(inputs, self.features.prepare))
        with owned_by("fewshot.trx"):
            train_head(
                read_features(inputs.folder(self.features)),
                clips,
                self.classes,
                self.trx,
                way=self.way,
                shot=self.shot,
                seed=self.seed,
                out=out,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class FewshotEvaluate(Stage):
    """What a learner does in the episodes of a shot, with what an arm adds to the supports."""

    name: ClassVar[str] = "fewshot-evaluate"
    features: FewshotFeatures
    composites: FewshotFeatures | None
    head: FewshotTrain | None
    classes: ClassSplit
    episodes: EpisodeSettings
    shot: int
    learner: Learner
    arm: FewshotArm
    k: int
    seed: int
    """Of the composites and the head; 0 where there is neither."""
    threads: int = setting(1, execution=True)

    @property
    def title(self) -> str:
        added = "" if self.arm == "none" else f"-k{self.k}"
        return f"{self.name}/{self.learner}-{self.shot}shot-{self.arm}{added}-{self.seed}"

    def size(self, counts: "Counts") -> float:
        return self.episodes.count

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        import safetensors.numpy
        import torch

        from l2a_ray.fewshot.bank import novel_episodes, read_bank, read_clips
        from l2a_ray.fewshot.evaluation import accuracies, by_prototypes, by_trx
        from l2a_ray.fewshot.supports import NONE, add_composites, add_copies, join
        from l2a_ray.fewshot.training import load_head

        torch.set_num_threads(self.threads)
        clips = read_clips(open_store(inputs, self.features.prepare))
        episodes = novel_episodes(self.episodes, self.shot, self.classes, clips)
        made = None if self.composites is None else inputs.folder(self.composites)
        pairs = None if self.composites is None else self.composites.table(inputs)
        bank = read_bank(clips, self.classes.novel, inputs.folder(self.features), made, pairs)
        queries, supports = bank.row_of_clip[episodes.queries_EWQ], bank.row_of_clip[episodes.supports_EWS]
        if bank.ranked is not None:
            added = add_composites(supports, bank.ranked, self.k)
        else:
            added = add_copies(supports, self.k if self.arm == "copies" else 0)
        joined, there = join(supports, added)
        if self.head is None:
            learner, cost = by_prototypes(bank.features_NTF), bank.features_NTF.shape[2] // 8
        else:
            with owned_by("fewshot.trx"):
                head = load_head(inputs.folder(self.head), self.head.trx, *bank.features_NTF.shape[1:])
            learner, cost = by_trx(head, bank.features_NTF), head.cost
        found = accuracies(learner, queries, joined, there, cost)
        write_bytes(out / "accuracy.safetensors", safetensors.numpy.save({"accuracy": found}))
        # A support without an actor is not composited.
        bare = 0 if bank.ranked is None else int((bank.ranked.rows_ND[supports, 0] == NONE).sum())
        mean = float((added != NONE).sum(axis=-1).mean())
        write_json(out / "about.json", {"supports": supports.size, "without_composites": bare, "added": mean})
        if pairs is not None:
            first = added[0][added[0] != NONE] - int((bank.row_of_clip != NONE).sum())
            write_bytes(out / "first.parquet", pairs.iloc[first].to_parquet(index=False))
