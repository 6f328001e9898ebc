"""Settings of the segmenters; apart from the code, so that reading them loads no PyTorch."""

from dataclasses import dataclass, replace
from typing import Literal

from l2a_ray.errors import SettingError
from l2a_ray.fields import at_least, check, setting, within
from l2a_ray.storage.files import absolute_name

DEFAULT_WEIGHTS = "COCO_V1"


@dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """How a network's detections become masks."""

    score: float = 0.5
    """Least confidence of a detection, in [0, 1]. Ours; torchvision's examples show detections from 0.5."""
    mask: float = 0.5
    """Least probability of a pixel that belongs to an object, in [0, 1], for `maskrcnn`; mmdet's configs have their own
    (`mask_thr_binary`). Ours; torchvision's examples draw masks from 0.5."""
    batch_size: int = setting(8, execution=True)
    """Frames that the network sees at once; halved, with a warning, where the GPU's memory does not hold them. Ours."""
    carry: int = 2
    """Frames over which an object is carried through that drops out between two detections; 0: not at all. Ours."""
    overlap: float = 0.3
    """Least intersection over union of two boxes of a class that are taken for one object, in [0, 1], for `carry`.
    Ours."""
    min_area: float = 0.001
    """Smallest connected piece of a mask that is kept, as a share of the frame, in [0, 1]. Ours."""

    def __post_init__(self) -> None:
        share = within(0, 1)
        check(
            self,
            score=share,
            mask=share,
            overlap=share,
            min_area=share,
            batch_size=at_least(1),
            carry=at_least(0, "frames"),
        )


@dataclass(frozen=True, kw_only=True)
class MotionSettings:
    """What counts as movement."""

    contrast: int = 20
    """Least difference from the background, in grey levels of the channel that differs most, in [1, 255]. Ours."""
    noise: float = 4.0
    """Least difference in standard deviations of the clip's own noise (robust, from the median). Ours."""
    min_area: float = 0.004
    """Smallest component that is kept, as a share of the frame, in [0, 1]. Ours."""
    min_share: float = 0.2
    """Smallest component that is kept, as a share of its frame's largest, in [0, 1]. Ours."""

    def __post_init__(self) -> None:
        share = within(0, 1)
        check(
            self,
            contrast=within(1, 255, "grey levels"),
            noise=at_least(0, "standard deviations"),
            min_area=share,
            min_share=share,
        )


@dataclass(frozen=True, kw_only=True)
class PeopleSettings:
    """How the body points and masks of `people` become an actor."""

    score: float = 0.1
    """Least confidence of a body point that counts, in [0, 1]. Ours."""
    points: int = 4
    """Body points of 17 that a person needs at least. Ours."""
    stride: int = 2
    """Frames from one whose points are looked for to the next; the others are looked at where these are. Ours."""
    neighbours: int = 2
    """Frames before and after that help where a frame's own points are unsure. Ours."""
    grow: float = 2.1
    """Side of the square that the mask is looked for in, beside the square around the points. Ours."""
    person: float = 0.5
    """Least probability of a person, in [0, 1], in the clip's surest frame; else nobody is in the clip. MediaPipe's."""
    mask: float = 0.5
    """Least probability of a pixel that belongs to the person, in [0, 1]. Ours."""
    smooth: float = 0.5
    """Weight of each neighbour's probabilities, moved along by optical flow, beside 1 for the frame's own. Ours."""
    min_area: float = 0.001
    """Smallest connected piece of a mask that is kept, as a share of the frame, in [0, 1]. Ours."""

    def __post_init__(self) -> None:
        share = within(0, 1)
        check(
            self,
            score=share,
            points=within(1, 17),
            stride=at_least(1, "frames"),
            neighbours=at_least(0, "frames"),
            grow=at_least(1),
            person=share,
            mask=share,
            smooth=at_least(0),
            min_area=share,
        )


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Which segmenter finds the foreground, and what it needs."""

    kind: Literal["auto", "maskrcnn", "mmdet", "precomputed", "people", "motion"] = "maskrcnn"
    """``auto``, a run's default: ``precomputed`` where masks are there, ``maskrcnn`` where its weights are, else
    ``people`` (docs/prepare.md). ``maskrcnn``: people and objects by torchvision's Mask R-CNN (the paper's).
    ``mmdet``: by any instance segmentation of mmdet (docs/openmmlab.md). ``precomputed``: masks from files.
    ``people``: one person, by small networks that come with this package. ``motion``: what moves before its
    background, without weights."""
    weights: str = setting(DEFAULT_WEIGHTS, content=True, only_for={"kind": ["maskrcnn"]})
    """Of ``maskrcnn``: a state dict (.pth, .pt, .safetensors), or torchvision's name, which is downloaded once."""
    config: str | None = setting(None, content=True, only_for={"kind": ["mmdet"]})
    """Of ``mmdet``: a config's path, or the part of it below mmdet's own configs. It is a program and is run."""
    checkpoint: str | None = setting(None, content=True, only_for={"kind": ["mmdet"]})
    """Of ``mmdet``: the file of the weights that were trained by ``config``."""
    detect: DetectSettings = setting(default_factory=DetectSettings, only_for={"kind": ["maskrcnn", "mmdet"]})
    """How the detections of ``maskrcnn`` and ``mmdet`` become masks."""
    gpus_per_worker: float = setting(0, execution=True)
    """GPUs, or a share of one, that each process which prepares videos reserves: with 0.5, two share one."""
    masks: str | None = setting(None, only_for={"kind": ["precomputed"]})
    """Folder of the masks of ``precomputed``, by default `masks` in data.root; ``segment/precomputed.py`` lists the
    formats."""
    people: PeopleSettings = setting(default_factory=PeopleSettings, only_for={"kind": ["people"]})
    """How ``people`` finds the actor."""
    motion: MotionSettings = setting(default_factory=MotionSettings, only_for={"kind": ["motion"]})
    """What ``motion`` takes for movement."""

    def with_absolute_paths(self) -> "SegmentSettings":
        """Return the same for processes with another working directory: files that are there by their whole path."""
        return replace(
            self,
            weights=absolute_name(self.weights) or self.weights,
            config=absolute_name(self.config),
            checkpoint=absolute_name(self.checkpoint),
            masks=absolute_name(self.masks),
        )

    def __post_init__(self) -> None:
        check(self, gpus_per_worker=at_least(0))
        if self.kind == "mmdet" and self.config is None:
            raise SettingError("config", None, "must name mmdet's config for kind=mmdet")
        if self.kind == "mmdet" and self.checkpoint is None:
            raise SettingError("checkpoint", None, "must name the file of the weights for kind=mmdet")
