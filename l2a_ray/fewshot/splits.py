"""Which classes are base, validation and novel: published lists, a file, or drawn. Imports no Ray."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

from l2a_ray.errors import DatasetError, SettingError
from l2a_ray.fewshot.settings import ClassSettings
from l2a_ray.storage.files import as_path, read_bytes

Role = Literal["base", "validation", "novel"]
ROLES: tuple[Role, ...] = ("base", "validation", "novel")
_DRAW = 3  # beside the draws of the test part, of D_val and of data.limit (videos.catalog), of the same seed


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """A data set's classes by role; learners and Selectors are trained on ``base`` alone."""

    name: str
    """As ``fewshot.classes.split``; a drawn one with its seed."""
    base: tuple[str, ...]
    validation: tuple[str, ...]
    novel: tuple[str, ...]

    def of(self, role: Role) -> tuple[str, ...]:
        """Return the classes of a role."""
        classes: tuple[str, ...] = getattr(self, role)
        return classes


def split_classes(settings: ClassSettings, classes: Sequence[str], seed: int) -> ClassSplit:
    """Give each class of a data set its role.

    Args:
        settings: by what.
        classes: the data set's, by their own names.
        seed: of a drawn split.

    Raises:
        SettingError: of ``split`` or ``file``: a class has no role, two, or the file cannot be read.
        DatasetError: a role is left without the two classes that it needs.
    """
    if settings.split == "drawn":
        return _draw(settings, classes, seed)
    if settings.split == "file":
        roles, field, source = _read(str(settings.file)), "file", str(settings.file)
    else:
        roles, field, source = published_roles(settings.split), "split", settings.split
    by_name = {plain(name): role for name, role in roles.items()}
    unknown = [name for name in classes if plain(name) not in by_name]
    if unknown:
        reason = f"gives {len(unknown)} classes of the data set no role: {', '.join(unknown[:5])}"
        raise SettingError(field, source, f"{reason}. Choose another split, or leave them out (data.labels)")
    found = ClassSplit(
        name=settings.split,
        **{role: tuple(sorted(name for name in classes if by_name[plain(name)] == role)) for role in ROLES},
    )
    return _checked(found, source)


def plain(name: str) -> str:
    """Return what a class's name is known by: published lists differ in case, blanks and misspelt words."""
    letters = _letters(name)
    return _misspelt().get(letters, letters)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _misspelt() -> Mapping[str, str]:
    """Return the class that is meant by each name that ARN's or TruZe's own lists misspell."""
    return {_letters(row["written"]): _letters(row["class"]) for row in _shipped("misspelt.csv")}


def published_roles(split: str) -> dict[str, Role]:
    """Return the role of each class in one of the published splits, as ``hmdb51_s``.

    S is ARN's (https://github.com/HongguangZhang/arn-eccv20-master), which TRX's lists of clips hold to; T is TruZe's
    (https://arxiv.org/abs/2106.05588).
    """
    data_set, _, which = split.partition("_")
    return {row["class"]: _role(row[which], split) for row in _shipped("classes.csv") if row["set"] == data_set}


def _shipped(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((files("l2a_ray.fewshot") / "lists" / name).read_text(encoding="utf-8"))))


def _role(role: str, file: str) -> Role:
    for known in ROLES:
        if role == known:
            return known
    raise SettingError("file", file, f"{role!r} is no role. There are {', '.join(ROLES)}")


def _read(file: str) -> dict[str, Role]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(as_path(file)).decode())))
        given = [(row["class"], row["role"].strip()) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, csv.Error) as error:
        raise SettingError(
            "file", file, f"cannot be read ({error}). Give a CSV file, columns class and role"
        ) from error
    roles: defaultdict[str, set[Role]] = defaultdict(set)
    for name, role in given:
        roles[plain(name)].add(_role(role, file))
    if twice := [name for name, _ in given if len(roles[plain(name)]) > 1]:
        both = " and ".join(sorted(roles[plain(twice[0])]))
        raise SettingError("file", file, f"gives the class {twice[0]!r} two roles: {both}. Keep one")
    return {name: next(iter(roles[plain(name)])) for name, _ in given}


def _draw(settings: ClassSettings, classes: Sequence[str], seed: int) -> ClassSplit:
    order = [sorted(classes)[place] for place in np.random.default_rng([seed, _DRAW]).permutation(len(classes))]
    novel = max(2, round(settings.novel * len(classes)))
    rest = novel + max(2, round(settings.validation * len(classes)))
    found = ClassSplit(
        name=f"drawn_{seed}",
        base=tuple(sorted(order[rest:])),
        validation=tuple(sorted(order[novel:rest])),
        novel=tuple(sorted(order[:novel])),
    )
    return _checked(found, "the drawn split")


def _checked(found: ClassSplit, source: str) -> ClassSplit:
    for role in ROLES:
        if len(found.of(role)) < 2:
            reason = f"{source} leaves {len(found.of(role))} {role} classes of this data set, and two are needed"
            raise DatasetError(f"{reason}. Add classes, or choose another split (fewshot.classes)")
    return found
