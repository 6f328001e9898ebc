"""Settings of the segmenters; apart from the code, so that reading them loads no PyTorch."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment.motion import MotionSettings
from l2a_ray.storage.files import absolute_name

Kind = Literal["maskrcnn", "mmdet", "precomputed", "motion"]


@dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """How a network's detections become masks."""

    score: float = 0.5
    """Least confidence of a detection, in [0, 1]. Ours; torchvision's examples show detections from 0.5."""
    batch_size: int = 8
    """Frames that the network sees at once; halved, with a warning, where the GPU's memory does not hold them. Ours."""
    carry: int = 2
    """Frames over which an object is carried through that drops out between two detections; 0: not at all. Ours."""
    min_area: float = 0.001
    """Smallest connected piece of a mask that is kept, as a share of the frame, in [0, 1]. Ours."""

    def __post_init__(self) -> None:
        for name in ("score", "min_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"segment.detect.{name}", getattr(self, name), "must be between 0 and 1")
        if self.batch_size < 1:
            raise SettingError("segment.detect.batch_size", self.batch_size, "must be at least 1")
        if self.carry < 0:
            raise SettingError("segment.detect.carry", self.carry, "must be 0 or more frames")


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Which segmenter finds the foreground, and what it needs."""

    kind: Kind = "maskrcnn"
    """``maskrcnn``: people and objects by torchvision's Mask R-CNN (the paper's). ``mmdet``: by any instance
    segmentation of mmdet (docs/openmmlab.md). ``precomputed``: masks from files. ``motion``: what moves before its
    background, without weights."""
    weights: str = "COCO_V1"
    """Of ``maskrcnn``: a state dict (.pth, .pt, .safetensors), or torchvision's name, which is downloaded once."""
    config: str | None = None
    """Of ``mmdet``: a config's path, or the part of it below mmdet's own configs. It is a program and is run."""
    checkpoint: str | None = None
    """Of ``mmdet``: the file of the weights that were trained by ``config``."""
    detect: DetectSettings = field(default_factory=DetectSettings)
    """How the detections of ``maskrcnn`` and ``mmdet`` become masks."""
    gpus_per_worker: float = 0
    """GPUs, or a share of one, that each process which prepares videos reserves."""
    masks: str | None = None
    """Folder of the masks of ``precomputed``, by default `masks` in data.root; ``segment/precomputed.py`` lists the
    formats."""
    motion: MotionSettings = field(default_factory=MotionSettings)
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
        if self.kind not in get_args(Kind):
            raise SettingError("segment.kind", self.kind, f"must be one of {', '.join(get_args(Kind))}")
        if self.gpus_per_worker < 0:
            raise SettingError("segment.gpus_per_worker", self.gpus_per_worker, "must not be negative")
        if self.kind == "mmdet" and self.config is None:
            raise SettingError("segment.config", None, "must name mmdet's config for segment.kind=mmdet")
        if self.kind == "mmdet" and self.checkpoint is None:
            raise SettingError("segment.checkpoint", None, "must name the file of the weights for segment.kind=mmdet")
