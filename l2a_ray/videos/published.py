"""Data sets known by their published lists: which clips belong to them, and finding those on disk by their names."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from l2a_ray.errors import DatasetError
from l2a_ray.storage.files import AnyPath, read_bytes

DEPTH = 2
"""Folders between the root and a video, as in train/<class>/. Deeper lie frames, which take long to list."""
_KINETICS_CLIP = re.compile(r"(?P<id>[\w-]{11})(_\d+_\d+)?", re.ASCII)  # YouTube's id, with or without start and end
_TRAIN_CSV = re.compile(r"([^/]+/)?([^/]*[-_])?train\.csv")
_HELD_OUT_FOLDER = re.compile(r"val|test", re.IGNORECASE)


class ListedClip(NamedTuple):
    """A clip that a list names; ``name`` is its file's, without an extension."""

    class_name: str
    name: str
    part: Literal["train", "test", "unlabelled"]


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """What the list of a data set offers.

    Args:
        key: turns a file's name without extension into what clips are found by; None if no clip is called so.
        place: where the files usually lie, for messages.
        shares: VideoSSL's shares of labelled training clips, of split 1.
        splits: the number of official splits.
    """

    key: Callable[[str], str | None]
    place: str
    shares: tuple[float, ...] = ()
    splits: int = 1


def kinetics_id(stem: str) -> str | None:
    """Return YouTube's id out of ``<id>`` or ``<id>_<start>_<end>``. Kinetics takes one clip from a video."""
    match = _KINETICS_CLIP.fullmatch(stem)
    return match["id"] if match else None


SETS = {
    "ucf101": PublishedSet(key=str.casefold, place="UCF-101/<Class>/v_*.avi", shares=(0.05, 0.1, 0.2, 0.5), splits=3),
    "hmdb51": PublishedSet(key=str.casefold, place="<class>/*.avi", shares=(0.4, 0.5, 0.6), splits=3),
    "kinetics100": PublishedSet(
        key=kinetics_id, place="{train,val}/<class>/<id>_<start>_<end>.mp4", shares=(0.05, 0.1, 0.2, 0.5)
    ),
    "kinetics400": PublishedSet(key=kinetics_id, place="{train,val}/<class>/<id>_<start>_<end>.mp4"),
}
"""The data sets by the name of their layout."""


def stem(path: str) -> str:
    """Return a file's name without extension; pathlib would take seconds for as many files as Kinetics has."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def read_list(name: str, split: int, labelled_share: float) -> list[ListedClip]:
    """Return the clips of a split, those among them that are for training without their labels.

    Args:
        name: one of ``SETS``.
        split: an official split; the share of labelled clips is of split 1.
        labelled_share: 1 or one of the set's ``shares``.
    """
    import pandas as pd  # here, because settings are checked without it

    with (files("l2a_ray.videos") / "lists" / f"{name}.csv.xz").open("rb") as file:
        table = pd.read_csv(file, compression="xz", dtype=str, keep_default_na=False)
    part = table[f"split{split}"]
    if labelled_share < 1:
        labelled = table[f"labelled{round(100 * labelled_share)}"] == "1"
        part = part.where(part == "test", labelled.map({True: "train", False: "unlabelled"}))
    used = part.isin(["train", "test", "unlabelled"])
    columns = table["class"][used].tolist(), table["clip"][used].tolist(), part[used].tolist()
    return [ListedClip(*row) for row in zip(*columns, strict=True)]


def list_files(root: AnyPath, depth: int = DEPTH) -> list[str]:
    """Return the files at most ``depth`` folders below a root, as sorted POSIX paths below it, without hidden ones.

    Each folder is listed once and no file is looked at, so that 240,000 videos take a second.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    if isinstance(root, Path):
        return sorted(_walk(root, "", depth))
    found = (path.removeprefix(f"{root.path}/") for path in root.fs.find(root.path, maxdepth=depth + 1))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.split("/")))


def _walk(folder: Path, above: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield above + entry.name
                elif depth:
                    yield from _walk(folder / entry.name, f"{above}{entry.name}/", depth - 1)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed ({error.strerror}). Make it a readable folder") from error


@dataclass(frozen=True)
class Search:
    """What became of looking for clips: those there, with their paths, those not there, and the files of no clip.

    ``doubles`` counts files with the name of a clip that another file was taken for.
    """

    found: list[tuple[ListedClip, str]]
    missing: list[ListedClip]
    others: list[str]
    doubles: int


def find_clips(listed: Iterable[ListedClip], paths: Iterable[str], key: Callable[[str], str | None]) -> Search:
    """Find listed clips among video files, by name alone, whatever folder and extension they have."""
    wanted = {key(clip.name): clip for clip in listed}
    found, others, doubles = dict[str | None, str](), [], 0
    for path in paths:
        name = key(stem(path))
        if name not in wanted:
            others.append(path)
        elif name in found:
            doubles += 1
        else:
            found[name] = path
    there = [(wanted[name], path) for name, path in found.items()]
    missing = [clip for name, clip in wanted.items() if name not in found]
    return Search(there, missing, others, doubles)


def find_kinetics_train(root: AnyPath, paths: Iterable[str], tests: Search) -> tuple[Search, str]:
    """Add Kinetics-400's training clips, whose list is not shipped: by the user's annotations, or by folders.

    Args:
        root: folder of the data set.
        paths: all its files, for the annotations: ``train.csv`` in the root or a folder of it.
        tests: the search for the test clips. Of its other files, without annotations, those in folders called like
            classes are for training.

    Returns:
        What both searches found, and a sentence that says by what.

    Raises:
        DatasetError: the annotations are not those of Kinetics-400.
    """
    test_clips = [*tests.missing, *(clip for clip, _ in tests.found)]
    classes = {_plain(clip.class_name): clip.class_name for clip in test_clips}
    if annotations := next((path for path in paths if _TRAIN_CSV.fullmatch(path)), None):
        barred = {kinetics_id(clip.name) for clip in test_clips}
        clips = [
            clip for clip in _read_annotations(root / annotations, classes) if kinetics_id(clip.name) not in barred
        ]
        note = f"the training part is named by {annotations}"
    else:
        clips = [clip for path in tests.others if (clip := _by_folder(path, classes))]
        note = "no train.csv there: the training part is what lies in folders called like classes"
    train = find_clips(clips, tests.others, kinetics_id)
    doubles = tests.doubles + train.doubles
    return Search(tests.found + train.found, tests.missing + train.missing, train.others, doubles), note


@lru_cache(maxsize=4096)
def _plain(class_name: str) -> str:
    """Kinetics' classes are spelled with blanks, underscores, brackets or dashes."""
    return re.sub(r"[^a-z0-9]", "", class_name.lower())


def _by_folder(path: str, classes: dict[str, str]) -> ListedClip | None:
    *above, folder, _ = ["", *path.split("/")]
    class_name = classes.get(_plain(folder))
    if class_name is None or not kinetics_id(stem(path)) or any(map(_HELD_OUT_FOLDER.match, above)):
        return None
    return ListedClip(class_name, stem(path), "train")


def _read_annotations(file: AnyPath, classes: dict[str, str]) -> Iterator[ListedClip]:
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(read_bytes(file)), dtype=str, keep_default_na=False)
        labels = table["label"].map(lambda label: classes.get(_plain(label)))
        start, end = (table[name].str.zfill(6) for name in ("time_start", "time_end"))
        names = (table["youtube_id"] + "_" + start + "_" + end).tolist()
    except (OSError, ValueError, KeyError) as error:
        advice = "Give the published file: columns label, youtube_id, time_start, time_end"
        raise DatasetError(f"{file}: cannot be read as Kinetics' annotations ({error}). {advice}") from error
    if labels.isna().any():
        unknown = table["label"][labels.isna()].iloc[0]
        raise DatasetError(f"{file}: {unknown!r} is no class of Kinetics-400. Give Kinetics-400's own train.csv")
    return (ListedClip(label, name, "train") for label, name in zip(labels, names, strict=True))
