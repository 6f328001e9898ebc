"""Which videos there are, what they show and which part of the data set each belongs to."""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from l2a_ray.errors import DatasetError, SettingError
from l2a_ray.files import AnyPath, as_path, read_bytes
from l2a_ray.videos.published import (
    DEPTH,
    SETS,
    ListedClip,
    find_clips,
    find_kinetics_train,
    list_files,
    read_list,
)
from l2a_ray.videos.splits import draw_groups, shared_sources

Part = Literal["train", "val", "test"]

EXTENSIONS = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
_PART_FOLDERS: dict[str, Part] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_UCF_CLIP = re.compile(r"(?P<source>.+_g\d+)_c\d+")  # v_Archery_g01_c02: group 1 is one source video
_HMDB_CLIP = re.compile(r"(?P<source>.+)_[a-z]_[cn]m_np\d+_(ba|fr|le|ri)_(goo|med|bad)_\d+")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the videos are and how they are split."""

    root: str = ""
    """Folder of the data set."""
    layout: Literal["folder", "jhmdb", "ucf101", "hmdb51", "kinetics100", "kinetics400"] = "folder"
    """How it is laid out: root/<class>/* or root/{train,val,test}/<class>/* (folder), or a data set as it is published;
    the clips of UCF101, HMDB51 and Kinetics are found by their names, and need not all be there."""
    split: int = 1
    """Which of the three published splits of J-HMDB, UCF101 or HMDB51; other layouts have one."""
    labelled_share: float = 1.0
    """Share of the training clips that is used, as VideoSSL published it for split 1: 0.05, 0.1, 0.2 or 0.5 of UCF101
    and Kinetics-100; 0.4, 0.5 or 0.6 of HMDB51. 1: the official training part."""
    labels: str | None = None
    """Text file with a class name a line: these classes alone are used, in this order (default: all, sorted)."""
    val_fraction: float = 0.2
    """Share of each class's training clips cut off as D_val, where no val folder is given (ours; METHOD.md)."""
    test_fraction: float = 0.2
    """Share of each class's clips drawn as test part, where no test folder is given (ours)."""
    max_failures: int = 3
    """How many processes may die while they prepare the same video before it is given up (ours)."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise SettingError("data.layout", self.layout, f"must be one of {', '.join(sorted(LAYOUTS))}")
        if self.split not in (1, 2, 3):
            raise SettingError("data.split", self.split, "must be 1, 2 or 3")
        published = SETS.get(self.layout)
        if published and self.split > published.splits:
            raise SettingError("data.split", self.split, f"must be 1 for {self.layout}")
        shares = (*(published.shares if published and self.split == 1 else ()), 1)
        if self.labelled_share not in shares:
            allowed = ", ".join(map(str, shares))
            raise SettingError(
                "data.labelled_share", self.labelled_share, f"must be {allowed} for split {self.split} of {self.layout}"
            )
        if self.max_failures < 0:
            raise SettingError("data.max_failures", self.max_failures, "must be 0 or more")
        for name in ("val_fraction", "test_fraction"):
            fraction = getattr(self, name)
            if not 0 < fraction < 1:
                raise SettingError(f"data.{name}", fraction, "must be above 0 and below 1: no part may be empty")


@dataclass(frozen=True)
class Video:
    """One video file of the data set; whether it can be read is not known yet.

    Args:
        id: 16 hex digits made from the path below the root, so the same on every machine.
        path: absolute path or URI.
        class_name: its class.
        label: position of the class in ``Catalog.classes``.
        split: the part it belongs to.
        group: its source video; parts that we draw never share one.
    """

    id: str
    path: str
    class_name: str
    label: int
    split: Part
    group: str


@dataclass(frozen=True)
class Catalog:
    """All videos of a data set, sorted by path; ``notes`` says in sentences what a user should know of them.

    ``missing`` are the clips that a published list names and that have no file; J-HMDB's are among the videos.
    """

    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    notes: tuple[str, ...]
    missing: tuple[ListedClip, ...] = ()


@dataclass(frozen=True)
class _Found:
    path: str  # below the root, POSIX
    class_name: str
    part: Part
    group: str


@dataclass(frozen=True)
class _Listing:
    classes: tuple[str, ...]
    found: list[_Found]
    notes: list[str]
    missing: list[ListedClip] = field(default_factory=list)


def read_catalog(settings: DataSettings, seed: int) -> Catalog:
    """List the videos of a data set and split them; the same seed gives the same split.

    Broken files are listed too: the stage that decodes them says what is wrong with each.

    Raises:
        DatasetError: the folder cannot serve as a data set; the message says why.
    """
    root = as_path(settings.root).absolute()
    if not settings.root or not root.is_dir():
        raise DatasetError(f"data.root={settings.root!r} is not a folder. Give the folder that holds the videos")
    listing = LAYOUTS[settings.layout](root, settings)
    classes, notes = _choose_classes(listing, settings.labels)
    label = {name: i for i, name in enumerate(classes)}
    found = [clip for clip in listing.found if clip.class_name in label]
    missing = [clip for clip in listing.missing if settings.labels is None or clip.class_name in label]
    if settings.layout in SETS:
        _check_parts(root, settings, found)
        notes.append(_share_there(len(found), missing))
    _check_classes(root, classes, found)
    found, drawn = _draw_missing_parts(found, settings, seed)
    above = str(root / "_").removesuffix("_")  # joining 240,000 paths by pathlib takes seconds
    videos = tuple(
        Video(_video_id(clip.path), above + clip.path, clip.class_name, label[clip.class_name], clip.part, clip.group)
        for clip in sorted(found, key=lambda clip: clip.path)
    )
    shared = shared_sources([(video.split, video.class_name, video.group) for video in videos])
    return Catalog(classes, videos, (*notes, *listing.notes, *drawn, *shared), tuple(missing))


def source_video(stem: str, class_name: str) -> str | None:
    """Name the source video of a clip whose name follows UCF101's or HMDB51's convention; None for other names.

    HMDB51's names are <title>_<class>_<six properties>. What precedes the first "_<class>_" is taken, so that variants
    of one title count as one source, and a film cut into clips of several classes does too.
    """
    if match := _UCF_CLIP.fullmatch(stem):
        return match["source"]
    if match := _HMDB_CLIP.fullmatch(stem):
        return f"{match['source']}_".partition(f"_{class_name}_")[0].removesuffix("_")
    return None


def _video_id(path: str) -> str:
    return hashlib.blake2b(path.encode(), digest_size=8).hexdigest()


def _found(path: str, class_name: str, part: Part) -> _Found:
    stem = path.rpartition(".")[0]
    # A name of no known convention tells nothing of its source: the clip is a group of its own.
    group = source_video(stem.rpartition("/")[2], class_name) or stem
    return _Found(path=path, class_name=class_name, part=part, group=group)


def _entries(folder: AnyPath) -> list[AnyPath]:
    """What a folder holds, sorted, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        cause = error.strerror or error
        raise DatasetError(f"{folder} cannot be listed ({cause}). Make it a readable folder") from error


def _folders(folder: AnyPath) -> list[AnyPath]:
    return [path for path in _entries(folder) if path.is_dir()]


def _candidates(folder: AnyPath, left_out: Counter[str]) -> list[AnyPath]:
    videos = []
    for path in _entries(folder):
        if path.suffix.lower() not in EXTENSIONS:
            left_out["have no video extension"] += 1
        elif not _is_text(path.name):
            left_out["have a name that is not UTF-8 text (rename them)"] += 1
        else:
            videos.append(path)
    return videos


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count_notes(left_out: Counter[str]) -> list[str]:
    return [f"files left out because they {reason}: {count}" for reason, count in sorted(left_out.items()) if count]


def _read_folder(root: AnyPath, _: DataSettings) -> _Listing:
    classes, found, notes, left_out = set(), [], [], Counter[str]()
    parts: list[tuple[str, Part]] = [("", "train")]
    if (root / "train").is_dir() and _folders(root / "train"):  # with videos right in it, train is a class of that name
        folders = _folders(root)
        parts = [(f"{path.name}/", _PART_FOLDERS[path.name]) for path in folders if path.name in _PART_FOLDERS]
        if others := [path.name for path in folders if path.name not in _PART_FOLDERS]:
            notes.append(f"folders beside train left out: {', '.join(others)}")
    for above, part in parts:
        for entry in _entries(root / above):
            if entry.is_dir():
                classes.add(entry.name)
                paths = _candidates(entry, left_out)
                found += [_found(f"{above}{entry.name}/{path.name}", entry.name, part) for path in paths]
            elif entry.suffix.lower() in EXTENSIONS:
                left_out["lie outside the class folders"] += 1
    return _Listing(classes=tuple(sorted(classes)), found=found, notes=notes + _count_notes(left_out))


def _read_jhmdb(root: AnyPath, settings: DataSettings) -> _Listing:
    ending = f"_test_split{settings.split}.txt"
    split_files = {path.name.removesuffix(ending): path for path in (root / "splits").glob(f"*{ending}")}
    if not split_files or not (root / "videos").is_dir():
        raise DatasetError(
            f"{root} is not laid out as J-HMDB: it must hold videos/<class>/ and splits/<class>{ending}. "
            "For a folder a class use --data.layout folder"
        )
    found, missing, left_out = [], [], Counter[str]()
    folders = {path.name: path for path in _folders(root / "videos")}
    for name in sorted(split_files.keys() & folders.keys()):
        named = _read_split_file(split_files[name])
        on_disk = {file.stem: file.name for file in _candidates(folders[name], left_out)}
        if not on_disk:
            continue
        left_out["are not named in the split"] += len(on_disk.keys() - named.keys())
        missing += [f"{name}/{stem}" for stem in named if stem not in on_disk]
        found += [
            _found(f"videos/{name}/{on_disk.get(stem, f'{stem}.avi')}", name, part) for stem, part in named.items()
        ]
    notes = _count_notes(left_out)
    if missing:
        notes.append(f"clips named in the split but missing: {len(missing)}, the first is {missing[0]}")
    if unsplit := sorted(folders.keys() - split_files.keys()):
        notes.append(f"folders without a split file left out: {', '.join(unsplit)}")
    return _Listing(classes=tuple(sorted(split_files)), found=found, notes=notes)


def _read_split_file(file: AnyPath) -> dict[str, Part]:
    """Read lines "<clip>.avi 1" (train) or 2 (test); other numbers mean that the clip is not in this split."""
    parts: dict[str, Part] = {"1": "train", "2": "test"}
    named = {}
    for number, line in enumerate(read_bytes(file).decode(errors="replace").splitlines(), start=1):
        clip, _, flag = line.strip().rpartition(" ")
        if line.strip() and not (clip and flag.isdigit()):
            raise DatasetError(f"{file}, line {number}: must be a clip's name and 1 (train) or 2 (test), got {line!r}")
        if flag in parts:
            named[Path(clip.strip()).stem] = parts[flag]
    return named


def _read_published(root: AnyPath, settings: DataSettings) -> _Listing:
    """Find the clips of a published list; classes without a training video are left out, and a note names them."""
    paths = [path for path in list_files(root) if _is_text(path)]
    videos = [path for path in paths if path.lower().endswith(tuple(EXTENSIONS))]
    listed, unlabelled = read_list(settings.layout, settings.split, settings.labelled_share)
    search, notes = find_clips(listed, videos, SETS[settings.layout].key), []
    if settings.layout == "kinetics400":
        search, note = find_kinetics_train(root, paths, search)
        notes.append(note)
    if unlabelled:
        notes.append(f"training clips left out as unlabelled (data.labelled_share): {unlabelled}")
    left_out = Counter(
        {
            "are not in the list of this split": len(search.others),
            "have the name of a clip that another file was taken for": search.doubles,
        }
    )
    found = [_found(path, clip.class_name, clip.part) for clip, path in search.found]
    trained = {clip.class_name for clip in found if clip.part == "train"}
    if untrained := sorted({clip.class_name for clip in listed} - trained):
        tests = sum(clip.class_name in untrained for clip in found)
        notes.append(f"classes left out, with {tests} test clips, without a training video: {', '.join(untrained)}")
    return _Listing(tuple(sorted(trained)), found, notes + _count_notes(left_out), search.missing)


def _share_there(there: int, missing: list[ListedClip]) -> str:
    total = there + len(missing)
    note = f"clips of the published list that are there: {there} of {total} ({there / total:.1%})"
    return f"{note}; the first that is not is {missing[0].class_name}/{missing[0].name}" if missing else note


def _check_parts(root: AnyPath, settings: DataSettings, found: list[_Found]) -> None:
    parts: tuple[Part, ...] = ("train", "test")
    if lacking := [part for part in parts if all(clip.part != part for clip in found)]:
        raise DatasetError(
            f"{root} holds no video of the {' and the '.join(lacking)} part of {settings.layout}. Its files are found "
            f"by name, at most {DEPTH} folders below, as in {SETS[settings.layout].place}: is this the right folder?"
        )


LAYOUTS: dict[str, Callable[[AnyPath, DataSettings], _Listing]] = {
    "folder": _read_folder,
    "jhmdb": _read_jhmdb,
    **dict.fromkeys(SETS, _read_published),
}
"""The layouts by name. Each lists all clips, without drawing parts that the data set does not publish."""


def _choose_classes(listing: _Listing, labels: str | None) -> tuple[tuple[str, ...], list[str]]:
    if labels is None:
        return listing.classes, []
    try:
        lines = read_bytes(as_path(labels)).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"data.labels={labels!r} cannot be read ({error}). Give a text file, UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{labels} names classes twice: {', '.join(twice)}. Name each once")
    if unknown := [name for name in names if name not in listing.classes]:
        raise DatasetError(f"{labels} names classes that are not there: {_suggest(unknown, listing.classes)}")
    rest = [name for name in listing.classes if name not in names]
    notes = [f"classes left out, not named in {Path(labels).name}: {', '.join(rest)}"] if rest else []
    return tuple(names), notes


def _suggest(unknown: Iterable[str], known: Iterable[str]) -> str:
    def one(name: str) -> str:
        near = difflib.get_close_matches(name, list(known), n=1)
        return f"{name} (did you mean {near[0]}?)" if near else name

    return ", ".join(map(one, unknown))


def _check_classes(root: AnyPath, classes: tuple[str, ...], found: list[_Found]) -> None:
    if len(classes) < 2:
        raise DatasetError(f"{root} holds fewer than 2 classes. Make a folder of videos for each class")
    for clips, kind in ((found, "no video"), ([clip for clip in found if clip.part == "train"], "no training video")):
        filled = {clip.class_name for clip in clips}
        if empty := [name for name in classes if name not in filled]:
            raise DatasetError(f"classes with {kind} in {root}: {', '.join(empty)}. Add videos, or remove the class")


def _draw_missing_parts(found: list[_Found], settings: DataSettings, seed: int) -> tuple[list[_Found], list[str]]:
    published, notes = {clip.part for clip in found}, []
    draws: tuple[tuple[Part, float], ...] = (("test", settings.test_fraction), ("val", settings.val_fraction))
    for number, (part, fraction) in enumerate(draws):
        if part in published:
            continue
        pool = [clip for clip in found if clip.part == "train"]
        drawn = draw_groups(
            [clip.class_name for clip in pool],
            [clip.group for clip in pool],
            fraction,
            np.random.default_rng([seed, number]),
            barred={clip.group for clip in found if clip.part != "train"},
            keep_small=settings.layout in SETS,
        )
        found = [replace(clip, part=part) if clip.part == "train" and clip.group in drawn else clip for clip in found]
        cut = {clip.class_name for clip in found if clip.part == part}
        if whole := sorted({clip.class_name for clip in pool} - cut):
            notes.append(f"classes too small to be cut, without a clip in {part}: {', '.join(whole)}")
        count = sum(clip.part == part for clip in found)
        notes.append(f"the {part} part is drawn: {count} of {len(pool)} clips, whole source videos, seed {seed}")
    return found, notes
