"""The settings of training with clips without labels. Imports neither torch nor Ray."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from l2a_ray.composites.settings import AugmentSettings
from l2a_ray.fields import Rule, above, at_least, check, setting, within

SemiName = Literal["pseudo_label", "mean_teacher", "s4l", "videossl", "fixmatch", "actorcut", "tcl"]
MethodName = Literal["supervised", SemiName]
SEMI: tuple[SemiName, ...] = get_args(SemiName)
"""The methods that learn from unlabelled clips too."""


class Numbers(NamedTuple):
    """What a method's authors chose, where their methods differ; see the settings of the same names."""

    mu: float = 1.0
    threshold: float = 0.95
    weight: float | None = 1.0
    warm_up: float = 0.0
    ramp: float = 0.0
    ema: float = 0.0
    distill: float = 0.0


NUMBERS: dict[MethodName, Numbers] = {
    "supervised": Numbers(),
    "pseudo_label": Numbers(ramp=0.4),
    "mean_teacher": Numbers(mu=3.0, weight=None, ramp=0.1, ema=0.999),
    "s4l": Numbers(),
    "videossl": Numbers(distill=1.0),
    "fixmatch": Numbers(mu=7.0, ema=0.999),
    "actorcut": Numbers(),
    "tcl": Numbers(mu=3.0, threshold=0.8, warm_up=0.125),
}
"""Origins: docs/methods.md. Keys do not know them: who changes one raises the version of the stages that train."""


def _or_none(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


@dataclass(frozen=True, kw_only=True)
class StrongSettings:
    """The strong view of an unlabelled clip."""

    num_ops: int = 2
    """Operations of torchvision's RandAugment, drawn once a clip. Origin: FixMatch, ActorCutMix."""
    magnitude: int = 10
    """How strong they are, 0 to 30. Origin: FixMatch, ActorCutMix."""

    def __post_init__(self) -> None:
        check(self, num_ops=at_least(1), magnitude=within(0, 30))

    @property
    def augment(self) -> AugmentSettings:
        """The same as it is said of labelled samples."""
        return AugmentSettings(kind="randaugment", num_ops=self.num_ops, magnitude=self.magnitude)


@dataclass(frozen=True, kw_only=True)
class SemiSettings:
    """How a method learns from unlabelled clips; None stands for the number of the method's own authors."""

    mu: float | None = None
    """Unlabelled clips a step, as a multiple of `batch_size`, beside the batch. None: 7 for `fixmatch` (its authors'
    code), 3 for `mean_teacher` (near 31 labelled of 128) and `tcl`, else 1."""
    threshold: float | None = None
    """Least probability of a guess that is learned; above 1, none is. With 101 classes and few labels 0.95 may keep
    nothing for long; later work on video takes 0.3. None: 0.95 (FixMatch, ActorCutMix), 0.8 for `tcl` and, as in UDA,
    for soft targets."""
    weight: float | None = None
    """Of the unlabelled loss, where the labelled one weighs 1. None: 1; for `mean_teacher` the number of classes, from
    its authors' advice of C to C^2."""
    warm_up: float | None = None
    """Share of all steps, at the start, in which the unlabelled loss weighs nothing. None: 0; 1/8 for `tcl`, of whose
    400 epochs 50 are supervised."""
    ramp: float | None = None
    """Share of all steps, after the warm-up, over which the weight grows: along exp(-5 (1 - x)^2) for `mean_teacher`,
    else along a line. None: 0.4 for `pseudo_label` (USB's code), 0.1 for `mean_teacher` (ours; its authors: 5 to 30
    epochs), else 0."""
    ema: float | None = None
    """Decay of the moving average of the weights, at most that of step t, 1 - 1 / (t + 1). It is the teacher of
    `mean_teacher`, and the result of the others that have it; 0: none. None: 0.999 for `mean_teacher` and `fixmatch`
    (their authors' code), else 0."""
    batch_norm: Literal["update", "freeze"] = "update"
    """`update`: labelled and unlabelled clips make one batch (FixMatch, ActorCutMix, Mean Teacher). `freeze`:
    unlabelled clips are normalised among themselves and leave no trace in the running statistics (USB)."""
    targets: Literal["hard", "soft"] = "hard"
    """Of `fixmatch` and `actorcut`. `hard`: the likeliest class (FixMatch). `soft`: all probabilities, sharpened by
    `temperature` (UDA)."""
    temperature: float = setting(0.4, only_for={"targets": ["soft"]})
    """Of soft targets: the logits are divided by it. Origin: UDA, as in ActorCutMix's code."""
    strong: StrongSettings = field(default_factory=StrongSettings)
    """The strong view, for `fixmatch` and `actorcut`."""
    cut: float = 0.5
    """Probability that `actorcut` makes a step's strong views by pasting actors, and not by RandAugment. Origin:
    ActorCutMix's code."""
    instance: float = 9.0
    """Weight of the contrast between clips, for `tcl`. Origin: TCL's README."""
    group: float = 1.0
    """Weight of the contrast between classes, for `tcl`. Origin: TCL's README."""

    def __post_init__(self) -> None:
        share = within(0, 1)
        check(
            self,
            mu=_or_none(above(0)),
            threshold=_or_none(at_least(0)),
            weight=_or_none(at_least(0)),
            warm_up=_or_none(share),
            ramp=_or_none(share),
            ema=_or_none(lambda ema: None if 0 <= ema < 1 else "must be at least 0 and below 1"),
            temperature=above(0),
            cut=share,
            instance=at_least(0),
            group=at_least(0),
        )
