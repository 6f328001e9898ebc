"""Tables: what a file may say, which cells follow, what their numbers come to, and real ones that are cut short."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers import SMALL_RUN, SMALL_VIDEOS

from l2a_ray.cli import main
from l2a_ray.config import load
from l2a_ray.errors import ConfigError
from l2a_ray.experiments.cost import plan_cells
from l2a_ray.experiments.definition import read_definition
from l2a_ray.experiments.grid import Cell, Grid, expand
from l2a_ray.experiments.making import groups, look
from l2a_ray.experiments.outcome import Measured, summarise
from l2a_ray.experiments.page import write_table
from l2a_ray.experiments.plots import numbers
from l2a_ray.experiments.published import published_tables
from l2a_ray.outputs.report.page import DASH
from l2a_ray.pipeline.housekeeping import clean
from l2a_ray.pipeline.results import Results
from l2a_ray.pipeline.stage import definition
from l2a_ray.videos.generate import generate

TABLES = sorted((Path(__file__).parents[1] / "configs" / "tables").glob("*.yaml"))
BASE = "name: base\nseeds: [7, 8]\nsegment: {kind: motion}\narms: {real: , mine: {pairs: agreement}}\n"


def grid(folder: Path, table: str, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Lay out a table of a base beside it."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "t.yaml"
    path.write_text(f"base: base.yaml\n{table}")
    return expand(
        read_definition(path), {"runs": str(folder / "runs")} | dict(overrides or {}), folder / "tables" / "t"
    )


# --- what a file may say


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("rows: {a: {arm: real}, a: {arm: random}}", "t.yaml, line 2: `a` stands in line 2 already"),
        ("row: {a: {arm: real}}", "`row`: no such part of a table; there are name, base"),
        ("rows: {}", "rows: must name a row"),
        ("rows: [a, b]", "rows: must be a mapping of names to differences"),
        ("rows: {a: random}", "rows.a: must hold settings"),
        ("rows: {a: {composite.region: boxes}}", "rows.a: names no arm: add `arm: selected` to it or to `common`"),
        ("rows: {a: {arm: selcted}}", "rows.a.arm: must be one of real, random, selected, mine"),
        ("rows: {a: {arm: {pairs: none, alpha: 3}}}", "rows.a.arm: .*no such setting"),
        ("rows: {a: {arm: real, composit.region: boxes}}", "row `a`: .*composit.region. is not accepted"),
        ("rows: {a: {arm: real, composite: {region: discs}}}", "row `a`: .*composite.region"),
        ("rows: {a: {arm: real, seeds: [1]}}", r"rows.a.seeds: write the repetitions as `over: \{seed"),
        ("rows: {a: {arm: real}}\nover: {seed: [a]}", "over.seed: .*seeds"),
        ("rows: {a: {arm: real}}\ncolumns: {b: {data.split: 4}}", "column `b`: .*data.split"),
        ("rows: {a: {arm: real}}\ncolumns: {b: {arm: random}}", "columns.b.arm: an arm belongs to a row"),
        ("rows: {a: {arm: real}}\nagainst: b", "against: b: must be one of the rows: a"),
        ("rows: {a: {arm: real}}\npublished: table9", "published: table9: must be one of table1"),
        ("rows: {a: {arm: real}}\nover: {seed: 3}", "over.seed: must be a list of values"),
        ("rows: {a: {arm: real}}\nover: {seed: [3, 3]}", "over.seed: has a value twice"),
        ("rows: {a: {arm: real}}\nover: {select.budget: [0.1, 0.2]}", "seed=7 of row `a` are the same run"),
        ("rows: {a: {arm: real, select.budget: 0.3}}\nover: {select.budget: [0.1]}", "select.budget: is set by over"),
        ("rows: {a b: {arm: real}, a-b: {arm: random}}", "would share the folder a-b. Rename one"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path: Path, table: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        made = grid(tmp_path, table)
        summarise(made, {}, {})
    assert str(tmp_path / "t.yaml") in str(raised.value)


def test_a_missing_file_or_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        read_definition(tmp_path / "none.yaml")
    (tmp_path / "t.yaml").write_text("base: gone.yaml\nrows: {a: {arm: real}}\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file; paths begin at the table file's folder"):
        read_definition(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"composite": {"region": "boxes"}}, "is set by the command line too"),
        ({"arms": ["real"]}, "--arms: .* says it of all its rows"),
        ({"config": ["a.yaml"]}, "--config"),
    ],
)
def test_what_a_row_is_about_cannot_be_set_for_all(tmp_path: Path, overrides: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        grid(tmp_path, "common: {arm: mine}\nrows: {a: {composite.region: masks}, b: {}}", overrides)


# --- which cells follow


def test_a_setting_that_is_a_mapping_is_that_of_the_row_alone(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(f"{BASE}selector: {{algorithm: PPO, options: {{clip_param: 0.3}}}}\n")
    path = tmp_path / "t.yaml"
    path.write_text("base: base.yaml\ncommon: {arm: real}\nrows: {a: {}, b: {selector.options: {entropy_coeff: 0.0}}}")
    made = expand(read_definition(path), {}, tmp_path / "t")
    options = [cell.pipeline.settings.selector.options for cell in made.cells[:2]]
    assert options == [{"clip_param": 0.3}, {"entropy_coeff": 0.0}]


def test_cells_are_rows_by_columns_by_repetitions_with_their_own_settings(tmp_path: Path) -> None:
    made = grid(
        tmp_path,
        "common: {arm: mine, classifier.epochs: 3, select.budget: 0.5}\n"
        "over: {data.seed: [0, 1], seed: [4, 5]}\n"
        "rows: {plain: {}, w/o Masks: {composite.region: boxes}, real: {arm: real}}\n"
        "columns: {few: {data.limit: 2}, all: {}}",
        {"select": {"budget": 0.25}},
    )
    assert len(made.cells) == 3 * 2 * 4
    assert [cell.title for cell in made.cells[:4]] == [
        "plain, few, data.seed=0, seed=4",
        "w/o Masks, few, data.seed=0, seed=4",
        "real, few, data.seed=0, seed=4",
        "plain, all, data.seed=0, seed=4",
    ], "a whole table first"
    cell = next(c for c in made.cells if c.title == "w/o Masks, few, data.seed=1, seed=5")
    settings = cell.pipeline.settings
    assert (settings.data.limit, settings.data.seed, settings.seeds) == (2, 1, [4, 5])
    assert (settings.composite.region, settings.classifier.epochs, settings.select.budget) == ("boxes", 3, 0.25)
    assert settings.arms_by_name["w-o-Masks"].pairs == "agreement"
    assert settings.folder == tmp_path / "tables" / "t" / "runs" / "few-w-o-Masks-seed1"
    assert settings.store_folder == tmp_path / "runs" / "store"
    assert {c.pipeline.settings.composite.region for c in made.cells if c.row != "w/o Masks"} == {"masks"}
    assert [len(group) for group in groups(made.cells)] == [3] * 8, "a repetition of a data set is made together"


def test_rows_with_other_machines_or_tests_are_not_made_together(tmp_path: Path) -> None:
    rows = "rows: {a: {}, b: {evaluate.crops: 3}, c: {workers.threads: 2}, d: {select.budget: 0.5}}"
    made = grid(tmp_path, f"common: {{arm: random}}\n{rows}", {"seeds": [0]})
    assert [[cell.row for cell in group] for group in groups(made.cells)] == [["a"], ["b"], ["c"], ["d"]]


def test_repetitions_are_those_of_the_command_line_the_file_or_the_base(tmp_path: Path) -> None:
    def seeds(table: str, **overrides: Any) -> list[int]:
        made = grid(tmp_path, f"{table}rows: {{a: {{arm: real}}}}", overrides)
        found: list[int] = [cell.over["seed"] for cell in made.cells]
        assert all(cell.pipeline.settings.seeds == found for cell in made.cells)
        return found

    assert seeds("") == [7, 8]
    assert seeds("over: {seed: [1]}\n") == [1]
    assert seeds("over: {seed: [1]}\n", seeds=[2, 3]) == [2, 3]


def test_rows_that_are_the_same_run_or_change_nothing_are_told(tmp_path: Path) -> None:
    made = grid(
        tmp_path,
        "common: {arm: random}\nrows: {plain: {}, again: {composite.region: masks}, real: {arm: real}, "
        "also real: {arm: real, composite.region: boxes}}",
    )
    assert made.notes == (
        "row again sets composite.region to what it is already",
        "plain and again are the same run, which is made once",
        "real and also real are the same run, which is made once",
    )
    one, other = (next(cell.result for cell in made.cells if cell.row == row) for row in ("plain", "again"))
    assert definition(one) == definition(other)


def test_rows_share_all_that_they_do_not_change(tmp_path: Path) -> None:
    made = grid(
        tmp_path, "rows: {real: {arm: real}, drawn: {arm: random}, boxes: {arm: random, composite.region: boxes}}"
    )
    work = look(made.cells)
    counts = {name: (one.results, one.missing, one.uses) for name, one in work.items()}
    assert counts == {
        "prepare": (1, 1, 6),
        "match": (1, 1, 4),
        "draw": (2, 2, 4),
        "train": (6, 6, 6),
        "evaluate": (6, 6, 6),
    }


def test_a_plan_counts_each_result_once_for_the_first_row_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = grid(
        tmp_path, "rows: {real: {arm: real}, drawn: {arm: random}, boxes: {arm: random, composite.region: boxes}}"
    )
    counted: list[Counter[str]] = []

    def plan_parts(parts: Any, folder: Any) -> dict[str, Any]:
        counted.extend(Counter(stage.name for _, stage in part.stages) for part in parts)
        assert all(part.needed == {stage for _, stage in part.stages} for part in parts)
        return {"assumptions": []}

    monkeypatch.setattr("l2a_ray.experiments.cost.plan_parts", plan_parts)
    plan_cells(made.cells, tmp_path)
    assert counted == [
        {"prepare": 1, "train": 2, "evaluate": 2},
        {"match": 1, "draw": 2, "train": 2, "evaluate": 2},
        {"train": 2, "evaluate": 2},
    ]
    assert sum(counted, Counter()) == {name: one.missing for name, one in look(made.cells).items()}


def test_the_file_that_the_page_shows_can_be_laid_out(tmp_path: Path) -> None:
    page = (TABLES[0].parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "shown.yaml"
    path.write_text(shown.replace("../demo.yaml", str(TABLES[0].parents[1] / "demo.yaml")))
    made = expand(read_definition(path), {}, tmp_path)
    assert len(made.cells) == 5 * 2 * 6 and made.notes == ()
    summarise(made, {}, {})


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_shipped_tables_can_be_laid_out(path: Path, tmp_path: Path) -> None:
    about = read_definition(path)
    made = expand(about, {"data.root": str(tmp_path)}, tmp_path)
    assert made.notes == () and made.settings.name == path.stem
    for name in about.published.values():
        known = published_tables()[name]
        assert set(about.rows) & known.rows.keys(), "not one row has a published number"
        load(**{"name": "a"} | known.conditions)  # each is a setting, with a value that it can have


# --- what their numbers come to


def fake(made: Grid, top1: Mapping[str, list[float]]) -> dict[Cell, Measured]:
    """Numbers of cells, repetition by repetition; rows with fewer are not finished."""
    found: dict[Cell, Measured] = {}
    for row, values in top1.items():
        own = [cell for cell in made.cells if cell.row == row]
        for cell, value in zip(own, values, strict=False):
            about = {"row": cell.row, "column": cell.column, **cell.over, "top1": value, "top5": 1.0, "loss": 1.0}
            found[cell] = about | {"clips": 10, "top1_still": value / 2, "run": "r", "key": "k", "folder": "f"}
    return found


def test_differences_are_taken_repetition_by_repetition(tmp_path: Path) -> None:
    made = grid(
        tmp_path,
        "against: b\nover: {seed: [0, 1, 2]}\n"
        "rows: {a: {arm: real}, b: {arm: random}, c: {arm: mine}, d: {arm: selected}}",
    )
    found = fake(made, {"a": [0.5, 0.6, 0.7], "b": [0.4, 0.55, 0.5], "c": [0.6]})
    a, b, c, d = summarise(made, found, {cell: "broke" for cell in made.cells if cell.title == "c, seed=1"})
    # By hand: differences 0.1, 0.05, 0.2: mean 0.35 / 3, deviation sqrt(0.0058333); t of 2 at 97.5 % is 4.302653.
    assert a.values["top1"]["mean"] == pytest.approx(0.6) and a.values["top1"]["std"] == pytest.approx(0.1)
    over = a.over["top1"]
    assert over is not None and over["mean"] == pytest.approx(0.116667, abs=1e-6)
    assert over["interval95"] == pytest.approx(4.302653 * 0.0763763 / 3**0.5, abs=1e-6) and not over["clear"]
    assert b.over["top1"] is None
    assert c.over["top1"] is not None and c.over["top1"]["n"] == 1 and c.over["top1"]["interval95"] is None
    assert (c.n, c.missing, c.failed) == (1, 1, {"seed=1": "broke"})
    assert (d.n, d.missing, d.values) == (0, 3, {})


def test_the_files_show_a_table_that_is_not_finished(tmp_path: Path) -> None:
    made = grid(
        tmp_path, "against: L2A\npublished: table2\nrows: {L2A: {arm: random}, w/o All: {arm: real}, <b>: {arm: mine}}"
    )
    found = fake(made, {"L2A": [0.5, 0.7], "w/o All": [0.4]})
    failed = {cell: "it broke" for cell in made.cells if cell.title == "<b>, seed=7"}
    report = made.cells[0].pipeline.settings.folder / "report" / "index.html"
    report.parent.mkdir(parents=True)
    report.write_text("")
    out = tmp_path / "tables" / "t"
    write_table(made, summarise(made, found, failed), found, failed, out)
    lines = (out / "table.md").read_text().splitlines()
    assert f"| L2A | 60.0 ± 14.1 | 2 | {DASH} | 58.9* | {DASH} | 30.0 ± 7.1 |" in lines
    assert "| w/o All | 40.0 | 1, 1 missing | -10.0 | 54.5* | -4.4 | 20.0 |" in lines
    assert f"| <b> | {DASH} | 0, 1 failed, 1 missing{f' | {DASH}' * 4} |" in lines
    assert any("data.layout is folder, there ucf101" in line and "distillation" in line for line in lines)
    assert "3 of 6 cells are finished, 1 failed and 2 are still to be made." in lines
    table = pd.read_parquet(out / "results.parquet")
    assert table[["row", "seed", "top1"]].values.tolist() == [["L2A", 7, 0.5], ["w/o All", 7, 0.4], ["L2A", 8, 0.7]]
    flat = pd.read_csv(out / "table.csv").set_index("row")
    assert flat.loc["w/o All", "top1_over"] == pytest.approx(-0.1) and flat.loc["L2A", "published"] == 0.589
    page = (out / "index.html").read_text()
    assert "&lt;b&gt;, seed=7</b>: it broke" in page and "<b>,</b>" not in page
    assert 'href="runs/L2A/report/index.html"' in page and "data:image/png;base64" in page


def test_an_axis_of_one_setting_in_numbers_is_drawn_against_it() -> None:
    assert numbers({"a": {"select.budget": 0.1}, "b": {"select.budget": 1}}) == ("select.budget", {"a": 0.1, "b": 1})
    assert numbers({"a": {"select.budget": 0.1}, "b": {}}) is None
    assert numbers({"a": {"select.within": "all"}, "b": {"select.within": "class"}}) is None
    assert numbers({"a": {"select.budget": 0.1}, "b": {"composite.alpha": 2}}) is None


# --- real ones

MORE = "workers: {count: 0}\nname: base\n"
SMALL_TABLE: dict[str, Any] = {
    "base": "run.yaml",
    "against": "random",
    "over": {"seed": [0, 1]},
    "rows": {
        "random": {"arm": "random"},
        "the same": {"arm": "random", "classifier.weight_decay": 0.001},
        "boxes": {"arm": "random", "composite.region": "boxes"},
    },
}


@dataclass
class House:
    """A folder with videos, a base and a table of it."""

    folder: Path

    def write(self, **changes: Any) -> None:
        (self.folder / "small.yaml").write_text(yaml.safe_dump(SMALL_TABLE | changes, sort_keys=False))

    def run(self, *options: str, runs: str = "runs", fails: bool = False) -> None:
        given = ["--runs", str(self.folder / runs), "--data.root", str(self.folder / "videos")]
        command = ["table", str(self.folder / "small.yaml"), "--tables", str(self.folder / runs / "tables"), *given]
        if fails:
            with pytest.raises(SystemExit) as ended:
                main([*command, *options])
            assert ended.value.code == 1
        else:
            main([*command, *options])

    def results(self, runs: str = "runs") -> pd.DataFrame:
        return pd.read_parquet(self.folder / runs / "tables" / "small" / "results.parquet")

    def models(self, runs: str = "runs") -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns for path in (self.folder / runs / "store").glob("train/*/model.safetensors")
        }


@pytest.fixture(scope="module")
def built(session: None, tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    generate(folder / "videos", SMALL_VIDEOS, 0)
    (folder / "run.yaml").write_text(SMALL_RUN.replace("arms: [real, selected]\n", "") + MORE)
    made = House(folder)
    made.write()
    made.run()
    return made


@pytest.fixture
def house(built: House) -> House:
    """A table that is finished."""
    built.write()
    return built


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often the work on a result is begun, by stage."""
    counts: Counter[str] = Counter()
    begin = Results._begin

    def counting(self: Results, job: Any, again: bool) -> Any:
        counts[job.stage.name] += 1
        return begin(self, job, again)

    monkeypatch.setattr(Results, "_begin", counting)
    return counts


def raising(at: int, error: BaseException) -> Callable[[Any], None]:
    """Return a training that raises at a call, and otherwise trains."""
    from l2a_ray.classifier.worker import _Training

    train, calls = _Training.run, Counter[str]()

    def run(self: Any) -> None:
        calls["run"] += 1
        if calls["run"] == at:
            raise error
        train(self)

    return run


@pytest.mark.ray
def test_a_table_cut_short_in_its_second_cell_makes_nothing_twice(
    house: House, begun: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("l2a_ray.classifier.worker._Training.run", raising(2, KeyboardInterrupt()))
        with pytest.raises(SystemExit) as ended:
            house.run(runs="cut")
        assert ended.value.code == 130
    first = house.models("cut")
    assert len(first) == 1 and len(house.results("cut")) == 0
    assert begun == {"prepare": 1, "match": 1, "draw": 1, "train": 2}
    house.run(runs="cut")
    # The two trainings that were begun go on: one has its model already.
    assert begun == {"prepare": 1, "match": 2, "draw": 2, "train": 2 + 4, "evaluate": 4}
    assert first.items() <= house.models("cut").items(), "what was trained was trained again"
    measures = [name for name in house.results() if name not in ("folder", "key")]
    pd.testing.assert_frame_equal(house.results("cut")[measures], house.results()[measures])
    begun.clear()
    house.run(runs="cut")
    assert not begun


@pytest.mark.ray
def test_rows_that_are_the_same_run_have_one_result(house: House) -> None:
    table = house.results()
    assert len(table) == 6 and len(house.models()) == 4
    keys = table.pivot(index="seed", columns="row", values="key")
    assert (keys["random"] == keys["the same"]).all() and (keys["random"] != keys["boxes"]).all()
    assert {"top1", "top1_scenes", "top1_stripes", "top1_still"} <= set(table)
    run = house.folder / "runs" / "tables" / "small" / "runs" / "boxes"
    assert clean(house.folder / "runs" / "store", delete=False) == 0, "the table's runs need all that is there"
    assert {"train/boxes-0", "train/boxes-1"} <= json.loads((run / "stages.json").read_text())["current"].keys()
    for row, folder in zip(table["row"], table["folder"], strict=True):
        found = pd.read_parquet(Path(folder) / "metrics.parquet").set_index("set")["top1"]
        own = table[(table["row"] == row) & (table["folder"] == folder)].iloc[0]
        assert [own["top1"], own["top1_still"]] == [found["real"], found["still"]]


@pytest.mark.ray
def test_new_rows_make_new_cells_and_a_cell_that_fails_does_not_end_the_table(
    house: House, begun: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = SMALL_TABLE["rows"] | {"wild": {"arm": "random", "classifier.learning_rate": 1e30}, "real": {"arm": "real"}}
    house.write(rows=rows)
    with caplog.at_level(logging.INFO):
        house.run(fails=True)
    table = house.results()
    assert Counter(table["row"]) == {"random": 2, "the same": 2, "boxes": 2, "real": 2}
    assert begun["evaluate"] == 2 and begun["draw"] == begun["match"] == 0
    for seed in (0, 1):
        told = [line for line in caplog.messages if line.startswith(f"table: wild, seed={seed} failed: ")]
        assert len(told) == 1 and "lower it or enlarge batch_size" in told[0]
    assert any("8 of 10 cells done, 0 running, 0 waiting, 2 failed" in line for line in caplog.messages)
    page = (house.folder / "runs" / "tables" / "small" / "table.md").read_text()
    assert f"| wild | {DASH} | 0, 2 failed |" in page


@pytest.mark.ray
def test_results_made_side_by_side_are_those_made_one_after_the_other(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    wild = {"wild": {"arm": "random", "classifier.learning_rate": 1e30}}
    house.write(rows=wild | SMALL_TABLE["rows"], over={"seed": [0]})
    with caplog.at_level(logging.INFO):
        house.run("--at-once", "2", runs="beside", fails=True)
    one, other = house.results(), house.results("beside")
    measures = [name for name in one if name != "folder"]
    one = one[(one["seed"] == 0) & one["row"].isin(SMALL_TABLE["rows"])][measures].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other[measures])
    assert any("3 of 4 cells done, 0 running, 0 waiting, 1 failed" in line for line in caplog.messages)
    assert any("lower it or enlarge batch_size" in line for line in caplog.messages)
    assert "prepare: 60 videos, 0 already done" in caplog.messages, "what tasks log is told"
    runs = house.folder / "beside" / "tables" / "small" / "runs"
    for row in ("random", "the-same", "boxes"):
        titles = json.loads((runs / row / "stages.json").read_text())["current"]
        assert {f"train/{row}-0", f"evaluate/{row}-0", "match-0", "prepare"} <= titles.keys()
    assert not list(runs.glob("*/.scratch*")) and len(house.models("beside")) == 2


@pytest.mark.ray
def test_a_results_file_that_was_cut_off_is_written_from_the_store(house: House, begun: Counter[str]) -> None:
    path = house.folder / "runs" / "tables" / "small" / "results.parquet"
    house.run()
    before = house.results()
    path.write_bytes(path.read_bytes()[:100])
    house.run()
    pd.testing.assert_frame_equal(house.results(), before)
    shutil.rmtree(path.parent)
    house.run()
    pd.testing.assert_frame_equal(house.results(), before)
    assert not begun


@pytest.mark.ray
def test_a_column_without_videos_fails_alone(
    house: House, begun: Counter[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.write(columns={"here": {"data.root": str(house.folder / "videos")}, "gone": {"data.root": "gone"}})
    monkeypatch.chdir(house.folder)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        main(["table", "small.yaml", "--name", "other", "--tables", "runs/tables"])
    assert ended.value.code == 1 and not begun, "what is there is found by whatever name"
    table = pd.read_parquet("runs/tables/other/results.parquet")
    assert Counter(table["column"]) == {"here": 6}
    assert any(
        "failed: random, gone, seed=0; the same, gone" in line and "is not a folder" in line for line in caplog.messages
    )


@pytest.mark.ray
def test_a_dry_run_tells_and_makes_nothing(house: House, begun: Counter[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        house.run("--dry-run", "--only", "boxes", "--seeds", "[0, 1, 5]")
    assert "boxes: 2 of 3 cells there, to be made: seed=5" in caplog.messages
    stages = {line.split()[0]: line.split()[1] for line in caplog.messages if " to be made of " in line}
    assert stages["train"] == stages["evaluate"] == stages["draw"] == "1" and stages["prepare"] == "0"
    assert not any(line.startswith("random:") for line in caplog.messages)
    assert not begun


@pytest.mark.ray
def test_a_table_that_is_finished_costs_nothing_more(
    house: House, begun: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = ["--runs", str(house.folder / "runs"), "--data.root", str(house.folder / "videos")]
    with caplog.at_level(logging.INFO):
        main(["plan", str(house.folder / "small.yaml"), *given])
    assert "plan: 0 of 6 cells are to be made" in caplog.messages and not begun


@pytest.mark.slow
def test_a_table_is_planned_by_samples_of_its_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    (tmp_path / "run.yaml").write_text(SMALL_RUN.replace("arms: [real, selected]\n", "") + MORE)
    House(tmp_path).write()
    given = ["--runs", str(tmp_path / "runs"), "--tables", str(tmp_path / "tables")]
    given += ["--data.root", str(tmp_path / "videos"), "--plan.clips_per_class", "1", "--plan.steps", "1"]
    with caplog.at_level(logging.INFO):
        main(["plan", str(tmp_path / "small.yaml"), *given])
    plan = json.loads((tmp_path / "tables" / "small" / "plan.json").read_text())
    missing = {name: stage["missing"] for name, stage in plan["stages"].items()}
    assert missing == {"prepare": 1, "match": 2, "draw": 2, "train": 4, "evaluate": 4}
    assert plan["clips"] == {"train": 36, "val": 12, "test": 12} and plan["pairs"] == 36 * 6
    assert all(stage["wall_s"] > 0 and stage["storage_bytes"] > 0 for stage in plan["stages"].values())
    assert "60 clips, 216 candidate pairs" in caplog.messages
    assert sorted(path.name for path in (tmp_path / "tables" / "small").iterdir()) == ["plan.json"]
    assert not (tmp_path / "runs").exists(), "something of the table was made"


@pytest.mark.ray
def test_a_row_that_is_not_there_is_refused(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {("--only", "bxes"): "only='bxes': must be one of the table's rows: random, the same, boxes"}
    for options, complaint in {**wrong, ("--at-once", "0"): "at-once=0: must be at least 1"}.items():
        with pytest.raises(SystemExit) as ended:
            main(["table", str(house.folder / "small.yaml"), *options])
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err
