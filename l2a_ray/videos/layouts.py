"""How data sets lie in folders: each layout's clips, with the parts that the data set itself publishes."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from l2a_ray.errors import DatasetError
from l2a_ray.storage.files import AnyPath, read_bytes
from l2a_ray.videos.published import SETS, ListedClip, find_clips, find_kinetics_train, list_files, read_list

Part = Literal["train", "val", "test", "unlabelled", "pseudo"]
EXTENSIONS = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
_PART_FOLDERS: dict[str, Part] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_UCF_CLIP = re.compile(r"(?P<source>.+_g\d+)_c\d+")  # v_Archery_g01_c02: group 1 is one source video
_HMDB_CLIP = re.compile(r"(?P<source>.+)_[a-z]_[cn]m_np\d+_(ba|fr|le|ri)_(goo|med|bad)_\d+")


@dataclass(frozen=True)
class Found:
    """A clip that is there."""

    path: str  # below the root, POSIX
    class_name: str
    part: Part
    group: str


@dataclass(frozen=True)
class Listing:
    """The clips of a data set, and what its user should know of them."""

    classes: tuple[str, ...]
    found: list[Found]
    notes: list[str]
    missing: list[ListedClip] = field(default_factory=list)


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


def _found(path: str, class_name: str, part: Part) -> Found:
    stem = path.rpartition(".")[0]
    # A name of no known convention tells nothing of its source: the clip is a group of its own.
    group = source_video(stem.rpartition("/")[2], class_name) or stem
    return Found(path=path, class_name=class_name, part=part, group=group)


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


def _read_folder(root: AnyPath, *_: object) -> Listing:
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
    return Listing(classes=tuple(sorted(classes)), found=found, notes=notes + _count_notes(left_out))


def _read_jhmdb(root: AnyPath, _: str, split: int, labelled_share: float) -> Listing:
    ending = f"_test_split{split}.txt"
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
    return Listing(classes=tuple(sorted(split_files)), found=found, notes=notes)


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


def _read_published(root: AnyPath, layout: str, split: int, labelled_share: float) -> Listing:
    """Find the clips of a published list; classes without a training video are left out, and a note names them."""
    paths = [path for path in list_files(root) if _is_text(path)]
    videos = [path for path in paths if path.lower().endswith(tuple(EXTENSIONS))]
    listed = read_list(layout, split, labelled_share)
    search, notes = find_clips(listed, videos, SETS[layout].key), []
    if layout == "kinetics400":
        search, note = find_kinetics_train(root, paths, search)
        notes.append(note)
    left_out = Counter(
        {
            "are not in the list of this split": len(search.others),
            "have the name of a clip that another file was taken for": search.doubles,
        }
    )
    found = [_found(path, clip.class_name, clip.part) for clip, path in search.found]
    trained = {clip.class_name for clip in found if clip.part == "train"}
    if untrained := sorted({clip.class_name for clip in listed} - trained):
        tests = sum(clip.class_name in untrained and clip.part == "test" for clip in found)
        notes.append(f"classes left out, with {tests} test clips, without a training video: {', '.join(untrained)}")
    return Listing(tuple(sorted(trained)), found, notes + _count_notes(left_out), search.missing)


LAYOUTS: dict[str, Callable[[AnyPath, str, int, float], Listing]] = {
    "folder": _read_folder,
    "jhmdb": _read_jhmdb,
    **dict.fromkeys(SETS, _read_published),
}
"""The layouts by name. Each takes the root, its own name, ``data.split`` and ``data.labelled_share``, and lists all
clips, without drawing parts that the data set does not publish."""
