"""Arms: what a classifier is trained with, as the rows of a table are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from l2a_ray.classifier.semi import MethodName, SemiSettings
from l2a_ray.classifier.settings import ClassifierSettings, CompositeMode
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config.building import build
from l2a_ray.errors import SettingError
from l2a_ray.fields import check, setting
from l2a_ray.outputs.settings import CANDIDATES, WORST

Pairs = Literal["none", "random", "selector", "agreement", "oracle", "file"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Where an arm's pairs come from, how they are composited, how its classifiers learn, and how it is shown."""

    pairs: Pairs = "none"
    """Where its pairs come from. `none`: real clips alone; `random`: drawn from the candidates; `selector`: those that
    a Selector scores highest; `agreement`: those whose foreground agrees best with its label; `oracle`: drawn from the
    candidates without a bad clip, known of generated videos alone; `file`: the table that `file` names."""
    selector: str | None = setting(None, only_for={"pairs": ["selector"]})
    """Folder of another run, or of an exported Selector, whose Selector scores the pairs (paper, Table 3,
    "+Pre-training"); by default this run trains its own."""
    file: str | None = setting(None, content=True, only_for={"pairs": ["file"]})
    """Parquet file with the columns foreground and background: ids of training clips."""
    composite: CompositeSettings | None = None
    """How its pairs are composited and labelled; by default as the run's section `composite` says."""
    method: MethodName | None = None
    """How its classifiers learn, one of `classifier.method`; by default as the section `classifier` says."""
    composite_mode: CompositeMode | None = None
    """As `classifier.composite_mode`; by default that."""
    composite_share: float | None = None
    """As `classifier.composite_share`; by default that. Arms that differ in it alone let D_val choose it."""
    composite_weight: float | None = None
    """As `classifier.composite_weight`; by default that."""
    semi: SemiSettings | None = None
    """As `classifier.semi`; by default that."""
    distill: float | None = None
    """As `classifier.distill`; by default that."""
    pseudo_labels: bool | None = None
    """As `classifier.pseudo_labels`; by default that. Without, and without pairs, an arm is labelled clips alone."""
    label: str = setting("", execution=True)
    """What the report says of the arm, in a few words."""
    colour: str = setting("", execution=True)
    """Its colour in the report, as #0072b2; by default one that differs from the other arms'."""

    def __post_init__(self) -> None:
        check(self)
        if (self.file is None) == (self.pairs == "file"):
            raise SettingError("file", self.file, "must name a table of pairs for pairs=file, and nothing otherwise")
        if self.selector is not None and self.pairs != "selector":
            raise SettingError("selector", self.selector, "goes with pairs=selector alone")
        if self.colour and not re.fullmatch(r"#[0-9a-fA-F]{6}", self.colour):
            raise SettingError("colour", self.colour, "must be written as #0072b2")

    def trained(self, classifier: ClassifierSettings) -> ClassifierSettings:
        """Return how its classifiers are trained, given how a run's are.

        Raises:
            SettingError: one of its values cannot work.
        """
        names = ("method", "composite_mode", "composite_share", "composite_weight", "semi", "distill", "pseudo_labels")
        own = {name: getattr(self, name) for name in names}
        return replace(classifier, **{name: value for name, value in own.items() if value is not None})

    @property
    def needs_pairs(self) -> bool:
        """Whether its classifiers see composites."""
        return self.pairs != "none"

    @property
    def needs_own_selector(self) -> bool:
        """Whether this run must train a Selector for it."""
        return self.pairs == "selector" and self.selector is None


# The colours are Okabe and Ito's, which the colour-blind can tell apart.
SHIPPED: Mapping[str, Arm] = {
    "real": Arm(pairs="none", label="real clips only", colour="#7a7a7a"),
    "random": Arm(pairs="random", label="with composites of randomly drawn pairs", colour="#0072b2"),
    "selected": Arm(pairs="selector", label="with composites of the pairs that the Selector kept", colour="#d55e00"),
}
"""The arms that need no definition."""
OTHER_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")


def resolve(arms: Mapping[str, Any] | Sequence[str]) -> dict[str, Arm]:
    """Return the arms by name.

    Args:
        arms: names of shipped arms; or by name an arm, plain settings of one, or None for the shipped arm.

    Raises:
        SettingError: there is no arm, a name is no folder name, or an arm is neither defined nor shipped, or wrongly.
    """
    given: dict[str, Any] = dict(arms) if isinstance(arms, Mapping) else dict.fromkeys(arms)
    if not given:
        raise SettingError("arms", arms, f"must name an arm: {', '.join(SHIPPED)}, or one that you define")
    found = {}
    for name, arm in given.items():
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise SettingError("arms", name, "an arm's name must be made of letters, digits, dots, + and -")
        if name in (WORST, CANDIDATES):
            raise SettingError("arms", name, "is what preview and report call other pairs; choose another name")
        if arm is None and name not in SHIPPED:
            reason = f"has no definition. Shipped are {', '.join(SHIPPED)}; define others as `{name}: {{pairs: ...}}`"
            raise SettingError(f"arms.{name}", arm, reason)
        if arm is not None and not isinstance(arm, Arm | Mapping):
            raise SettingError(f"arms.{name}", arm, "must hold settings, as {pairs: random}")
        found[name] = SHIPPED[name] if arm is None else arm if isinstance(arm, Arm) else build(Arm, arm, f"arms.{name}")
    return found
