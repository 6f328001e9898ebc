"""Arrows point one way: which file may import which, read from the source, imports inside functions included."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("l2a_ray", "envs")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Return all that a file imports, as full names of modules; of ours each module, not what is taken from it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in FILES} or {node.module}
    return found


GRAPH: dict[str, set[str]] = {module: imports(module) for module in FILES}


def reached(module: str) -> set[str]:
    """Return all of our modules that a file imports, and those that they import."""
    found, left = set[str](), [module]
    while left:
        for name in GRAPH[left.pop()] & FILES.keys() - found:
            found.add(name)
            left.append(name)
    return found


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter({module: names & FILES.keys() for module, names in GRAPH.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "package",
    ["pairs", "composites", "prepare", "selector", "classifier", "deploy", "storage", "runtime", "videos", "fewshot"],
)
def test_no_room_knows_the_whole_run(package: str) -> None:
    wrong = defaultdict(set)
    for module in FILES:
        if module.startswith(f"l2a_ray.{package}"):
            wrong[module] = {
                name for name in reached(module) if name.startswith(("l2a_ray.config.settings", "l2a_ray.pipeline"))
            }
    assert not {module: names for module, names in wrong.items() if names}


def test_nothing_imports_the_command_line() -> None:
    assert [module for module, names in GRAPH.items() if "l2a_ray.cli" in names] == ["l2a_ray.__main__"]


def test_the_command_line_alone_imports_tables() -> None:
    users = {module for module, names in GRAPH.items() if any(n.startswith("l2a_ray.experiments") for n in names)}
    assert {module for module in users if not module.startswith("l2a_ray.experiments")} == {"l2a_ray.cli"}


def test_the_environment_needs_no_selector_and_no_rllib() -> None:
    for module in FILES:
        if module.startswith("envs"):
            names = reached(module)
            assert not {name for name in names if name.startswith(("l2a_ray.selector", "l2a_ray.pipeline"))}, module
            assert not {name for name in GRAPH[module] if name.startswith("ray")}, module


@pytest.mark.parametrize(
    "package",
    [
        "l2a_ray.composites",
        "l2a_ray.pairs",
        "l2a_ray.storage",
        "l2a_ray.videos",
        "l2a_ray.fields",
        "l2a_ray.experiments",
        "l2a_ray.fewshot",
    ],
)
def test_pure_code_imports_no_ray(package: str) -> None:
    wrong = {
        module
        for module in FILES
        if module.startswith(package) and any(n.split(".")[0] == "ray" for n in GRAPH[module])
    }
    assert not wrong - {"l2a_ray.experiments.side_by_side"}, "that one is about Ray's tasks, and read where Ray is up"
