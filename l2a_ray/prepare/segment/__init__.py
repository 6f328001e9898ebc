"""Finding the foreground: every segmenter turns a decoded clip into Instances (see base.py)."""

from typing import TYPE_CHECKING, cast

from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment.settings import SegmentSettings as SegmentSettings
from l2a_ray.prepare.sources import MaskFiles
from l2a_ray.storage.files import AnyPath

if TYPE_CHECKING:
    from l2a_ray.prepare.segment.base import Segmenter


def build_segmenter(settings: SegmentSettings) -> "Segmenter":
    """Make the segmenter that the settings name.

    Raises:
        MissingPackageError: mmdet is asked for and not installed.
        SettingError: no folder of masks is named, or it does not exist; a network's weights cannot be had, or are of
            another one.
        StorageError: weights that come with this package are missing or damaged.
    """
    # Imported here: settings are read without OpenCV, and only networks need PyTorch. Another segmenter is one module
    # and one case.
    match settings.kind:
        case "precomputed":
            from l2a_ray.prepare.segment.precomputed import PrecomputedSegmenter

            return PrecomputedSegmenter(_masks(settings))
        case "motion":
            from l2a_ray.prepare.segment.motion import MotionSegmenter

            return MotionSegmenter(settings.motion)
        case "people":
            from l2a_ray.prepare.segment.people.segmenter import PeopleSegmenter

            return PeopleSegmenter(settings.people)
        case "maskrcnn":
            from l2a_ray.prepare.segment.detect import DetectorSegmenter
            from l2a_ray.prepare.segment.maskrcnn import MaskRCNNDetector

            mask, score = settings.detect.mask, settings.detect.score
            return DetectorSegmenter(MaskRCNNDetector(settings.weights, mask, box_score_thresh=score), settings.detect)
        case "mmdet":
            from l2a_ray.prepare.segment.detect import DetectorSegmenter
            from l2a_ray.prepare.segment.mmdet import MMDetDetector

            return DetectorSegmenter(MMDetDetector(cast(str, settings.config), settings.checkpoint), settings.detect)
        case "auto":
            raise SettingError("kind", settings.kind, "must be one that `choose` of segment/choose.py has chosen")


def mask_files(settings: SegmentSettings) -> MaskFiles:
    """Return what names the files beside a video that its masks are read from: none but for ``precomputed``.

    Raises:
        DatasetError: the folder of masks does not exist.
        SettingError: no folder of masks is named.
    """
    if settings.kind != "precomputed":
        return no_files
    from l2a_ray.prepare.segment.precomputed import PrecomputedSegmenter

    return PrecomputedSegmenter(_masks(settings)).files


def no_files(video: str) -> list[AnyPath]:
    """Name no file beside a video."""
    return []


def _masks(settings: SegmentSettings) -> str:
    if settings.masks is None:
        raise SettingError("masks", settings.masks, "must name the folder of masks for kind=precomputed")
    return settings.masks
