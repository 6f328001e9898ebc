"""Composites as video files, with annotations that mmaction2 and torchvision's folder readers load."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import ClipLoader, Sample
from l2a_ray.errors import StorageError
from l2a_ray.outputs.settings import ExportSettings
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, write_bytes
from l2a_ray.videos.encode import encode_mp4, playing_rate

logger = logging.getLogger(__name__)
Row = dict[str, Any]
PAIRS_A_BLOCK = 16
COLUMNS = ["file", "foreground", "background", "foreground_label", "background_label", "lambda"]
UNREADABLE = (StorageError, KeyError, ValueError)
"""What reading a pair raises if a clip's file is missing or damaged, lacks a part, or is of another length."""


def export(
    store: ClipStore, pairs: pd.DataFrame, composite: CompositeSettings, settings: ExportSettings, out: AnyPath
) -> pd.DataFrame:
    """Write ``videos/<class>/<foreground>-<background>.mp4`` of each pair and, when all are there, the annotations.

    Files that are there are kept. Pairs whose clips cannot be read are left out, named in ``failed.parquet`` and
    logged; called again, it tries them again.
    Ray must be running.

    Args:
        store: the prepared clips.
        pairs: columns foreground, background, foreground_label, background_label and, if they are scored, score.
        composite: how composites are made.
        settings: how they are encoded.
        out: folder to write into.

    Returns:
        ``failed.parquet``: file, foreground, background, cause.

    Raises:
        StorageError: ``out`` cannot be written, or not one pair could be read.
    """
    table = _plan(store, pairs)
    weights: dict[str, float] = {}
    causes: dict[str, str] = {}
    with Bar(total=len(table), desc="export", unit="clip") as bar:
        for row in _stream(table, store.root, composite, settings, out / "videos"):
            if row["cause"]:
                causes[row["file"]] = row["cause"]
                bar.set_postfix(failed=len(causes))
            else:
                weights[row["file"]] = row["lambda"]
            bar.update()
    failed = table[table["file"].isin(causes)][["file", "foreground", "background"]]
    failed = failed.assign(cause=failed["file"].map(causes)).reset_index(drop=True)
    write_bytes(out / "failed.parquet", failed.to_parquet(index=False))
    if not weights:
        raise StorageError(f"{out}: not one of {len(table)} pairs could be read: {failed['cause'].iloc[0]}")
    done = table[table["file"].isin(weights)]
    write_annotations(done.assign(**{"lambda": done["file"].map(weights)}), store.classes, out)
    _tell(len(done), failed, out)
    return failed


def _plan(store: ClipStore, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add to each pair its file, and of the foreground's video frame_count and rate."""
    folders = class_folders(store.classes)
    ends = zip(pairs["foreground_label"], pairs["foreground"], pairs["background"], strict=True)
    files = [f"{folders[label]}/{foreground}-{background}.mp4" for label, foreground, background in ends]
    videos = store.index.set_index("id")[["frame_count", "rate"]].reindex(pairs["foreground"]).fillna(0)
    return pairs.assign(file=files, frame_count=videos["frame_count"].to_numpy(), rate=videos["rate"].to_numpy())


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return a folder name a class, by label: without blanks, which part the columns of mmaction2's lists.

    Names that then are the same, on some disks in upper and lower case too, get their label appended.
    """
    plain = [re.sub(r"\s+", "_", name) for name in classes]
    counts = Counter(name.casefold() for name in plain)
    return [name if counts[name.casefold()] == 1 else f"{name}-{label}" for label, name in enumerate(plain)]


def write_annotations(table: pd.DataFrame, classes: Sequence[str], out: AnyPath) -> None:
    """Write ``mmaction2.txt``, ``classes.txt`` and ``pairs.parquet``.

    Args:
        table: the pairs whose files are there, with the columns ``COLUMNS`` and, if they are scored, score.
        classes: class names, position = label.
        out: folder to write into.
    """
    lines = [f"{file} {label}\n" for file, label in zip(table["file"], table["foreground_label"], strict=True)]
    write_bytes(out / "mmaction2.txt", "".join(lines).encode())
    write_bytes(out / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    named = {
        f"{role}_class": [classes[label] for label in table[f"{role}_label"]] for role in ("foreground", "background")
    }
    columns = [*COLUMNS, *table.columns.intersection(["score"])]
    write_bytes(out / "pairs.parquet", table[columns].assign(**named).to_parquet(index=False))


def _stream(
    table: pd.DataFrame, store: AnyPath, composite: CompositeSettings, settings: ExportSettings, videos: AnyPath
) -> Iterator[Row]:
    """Write the files in parallel; yields file, cause and lambda of each as it is done, in no fixed order."""
    import ray.data  # here, because the settings above are read where Ray is not wanted

    from l2a_ray.runtime.session import quieten
    from l2a_ray.runtime.streams import reading

    quieten()
    pairs = table[["file", "foreground", "background", "frame_count", "rate"]].to_dict("records")
    rows = ray.data.from_items(pairs, override_num_blocks=-(-len(pairs) // PAIRS_A_BLOCK))
    root, folder = str(store.absolute()), videos.absolute()  # a worker's current folder is another one

    def work(row: Row) -> Row:
        return {"row": json.dumps(write_pair(row, _loader(root, composite), settings.crf, folder))}

    with reading(rows.map(work).iter_rows()) as made_rows:
        for made in made_rows:
            row: Row = json.loads(made["row"])
            if row["fatal"]:  # an exception would reach the driver as text inside another one
                raise StorageError(row["fatal"])
            yield row


@lru_cache(maxsize=2)
def _loader(store: str, composite: CompositeSettings) -> ClipLoader:
    """Keep the store's index between the tasks of one process."""
    return ClipLoader(ClipStore(store), composite)


def write_pair(row: Row, loader: ClipLoader, crf: int, videos: AnyPath) -> Row:
    """Write one pair's file unless it is there; return file, lambda, and what went wrong: cause (its own) or fatal."""
    made: Row = {"file": row["file"], "lambda": None, "cause": None, "fatal": None}
    try:
        frames, label = loader.blend(Sample(row["foreground"], row["background"]))
    except UNREADABLE as error:
        return made | {"cause": str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"}
    path = videos / row["file"]
    if not path.is_file():
        rate = playing_rate(len(frames), int(row["frame_count"]), row["rate"])
        try:
            write_bytes(path, encode_mp4(frames, rate, crf))
        except StorageError as error:
            return made | {"fatal": str(error)}
    return made | {"lambda": float(label[loader.label(row["foreground"])])}


def _tell(done: int, failed: pd.DataFrame, out: AnyPath) -> None:
    logger.info("export: %d composites in %s", done, out)
    if failed.empty:
        return
    again = "`l2a export --refresh` tries them again"
    logger.warning("export: %d pairs could not be written (failed.parquet; %s), because of", len(failed), again)
    for cause, count in failed["cause"].value_counts().items():
        logger.warning("  %s (%d pairs)", cause, count)
