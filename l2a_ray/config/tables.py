"""The page ``docs/settings.md``: every setting, its default and its meaning, from the dataclasses themselves.

``python -m l2a_ray.config.tables docs/settings.md`` writes it.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from l2a_ray.config.arms import Arm
from l2a_ray.config.settings import Settings
from l2a_ray.fields import default_of, plain
from l2a_ray.videos.settings import GenerateSettings

INTRODUCTION = """# Settings

Every setting by its name on the command line (`--select.budget 0.3`), in YAML (`select: {budget: 0.3}`) and in Python
(`load("run.yaml", **{"select.budget": 0.3})`), with its default and its meaning. Files are layered, the command line
comes last: `--config a.yaml --config b.yaml --select.budget 0.3`. A section may lie in a file of its own:
`--composite configs/composite/boxes.yaml`. `l2a run --print_config` prints what a command would use. The pages on the
stages say why a setting is what it is.

`make docs` writes this page from the code.
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of the page.

    Args:
        path: dotted name of the settings; empty: those of the run itself.
        kind: their dataclass.
        defaults: what they are where nothing is given; None: each field's own default.
    """

    path: str
    kind: type
    defaults: Any = None

    def default(self, field: "dataclasses.Field[Any]") -> Any:
        """Return a field's default; ``dataclasses.MISSING`` where it has none."""
        return default_of(field) if self.defaults is None else getattr(self.defaults, field.name)

    def named(self, field: "dataclasses.Field[Any]") -> str:
        """Return a field's dotted name."""
        return f"{self.path}.{field.name}".lstrip(".")


def settings_page() -> str:
    """Return the page as Markdown."""
    tables = [_table(section) for section in sections()]
    others = [Section("arms.<name>", Arm), Section("generate", GenerateSettings)]
    return "\n".join([INTRODUCTION, *tables, *map(_table, others)])


def sections(kind: type = Settings) -> list[Section]:
    """Return all sections: settings inside settings, then those that only stand in lists, mappings or unions."""
    found = list(_inside(Section("", kind)))
    known = {section.kind for section in found}
    for section in list(found):
        for field in dataclasses.fields(section.kind):
            for part in _kinds(get_type_hints(section.kind)[field.name]) - known:
                found.append(Section(f"{section.named(field)}.<name>", part))
                known.add(part)
    return found


def _inside(section: Section) -> Iterator[Section]:
    yield section
    for field in dataclasses.fields(section.kind):
        default = section.default(field)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            yield from _inside(Section(section.named(field), type(default), default))


def _kinds(hint: Any) -> set[type]:
    """Return the dataclasses that a type is made of."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {hint}
    return {kind for part in get_args(hint) for kind in _kinds(part)}


def _table(section: Section) -> str:
    about = parse_from_object(section.kind)
    kinds = [kind for kind in reversed(section.kind.__mro__) if dataclasses.is_dataclass(kind)]
    meanings = {one.arg_name: one.description or "" for kind in kinds for one in parse_from_object(kind).params}
    hints = get_type_hints(section.kind)
    rows = []
    for field in dataclasses.fields(section.kind):
        default = section.default(field)
        if not dataclasses.is_dataclass(default):
            meaning = _meaning(meanings[field.name], hints[field.name])
            rows.append(f"| `{section.named(field)}` | {_shown(default)} | {meaning} |")
    head = ["| setting | default | meaning |", "|---|---|---|"] if rows else []
    return "\n".join([f"## {section.path or 'The run'}", "", f"{about.short_description}", "", *head, *rows, ""])


def _meaning(text: str, hint: Any) -> str:
    """Return a field's description on one line, with the choices that it does not name."""
    text = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    choices = [f"`{choice}`" for choice in get_args(hint)] if get_origin(hint) is Literal else []
    return text if all(choice in text for choice in choices) else f"{text} One of {', '.join(choices)}."


def _shown(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "must be given"
    return f"`{default}`" if isinstance(default, str) and default else f"`{json.dumps(plain(default))}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(settings_page(), encoding="utf-8")
