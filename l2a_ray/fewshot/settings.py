"""Settings of the few-shot setting; apart from the code, so that reading them loads neither PyTorch nor tables."""

from dataclasses import dataclass, field
from typing import Literal

from l2a_ray.classifier.settings import IMAGENET, TIMM, NetworkSettings
from l2a_ray.errors import SettingError
from l2a_ray.fields import above, at_least, check, setting, within

Published = Literal["hmdb51_s", "hmdb51_t", "ucf101_s", "ucf101_t"]
Split = Literal["drawn", "file", "hmdb51_s", "hmdb51_t", "ucf101_s", "ucf101_t"]
Learner = Literal["prototypes", "trx"]
FewshotArm = Literal["none", "copies", "random", "selected"]
PAIRED: tuple[FewshotArm, ...] = ("random", "selected")
"""The arms that need composites."""
DRAWN = {"split": ["drawn"]}


@dataclass(frozen=True, kw_only=True)
class ClassSettings:
    """Which classes are base, validation and novel: no class is two of these."""

    split: Split = "drawn"
    """`hmdb51_s`, `ucf101_s`: ARN's lists (S of the paper's Table 4); `hmdb51_t`, `ucf101_t`: TruZe's (T); of a data
    set with some of their classes, as J-HMDB has of HMDB51's, those that are there. `drawn`: by `data.seed`. `file`: as
    `fewshot.classes.file` says."""
    file: str | None = setting(None, content=True, only_for={"split": ["file"]})
    """CSV file with the columns class and role (base, validation, novel)."""
    novel: float = setting(0.2, only_for=DRAWN)
    """Share of the classes drawn as novel. Ours, near the lists' 21 of 101."""
    validation: float = setting(0.1, only_for=DRAWN)
    """Share of the classes drawn for validation, at least two. Ours, near the lists' 10 of 101."""

    def __post_init__(self) -> None:
        check(self, novel=within(0, 1), validation=within(0, 1))
        if (self.split == "file") != (self.file is not None):
            raise SettingError("file", self.file, "must name a CSV file if split is `file`, and nothing if it is not")


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings:
    """The episodes that learners are tested on; all learners and arms meet the same."""

    way: int = 5
    """Classes of an episode (paper, 5.5)."""
    queries: int = 1
    """Query clips of each class. Origin: TRX's evaluation."""
    count: int = 10000
    """How many. Origin: TRX's evaluation; ARN's has 600, whose interval is four times as wide."""
    source_disjoint: bool = False
    """No query shares its source video with a support of its episode. Ours; published protocols draw clips, and at 5
    shots a query then has a support of the same video in 14 to 16 % of the draws."""
    seed: int = 0
    """An episode is a function of this seed, the split, the shot and its number, and of nothing else. Ours."""
    file: str | None = setting(None, content=True)
    """A list of episodes that an earlier run saved (`episodes.parquet`), in place of drawing them. Ours."""

    def __post_init__(self) -> None:
        check(self, way=at_least(2), queries=at_least(1), count=at_least(1), seed=at_least(0))


@dataclass(frozen=True, kw_only=True)
class TrxSettings:
    """Temporal-Relational CrossTransformers (TRX, https://arxiv.org/abs/2101.06184) over stored features of frames."""

    cardinalities: tuple[int, ...] = (2, 3)
    """Frames of the tuples that are compared, a cardinality each. Origin: TRX."""
    width: int = 1152
    """Numbers of a tuple's key and of its value. Origin: TRX; 128 costs a ninth, and few base classes fill no more."""
    dropout: float = 0.1
    """Of the frames' features. Origin: TRX."""
    episodes: int = 10000
    """Training episodes, with the same ways and shots as in the test. Origin: TRX, on UCF101 and HMDB51."""
    queries: int = 5
    """Query clips of each class of a training episode. Origin: TRX."""
    accumulate: int = 16
    """Episodes whose gradients make a step. Origin: TRX."""
    learning_rate: float = 0.001
    """Of Adam. Ours: TRX's plain SGD is for training the backbone too."""
    validate_every: int = 500
    """Training episodes between two tests on the validation classes, by which the weights are chosen. Ours."""
    validation_episodes: int = 500
    """Episodes of such a test. Ours: half-width of its interval 2 points."""
    checkpoint_every: int = setting(100, execution=True)
    """Training episodes between two checkpoints, in whole steps."""

    def __post_init__(self) -> None:
        one = at_least(1)
        check(self, width=one, episodes=one, queries=one, accumulate=one, learning_rate=above(0))
        check(self, validate_every=one, validation_episodes=one, checkpoint_every=one, dropout=within(0, 1))
        check(self, cardinalities=lambda sizes: None if sizes and min(sizes) >= 1 else "must be one or more, each >= 1")


@dataclass(frozen=True, kw_only=True)
class FewshotSettings:
    """`l2a fewshot`: new classes learned from a few clips, with and without composites of these (paper, 5.5)."""

    classes: ClassSettings = field(default_factory=ClassSettings)
    """The split of the classes."""
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)
    """The test."""
    shots: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Support clips of each class, a test each (paper, Table 4)."""
    learners: tuple[Learner, ...] = ("prototypes", "trx")
    """`prototypes`: the nearest mean of the supports (https://arxiv.org/abs/1703.05175), nothing to train; `trx`."""
    arms: tuple[FewshotArm, ...] = ("none", "copies", "random", "selected")
    """What is added to the supports of each class. `none`: nothing; `copies`: exact copies of them, the null; `random`:
    composites of randomly drawn pairs; `selected`: composites of the pairs that a Selector scores highest."""
    k: tuple[int, ...] = (5,)
    """Supports that are added to each class, a test each; the paper does not say how many. Ours."""
    neighbours: int = 3
    """Base classes, by nearness of their names, whose scenes a support is set before; all where `match.kind=random`.
    Ours."""
    selector: str | None = setting(None, execution=True)
    """Folder of a run, or of an exported Selector, that has seen no novel class, for the arm `selected`; by default one
    is trained on the base classes."""
    network: NetworkSettings = field(
        default_factory=lambda: NetworkSettings(name=TIMM, temporal="mean", weights=IMAGENET)
    )
    """The frozen network of the features. Of `timm`, each frame has one; of others, each clip, as TRX needs not."""
    crop: int = 112
    """Side of the square that the network sees, pixels; at most decode.size. As `classifier.crop`."""
    crops: Literal[1, 3] = 1
    """Squares of each frame whose features are averaged: the centre, or three along the longer side. Ours."""
    trx: TrxSettings = field(default_factory=TrxSettings)
    """The learner that is trained."""
    threads: int = setting(1, execution=True)
    """Torch's threads. The last bits of sums depend on their number, so it is not the machine's."""

    def __post_init__(self) -> None:
        each = _distinct
        check(self, shots=each, learners=each, arms=each, k=each, neighbours=at_least(1), crop=at_least(1))
        check(self, threads=at_least(1))


def _distinct(values: tuple[object, ...]) -> str | None:
    if not values or len(set(values)) < len(values):
        return "must name at least one, each once"
    return "must be at least 1" if any(isinstance(value, int) and value < 1 for value in values) else None
