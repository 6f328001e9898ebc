"""Settings of what comes before and after the Selector's training; reading them loads neither Ray nor PyTorch."""

from dataclasses import dataclass, field
from typing import Literal

from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.errors import SettingError
from l2a_ray.fields import check


@dataclass(frozen=True, kw_only=True)
class WarmStartSettings:
    """The plain classifier that the Selector's environment starts from and whose features it sees."""

    pairs: Literal["random", "none"] = "random"
    """What it is trained on: `random`, real clips and composites of random pairs; `none`, real clips alone (paper).
    Ours: features learned where scene and action go together cannot tell them apart."""
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    """That classifier and its training; the final classifiers have settings of their own."""

    def __post_init__(self) -> None:
        check(self)
        if self.classifier.train_on != "train":
            reason = "must be train: D_val, which tells the Selector what a step is worth, may not be learned"
            raise SettingError("classifier.train_on", self.classifier.train_on, reason)
