"""All settings in one place; each part is defined by the module that uses it, and only there."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from envs.settings import EnvSettings
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.errors import SettingError
from l2a_ray.outputs.export import ExportSettings
from l2a_ray.outputs.preview import PreviewSettings
from l2a_ray.pairs.match import MatchSettings
from l2a_ray.prepare.inpaint.fill import InpaintSettings
from l2a_ray.prepare.segment import SegmentSettings
from l2a_ray.runtime.tracking import TrackingSettings
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.selector.selection import SelectSettings
from l2a_ray.storage.files import AnyPath, as_path
from l2a_ray.storage.run import decisive
from l2a_ray.videos.catalog import DataSettings
from l2a_ray.videos.decode import DecodeSettings

ARMS = ("real", "random", "selected")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run: from a folder of labelled videos to a better classifier, the chosen pairs and a report."""

    name: str
    """Name of the run; its folder is `<runs>/<name>`."""
    runs: str = "runs"
    """Folder that holds all runs."""
    seed: int = 0
    """Seed of everything that is drawn."""
    arms: str = "real,random,selected"
    """What the classifier is trained with, separated by commas: `real` (no composites), `random` (randomly chosen
    pairs), `selected` (pairs chosen by the Selector); all take the same number of steps."""
    seeds: int = 1
    """How many classifiers each arm trains; their mean and spread are reported."""
    data: DataSettings = field(default_factory=DataSettings)
    """Videos, labels and splits."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """Reading a video."""
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    """Finding the foreground."""
    inpaint: InpaintSettings = field(default_factory=InpaintSettings)
    """Filling in the background."""
    match: MatchSettings = field(default_factory=MatchSettings)
    """Which pairs are candidates."""
    composite: CompositeSettings = field(default_factory=CompositeSettings)
    """Pasting a foreground on a background."""
    env: EnvSettings = field(default_factory=EnvSettings)
    """The selection problem."""
    selector: SelectorSettings = field(default_factory=SelectorSettings)
    """The Selector and how it is trained."""
    select: SelectSettings = field(default_factory=SelectSettings)
    """How many pairs are kept."""
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    """The action classifier and how it is trained."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    """Who is told how the Selector's training goes."""
    preview: PreviewSettings = field(default_factory=PreviewSettings)
    """Which pairs are shown."""
    export: ExportSettings = field(default_factory=ExportSettings)
    """Which composites are written as videos."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name == "..":
            raise SettingError("name", self.name, "must be a folder name, without slashes")
        unknown = [arm for arm in self.arm_names if arm not in ARMS]
        if unknown or not self.arm_names:
            raise SettingError("arms", self.arms, f"must be some of {', '.join(ARMS)}, separated by commas")
        if self.seeds < 1:
            raise SettingError("seeds", self.seeds, "must be at least 1")
        if not 0 <= self.seed < 2**31 or not math.isfinite(self.seed):
            raise SettingError("seed", self.seed, "must be in [0, 2^31)")
        if self.classifier.crop > self.decode.size:
            raise SettingError(
                "classifier.crop",
                self.classifier.crop,
                f"must be at most the clips' short side decode.size={self.decode.size}",
            )

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The arms, without repetition, in the order given."""
        return tuple(dict.fromkeys(arm.strip() for arm in self.arms.split(",") if arm.strip()))

    @property
    def folder(self) -> AnyPath:
        """The run's folder; its whole path, for processes with another working directory."""
        return as_path(self.runs).absolute() / self.name

    def plain(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries of plain values."""
        return asdict(self)

    def flat(self, *sections: str) -> dict[str, Any]:
        """Return the named sections with dotted names, without what only says how a result is come by."""
        chosen = {key: value for key, value in self.plain().items() if key in sections}
        if "data" in chosen:  # the same folder, however it was typed
            chosen["data"]["root"] = str(as_path(self.data.root).absolute())
        return decisive(chosen)
