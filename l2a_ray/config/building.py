"""From plain values, as files hold them, to settings dataclasses."""

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from l2a_ray.errors import SettingError, owned_by

T = TypeVar("T")


def build(kind: type[T], plain: Mapping[str, Any], path: str = "") -> T:
    """Build settings, and those inside them, from mappings, lists and values.

    Args:
        kind: a dataclass.
        plain: its values by name; what is left out keeps its default. Values that are built already are taken as such.
        path: where the settings stand, for messages.

    Raises:
        SettingError: a name is unknown or missing, or a value cannot work; the message has the whole path.
    """
    hints = get_type_hints(kind)
    with owned_by(path):
        for name, value in plain.items():
            if name not in hints:
                raise SettingError(name, value, f"no such setting; there are {', '.join(hints)}")
        values = {name: _value(hints[name], value, name) for name, value in plain.items()}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                raise SettingError(field.name, None, "must be given")
        return kind(**values)


def _value(hint: Any, value: Any, path: str) -> Any:
    """Build the settings inside a value; what needs no building is returned as it is."""
    if get_origin(hint) in (Union, UnionType):
        hint = next((part for part in get_args(hint) if _holds(part, value)), None)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint):
        if not isinstance(value, Mapping):
            raise SettingError(path, value, f"must hold settings: {', '.join(get_type_hints(hint))}")
        return build(hint, value, path)
    if not _holds(hint, value):
        return value
    kind, parts = get_origin(hint), get_args(hint)
    if kind is dict:
        return {key: _value(parts[1], item, f"{path}.{key}") for key, item in value.items()}
    return kind(_value(parts[0], item, f"{path}.{number}") for number, item in enumerate(value))


def _holds(hint: Any, value: Any) -> bool:
    """Return whether a value has the outer form of a type that may hold settings."""
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(hint) or get_origin(hint) is dict
    return isinstance(value, list | tuple) and get_origin(hint) in (list, tuple)
