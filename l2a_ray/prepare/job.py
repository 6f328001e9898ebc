"""Prepare: decode, segment and inpaint every video once, in parallel, and keep the result in the clip store.

Segmentation and inpainting depend on one video, never on a pair, so their cost is linear in the number of videos. (The
paper pays them per pair; its section 6 names that as its main weakness.)
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import pandas as pd
import ray
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, L2AError, StorageError, VideoError
from l2a_ray.prepare.attempts import attempt
from l2a_ray.prepare.inpaint.fill import Inpainter, InpaintSettings, NoBackgroundError, build_inpainter
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.segment.base import Planes, Segmenter
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    NO_BACKGROUND,
    NO_FOREGROUND,
    ClipStore,
    StoredClip,
    read_metadata,
    write_clip,
    write_index,
)
from l2a_ray.runtime.nodes import resources
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.telemetry import count
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, remove_folder
from l2a_ray.storage.run import claim, decisive
from l2a_ray.videos.catalog import Catalog, Video
from l2a_ray.videos.decode import Clip, DecodeSettings, decode, fetch

logger = logging.getLogger(__name__)
Row = dict[str, Any]
VIDEOS_A_BLOCK = 8
ATTEMPTS = "attempts"
LOOKING = 32  # threads
METADATA = tuple(name for name in INDEX_DTYPES if name not in Video.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What the clips in a store are made with. A store holds clips of one such setting only."""

    decode: DecodeSettings = field(default_factory=DecodeSettings)
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    inpaint: InpaintSettings = field(default_factory=InpaintSettings)
    max_failures: int = 3
    """``data.max_failures``; the clips do not depend on it."""


def prepare(catalog: Catalog, settings: PrepareSettings, root: AnyPath) -> ClipStore:
    """Fill the clip store at ``root`` with what is missing and write its index.

    Clips that are there already are kept as they are; videos that changed on disk since are done again.

    Raises:
        StageError: the store was made with other settings.
        StorageError: the store cannot be written.
        DatasetError: not one video of a class could be used for training.
    """
    data = root / "data"
    build_segmenter(settings.segment)  # complaints (a missing folder, say) belong before any work
    build_inpainter(settings.inpaint)
    claim(data, decisive({part: asdict(getattr(settings, part)) for part in ("decode", "segment", "inpaint")}))
    known = _known(root)
    done = _done(data, catalog.videos, known)
    todo = [video for video in catalog.videos if video.id not in done]
    logger.info("prepare: %d videos, %d already done", len(catalog.videos), len(done))
    failed: list[Row] = []
    with Bar(total=len(catalog.videos), initial=len(done), desc="prepare", unit="clip") as bar:
        for row in _stream(todo, settings, data):
            if "cause" in row:
                failed.append(row)
                count("l2a_clips_failed")
                bar.write(f"not used: {row['path']}: {row['cause']}")
                bar.set_postfix(failed=len(failed))
            else:
                done[row["id"]] = row
                count("l2a_clips_prepared")
            bar.update()
    remove_folder(root / ATTEMPTS)  # notes of processes that died when all but that was done
    index = pd.DataFrame([done[key] for key in sorted(done)], columns=list(INDEX_DTYPES)).astype(INDEX_DTYPES)
    failures = pd.DataFrame(failed, columns=list(FAILED_COLUMNS)).sort_values("id", ignore_index=True)
    write_index(root, data.name, catalog.classes, index, failures)
    _refuse_empty_classes(catalog, index)
    return ClipStore(root)


def _known(root: AnyPath) -> dict[str, Row]:
    """Return what the index of an earlier run says of each clip; one file is read faster than all clips' headers."""
    if not (root / "store.json").is_file():
        return {}
    index = ClipStore(root).index.astype({"source_size": str, "source_mtime_ns": str})
    rows = index[list(METADATA)].itertuples(index=False)
    return {key: dict(zip(METADATA, row, strict=True)) for key, row in zip(index["id"], rows, strict=True)}


def _done(data: AnyPath, videos: Sequence[Video], known: dict[str, Row]) -> dict[str, Row]:
    """Return the index rows of the clips that need not be made, by id. It asks for many at a time: stores are slow."""
    there = {path.stem for path in data.glob("*/*.safetensors")}  # a listing names a thousand where asking names one
    videos = [video for video in videos if video.id in there]
    with ThreadPoolExecutor(LOOKING) as pool:
        found = pool.map(partial(_finished, data, known=known), videos)
        rows = list(Bar(found, total=len(videos), desc="look for clips that are done", unit="clip", delay=2))
    return {video.id: row for video, row in zip(videos, rows, strict=True) if row is not None}


def _finished(data: AnyPath, video: Video, known: dict[str, Row]) -> Row | None:
    """Return the index row of a clip that is in the store already and whose video has not changed since."""
    metadata = known.get(video.id) or read_metadata(data, video.id)
    if metadata is None or (metadata["source_size"], metadata["source_mtime_ns"]) != _stamp(video.path):
        return None
    return asdict(video) | metadata


def _stamp(path: str) -> tuple[str, str]:
    """Return size in bytes and time of change, by which a changed video is noticed without reading it."""
    try:
        status = as_path(path).stat()
    except OSError:
        return "-1", "-1"
    return str(status.st_size), str(status.st_mtime_ns)


def _stream(videos: list[Video], settings: PrepareSettings, data: AnyPath) -> Iterator[Row]:
    """Prepare videos in parallel; yields a row for each as it is done, in no fixed order."""
    if not videos:
        return
    blocks = -(-len(videos) // VIDEOS_A_BLOCK)
    rows = ray.data.from_items([asdict(video) for video in videos], override_num_blocks=blocks)

    class Worker:
        """Loads the segmenter once, however many videos it takes."""

        def __init__(self) -> None:
            cv2.setNumThreads(1)  # Ray gives each actor a CPU; OpenCV would take all of them in every process
            self.segmenter, self.inpainter = build_segmenter(settings.segment), build_inpainter(settings.inpaint)

        def __call__(self, row: Row) -> Row:
            # A JSON string a row: clips and failures have different columns, which the blocks of one table may not.
            video = Video(**row)
            try:
                # What a process had done before it died need not be done again by the one that takes its place.
                made = _finished(data, video, {}) or prepare_or_fail(
                    video, settings, self.segmenter, self.inpainter, data
                )
            except StorageError as error:  # an exception would reach the driver as text inside another one
                made = {"fatal": str(error)}
            return {"row": json.dumps(made)}

    # Actors, not tasks: a task keeps its CPU idle until Ray Data's loop, which looks ten times a second, starts the
    # next one; an actor has its next block waiting. More of them come where there is more room later.
    there, gpus = resources(), settings.segment.gpus_per_worker
    room = int(there.get("GPU", 0) / gpus) if gpus else int(there.get("CPU", 0))
    pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=max(1, min(room, blocks)))
    worker: Any = Worker  # Ray Data's signature knows functions only
    prepared: Any = rows.map(worker, compute=pool, num_gpus=gpus or None)
    for row in prepared.iter_rows():
        made = json.loads(row["row"])
        if "fatal" in made:
            raise StorageError(made["fatal"])
        yield made


def prepare_or_fail(
    video: Video, settings: PrepareSettings, segmenter: Segmenter, inpainter: Inpainter, data: AnyPath
) -> Row:
    """Prepare one video; return its index row, or a row of ``failed.parquet`` that says why it cannot be used.

    Raises:
        StorageError: the store cannot be written, which no other video would survive either.
    """
    try:
        with attempt(data.parent / ATTEMPTS / f"{video.id}.json", video.path, settings.max_failures):
            return prepare_clip(video, settings, segmenter, inpainter, data)
    except StorageError:
        raise
    except VideoError as error:
        cause, advice = error.cause, error.advice
    except (L2AError, ValueError, RuntimeError, OSError) as error:
        cause, advice = f"{type(error).__name__}: {error}", "Convert the video anew, or leave it out"
    size, changed = _stamp(video.path)
    return asdict(video) | {"cause": cause, "advice": advice, "source_size": int(size), "source_mtime_ns": int(changed)}


def prepare_clip(
    video: Video, settings: PrepareSettings, segmenter: Segmenter, inpainter: Inpainter, data: AnyPath
) -> Row:
    """Decode, segment, inpaint and write one video; return its index row.

    Raises:
        VideoError: the video cannot be used.
        StorageError: the store cannot be written.
    """
    size, changed = _stamp(video.path)
    source = fetch(video.path)
    clip = decode(video.path, settings.decode, source)
    planes = segmenter(clip).planes()
    background_THWC, remark = _background(clip, planes, inpainter)
    content = read_bytes(as_path(video.path)) if source is None else source.getbuffer()
    metadata: Row = {
        "frame_count": clip.frame_count,
        "rate": clip.rate,
        "height": clip.frames_THWC.shape[1],
        "width": clip.frames_THWC.shape[2],
        "foreground_ratio": float(planes.objects.mean()),
        "people_ratio": float(planes.people.mean()),
        "remark": remark,
        "source_hash": hashlib.blake2b(content, digest_size=16).hexdigest(),
        "source_size": size,
        "source_mtime_ns": changed,
    }
    stored = StoredClip(frames_THWC=clip.frames_THWC, background_THWC=background_THWC, planes=planes)
    write_clip(data, video.id, stored, {key: str(value) for key, value in metadata.items()})
    return asdict(video) | metadata


def _background(clip: Clip, planes: Planes, inpainter: Inpainter) -> tuple[NDArray[np.uint8], str]:
    """Return the clean background, and what the index should remark of the clip."""
    try:
        background_THWC = inpainter(clip.frames_THWC, planes.objects)
    except NoBackgroundError:
        return clip.frames_THWC, NO_BACKGROUND
    return background_THWC, "" if planes.objects.any() else NO_FOREGROUND


def _refuse_empty_classes(catalog: Catalog, index: pd.DataFrame) -> None:
    trained: Iterable[str] = set(index.loc[index["split"] == "train", "class_name"])
    empty = [name for name in catalog.classes if name not in trained]
    if empty:
        raise DatasetError(
            f"no usable training video for class {', '.join(map(repr, empty))}: see failed.parquet for the causes, "
            "mend the videos or leave the class out by data.labels"
        )
