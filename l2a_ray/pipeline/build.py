"""From the settings of a run to its stages: who reads what, and which settings each result depends on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from l2a_ray.config.arms import Arm
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError, owned_by
from l2a_ray.pipeline.results import Results
from l2a_ray.pipeline.stage import Stage
from l2a_ray.pipeline.stages import (
    Describe,
    Draw,
    DrawSound,
    Evaluate,
    Export,
    Match,
    PairSource,
    Prepare,
    PseudoLabel,
    Recommend,
    Select,
    SelectByAgreement,
    SelectByOther,
    Teach,
    Train,
    TrainSelector,
    Validate,
    WarmStart,
)
from l2a_ray.prepare.segment.choose import choose
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.selector.find import find_selector
from l2a_ray.storage.files import absolute_name, as_path
from l2a_ray.storage.run import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The stages of a run. Each method returns the same stage for the same arguments."""

    settings: Settings

    @cached_property
    def results(self) -> Results:
        """What is made already, and the means to make the rest."""
        settings = self.settings
        return Results(RunFolder(settings.folder, settings.plain(), settings.store_folder), settings.runtime)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        return self.settings.arms_by_name

    @cached_property
    def prepare(self) -> Prepare:
        """The clips of the data set."""
        settings = self.settings
        root = str(as_path(settings.data.root).absolute()) if settings.data.root else ""
        data = replace(settings.data, root=root, labels=absolute_name(settings.data.labels))
        segment, reason = choose(settings.segment, root)
        if reason:
            logger.info("segment: %s, since %s", segment.kind, reason)
        clips = PrepareSettings(
            decode=settings.decode,
            segment=segment.with_absolute_paths(),
            inpaint=replace(settings.inpaint, model=absolute_name(settings.inpaint.model)),
            max_failures=settings.data.max_failures,
        )
        masks = clips.segment.masks if segment.kind == "precomputed" else None
        return Prepare(root=root, masks=masks, data=data, clips=clips)

    @cached_property
    def teach(self) -> Teach:
        """What a network of images says of the frames."""
        teacher = self.settings.teacher
        return Teach(prepare=self.prepare, teacher=replace(teacher, weights=str(absolute_name(teacher.weights))))

    def clips(self, seed: int) -> Prepare | PseudoLabel:
        """The clips that are paired and learned, pseudo-labelled ones among them where they are asked for."""
        return self._clips(seed, 0)

    def match(self, seed: int) -> Match:
        """The candidate pairs; repetitions share them where nothing is drawn."""
        return self._match(seed, 0)

    def warm_start(self, seed: int) -> WarmStart:
        """The plain classifier."""
        return self._warm_start(seed, 0)

    # The same for each round of pseudo-labels that they lead to, from 1; 0: for what follows the last one.

    @cache  # noqa: B019 (a pipeline lives as long as its process)
    def _clips(self, seed: int, leads_to: int) -> Prepare | PseudoLabel:
        pseudo = self.settings.pseudo
        made = (leads_to or pseudo.rounds + 1) - 1
        if not made:
            return self.prepare
        return PseudoLabel(
            prepare=self.prepare,
            warm_start=self._warm_start(seed, made),
            pseudo=replace(pseudo, rounds=1),
            seed=seed,
            round=leads_to,
        )

    @cache  # noqa: B019
    def _match(self, seed: int, leads_to: int) -> Match:
        settings = self.settings
        clips, drawn = self._clips(seed, leads_to), settings.match.kind == "random"
        if seed and not drawn and clips is self.prepare:
            return self._match(0, leads_to)
        return Match(
            prepare=clips,
            match=settings.match,
            objects=settings.composite.objects,
            seed=seed if drawn else 0,
            round=leads_to,
        )

    @cache  # noqa: B019
    def _warm_start(self, seed: int, leads_to: int) -> WarmStart:
        settings, paired = self.settings, self.settings.warm_start.pairs == "random"
        return WarmStart(
            prepare=self._clips(seed, leads_to),
            match=self._match(seed, leads_to) if paired else None,
            warm_start=settings.warm_start,
            composite=settings.composite if paired else None,
            candidates=settings.env.candidates if paired else 0,
            seed=seed,
            round=leads_to,
            workers=settings.workers,
        )

    @cache  # noqa: B019
    def describe(self, seed: int) -> Describe:
        """What a Selector knows of the clips."""
        selector = self.settings.selector
        return Describe(
            warm_start=self.warm_start(seed),
            labels=selector.labels,
            embedding=selector.embedding,
            agreement=selector.agreement,
            seed=seed,
        )

    @cache  # noqa: B019
    def train_selector(self, seed: int) -> TrainSelector:
        """The Selector of a repetition."""
        settings = self.settings
        return TrainSelector(
            describe=self.describe(seed),
            match=self.match(seed),
            composite=settings.composite,
            env=settings.env,
            selector=settings.selector,
            seed=seed,
            tracking=settings.tracking,
            run=settings.name,
        )

    @cache  # noqa: B019
    def pairs(self, arm: str, seed: int) -> PairSource | None:
        """Where the pairs of an arm come from; None if it has none, or a file of the user's."""
        about, settings = self.arms[arm], self.settings
        if about.pairs == "random":
            return self.draw(seed)
        if about.pairs == "selector" and about.selector is None:
            return self.select(seed)
        match, select = self.match(seed), settings.select
        if about.pairs == "selector":
            weights, metadata = find_selector(as_path(str(about.selector)))
            return SelectByOther(match=match, select=select, seed=seed, weights=str(weights), metadata=str(metadata))
        if about.pairs == "agreement":
            return SelectByAgreement(match=match, select=select, seed=seed, describe=self.describe(seed))
        if about.pairs == "oracle":
            return DrawSound(match=match, select=select.how_many(), seed=seed, root=self.prepare.data.root)
        return None

    @cache  # noqa: B019
    def draw(self, seed: int) -> Draw:
        """Pairs drawn at random."""
        return Draw(match=self.match(seed), select=self.settings.select.how_many(), seed=seed)

    @cache  # noqa: B019
    def select(self, seed: int) -> Select:
        """The pairs that this run's Selector keeps."""
        selector = self.train_selector(seed)
        return Select(match=self.match(seed), select=self.settings.select, seed=seed, selector=selector)

    @cache  # noqa: B019
    def train(self, arm: str, seed: int) -> Train:
        """The classifier of an arm and a repetition.

        Raises:
            SettingError: the file that the arm names is not there, or the arm asks for training that cannot work.
        """
        about, settings = self.arms[arm], self.settings
        if about.file is not None and not as_path(about.file).is_file():
            raise SettingError(f"arms.{arm}.file", about.file, "there is no such file")
        with owned_by(f"arms.{arm}"):
            classifier = about.trained(settings.classifier)
        labelled = not about.needs_pairs and not classifier.pseudo_labels
        return Train(
            # As if there were no pseudo-labels, whose clips stay without a label for methods that learn from such.
            prepare=self.prepare if labelled else self.clips(seed),
            pairs=self.pairs(arm, seed),
            file=about.file,
            composite=(about.composite or settings.composite) if about.needs_pairs else None,
            teacher=self.teach if classifier.numbers.distill else None,
            classifier=classifier,
            seed=seed,
            arm=arm,
            workers=settings.workers,
        )

    @cache  # noqa: B019
    def evaluate(self, arm: str, seed: int) -> Evaluate:
        """What that classifier is worth."""
        train = self.train(arm, seed)
        return Evaluate(train=train, evaluate=self.settings.evaluate, student=train.classifier.averages)

    @cache  # noqa: B019
    def validate(self, arm: str, seed: int) -> Validate:
        """What that classifier does on D_val."""
        return Validate(train=self.train(arm, seed), evaluate=self.settings.evaluate.looks)

    @cached_property
    def recommend(self) -> Recommend:
        """Which classifier is handed over; classifiers that have learned D_val cannot be compared on it."""
        settings, arms = self.settings, self.arms
        real = [name for name, arm in arms.items() if not arm.needs_pairs]
        held_out = settings.classifier.train_on == "train"
        return Recommend(
            prepare=self.prepare,
            models=tuple(self.validate(arm, seed) for seed in settings.seeds for arm in arms if held_out),
            arms=tuple(arms),
            seeds=tuple(settings.seeds),
            baseline="real" if "real" in real else next(iter(real), None),
            sureness=settings.recommend.sureness,
        )

    @cache  # noqa: B019
    def retrain(self, arm: str, seed: int) -> Train:
        """The same classifier, but trained on all training clips, those of D_val among them."""
        train = self.train(arm, seed)
        # An arm cannot have that name: titles tell the two classifiers apart.
        return replace(train, arm=f"{arm}@all", classifier=replace(train.classifier, train_on="train+val"))

    @property
    def answers(self) -> list[Stage]:
        """What a whole run is to come to: what each classifier is worth, and which one is recommended."""
        return [*self.all("evaluate"), self.recommend]

    @cached_property
    def export(self) -> Export:
        """The composites of the arm that `export.arm` names, of the first repetition.

        Raises:
            SettingError: the arm is not there or has no pairs.
        """
        settings, arm = self.settings, self.settings.export.arm
        pairs = self.pairs(arm, settings.seeds[0]) if arm in self.arms else None
        if pairs is None:
            able = [name for name, about in self.arms.items() if about.pairs not in ("none", "file")]
            raise SettingError("export.arm", arm, f"must be an arm whose pairs this run chooses: {', '.join(able)}")
        composite = self.arms[arm].composite or settings.composite
        return Export(prepare=self.clips(settings.seeds[0]), pairs=pairs, composite=composite, export=settings.export)

    def all(self, stage: str) -> list[Stage]:
        """Return the stages of one name, for all repetitions and for the arms that need them."""
        settings, seeds, arms = self.settings, self.settings.seeds, self.arms
        paired = [name for name, arm in arms.items() if arm.needs_pairs and arm.pairs != "file"]
        found: Sequence[Stage | None]
        if stage == "teach":
            found = [self.teach]
        elif stage == "pseudo-label":
            found = [self.clips(seed) for seed in seeds if settings.pseudo.rounds]
        elif stage == "match":
            found = [self.match(seed) for seed in seeds if paired]
        elif stage == "train-selector":
            learned = any(arm.needs_own_selector for arm in arms.values())
            found = [self.train_selector(seed) for seed in seeds if learned]
        elif stage == "select":
            found = [self.pairs(arm, seed) for seed in seeds for arm in paired]
        else:
            make = self.train if stage == "train" else self.evaluate
            found = [make(arm, seed) for seed in seeds for arm in arms]
        return [stage for stage in dict.fromkeys(found) if stage is not None]
