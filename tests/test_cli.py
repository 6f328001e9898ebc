"""The command line: what is wrong is said before anything is done."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from l2a_ray.cli import STAGES, build_parser, main
from l2a_ray.config import load
from l2a_ray.config.loading import settings_from
from l2a_ray.config.settings import Settings
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.videos.generate import GenerateSettings
from l2a_ray.videos.settings import DataSettings

CONFIGS = Path(__file__).parents[1] / "configs"


@cache
def parser() -> ArgumentParser:
    return build_parser("run")


def read(*arguments: str) -> Settings:
    return settings_from(parser().parse_args(["run", *arguments])["run"])


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_no_configuration_is_needed_but_a_name() -> None:
    assert read("--name", "a") == Settings(name="a")


@pytest.mark.parametrize("root", ["some/videos", "some/videos/", "s3://bucket/videos"])
def test_a_run_without_a_name_is_called_as_its_videos(root: str) -> None:
    assert read("--data.root", root).name == "videos"
    assert load(**{"data.root": root}) == Settings(name="videos", data=DataSettings(root=root))


def test_who_names_no_file_gets_settings_for_real_videos(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> Any:
        with pytest.raises(SystemExit):
            main(["run", "--name", "a", *arguments, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)

    without, paper = printed("--classifier.epochs", "7"), printed("--config", str(CONFIGS / "ucf101.yaml"))
    assert without["classifier"]["network"]["weights"] == "imagenet" and without["classifier"]["epochs"] == 7
    assert paper["classifier"]["network"]["weights"] is None


def test_a_run_without_name_and_videos_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "l2a: error: name='': must name the run, or data.root" in refused(["run"], capsys)


def test_one_file_swaps_a_part(tmp_path: Path) -> None:
    part = write(tmp_path / "part.yaml", {"hidden": [12], "learning_rate": 0.125})
    assert read("--name", "a", "--selector", part).selector == SelectorSettings(hidden=(12,), learning_rate=0.125)
    assert read("--name", "a", "--selector", part, "--selector.hidden", "[3]").selector.hidden == (3,)


def test_a_file_with_an_arm_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"name: a\nruns: {tmp_path / 'runs'}\narms:\n  mine: {{pairs: random}}\n  mine: {{pairs: oracle}}\n"
    )
    assert "line 5: `mine` stands in line 4 already" in refused(["run", "--config", str(path)], capsys)
    assert not (tmp_path / "runs").exists()


def test_later_files_overlay_earlier_ones(tmp_path: Path) -> None:
    first = write(
        tmp_path / "1.yaml", {"name": "a", "seeds": [3], "data": {"seed": 3}, "decode": {"frames": 4, "size": 48}}
    )
    second = write(
        tmp_path / "2.yaml",
        {
            "data": {"seed": 5},
            "decode": {"frames": 6},
            "classifier": {"crop": 40},
            "warm_start": {"classifier": {"crop": 40}},
        },
    )
    settings = read("--config", first, "--config", second, "--seeds", "[1, 2]")
    assert (settings.name, settings.data.seed, settings.seeds) == ("a", 5, [1, 2])
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
        ("arms", "[real,best]"),
        ("arms", "real,selected"),
        ("arms", "[]"),
        ("arms", "{mine: {pairs: random, colour: blue}}"),
        ("classifier.crop", "4000"),
        ("seeds", "[]"),
        ("seeds", "[1, 1]"),
        ("seeds", "2"),
        ("composite.alpha", "-1"),
        ("segment.detect.mask", "2"),
        ("preview.which", "[best]"),
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
    assert "seeds" in refused(["run", "--name", "a", "--runs", str(tmp_path / "runs"), "--seeds", "[many]"], capsys)
    assert "none.yaml" in refused(["run", "--config", str(tmp_path / "none.yaml")], capsys)
    assert not (tmp_path / "runs").exists()


def test_who_gives_a_setting_that_has_no_effect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = ["prepare", "--name", "a", "--runs", str(tmp_path / "runs"), "--data.root", str(tmp_path / "none")]

    def told(*options: str) -> list[str]:
        caplog.clear()
        with pytest.raises(SystemExit):
            main([*nowhere, *options])
        return [text for text in caplog.messages if "no effect" in text]

    assert told("--classifier.epochs", "5", "--classifier.steps=300") == [
        "--classifier.epochs has no effect with classifier.steps=300"
    ]
    assert told("--segment.kind=motion", "--segment.people.points", "5") == [
        "--segment.people.points has no effect with segment.kind=motion"
    ]
    assert told("--classifier.epochs", "5", "--segment.people.points", "5") == [], "what fits is chosen later"
    own = "--arms", "{a: {pairs: none, method: fixmatch}, b: {pairs: none}}", "--classifier.semi.threshold", "0.5"
    assert told(*own) == [], "an arm trains by a method of its own"
    assert told(*own[2:]) == ["--classifier.semi.threshold has no effect with classifier.method=supervised"]
    assert told("--config", str(CONFIGS / "demo.yaml"), "--composite.feather", "2") == []


def test_missing_data_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    message = refused(["prepare", "--name", "a", "--runs", runs, "--data.root", str(tmp_path / "none")], capsys)
    assert "l2a: error: data.root=" in message and "is not a folder" in message
    message = refused(["prepare", "--name", "a", "--runs", runs], capsys)
    assert message == "l2a: error: data.root='': must name the folder that holds the videos\n"
    message = refused(["generate", "--root", str(tmp_path / "videos"), "--generate.frames=3"], capsys)
    assert message == "l2a: error: generate.frames=3: must be at least 8\n"


@pytest.mark.parametrize("command", [*STAGES, "generate", "predict", "export-model"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    own = {"generate": ["--generate.frames", "--root"], "predict": ["--top", "--run"], "export-model": ["{torch,onnx}"]}
    options = own.get(command, ["--select.budget", "--config", "l2a run"])
    assert all(option in text for option in options)


def test_generate_writes_what_is_asked_for(tmp_path: Path) -> None:
    options = {"width": 32, "height": 32, "frames": 8, "train_per_class": 1, "test_per_class": 1}
    main(
        ["generate", "--root", str(tmp_path / "v"), *(f"--generate.{name}={value}" for name, value in options.items())]
    )
    assert len(list((tmp_path / "v").rglob("*.mp4"))) == 12
    assert GenerateSettings(**options).frames == 8
