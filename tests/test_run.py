"""The run folder and the settings: what is complete is kept, what differs is refused, what cannot work is named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.config.settings import Settings
from l2a_ray.errors import ClusterError, SettingError, StageError, StorageError
from l2a_ray.runtime.session import ray_session
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.selector.selection import SelectSettings
from l2a_ray.storage.files import AnyPath
from l2a_ray.storage.run import NEUTRAL, RunFolder, flatten
from l2a_ray.videos.catalog import DataSettings
from l2a_ray.videos.decode import DecodeSettings


class Work:
    """Writes one more file a call; stops before the end of the first `stops` calls."""

    def __init__(self, stops: int = 0) -> None:
        self.stops, self.found = stops, list[list[str]]()

    def __call__(self, out: AnyPath) -> None:
        self.found.append(sorted(path.name for path in out.glob("*.txt")))
        (out / f"{len(self.found)}.txt").touch()
        if len(self.found) <= self.stops:
            raise KeyboardInterrupt


def folder(path: Path) -> RunFolder:
    return RunFolder(path, {"name": "a"}, 0)


def test_complete_stage_is_skipped(tmp_path: Path) -> None:
    run, work = RunFolder(tmp_path / "runs" / "a", {}, 0), Work()
    for _ in range(2):
        assert run.stage("match", {"seed": 1, "match.kind": "random"}, work) == run.path / "match"
    assert work.found == [[]] and run.folder("match") == run.path / "match"


def test_interrupted_stage_goes_on_inside(tmp_path: Path) -> None:
    run, work = RunFolder(tmp_path, {}, 0), Work(stops=2)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.stage("match", {"seed": 1}, work)
        with pytest.raises(StageError, match=r"`match` has not been run. Run `l2a match` first"):
            run.folder("match")
    run.stage("match", {"seed": 1}, work)
    assert work.found == [[], ["1.txt"], ["1.txt", "2.txt"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json", "match"]


@pytest.mark.parametrize("stops", [0, 1], ids=["complete", "interrupted"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1, "select.budget": 0.5}, r"select\.budget=0\.1, now select\.budget=0\.5"),
        ({"seed": 2, "select.budget": 0.1}, "seed=1, now seed=2"),
        ({"seed": 1}, r"select\.budget=0\.1, now select\.budget=None"),
        ({"seed": 1, "select.budget": 0.1, "zoom": 3}, "zoom=None, now zoom=3"),
    ],
)
def test_changed_setting_is_refused_by_name(tmp_path: Path, stops: int, changed: dict[str, Any], named: str) -> None:
    run, work = RunFolder(tmp_path, {}, 0), Work(stops)
    try:
        run.stage("select", {"seed": 1, "select.budget": 0.1}, work)
    except KeyboardInterrupt:
        assert stops
    with pytest.raises(StageError, match=named):
        run.stage("select", changed, work)
    assert len(work.found) == 1, "nothing may be mixed in"


def test_a_folder_that_is_held_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    code = "import sys, pathlib; from l2a_ray.storage.run import RunFolder\n"
    code += "with RunFolder(pathlib.Path(sys.argv[1]), {}, 0)"
    code += ".held():\n print('held', flush=True); sys.stdin.read()"
    run = RunFolder(tmp_path / "a", {}, 0)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(StageError, match=rf"host .*, process {holder.pid}, since 20.*another run name"), run.held():
            pass
        with RunFolder(tmp_path / "b", {}, 0).held():
            pass  # another folder is free
        holder.kill()
    with run.held(), run.held():
        pass  # a lock ends with its process, and does not shut out its holder


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    reinforce, ppo = (
        Settings(name="a", selector=SelectorSettings(algorithm=name)).flat("selector") for name in ("REINFORCE", "PPO")
    )
    run, work = RunFolder(tmp_path, {}, 0), Work(stops=1)
    with pytest.raises(KeyboardInterrupt):
        run.stage("train-selector", reinforce, work)
    with pytest.raises(StageError, match=r"selector\.algorithm=REINFORCE, now selector\.algorithm=PPO"):
        run.stage("train-selector", ppo, work)
    assert work.found == [[]]


def test_settings_survive_their_way_through_json(tmp_path: Path) -> None:
    run, work = RunFolder(tmp_path, {}, 0), Work()
    for _ in range(2):
        run.stage("train", {"selector.hidden": (8, 4), "labels": None, "share": 0.1 + 0.2}, work)
    assert len(work.found) == 1


def test_grown_extent_goes_on_in_what_is_there(tmp_path: Path) -> None:
    run, work = RunFolder(tmp_path, {}, 0), Work()
    run.stage("train", {"seed": 1}, work, {"seeds": 1})
    run.stage("train", {"seed": 1}, work, {"seeds": 3})
    run.stage("train", {"seed": 1}, work, {"seeds": 3})
    assert work.found == [[], ["1.txt"]]
    assert json.loads((run.folder("train") / "stage.json").read_text())["extent"] == {"seeds": 3}
    with pytest.raises(StageError, match="seed=1"):
        run.stage("train", {"seed": 2}, work, {"seeds": 4})
    assert run.folder("train").is_dir(), "a refusal must leave the complete stage in its place"


def test_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run", {}, 0).describe()


def test_description_gives_the_settings_back(tmp_path: Path) -> None:
    settings = Settings(name="a", select=SelectSettings(budget=0.5))
    RunFolder(tmp_path, settings.plain(), 3).stage("match", {"seed": 3}, Work())
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert json.loads(json.dumps(settings.plain())) == written
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["seed"] == 3 and {"ray", "torch", "numpy"} <= environment["packages"].keys()
    with pytest.raises(StageError):
        RunFolder(tmp_path, {"name": "b"}, 4).stage("match", {"seed": 4}, Work())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == written, (
        "refused settings are not those of the run"
    )


def test_flatten() -> None:
    nested = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}
    assert flatten(nested) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_flat_settings_leave_out_how_a_result_is_come_by() -> None:
    flat = Settings(name="a", seed=7).flat("seed", "classifier")
    assert flat["seed"] == 7 and "classifier.network.name" in flat and "classifier.crop" in flat
    assert not flat.keys() & NEUTRAL and flatten(Settings(name="a").plain()).keys() >= NEUTRAL
    assert not any(key.startswith(("name", "runs", "select", "decode")) for key in flat)


def test_arms_are_read_in_order_without_repetition() -> None:
    assert Settings(name="a", arms=" selected,real, selected,").arm_names == ("selected", "real")
    assert Settings(name="a", runs="there").folder == Path("there/a").absolute()


@pytest.mark.parametrize(
    ("field", "value", "build"),
    [
        ("select.budget", 0.0, lambda: SelectSettings(budget=0.0)),
        ("select.budget", 1.5, lambda: SelectSettings(budget=1.5)),
        ("decode.frames", 0, lambda: DecodeSettings(frames=0)),
        ("decode.frames", 1, lambda: DecodeSettings(frames=1)),
        ("data.val_fraction", 1.0, lambda: DataSettings(val_fraction=1.0)),
        ("data.val_fraction", 0.0, lambda: DataSettings(val_fraction=0.0)),
        ("arms", "real,best", lambda: Settings(name="a", arms="real,best")),
        ("arms", ",", lambda: Settings(name="a", arms=",")),
        ("seeds", 0, lambda: Settings(name="a", seeds=0)),
        ("seed", -1, lambda: Settings(name="a", seed=-1)),
        ("name", "a/b", lambda: Settings(name="a/b")),
        ("name", "", lambda: Settings(name="")),
        ("name", "..", lambda: Settings(name="..")),
        ("classifier.crop", 65, lambda: Settings(name="a", decode=DecodeSettings(size=64), classifier=crop(65))),
        ("selector.steps", 30, lambda: SelectorSettings(steps=30, steps_per_iteration=20, steps_per_update=4)),
        ("selector.steps_per_update", 3, lambda: SelectorSettings(steps_per_update=3, steps_per_iteration=20)),
        ("selector.hidden", (), lambda: SelectorSettings(hidden=())),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object, build: Any) -> None:
    with pytest.raises(SettingError) as caught:
        build()
    assert caught.value.field == field and caught.value.value == value
    assert f"{field}={value!r}: must" in str(caught.value)


def crop(pixels: int) -> ClassifierSettings:
    return ClassifierSettings(crop=pixels)


def test_crop_may_be_as_large_as_the_clips() -> None:
    assert Settings(name="a", decode=DecodeSettings(size=64), classifier=crop(64)).classifier.crop == 64


@pytest.mark.parametrize("port", ["1", "http"])
def test_a_cluster_that_is_not_there_is_told_at_once(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=rf"RAY_ADDRESS=127\.0\.0\.1:{port}: no Ray answers"), ray_session():
        pass
