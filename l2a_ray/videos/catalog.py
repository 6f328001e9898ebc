"""Which videos there are, what they show and which part of the data set each belongs to."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from l2a_ray.errors import DatasetError, SettingError
from l2a_ray.storage.files import AnyPath, as_path, read_bytes
from l2a_ray.videos.layouts import LAYOUTS, Found, Listing, Part
from l2a_ray.videos.published import DEPTH, SETS, ListedClip
from l2a_ray.videos.settings import DataSettings as DataSettings
from l2a_ray.videos.splits import draw_groups, shared_sources

_LIMIT, _UNLABELLED = 2, 4
"""A seed's independent random numbers, beside the draws of the test part (0), D_val (1) and few-shot classes (3)."""


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


def read_catalog(settings: DataSettings) -> Catalog:
    """List the videos of a data set and split them; the same settings give the same split.

    Broken files are listed too: the stage that decodes them says what is wrong with each.

    Raises:
        DatasetError: the folder cannot serve as a data set; the message says why.
        SettingError: ``root`` or ``labels`` names nothing that can be read.
    """
    if not settings.root:
        raise SettingError("root", settings.root, "must name the folder that holds the videos")
    root = as_path(settings.root).absolute()
    if not root.is_dir():
        raise SettingError("root", settings.root, "is not a folder. Give the folder that holds the videos")
    listing = LAYOUTS[settings.layout](root, settings.layout, settings.split, settings.labelled_share)
    classes, notes = _choose_classes(listing, settings.labels)
    label, used = {name: i for i, name in enumerate(classes)}, _used(settings)
    found = [clip for clip in listing.found if clip.class_name in label and clip.part in used]
    missing = [clip for clip in listing.missing if settings.labels is None or clip.class_name in label]
    missing = [clip for clip in missing if clip.part in used]
    if left_out := sum(clip.part not in used for clip in listing.found):
        notes.append(f"training clips left out as unlabelled (data.labelled_share): {left_out}")
    if settings.layout in SETS:
        _check_parts(root, settings, found)
        notes.append(_share_there(len(found), missing))
    _check_classes(root, classes, found)
    found, drawn = _draw_missing_parts(found, settings)
    if settings.limit is not None:
        kept = _draw_some(found, settings.limit, settings.seed)
        drawn.append(f"data.limit {settings.limit} a class and part keeps {len(kept)} of {len(found)} clips")
        found = kept
    above = str(root / "_").removesuffix("_")  # joining 240,000 paths by pathlib takes seconds
    videos = tuple(
        Video(_video_id(clip.path), above + clip.path, clip.class_name, label[clip.class_name], clip.part, clip.group)
        for clip in sorted(found, key=lambda clip: clip.path)
    )
    shared = shared_sources([(video.split, video.class_name, video.group) for video in videos])
    return Catalog(classes, videos, (*notes, *listing.notes, *drawn, *shared), tuple(missing))


def _video_id(path: str) -> str:
    return hashlib.blake2b(path.encode(), digest_size=8).hexdigest()


def _share_there(there: int, missing: list[ListedClip]) -> str:
    total = there + len(missing)
    note = f"clips of the published list that are there: {there} of {total} ({there / total:.1%})"
    return f"{note}; the first that is not is {missing[0].class_name}/{missing[0].name}" if missing else note


def _check_parts(root: AnyPath, settings: DataSettings, found: list[Found]) -> None:
    parts: tuple[Part, ...] = ("train", "test")
    if lacking := [part for part in parts if all(clip.part != part for clip in found)]:
        raise DatasetError(
            f"{root} holds no video of the {' and the '.join(lacking)} part of {settings.layout}. Its files are found "
            f"by name, at most {DEPTH} folders below, as in {SETS[settings.layout].place}: is this the right folder?"
        )


def _choose_classes(listing: Listing, labels: str | None) -> tuple[tuple[str, ...], list[str]]:
    if labels is None:
        return listing.classes, []
    try:
        lines = read_bytes(as_path(labels)).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("labels", labels, f"cannot be read ({error}). Give a text file, UTF-8") from error
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


def _check_classes(root: AnyPath, classes: tuple[str, ...], found: list[Found]) -> None:
    if len(classes) < 2:
        raise DatasetError(f"{root} holds fewer than 2 classes. Make a folder of videos for each class")
    for clips, kind in ((found, "no video"), ([clip for clip in found if clip.part == "train"], "no training video")):
        filled = {clip.class_name for clip in clips}
        if empty := [name for name in classes if name not in filled]:
            raise DatasetError(f"classes with {kind} in {root}: {', '.join(empty)}. Add videos, or remove the class")


def _used(settings: DataSettings) -> set[Part]:
    """Return the parts whose clips are used."""
    parts: set[Part] = {"train", "val", "test"}
    return parts | ({"unlabelled"} if settings.unlabelled == "keep" else set())


def _draw_missing_parts(found: list[Found], settings: DataSettings) -> tuple[list[Found], list[str]]:
    """Cut off the parts that are not published; D_val last, so that its clips have labels."""
    published, notes = {clip.part for clip in found}, []
    draws: list[tuple[int, Part, float]] = [(0, "test", settings.test_fraction), (1, "val", settings.val_fraction)]
    if settings.labelled_share < 1 and settings.layout not in SETS:
        draws.insert(1, (_UNLABELLED, "unlabelled", 1 - settings.labelled_share))
    scarce = settings.layout in SETS or settings.labelled_share < 1
    for number, part, fraction in draws:
        if part in published:
            continue
        pool = [clip for clip in found if clip.part == "train"]
        drawn = draw_groups(
            [clip.class_name for clip in pool],
            [clip.group for clip in pool],
            fraction,
            np.random.default_rng([settings.seed, number]),
            barred={clip.group for clip in found if clip.part not in ("train", "unlabelled")},
            keep_small=scarce and part != "test",
        )
        found = [replace(clip, part=part) if clip.part == "train" and clip.group in drawn else clip for clip in found]
        cut = {clip.class_name for clip in found if clip.part == part}
        if whole := sorted({clip.class_name for clip in pool} - cut):
            notes.append(f"classes too small to be cut, without a clip in {part}: {', '.join(whole)}")
        count = sum(clip.part == part for clip in found)
        notes.append(
            f"the {part} part is drawn: {count} of {len(pool)} clips, whole source videos, data.seed {settings.seed}"
        )
    used = _used(settings)
    if left_out := sum(clip.part not in used for clip in found):
        notes.append(f"training clips left out as unlabelled (data.labelled_share): {left_out}")
    return [clip for clip in found if clip.part in used], notes


def _draw_some(found: list[Found], limit: int, seed: int) -> list[Found]:
    """Draw at most ``limit`` clips of each class and part; those of a smaller limit are among those of a larger one.

    Of clips without labels, whose classes nothing may depend on, as many in all as if there were so many of each.
    """
    groups: dict[tuple[str, Part], list[Found]] = {}
    for clip in sorted(found, key=lambda clip: clip.path):
        groups.setdefault(("" if clip.part == "unlabelled" else clip.class_name, clip.part), []).append(clip)
    rng, classes = np.random.default_rng([seed, _LIMIT]), len({clip.class_name for clip in found})
    order = sorted(groups, key=lambda of: (of[1] == "unlabelled", of))  # so that the others are drawn as without them
    return [
        groups[name, part][place]
        for name, part in order
        for place in rng.permutation(len(groups[name, part]))[: limit if name else limit * classes]
    ]
