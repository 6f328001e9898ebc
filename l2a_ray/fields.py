"""How settings are declared: what each value may be, and what a result depends on.

Settings are frozen keyword-only dataclasses. Each calls :func:`check` in its ``__post_init__``, so a wrong value is
refused whoever gives it, a YAML file or a Python caller. :func:`setting` marks the fields that are no plain part of a
result's key (:mod:`l2a_ray.pipeline.stage`); :func:`relevant` returns those that are.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fsspec.implementations.local import LocalFileSystem

from l2a_ray.errors import SettingError
from l2a_ray.storage.files import AnyPath, as_path, open_file

Rule = Callable[[Any], str | None]
"""Returns what is wrong with a value, as "must be positive"; None if nothing is."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    execution: bool = False,
    content: bool = False,
    only_for: Mapping[str, Sequence[object]] | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: its value where none is given.
        default_factory: makes that value, in place of ``default``.
        execution: it says how a result is made (processes, GPUs, checkpoints) or where something lies, not what the
            result is: no key depends on it.
        content: it names a file; keys depend on what is in the file and not on where it lies.
        only_for: other fields of the same dataclass and the values that make this one matter: ``{"kind": ["mmdet"]}``.
    """
    about = {"execution": execution, "content": content, "only_for": only_for or {}}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def at_least(low: float, unit: str = "") -> Rule:
    """Accept numbers from ``low`` on."""
    return lambda value: None if value >= low else f"must be at least {low} {unit}".rstrip()


def above(low: float, unit: str = "") -> Rule:
    """Accept numbers greater than ``low``."""
    return lambda value: None if value > low else f"must be above {low} {unit}".rstrip()


def within(low: float, high: float, unit: str = "") -> Rule:
    """Accept numbers in [low, high]."""
    return lambda value: None if low <= value <= high else f"must be between {low} and {high} {unit}".rstrip()


def between(low: float, high: float) -> Rule:
    """Accept numbers greater than ``low`` and less than ``high``."""
    return lambda value: None if low < value < high else f"must be above {low} and below {high}"


def check(settings: Any, **rules: Rule) -> None:
    """Check a settings dataclass: values are there, choices (``Literal``) known, numbers finite, and rules kept.

    Args:
        settings: what is checked.
        rules: by field name.

    Raises:
        SettingError: the first field that is wrong; it names the field alone, whoever owns the settings adds its path.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        items = value if isinstance(value, list | tuple) else (value,)
        if value is None and hint is not Any and type(None) not in get_args(hint):
            raise SettingError(name, value, "must have a value")
        choices = _choices(hint)
        if choices and any(item not in choices for item in items):
            count = "some" if items is value else "one"
            raise SettingError(name, value, f"must be {count} of {', '.join(map(str, choices))}")
        if any(isinstance(item, float) and not math.isfinite(item) for item in items):
            raise SettingError(name, value, "must be finite")
    for name, rule in rules.items():
        value = getattr(settings, name)
        if (reason := rule(value)) is not None:
            raise SettingError(name, value, reason)


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return what a ``Literal`` allows, or a union of one with None, or a list or tuple of one; else nothing."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = get_args(hint)
    if any(get_origin(part) is Literal for part in parts) and get_origin(hint) is not dict:
        return tuple(value for part in parts if part is not Ellipsis for value in (get_args(part) or (None,)))
    return ()


def relevant(settings: Any, prefix: str = "", without: Callable[[Any], bool] = lambda value: False) -> dict[str, Any]:
    """Return, by dotted name, the settings that a result depends on: those that matter and are not at their default.

    Defaults are left out so that a setting which the code gains later, at its default, changes no key. Whoever changes
    a default raises the version of the stages that use it. Values that are ``without`` are left out too.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        about, value = field.metadata, getattr(settings, field.name)
        owners: Mapping[str, Sequence[object]] = about.get("only_for", {})
        if about.get("execution") or without(value):
            continue
        if any(getattr(settings, owner) not in kinds for owner, kinds in owners.items()):
            continue
        if dataclasses.is_dataclass(value):
            if default_of(field) is None:  # else a part at its defaults would equal none
                found[prefix + field.name] = type(value).__name__
            found |= relevant(value, f"{prefix}{field.name}.")
        elif value != default_of(field):
            found[prefix + field.name] = content_digest(value) if about.get("content") else plain(value)
    return found


def overruled(settings: Any, name: str) -> str | None:
    """Return which setting takes its effect from the one of that dotted name, and with what value; else None.

    What is left to the program to choose (``auto``) takes it from none.
    """
    path, at = "", settings
    for part in name.split("."):
        fields = {field.name: field for field in dataclasses.fields(at)} if dataclasses.is_dataclass(at) else {}
        if part not in fields:
            return None
        for owner, kinds in fields[part].metadata.get("only_for", {}).items():
            if (value := getattr(at, owner)) not in (*kinds, "auto"):
                return f"{path}{owner}={value}"
        path, at = f"{path}{part}.", getattr(at, part)
    return None


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return a field's default; ``dataclasses.MISSING`` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def content_digest(name: str | None) -> str | None:
    """Return a digest of the file that a setting names; the name itself where no such file is there."""
    if name is None or not (path := as_path(name)).is_file():
        return name
    # What fsspec knows a file's state by: size and time of change, or a store's own tag.
    return _digest(path, LocalFileSystem().ukey(path) if isinstance(path, Path) else path.fs.ukey(path.path))


@lru_cache
def _digest(path: AnyPath, state: str) -> str:
    """Read the file once, and not for every stage: a model may have gigabytes."""
    with open_file(path) as file:
        return f"blake2b:{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"
