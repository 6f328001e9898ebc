"""Results under their keys: what is made, what is found, what is told; with stages that only count."""

import json
import logging
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from l2a_ray.errors import StageError
from l2a_ray.fields import setting
from l2a_ray.pipeline.housekeeping import clean, list_store
from l2a_ray.pipeline.results import Results, make_together
from l2a_ray.pipeline.stage import Inputs, Stage
from l2a_ray.runtime.settings import RuntimeSettings
from l2a_ray.storage.files import AnyPath, write_bytes
from l2a_ray.storage.run import RunFolder

DONE: Counter[str] = Counter()


@dataclass(frozen=True, kw_only=True)
class Oven:
    kind: str = "gas"
    degrees: int = 180
    model: str | None = setting(None, content=True)
    electric: int = setting(5, only_for={"kind": ["electric"]})
    cooks: int = setting(1, execution=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source(Stage):
    """Its content, and not its key, is what others depend on."""

    name: ClassVar[str] = "source"
    place: str
    text: list[str] = setting(execution=True)

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        DONE[self.title] += 1
        write_bytes(out / "text", self.text[0].encode())

    def content(self, folder: AnyPath) -> str:
        return (folder / "text").read_text()


@dataclass(frozen=True, kw_only=True, eq=False)
class Bake(Stage):
    name: ClassVar[str] = "bake"
    source: Source
    oven: Oven = field(default_factory=Oven)
    number: int = 0

    @property
    def title(self) -> str:
        return f"bake/{self.number}"

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        if self.number < 0:
            raise StageError("no flour")
        DONE[self.title] += 1
        write_bytes(out / "bread", (inputs.folder(self.source) / "text").read_bytes() * 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Taste(Stage):
    name: ClassVar[str] = "taste"
    bake: Bake

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        DONE[self.title] += 1
        write_bytes(out / "word", b"good")


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    DONE.clear()


def results(folder: Path, name: str = "a") -> Results:
    return Results(RunFolder(folder / name, {"name": name}, folder / "store"), RuntimeSettings())


def taste(text: str = "x", place: str = "here", number: int = 0, **oven: object) -> Taste:
    source = Source(place=place, text=[text])
    return Taste(bake=Bake(source=source, oven=Oven(**oven), number=number))  # type: ignore[arg-type]


def test_what_is_there_is_not_made_again_in_any_run(tmp_path: Path) -> None:
    results(tmp_path).make([taste()])
    assert DONE == {"source": 1, "bake/0": 1, "taste": 1}
    results(tmp_path).make([taste()])
    results(tmp_path, "b").make([taste()])
    assert DONE == {"source": 1, "bake/0": 1, "taste": 1}


def test_only_what_a_changed_setting_matters_to_is_made_anew_and_the_reason_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    results(tmp_path).make([taste()])
    results(tmp_path).make([taste(degrees=200)])
    assert DONE == {"source": 1, "bake/0": 2, "taste": 2}
    assert "bake/0: to be made anew: oven.degrees 180 -> 200" in caplog.messages
    model = tmp_path / "model"
    for content in ("gas oven", "better oven"):
        model.write_text(content)
        results(tmp_path, "modelled").make([taste(model=str(model))])
    assert f"bake/0: to be made anew: oven.model {model} has other content" in caplog.messages
    assert DONE == {"source": 1, "bake/0": 4, "taste": 4}
    results(tmp_path).make([taste(degrees=200, electric=9, cooks=3)])  # another kind's, and how it is made
    results(tmp_path).make([taste()])  # the first one is still there
    assert DONE == {"source": 1, "bake/0": 4, "taste": 4}


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / name).write_text(text)
    made = results(tmp_path)
    made.make([taste(model=str(tmp_path / "one"))])
    made.make([taste(model=str(tmp_path / "two"))])
    assert DONE["bake/0"] == 1
    made.make([taste(model=str(tmp_path / "three"))])
    assert DONE["bake/0"] == 2


def test_equal_content_from_another_place_makes_nothing_after_it_again(tmp_path: Path) -> None:
    results(tmp_path).make([taste(place="here")])
    results(tmp_path).make([taste(place="there")])
    assert DONE == {"source": 2, "bake/0": 1, "taste": 1}


def test_made_again_with_other_content_all_after_it_is_made_anew(tmp_path: Path) -> None:
    results(tmp_path).make([taste("x")])
    made, wanted = results(tmp_path), taste("y")
    made.make([wanted])
    assert DONE == {"source": 1, "bake/0": 1, "taste": 1}  # complete is complete
    made.make_again(wanted.bake.source)
    made.make([wanted])
    assert DONE == {"source": 2, "bake/0": 2, "taste": 2}


def test_what_is_looked_at_again_stays_complete_if_that_fails(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Away(Source):
        def work(self, inputs: Inputs, out: AnyPath) -> None:
            raise OSError("away")

    made = results(tmp_path)
    made.make([taste()])
    with pytest.raises(OSError, match="away"):
        made.make_again(Away(place="here", text=["x"]))
    results(tmp_path).make([taste()])
    assert DONE == {"source": 1, "bake/0": 1, "taste": 1}


def test_what_an_interruption_left_half_done_is_not_taken_for_done(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Breaks(Bake):
        def work(self, inputs: Inputs, out: AnyPath) -> None:
            DONE["tries"] += 1
            write_bytes(out / "bread", b"raw")
            if DONE["tries"] == 1:
                raise OSError("no space left")
            write_bytes(out / "bread", b"done")

    made, wanted = results(tmp_path), Breaks(source=Source(place="", text=["x"]))
    with pytest.raises(OSError, match="no space"):
        made.make([wanted])
    assert not made.is_complete(wanted)
    assert made.run.stages() == {}  # the run is still made of what it was made of
    results(tmp_path).make([wanted])
    assert (made.folder(wanted) / "bread").read_bytes() == b"done"
    assert DONE["source"] == 1


def test_a_run_tells_what_it_is_made_of_and_by_what(tmp_path: Path) -> None:
    made, wanted = results(tmp_path), taste(degrees=200)
    made.make([wanted])
    stages = made.run.stages()
    assert stages.keys() == {"source", "bake/0", "taste"}
    record = json.loads((tmp_path / "store" / "bake" / stages["bake/0"]["key"] / "stage.json").read_text())
    assert record["complete"] and record["uses"] == {"oven.degrees": 200} and record["settings"]["oven.kind"] == "gas"
    assert record["made_by"][0]["code"] and record["seconds"] >= 0 and record["started"]


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    made, wanted = results(tmp_path), taste()
    made.make([wanted])
    (made.folder(wanted.bake) / "bread").write_bytes(b"x")
    with pytest.raises(StageError, match=r"bread is missing or not as it was written\. Delete this folder"):
        results(tmp_path).make([wanted.bake])


def test_a_store_of_another_format_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text('{"format": 99}')
    with pytest.raises(StageError, match="format 99"):
        results(tmp_path)


def test_of_two_that_need_the_same_result_one_works_and_the_other_waits(tmp_path: Path) -> None:
    code = """
import sys, time, pathlib
sys.path.insert(0, sys.argv[2])
import test_results
def slow(self, inputs, out):
    (pathlib.Path(sys.argv[1]) / sys.argv[3]).touch()
    time.sleep(3)
    test_results.write_bytes(out / "word", b"good")
test_results.Taste.work = slow
test_results.results(pathlib.Path(sys.argv[1]), sys.argv[3]).make([test_results.taste()])
"""
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, str(tmp_path), tests]
    first = subprocess.Popen([*command, "one"])
    while not (tmp_path / "one").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run([*command, "two"], capture_output=True, text=True, check=False)
    assert first.wait() == 0 and second.returncode == 0, second.stderr
    assert (tmp_path / "one" / "stages.json").exists() and not (tmp_path / "two").is_file()
    assert json.loads((tmp_path / "two" / "stages.json").read_text())["current"].keys() == {"source", "bake/0", "taste"}


def test_runs_that_are_made_together_share_what_is_alike_and_each_knows_its_own(tmp_path: Path) -> None:
    one, other = results(tmp_path, "one"), results(tmp_path, "other")
    make_together([(one, [taste(number=1)]), (other, [taste(number=2), taste(number=1, cooks=9)])])
    assert DONE == {"source": 1, "bake/1": 1, "bake/2": 1, "taste": 2}
    made = {name: json.loads((tmp_path / name / "stages.json").read_text()) for name in ("one", "other")}
    assert made["one"]["current"].keys() == {"source", "bake/1", "taste"} and made["one"]["begun"] == {}
    assert made["other"]["current"].keys() == {"source", "bake/1", "bake/2", "taste"} and made["other"]["begun"] == {}


def test_what_is_finished_stays_so_though_the_next_of_its_kind_fails(tmp_path: Path) -> None:
    made = results(tmp_path)
    with pytest.raises(StageError, match="no flour"):
        made.make([taste(number=1), taste(number=-1)])
    assert made.is_complete(taste(number=1).bake)
    made.make([taste(number=1)])
    assert DONE["bake/1"] == 1


def test_clean_deletes_what_no_run_needs_and_only_when_told_to(tmp_path: Path) -> None:
    made = results(tmp_path)
    made.make([taste(degrees=200)])
    old = made.folder(taste(degrees=200).bake)
    made.make([taste()])
    kept = made.folder(taste().bake)
    assert clean(tmp_path / "store", delete=False) > 0 and old.is_dir()
    clean(tmp_path / "store", delete=True)
    assert kept.is_dir() and not old.is_dir()
    assert all(one.needed_by == ("a",) for one in list_store(tmp_path / "store"))
    assert DONE["source"] == 1
