"""The command line: every configuration that is shipped is valid, and what is wrong is said before anything is done."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from l2a_ray.cli import STAGES, build_parser, main
from l2a_ray.config.settings import Settings
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.videos.generate import GenerateSettings

CONFIGS = Path(__file__).parents[1] / "configs"


@cache
def parser() -> ArgumentParser:
    return build_parser()


def read(*arguments: str) -> Settings:
    chosen = parser().instantiate(parser().parse_args(["run", *arguments]))["run"]
    return Settings(**{name: chosen[name] for name in Settings.__dataclass_fields__})


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configuration_says_what_it_means(path: Path) -> None:
    settings = read("--config", str(path), "--name", "given")
    assert settings.name == "given", "the command line comes last"
    plain, written = settings.plain(), yaml.safe_load(path.read_text())
    assert written, path
    for name, value in written.items():
        assert name == "name" or agrees(value, plain[name]), name


def agrees(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict):
        return all(agrees(value, found[key]) for key, value in wanted.items())
    return bool((list(found) if isinstance(found, tuple) else found) == wanted)


def test_there_are_configurations() -> None:
    assert (CONFIGS / "demo.yaml").is_file()


@pytest.mark.parametrize("path", sorted((CONFIGS / "selector").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_part_is_swapped_in(path: Path) -> None:
    settings = read("--config", str(CONFIGS / "demo.yaml"), "--selector", str(path))
    assert agrees(yaml.safe_load(path.read_text()), settings.plain()["selector"])


def test_no_configuration_is_needed_but_a_name() -> None:
    assert read("--name", "a") == Settings(name="a")


def test_one_file_swaps_a_part(tmp_path: Path) -> None:
    part = write(tmp_path / "part.yaml", {"hidden": [12], "learning_rate": 0.125})
    assert read("--name", "a", "--selector", part).selector == SelectorSettings(hidden=(12,), learning_rate=0.125)
    assert read("--name", "a", "--selector", part, "--selector.hidden", "[3]").selector.hidden == (3,)


def test_later_files_overlay_earlier_ones(tmp_path: Path) -> None:
    first = write(tmp_path / "1.yaml", {"name": "a", "seed": 3, "decode": {"frames": 4, "size": 48}})
    second = write(tmp_path / "2.yaml", {"seed": 5, "decode": {"frames": 6}, "classifier": {"crop": 40}})
    settings = read("--config", first, "--config", second, "--seeds", "2")
    assert (settings.name, settings.seed, settings.seeds) == ("a", 5, 2)
    assert (settings.decode.frames, settings.decode.size, settings.classifier.crop) == (6, 48, 40)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("content", [{"slect": {"budget": 0.5}}, {"select": {"budgt": 0.5}}])
def test_unknown_key_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any]
) -> None:
    path = write(tmp_path / "c.yaml", {"name": "a", "runs": str(tmp_path / "runs")} | content)
    message = refused(["run", "--config", path], capsys)
    assert ("slect" if "slect" in content else "budgt") in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("select.budget", "0"),
        ("decode.frames", "1"),
        ("data.val_fraction", "1"),
        ("arms", "real,best"),
        ("classifier.crop", "4000"),
        ("seeds", "0"),
        ("composite.alpha", "-1"),
        ("env.pairs", "0"),
        ("selector.hidden", "[]"),
        ("match.kind", "nearest"),
    ],
)
def test_impossible_setting_is_named_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    runs = tmp_path / "runs"
    message = refused(["run", "--name", "a", "--runs", str(runs), f"--{option}", value], capsys)
    assert option in message
    assert not runs.exists()


def test_wrong_type_and_missing_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed" in refused(["run", "--name", "a", "--runs", str(tmp_path / "runs"), "--seed", "many"], capsys)
    assert "none.yaml" in refused(["run", "--config", str(tmp_path / "none.yaml")], capsys)
    assert not (tmp_path / "runs").exists()


def test_missing_data_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    message = refused(["prepare", "--name", "a", "--runs", runs, "--data.root", str(tmp_path / "none")], capsys)
    assert "l2a: error: data.root=" in message and "is not a folder" in message


@pytest.mark.parametrize("command", [*STAGES, "generate"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = ["--generate.frames", "--root"] if command == "generate" else ["--select.budget", "--config", "l2a run"]
    assert all(option in text for option in options)


def test_generate_writes_what_is_asked_for(tmp_path: Path) -> None:
    options = {"width": 32, "height": 32, "frames": 8, "train_per_class": 1, "test_per_class": 1}
    main(
        ["generate", "--root", str(tmp_path / "v"), *(f"--generate.{name}={value}" for name, value in options.items())]
    )
    assert len(list((tmp_path / "v").rglob("*.mp4"))) == 12
    assert GenerateSettings(**options).frames == 8
