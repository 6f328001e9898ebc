"""All settings in one place; each part is defined by the module that uses it, and only there."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.settings import EnvSettings
from l2a_ray.classifier.settings import (
    ClassifierSettings,
    EvaluateSettings,
    PseudoSettings,
    TeacherSettings,
    WorkerSettings,
    check_workers,
)
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config.arms import Arm, resolve
from l2a_ray.deploy.settings import RecommendSettings
from l2a_ray.errors import SettingError, owned_by
from l2a_ray.fewshot.settings import FewshotSettings
from l2a_ray.fields import plain
from l2a_ray.outputs.settings import CANDIDATES, WORST, ExportSettings, PreviewSettings
from l2a_ray.pairs.settings import MatchSettings, SelectSettings
from l2a_ray.planning.settings import PlanSettings
from l2a_ray.prepare.inpaint.settings import InpaintSettings
from l2a_ray.prepare.segment.settings import SegmentSettings
from l2a_ray.runtime.settings import RuntimeSettings
from l2a_ray.runtime.tracking import TrackingSettings
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.selector.settings import WarmStartSettings
from l2a_ray.storage.files import AnyPath, as_path
from l2a_ray.videos.settings import DataSettings, DecodeSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run: from a folder of labelled videos to a better classifier, the chosen pairs and a report."""

    name: str = ""
    """Name of the run; its folder is `<runs>/<name>`. By default the name of the folder `data.root`."""
    runs: str = "runs"
    """Folder that holds all runs."""
    store: str | None = None
    """Folder of the results that all runs share, each under the key of what it was made with; by default
    `<runs>/store`."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """The repetitions. Each draws everything anew that comes after the split of the data: pairs, Selector and
    classifiers; means and spreads are over them. The split itself is drawn by `data.seed`."""
    arms: dict[str, Any] | list[str] = field(default_factory=lambda: ["real", "random", "selected"])
    """What classifiers are trained with, as a list of names or a mapping from name to definition. `real` (no
    composites), `random` (randomly chosen pairs) and `selected` (pairs chosen by the Selector) need no definition."""
    data: DataSettings = field(default_factory=DataSettings)
    """Videos, labels and splits."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """Reading a video."""
    segment: SegmentSettings = field(default_factory=lambda: SegmentSettings(kind="auto"))
    """Finding the foreground."""
    inpaint: InpaintSettings = field(default_factory=InpaintSettings)
    """Filling in the background."""
    match: MatchSettings = field(default_factory=MatchSettings)
    """Listing the candidate pairs."""
    composite: CompositeSettings = field(default_factory=CompositeSettings)
    """Pasting a foreground on a background."""
    warm_start: WarmStartSettings = field(default_factory=WarmStartSettings)
    """The plain classifier that the Selector is trained against."""
    pseudo: PseudoSettings = field(default_factory=PseudoSettings)
    """Clips without labels that get a guess of the warm start for one, and are paired with the others."""
    env: EnvSettings = field(default_factory=EnvSettings)
    """The selection problem."""
    selector: SelectorSettings = field(default_factory=SelectorSettings)
    """The Selector and how it is trained."""
    select: SelectSettings = field(default_factory=SelectSettings)
    """How many pairs are kept."""
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    """The action classifier and how it is trained."""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """The network of images that `l2a teach` asks."""
    recommend: RecommendSettings = field(default_factory=RecommendSettings)
    """Which classifier is handed over in the end."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    """The processes that train classifiers, the warm start included."""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """Testing the classifiers."""
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    """Ray on this machine."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    """Who is told how the Selector's training goes."""
    plan: PlanSettings = field(default_factory=PlanSettings)
    """How much is really run to say what a run will cost."""
    preview: PreviewSettings = field(default_factory=PreviewSettings)
    """Which pairs are shown."""
    export: ExportSettings = field(default_factory=ExportSettings)
    """Which composites are written as videos."""
    fewshot: FewshotSettings = field(default_factory=FewshotSettings)
    """New classes learned from a few clips."""

    def __post_init__(self) -> None:
        if not self.name:
            if not self.data.root:
                reason = "must name the run, or data.root the folder of videos, by which the run is then called"
                raise SettingError("name", self.name, reason)
            object.__setattr__(self, "name", as_path(self.data.root).absolute().name)  # the way of frozen dataclasses
        if not self.name or Path(self.name).name != self.name or self.name in ("..", "store"):
            raise SettingError("name", self.name, "must be a folder name, without slashes, and not `store`")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SettingError("seeds", self.seeds, "must name at least one seed, each once")
        if min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            raise SettingError("seeds", self.seeds, "must be in [0, 2^31)")
        for owner, part in (("classifier", self.classifier), ("warm_start.classifier", self.warm_start.classifier)):
            if part.crop > self.decode.size:
                reason = f"must be at most the clips' short side decode.size={self.decode.size}"
                raise SettingError(f"{owner}.crop", part.crop, reason)
            if (part.frames or 0) > self.decode.frames:
                reason = f"must be at most the frames that are stored, decode.frames={self.decode.frames}"
                raise SettingError(f"{owner}.frames", part.frames, reason)
            with owned_by(owner):
                check_workers(part, self.workers)
        for owner, looks, part in (
            ("evaluate", self.evaluate, self.classifier),
            ("pseudo", self.pseudo, self.warm_start.classifier),
        ):
            if looks.clips > 1 and part.frames in (None, self.decode.frames):
                reason = "must be 1 unless more frames are stored (decode.frames) than a sample shows (the classifier's"
                raise SettingError(f"{owner}.clips", looks.clips, f"{reason} frames)")
        if self.pseudo.rounds and (self.data.unlabelled != "keep" or self.data.labelled_share == 1):
            reason = "needs clips without labels: set data.labelled_share below 1 and data.unlabelled=keep"
            raise SettingError("pseudo.rounds", self.pseudo.rounds, reason)
        kinds = (*resolve(self.arms), WORST, CANDIDATES)
        if unknown := [kind for kind in self.preview.which if kind not in kinds]:
            raise SettingError("preview.which", unknown[0], f"must be some of {', '.join(kinds)}")

    @property
    def arms_by_name(self) -> dict[str, Arm]:
        """The arms with their definitions, in the order given."""
        return resolve(self.arms)

    @property
    def folder(self) -> AnyPath:
        """The run's folder; its whole path, for processes with another working directory."""
        return as_path(self.runs).absolute() / self.name

    @property
    def store_folder(self) -> AnyPath:
        """The folder of the results that all runs share."""
        return as_path(self.store or f"{self.runs}/store").absolute()

    def plain(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries of plain values."""
        return dict(plain(dataclasses.asdict(self)))
