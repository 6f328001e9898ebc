"""Finding the foreground: every segmenter turns a decoded clip into Instances (see base.py)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from l2a_ray.errors import SettingError
from l2a_ray.segment.base import Instances, Planes, Segmenter
from l2a_ray.segment.detect import DetectorSegmenter, DetectSettings
from l2a_ray.segment.motion import MotionSegmenter, MotionSettings
from l2a_ray.segment.precomputed import PrecomputedSegmenter

__all__ = ["Instances", "Planes", "SegmentSettings", "Segmenter", "build_segmenter"]


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Which segmenter finds the foreground, and what it needs."""

    kind: Literal["maskrcnn", "precomputed", "motion"] = "maskrcnn"
    """``maskrcnn``: people and objects by torchvision's Mask R-CNN (the paper's). ``precomputed``: masks from files.
    ``motion``: what moves before its background, without weights."""
    weights: str = "COCO_V1"
    """Of ``maskrcnn``: a state dict (.pth, .pt, .safetensors), or torchvision's name, which is downloaded once."""
    detect: DetectSettings = field(default_factory=DetectSettings)
    """How the detections of ``maskrcnn`` become masks."""
    gpus_per_worker: float = 0
    """GPUs, or a share of one, that each process which prepares videos reserves."""
    masks: str | None = None
    """Folder of the masks of ``precomputed``, by default `masks` in data.root; ``segment/precomputed.py`` lists the
    formats."""
    motion: MotionSettings = field(default_factory=MotionSettings)
    """What ``motion`` takes for movement."""

    def __post_init__(self) -> None:
        if self.kind not in _BUILDERS:
            raise SettingError("segment.kind", self.kind, f"must be one of {', '.join(_BUILDERS)}")
        if self.gpus_per_worker < 0:
            raise SettingError("segment.gpus_per_worker", self.gpus_per_worker, "must not be negative")


def build_segmenter(settings: SegmentSettings) -> Segmenter:
    """Make the segmenter that the settings name.

    Raises:
        DatasetError: the folder of masks does not exist.
        SettingError: no folder of masks is named; a network's weights cannot be had, or are of another one.
    """
    return _BUILDERS[settings.kind](settings)


def _precomputed(settings: SegmentSettings) -> Segmenter:
    if settings.masks is None:
        reason = "must name the folder of masks for segment.kind=precomputed"
        raise SettingError("segment.masks", settings.masks, reason)
    return PrecomputedSegmenter(settings.masks)


def _maskrcnn(settings: SegmentSettings) -> Segmenter:
    from l2a_ray.segment.maskrcnn import MaskRCNNDetector

    detector = MaskRCNNDetector(settings.weights, box_score_thresh=settings.detect.score)
    return DetectorSegmenter(detector, settings.detect)


_BUILDERS: dict[str, Callable[[SegmentSettings], Segmenter]] = {
    "maskrcnn": _maskrcnn,
    "motion": lambda settings: MotionSegmenter(settings.motion),
    "precomputed": _precomputed,
}
"""Another segmenter is one module and one line here."""
