"""Finding the foreground: every segmenter turns a decoded clip into Instances (see base.py)."""

from collections.abc import Callable
from typing import cast

from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment.base import Instances, Planes, Segmenter
from l2a_ray.prepare.segment.motion import MotionSegmenter
from l2a_ray.prepare.segment.precomputed import PrecomputedSegmenter
from l2a_ray.prepare.segment.settings import SegmentSettings

__all__ = ["Instances", "Planes", "SegmentSettings", "Segmenter", "build_segmenter"]


def build_segmenter(settings: SegmentSettings) -> Segmenter:
    """Make the segmenter that the settings name.

    Raises:
        DatasetError: the folder of masks does not exist.
        MissingPackageError: mmdet is asked for and not installed.
        SettingError: no folder of masks is named; a network's weights cannot be had, or are of another one.
    """
    return _BUILDERS[settings.kind](settings)


def _precomputed(settings: SegmentSettings) -> Segmenter:
    if settings.masks is None:
        reason = "must name the folder of masks for segment.kind=precomputed"
        raise SettingError("segment.masks", settings.masks, reason)
    return PrecomputedSegmenter(settings.masks)


def _maskrcnn(settings: SegmentSettings) -> Segmenter:
    # Here, not above: without networks a process that prepares videos needs no PyTorch, and starts sooner.
    from l2a_ray.prepare.segment.detect import DetectorSegmenter
    from l2a_ray.prepare.segment.maskrcnn import MaskRCNNDetector

    detector = MaskRCNNDetector(settings.weights, box_score_thresh=settings.detect.score)
    return DetectorSegmenter(detector, settings.detect)


def _mmdet(settings: SegmentSettings) -> Segmenter:
    from l2a_ray.prepare.segment.detect import DetectorSegmenter
    from l2a_ray.prepare.segment.mmdet import MMDetDetector

    return DetectorSegmenter(MMDetDetector(cast(str, settings.config), settings.checkpoint), settings.detect)


_BUILDERS: dict[str, Callable[[SegmentSettings], Segmenter]] = {
    "maskrcnn": _maskrcnn,
    "mmdet": _mmdet,
    "motion": lambda settings: MotionSegmenter(settings.motion),
    "precomputed": _precomputed,
}
"""Another segmenter is one module and one line here."""
