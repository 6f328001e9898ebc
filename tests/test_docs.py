"""The documentation names only what exists: links, settings and metrics."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from test_report import make_whole, numbers

from l2a_ray.config.settings import Settings
from l2a_ray.config.tables import sections, settings_page
from l2a_ray.videos.generate import GenerateSettings

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(ROOT.glob("benchmarks/*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FILES = ("json", "parquet", "safetensors", "yaml", "md", "py", "html")


def setting_names(settings: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings, sections among them."""
    types = get_type_hints(settings)
    for entry in fields(settings):
        yield prefix + entry.name
        if is_dataclass(types[entry.name]):
            yield from setting_names(types[entry.name], f"{prefix}{entry.name}.")


SETTINGS = {*setting_names(Settings), *setting_names(GenerateSettings, "generate.")}
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}


def named_settings(text: str) -> set[str]:
    """Return what a page calls a setting: `section.field` in backticks, alone or with =value, and --section.field."""
    ticked = re.findall(r"`([a-z]\w*(?:\.\w+)+)(?:=[^`]*)?`", text)
    settings = {name for name in ticked if name.split(".")[0] in SECTIONS and name.rpartition(".")[2] not in FILES}
    return settings | set(re.findall(r"--([a-z]\w*(?:\.\w+)+)", text))


def metric_names(value: Any) -> Iterator[str]:
    """Yield every key with a namespace, however deep."""
    if isinstance(value, dict):
        for key, item in value.items():
            if re.fullmatch(r"[a-z]+/\w+", key):
                yield key
            yield from metric_names(item)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: Path) -> None:
    assert named_settings(page.read_text(encoding="utf-8")) - SETTINGS == set()


def test_a_wrong_setting_would_be_found() -> None:
    text = "`env.tune=head`, `select.buget`, `selector.json`, `--env.steps 20`, l2a run --data.rot PATH"
    assert named_settings(text) - SETTINGS == {"select.buget", "data.rot"}


def test_the_settings_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "write it anew: make docs"
    explained = set(re.findall(r"^\| `([^`]+)` \| .+ \| .+ \|$", page, re.MULTILINE))
    assert SETTINGS - explained <= {section.path for section in sections()} | {"generate"}


@dataclass(frozen=True, kw_only=True)
class Wheel:
    size: int = 3


@dataclass(frozen=True, kw_only=True)
class Cart:
    front: Wheel = field(default_factory=lambda: Wheel(size=5))
    back: Wheel = field(default_factory=Wheel)


@dataclass(frozen=True, kw_only=True)
class Yard:
    cart: Cart = field(default_factory=Cart)
    spare: Wheel | None = None


def test_every_section_stands_once_with_its_owners_defaults() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Town:
        yards: dict[str, Yard | None] | list[str] = field(default_factory=list)
        wheel: Wheel = field(default_factory=Wheel)

    found = sections(Town)
    assert [section.path for section in found] == ["", "wheel", "yards.<name>"]
    first = {section.path: section.default(fields(section.kind)[0]) for section in sections(Yard)}
    assert first == {"": Cart(), "cart": Wheel(size=5), "cart.front": 5, "cart.back": 3}


def test_every_stage_has_a_page() -> None:
    from l2a_ray.cli import STAGES

    assert [stage for stage in STAGES if stage != "run" and not (ROOT / "docs" / f"{stage}.md").is_file()] == []


def test_metrics_page_explains_each_metric_once(tmp_path: Path) -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([a-z]+/\w+)` \|", text, re.MULTILINE)
    assert sorted(explained) == sorted(set(metric_names(numbers(make_whole(tmp_path), tmp_path))))


def figures(text: str) -> list[str]:
    """Return the rows of Markdown tables in which two cells or more are numbers and nothing else."""
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    number = re.compile(r"\s*[-+±]?\d[\d.,]*(\s*(%|/|to|±|,)?\s*-?[\d.,]*)*\s*")
    return [row for row in rows if sum(bool(number.fullmatch(cell)) for cell in row.split("|")) > 1]


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_every_benchmark_has_its_figures_on_one_page(script: Path) -> None:
    parts = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").split("\n## ")
    section = next((part for part in parts if part.startswith(f"{script.stem}\n")), "")
    assert f"    python benchmarks/{script.name}" in section, f"docs/benchmarks.md needs a section ## {script.stem}"
    assert "Release: " in section
    assert figures(ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_other_page_holds_figures(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name != "benchmarks.md":
        assert "python benchmarks/" not in text, "figures and their commands stand in docs/benchmarks.md"
        # The README's tables are its headline: what the method reaches on whole data sets.
        assert page.name == "README.md" or figures(text) == []


def test_a_table_of_figures_would_be_found() -> None:
    rows = ["| a | 0.81 | 0.79 to 0.83 |", "| b | 6 % | 1.5 |", "| c | 22.1 / -1.8 | -3 |"]
    assert figures("\n".join([*rows, "| d | `8` | meaning |", "| e | 8 of 9 | 3 |"])) == rows
