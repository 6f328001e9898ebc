"""Numbers that papers published, and whether ours were measured under the same conditions."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from l2a_ray.config.building import build
from l2a_ray.config.loading import read_yaml
from l2a_ray.config.settings import Settings
from l2a_ray.experiments.definition import Definition, wrong
from l2a_ray.pipeline.stage import flatten

FILE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table of a paper."""

    source: str
    """Where its numbers stand."""
    conditions: dict[str, Any]
    """Settings under which they were measured, as far as the paper says them, by dotted names."""
    rows: dict[str, float]
    """Top-1 accuracy in per cent, by the name of the row."""
    beyond: tuple[str, ...] = ()
    """What was done there that no setting does."""


@cache
def published_tables() -> Mapping[str, Published]:
    """Return all tables by name."""
    return {name: build(Published, about, f"{FILE.name}.{name}") for name, about in read_yaml(FILE).items()}


def of_columns(about: Definition) -> dict[str, Published]:
    """Return the published table that each column names.

    Raises:
        ConfigError: there is no such table.
    """
    known = published_tables()
    for name in about.published.values():
        if name not in known:
            raise wrong(about.path, f"published: {name}", f"must be one of {', '.join(known)}")
    return {column: known[name] for column, name in about.published.items()}


def differences(published: Published, settings: Settings, fixed: Container[str]) -> list[str]:
    """Say in what conditions a row of ours differs from a published one's.

    Args:
        published: the table.
        settings: of our row.
        fixed: settings that the row itself is about, which are not compared.
    """
    ours = flatten(settings.plain())
    found = [
        f"{name} is {ours[name]}, there {value}"
        for name, value in published.conditions.items()
        if name not in fixed and ours[name] != value
    ]
    return found + [f"there {sentence}" for sentence in published.beyond]
