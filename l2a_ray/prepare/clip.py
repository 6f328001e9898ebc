"""One video to one clip: decode, segment, inpaint, and write it to the store. Imports no Ray."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import L2AError, StorageError, VideoError, owned_by
from l2a_ray.prepare.attempts import attempt
from l2a_ray.prepare.inpaint.fill import Inpainter, NoBackgroundError, build_inpainter
from l2a_ray.prepare.segment import build_segmenter, mask_files
from l2a_ray.prepare.segment.base import Planes, Segmenter
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.prepare.sources import MaskFiles, Stamp, content_hash, stamp
from l2a_ray.prepare.store import (
    NO_BACKGROUND,
    NO_FOREGROUND,
    Row,
    StoredClip,
    clip_path,
    read_metadata,
    write_clip,
)
from l2a_ray.storage.files import AnyPath
from l2a_ray.videos.catalog import Video
from l2a_ray.videos.decode import Clip, decode, fetch

UNSEEN = Stamp(-1, "")


@dataclass(frozen=True)
class ClipMaker:
    """Makes clips of videos, with networks that are loaded once.

    Args:
        settings: what clips are made with.
        clips: folder that they are written to.
        notes: folder for notes of the videos being prepared (``attempts.py``).
        segmenter: finds the foreground.
        inpainter: removes it.
        mask_files: names the files beside the video that the segmenter reads.
    """

    settings: PrepareSettings
    clips: AnyPath
    notes: AnyPath
    segmenter: Segmenter
    inpainter: Inpainter
    mask_files: MaskFiles

    @classmethod
    def build(cls, settings: PrepareSettings, clips: AnyPath, notes: AnyPath) -> "ClipMaker":
        """Load what the settings name.

        Raises:
            L2AError: it cannot be loaded (``build_segmenter``, ``build_inpainter``).
        """
        with owned_by("segment"):
            segmenter = build_segmenter(settings.segment)
        with owned_by("inpaint"):
            inpainter = build_inpainter(settings.inpaint)
        return cls(settings, clips, notes, segmenter, inpainter, mask_files(settings.segment))

    def row(self, video: Video) -> Row:
        """Prepare one video; return its index row, or a row of ``failed.parquet`` that says why it cannot be used.

        Raises:
            StorageError: the store cannot be written, which no other video would survive either.
        """
        try:
            with attempt(self.notes / f"{video.id}.json", video.path, self.settings.max_failures):
                return self._make(video)
        except StorageError:
            raise
        except VideoError as error:
            cause, advice = error.cause, error.advice
        except (L2AError, ValueError, RuntimeError, OSError) as error:
            cause, advice = f"{type(error).__name__}: {error}", "Convert the video anew, or leave it out"
        seen = stamp(video.path, self.mask_files) or UNSEEN
        return asdict(video) | {
            "cause": cause,
            "advice": advice,
            "source_size": seen.size,
            "source_stamp": seen.digest,
        }

    def _make(self, video: Video) -> Row:
        """Make a clip unless one of the same content is there: of a process that died since, or of another run."""
        seen = stamp(video.path, self.mask_files) or UNSEEN
        fetched = fetch(video.path)
        source_hash = content_hash(video.path, self.mask_files, fetched)
        path = clip_path(self.clips, video.id, source_hash)
        source = {"source_hash": source_hash, "source_size": seen.size, "source_stamp": seen.digest}
        if (known := read_metadata(path)) is not None:
            return asdict(video) | known | source
        clip = decode(video.path, self.settings.decode, fetched)
        planes = self.segmenter(clip).planes()
        background, remark = self._background(clip, planes)
        metadata = _describe(clip, planes, remark) | source
        write_clip(path, StoredClip(clip.frames_THWC, background, planes), {k: str(v) for k, v in metadata.items()})
        return asdict(video) | metadata

    def _background(self, clip: Clip, planes: Planes) -> tuple[NDArray[np.uint8], str]:
        """Return the clean background, and what the index should remark of the clip."""
        try:
            background = self.inpainter(clip.frames_THWC, planes.objects)
        except NoBackgroundError:
            return clip.frames_THWC, NO_BACKGROUND
        return background, "" if planes.objects.any() else NO_FOREGROUND


def _describe(clip: Clip, planes: Planes, remark: str) -> Row:
    return {
        "frame_count": clip.frame_count,
        "rate": clip.rate,
        "height": clip.frames_THWC.shape[1],
        "width": clip.frames_THWC.shape[2],
        "foreground_ratio": float(planes.objects.mean()),
        "people_ratio": float(planes.people.mean()),
        "foreground_frames": _frames(planes.objects),
        "people_frames": _frames(planes.people),
        "remark": remark,
    }


def _frames(mask_THW: NDArray[np.bool_]) -> float:
    """Return the share of frames in which the mask is not empty."""
    return float(mask_THW.any(axis=(1, 2)).mean())
