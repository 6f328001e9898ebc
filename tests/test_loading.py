"""Settings from files and plain values: the same from Python and from the command line, and what is wrong is named."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import yaml

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.config import WITHOUT_CONFIG, load
from l2a_ray.config.building import build
from l2a_ray.config.loading import settings_from, settings_parser
from l2a_ray.config.settings import Settings
from l2a_ray.errors import ConfigError, SettingError
from l2a_ray.fields import at_least, check

CONFIGS = Path(__file__).parents[1] / "configs"


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


# --- building from plain values


@dataclass(frozen=True, kw_only=True)
class Wheel:
    size: int = 3

    def __post_init__(self) -> None:
        check(self, size=at_least(1))


@dataclass(frozen=True, kw_only=True)
class Cart:
    name: str
    front: Wheel = field(default_factory=Wheel)
    spare: Wheel | None = None
    pair: tuple[Wheel, ...] = ()
    more: list[Wheel] = field(default_factory=list)
    known: dict[str, Wheel | None] | list[str] = field(default_factory=list)
    loose: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Yard:
    cart: Cart


def test_settings_are_built_at_every_depth() -> None:
    plain = {
        "name": "a",
        "front": {"size": 4},
        "spare": {"size": 5},
        "pair": [{"size": 6}, {}],
        "more": [{"size": 7}],
        "known": {"left": {"size": 8}, "right": None},
        "loose": {"size": {"size": 9}},
    }
    assert build(Yard, {"cart": plain}).cart == Cart(
        name="a",
        front=Wheel(size=4),
        spare=Wheel(size=5),
        pair=(Wheel(size=6), Wheel()),
        more=[Wheel(size=7)],
        known={"left": Wheel(size=8), "right": None},
        loose={"size": {"size": 9}},
    )
    assert build(Cart, {"name": "a", "known": ["left"], "spare": None, "front": Wheel(size=2)}) == Cart(
        name="a", known=["left"], front=Wheel(size=2)
    )


@pytest.mark.parametrize(
    ("plain", "complaint"),
    [
        ({"name": "a", "front": {"size": 0}}, "cart.front.size=0: must be at least 1"),
        ({"name": "a", "spare": {"size": 0}}, "cart.spare.size=0: must be at least 1"),
        ({"name": "a", "pair": [{}, {"size": 0}]}, "cart.pair.1.size=0: must be at least 1"),
        ({"name": "a", "known": {"left": {"size": 0}}}, "cart.known.left.size=0: must be at least 1"),
        ({"name": "a", "front": {"sise": 2}}, "cart.front.sise=2: no such setting; there are size"),
        ({"name": "a", "front": 2}, "cart.front=2: must hold settings: size"),
        ({"front": {}}, "cart.name=None: must be given"),
    ],
)
def test_complaints_have_the_whole_path(plain: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError) as caught:
        build(Yard, {"cart": plain})
    assert str(caught.value) == complaint
    with pytest.raises(SettingError) as caught:
        build(Cart, plain, "yard.cart")
    assert str(caught.value) == f"yard.{complaint}"


# --- files and changes


def test_changes_count_more_than_later_files_and_these_more_than_earlier_ones(tmp_path: Path) -> None:
    first = write(tmp_path / "1.yaml", "{name: a, decode: {frames: 4, size: 48}, select: {budget: 0.3}}")
    crops = "classifier: {crop: 40}, warm_start: {classifier: {crop: 40}}"
    second = write(tmp_path / "2.yaml", f"{{decode: {{frames: 6}}, {crops}}}")
    settings = load(first, Path(second), **{"classifier.epochs": 5, "select.budget": 0.4})
    assert (settings.name, settings.decode.frames, settings.decode.size) == ("a", 6, 48)
    assert (settings.classifier.crop, settings.classifier.epochs, settings.select.budget) == (40, 5, 0.4)
    assert load(second, first, name="b", **{"decode.size": 64}).decode.frames == 4
    assert load(name="b") == Settings(name="b")


def test_python_and_the_command_line_agree(tmp_path: Path) -> None:
    demo = str(CONFIGS / "demo.yaml")
    options = ["--selector.hidden", "[8, 4]", "--preview.which", "[worst]", "--composite.alpha", "2", "--data.split=2"]
    parsed = settings_parser().parse_args(["--config", demo, *options])
    given = {"selector.hidden": (8, 4), "preview.which": ["worst"], "composite.alpha": 2, "data.split": 2}
    assert load(demo, **given) == settings_from(parsed)
    composite = CompositeSettings(mix_labels=False, alpha=3.0)
    assert load(demo, composite=composite, **{"data.root": tmp_path}).composite == composite


def test_a_part_may_lie_in_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "part.yaml", "{alpha: 3, feather: 2}")
    whole = write(tmp_path / "whole.yaml", "{name: a, composite: part.yaml}")
    assert load(whole).composite == CompositeSettings(alpha=3.0, feather=2.0)
    part = CONFIGS / "composite" / "boxes.yaml"
    assert load(whole, composite=part).composite == CompositeSettings(alpha=3.0, feather=2.0, region="boxes")
    parsed = settings_parser().parse_args(["--name", "a", "--composite", str(part)])
    assert settings_from(parsed).composite == CompositeSettings(region="boxes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{name: a, slect: {budget: 0.5}}", "slect"),
        ("{name: a, select: {budgt: 0.5}}", "budgt"),
        ("{name: a, decode: {frames: many}}", r"decode\.frames.*many"),
        ("[1, 2]", "1, 2"),
        ("name: [", "c.yaml"),
        ("name: a\nselect:\n  budget: 0.5\n  within: class\n  budget: 0.4\n", r"c\.yaml, line 5: `budget` .* line 3"),
        ("name: a\narms: {mine: {}, yours: {}, mine: {}}\n", r"c\.yaml, line 2: `mine` stands in line 2 already"),
    ],
)
def test_what_cannot_be_read_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", content)
    with pytest.raises(ConfigError, match=rf"(?s){message}"):
        load(path)
    with pytest.raises(SystemExit):
        settings_parser().parse_args(["--config", path])


def test_a_name_twice_in_a_parts_own_file_is_named_too(tmp_path: Path) -> None:
    part = write(tmp_path / "part.yaml", "alpha: 3\nfeather: 2\nalpha: 4\n")
    with pytest.raises(ConfigError, match=r"(?s)part\.yaml.*line 3: `alpha` stands in line 1"):
        load(name="a", composite=part)


def test_wrong_changes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epochs"):
        load(name="a", epochs=5)
    with pytest.raises(ConfigError, match=r"(?s)classifier\.epochs.*many"):
        load(name="a", **{"classifier.epochs": "many"})
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SettingError, match=r"^composite\.alpha=nan: must be finite"):
        load(name="a", **{"composite.alpha": float("nan")})
    with pytest.raises(SettingError, match=r"^decode\.frames=None: must have a value"):
        load(name="a", **{"decode.frames": None})
    with pytest.raises(SettingError, match=r"^decode=3: must hold settings: frames, "):
        load(write(tmp_path / "c.yaml", "{name: a, decode: 3}"))
    with pytest.raises(SettingError, match=r"^name='': must name"):
        load()


def test_the_package_is_read_without_what_reads_yaml() -> None:
    code = "import sys, l2a_ray.config; sys.exit(bool({'jsonargparse', 'numpy', 'l2a_ray.errors'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_rooms_settings_are_read_without_its_tools() -> None:
    rooms = ("videos", "prepare.segment", "prepare.inpaint", "pairs", "composites", "outputs")
    modules = ", ".join(f"l2a_ray.{room}.settings" for room in rooms)
    heavy = "{'av', 'cv2', 'numpy', 'pandas', 'pyarrow', 'ray', 'torch'}"
    code = f"import sys, {modules}, l2a_ray.runtime.tracking; sys.exit(' '.join({heavy} & set(sys.modules)) or None)"
    done = run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


# --- the files that are shipped

SHIPPED = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("fewshot/*.yaml"), *CONFIGS.glob("semi/*.yaml")])
BASES = {"semi/demo.yaml": "demo.yaml", "semi/paper.yaml": "ucf101.yaml"}
"""Files that are given after another one."""
OTHERS = {"clusters", "tables", "fewshot", "semi"}
PARTS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in OTHERS)


def leaves(given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the innermost values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def value_of(settings: Any, name: str) -> Any:
    """Return a setting by its dotted name, None where there is none; lists in place of tuples, as YAML has them."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else getattr(settings, part, None)
    return list(settings) if isinstance(settings, tuple) else settings


def test_settings_of_who_names_no_file_differ_from_the_defaults_where_they_speak() -> None:
    settings, plain = load(WITHOUT_CONFIG, name="a"), yaml.safe_load(WITHOUT_CONFIG.read_text())
    given = leaves(plain)
    assert {name: value_of(settings, name) for name in given} == given
    assert [name for name, value in given.items() if value == value_of(Settings(name="a"), name)] == []


def test_there_are_files() -> None:
    assert CONFIGS / "demo.yaml" in SHIPPED
    assert {path.parent.name for path in PARTS} == {"composite", "selector"}


@pytest.mark.parametrize("path", SHIPPED + PARTS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_file_says_what_differs_from_the_defaults(path: Path) -> None:
    section = "" if path in SHIPPED else path.parent.name
    under = [CONFIGS / base for name, base in BASES.items() if path == CONFIGS / name]
    before = load(*under, name="a")
    settings = load(*under, path) if path in SHIPPED else load(name="a", **{section: path})
    given = leaves(yaml.safe_load(path.read_text()) or {}, f"{section}." if section else "")
    assert {name: value_of(settings, name) for name in given} == given
    assert [name for name, value in given.items() if value == value_of(before, name)] == []
