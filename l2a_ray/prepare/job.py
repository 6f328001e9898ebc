"""Prepare: decode, segment and inpaint every video once, in parallel, and keep the result in the clip store.

Segmentation and inpainting depend on one video, never on a pair, so their cost is linear in the number of videos. (The
paper pays them per pair; its section 6 names that as its main weakness.)
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import cv2
import pandas as pd

from l2a_ray.errors import DatasetError, L2AError, StorageError
from l2a_ray.prepare.clip import ClipMaker
from l2a_ray.prepare.finished import Finished, look_for_clips
from l2a_ray.prepare.segment import mask_files, no_files
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.prepare.sources import stamp
from l2a_ray.prepare.store import FAILED_COLUMNS, INDEX_DTYPES, ClipStore, Row, write_index
from l2a_ray.runtime.progress import Bar
from l2a_ray.runtime.telemetry import count
from l2a_ray.storage.files import AnyPath, remove_folder, write_bytes, write_json
from l2a_ray.videos.catalog import Catalog, Video
from l2a_ray.videos.published import ListedClip

logger = logging.getLogger(__name__)
VIDEOS_A_BLOCK = 8
ATTEMPTS = "attempts"
KNOWN = ("id", "source_hash", "source_stamp")


def prepare_clips(
    catalog: Catalog,
    settings: PrepareSettings,
    clips: AnyPath,
    out: AnyPath,
    need_ray: Callable[[], None] | None = None,
) -> ClipStore:
    """Make the clips of a data set that are not there yet, and write which clip belongs to which video.

    Clips that are there are kept, whichever run made them; of videos or masks that changed since, others are made.
    Videos that failed before are tried again. A video that cannot be found now keeps the clip that it had in ``out``.

    Args:
        catalog: the videos, with their labels and splits.
        settings: what clips are made with.
        clips: folder of all clips that are made so (``clip_key``), shared by runs and data sets.
        out: folder for ``index.parquet``, ``failed.parquet``, ``missing.parquet``, ``notes.json`` and ``store.json``.
        need_ray: starts Ray, if it is not there; called only if a clip must be made.

    Raises:
        StorageError: a folder cannot be written.
        DatasetError: not one video can be found, or not one of a class could be used for training; in both cases the
            index that is there stays.
        L2AError: what the settings name cannot be loaded.
    """
    known = _known(out)
    finished = look_for_clips(catalog.videos, clips, mask_files(settings.segment), known)
    todo = [video for video in catalog.videos if video.id not in finished.rows]
    _refuse_empty_storage(catalog, finished)
    logger.info("prepare: %d videos, %d already done", len(catalog.videos), len(finished.rows))
    made, failed = dict[str, Row](), list[Row]()
    if todo:
        ClipMaker.build(settings, clips, out)  # complaints (weights that are missing, say) belong before any work
        if need_ray is not None:
            need_ray()
        made, failed = _make(todo, settings, clips, out, len(finished.rows))
    remove_folder(out / ATTEMPTS)  # notes of processes that died when all but that was done
    rows = sorted({**finished.rows, **made}.items())
    index = pd.DataFrame([row for _, row in rows], columns=list(INDEX_DTYPES)).astype(INDEX_DTYPES)
    failures = pd.DataFrame(failed, columns=list(FAILED_COLUMNS)).sort_values("id", ignore_index=True)
    if empty := [name for name in catalog.classes if name not in _trained(index)]:
        write_bytes(out / "failed.parquet", failures.to_parquet(index=False))
        raise DatasetError(
            f"no usable training video for class {', '.join(map(repr, empty))}: nothing could learn it. See "
            f"{out / 'failed.parquet'} for the causes, mend the videos or leave the class out by data.labels"
        )
    missing = pd.DataFrame(catalog.missing, columns=list(ListedClip._fields)).astype("str")
    write_bytes(out / "missing.parquet", missing.to_parquet(index=False))
    write_json(out / "notes.json", [*catalog.notes, *_changes(catalog, finished, known)])
    write_index(out, clips, catalog.classes, index, failures)
    return ClipStore(out)


def _known(out: AnyPath) -> dict[str, Row]:
    """Return what the index of an earlier time says of each clip's source."""
    try:
        table = ClipStore(out).columns(*KNOWN)
    except L2AError:  # none, or one that is damaged or of another version: it is made anew
        return {}
    return {row[0]: dict(zip(KNOWN, row, strict=True)) for row in table.itertuples(index=False)}


def _refuse_empty_storage(catalog: Catalog, finished: Finished) -> None:
    """Refuse a data set none of whose videos can be found: more likely its storage is away than all of them."""
    if len(finished.rows) > len(finished.away) or any(stamp(video.path, no_files) for video in catalog.videos):
        return
    first = f", the first of them {catalog.videos[0].path}" if catalog.videos else ""
    raise DatasetError(f"none of {len(catalog.videos)} videos can be found{first}. Is their storage there?")


def _trained(index: pd.DataFrame) -> set[str]:
    return set(index.loc[index["split"] == "train", "class_name"])


def _changes(catalog: Catalog, finished: Finished, known: Mapping[str, Row]) -> list[str]:
    """Say in sentences what has come away since an earlier time."""
    notes = []
    if away := finished.away:
        where = f"the first is {away[0].path}"
        notes.append(f"videos that cannot be found (or their masks), whose clips are kept: {len(away)}; {where}")
    if gone := len(known.keys() - {video.id for video in catalog.videos}):
        notes.append(f"videos that are in the data set no more, whose clips are left out: {gone}")
    for note in notes:
        logger.warning("prepare: %s", note)
    return notes


def _make(
    videos: list[Video], settings: PrepareSettings, clips: AnyPath, out: AnyPath, before: int
) -> tuple[dict[str, Row], list[Row]]:
    """Prepare videos; return the index rows of the clips by id, and the rows of ``failed.parquet``."""
    made, failed = dict[str, Row](), list[Row]()
    with Bar(total=before + len(videos), initial=before, desc="prepare", unit="clip") as bar:
        for row in _stream(videos, settings, clips, out / ATTEMPTS):
            if "cause" in row:
                failed.append(row)
                count("l2a_clips_failed")
                bar.write(f"not used: {row['path']}: {row['cause']}")
                bar.set_postfix(failed=len(failed))
            else:
                made[row["id"]] = row
                count("l2a_clips_prepared")
            bar.update()
    return made, failed


def _stream(videos: list[Video], settings: PrepareSettings, clips: AnyPath, notes: AnyPath) -> Iterator[Row]:
    """Prepare videos in parallel; yields a row for each as it is done, in no fixed order."""
    import ray.data  # here: where all clips are there no Ray is needed

    from l2a_ray.runtime.nodes import resources
    from l2a_ray.runtime.streams import reading

    blocks = -(-len(videos) // VIDEOS_A_BLOCK)
    rows = ray.data.from_items([asdict(video) for video in videos], override_num_blocks=blocks)

    class Worker:
        """Loads the segmenter once, however many videos it takes."""

        def __init__(self) -> None:
            cv2.setNumThreads(1)  # Ray gives each actor a CPU; OpenCV would take all of them in every process
            self.maker = ClipMaker.build(settings, clips, notes)

        def __call__(self, row: Row) -> Row:
            # A JSON string a row: clips and failures have different columns, which the blocks of one table may not.
            try:
                made = self.maker.row(Video(**row))
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
    with reading(prepared.iter_rows()) as made_rows:
        for row in made_rows:
            made = json.loads(row["row"])
            if "fatal" in made:
                raise StorageError(made["fatal"])
            yield made
