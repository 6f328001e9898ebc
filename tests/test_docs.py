"""The documentation names only what exists: links, settings and metrics."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from test_report import make_whole, numbers

from l2a_ray.config.settings import Settings
from l2a_ray.videos.generate import GenerateSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FILES = ("json", "parquet", "safetensors", "yaml", "md", "py", "html")


def setting_names(settings: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings, sections among them."""
    types = get_type_hints(settings)
    for field in fields(settings):
        yield prefix + field.name
        if is_dataclass(types[field.name]):
            yield from setting_names(types[field.name], f"{prefix}{field.name}.")


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


def test_every_stage_has_a_page() -> None:
    from l2a_ray.cli import STAGES

    assert [stage for stage in STAGES if stage != "run" and not (ROOT / "docs" / f"{stage}.md").is_file()] == []


def test_metrics_page_explains_each_metric_once(tmp_path: Path) -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([a-z]+/\w+)` \|", text, re.MULTILINE)
    assert sorted(explained) == sorted(set(metric_names(numbers(make_whole(tmp_path)))))
