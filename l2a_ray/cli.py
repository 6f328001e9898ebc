"""The command ``l2a``: one subcommand a stage, and ``run`` for all of them."""

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from l2a_ray.config import WITHOUT_CONFIG
from l2a_ray.errors import L2AError, SettingError, StorageError, owned_by

if TYPE_CHECKING:
    from l2a_ray.config.settings import Settings
    from l2a_ray.storage.files import AnyPath

STAGES = {
    "run": "all stages, from videos to the report",
    "prepare": "decode, segment and inpaint every video once, into the store that all runs share",
    "match": "list the candidate pairs: each class with its nearest neighbour by name",
    "pseudo-label": "give clips without labels what a plain classifier takes them for, where it is sure enough",
    "train-selector": "train the plain classifier and, by reinforcement learning, the Selector",
    "select": "choose the pairs of every arm: the best under the budget, or drawn at random",
    "train": "train a classifier for every arm and seed, compositing on the way in",
    "evaluate": "test every classifier on the test split",
    "recommend": "choose a classifier by validation: that of real clips alone unless another is surely better",
    "teach": "ask a network trained on ImageNet about every frame and keep its probabilities, to be distilled from",
    "report": "write metrics.json, plots, contact sheets and index.html",
    "plan": "say what a run, or a TABLE.yaml named first, will cost: clips, pairs, storage, hours, memory; by samples",
    "preview": "look before you train: a page with videos and contact sheets of pairs",
    "export": "write the composites of an arm as mp4, for mmaction2 and torchvision",
    "fewshot": "learn new classes from a few clips, with and without composites of these, and test that in episodes",
}
TABLE = {"table": "make what is missing of a table of the paper: rows, columns and repetitions, as a YAML file says"}
OTHERS = {
    "predict": "say what a run's recommended classifier sees in videos",
    "export-model": "write that classifier as one file, for torch.export or ONNX",
    "runs": "list runs, the results that they are made of, their ages and sizes",
    "clean": "say which results in the store no run needs, and delete them if told to",
    "generate": "make the demo's videos: real H.264 files, the same bytes from the same seed",
}
MODEL_USERS = ("predict", "export-model")
MAKERS = ("match", "pseudo-label", "train-selector", "select", "train", "evaluate", "teach")
JOB_COPY = "working_dir_files"
"""Part of the path where Ray unpacks a job's working directory on each node."""
EXAMPLES = """
examples:
  l2a run --data.root PATH                                    (PATH/<class>/*.mp4; no --config: for real videos, no GPU)
  l2a run --config configs/demo.yaml
  l2a run --config configs/jhmdb.yaml --data.root PATH --seeds [0,1,2]
  l2a run --config configs/demo.yaml --arms [real,random]     (trains no Selector)
  l2a run --config configs/demo.yaml --print_config           (shows every setting)
  l2a plan --config configs/kinetics400.yaml --data.root PATH --plan.clips_per_class 1
  l2a preview --config configs/demo.yaml --preview.pairs 20 --preview.which [selected,worst]
  l2a export --config configs/demo.yaml --export.arm random
  l2a fewshot --config configs/fewshot/trx_jhmdb.yaml --data.root PATH
  l2a predict --run mine VIDEO FOLDER --top 3                 (asks the classifier that the run mine recommends)
  l2a table configs/tables/table2_demo.yaml --dry-run         (what a whole table would make; l2a table --help)
  l2a runs                                                    (lists runs and their results)

Every stage does only what is missing: the same command goes on after an interruption, and another run with the same
settings finds what this one has made.
"""
TABLE_HELP = """
A table file names a base config, rows, and what is repeated; all but rows may be left out:

  base: ../demo.yaml                      (path from the table file's folder, or a list; else as without --config)
  over: {seed: [0, 1, 2]}                 (repetitions: the product of these values; any setting, and seed)
  against: random                         (differences are taken from this row, repetition by repetition)
  common: {classifier.epochs: 20}         (what all cells have, beside the base)
  rows:
    random: {arm: random}                 (an arm: real, random, selected, one of the base, or {pairs: agreement})
    L2A: {arm: selected}
    L2A, boxes: {arm: selected, composite.region: boxes}
  columns:
    all: {}
    ten a class: {data.limit: 10}

Results: <tables>/<name>/index.html, table.md, table.csv, results.parquet, written anew as cells end. Started again, it
makes what is missing: other runs' results, rows that share work and rows that are added later count. docs/tables.md

examples:
  l2a table configs/tables/table2_demo.yaml                        (after `make demo`)
  l2a table configs/tables/table2_demo.yaml --dry-run              (which cells and stages are missing, how long)
  l2a table configs/tables/table2_demo.yaml --only L2A --only "w/o All" --seeds [0]
  l2a table configs/tables/table2.yaml --data.root PATH
  l2a plan configs/tables/table2.yaml --data.root PATH             (what is missing will cost, measured on samples)
"""


def build_parser(command: str | None, about_table: bool = False) -> ArgumentParser:
    """Return the parser of all subcommands, with the options of one: the options of all take seconds to make.

    Args:
        command: whose options are there.
        about_table: whether they are those of a table, in place of those of a run.
    """
    mode = "yaml"
    if command in STAGES | TABLE:
        from l2a_ray.config.loading import MODE as mode  # here: `l2a --help` need not read all settings
    parser = ArgumentParser(
        prog="l2a",
        parser_mode=mode,
        description="Learn which pairs of videos to composite, and train a better action classifier with them.",
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, purpose in (STAGES | TABLE | OTHERS).items():
        options = _options(name, about_table) if name == command else ArgumentParser()
        commands.add_subcommand(name, options, help=purpose)
    return parser


def _options(command: str, about_table: bool) -> ArgumentParser:
    """Return the parser of a subcommand."""
    if about_table:
        return _table_options(command)
    if command in STAGES:
        return _stage_options(command)
    parser = ArgumentParser(description=_sentence(OTHERS[command]))
    if command == "generate":
        from l2a_ray.videos.settings import GenerateSettings

        parser.add_argument(
            "--root", type=str, default="demo_videos", help="Folder to write; must not hold other files."
        )
        parser.add_argument("--seed", type=int, default=0, help="Seed of everything that is drawn.")
        parser.add_class_arguments(GenerateSettings, "generate")
        return parser
    parser.add_argument("--runs", type=str, default="runs", help="Folder that holds all runs.")
    if command in MODEL_USERS:
        _add_model_options(parser, command)
        return parser
    parser.add_argument("--store", type=str | None, default=None, help="Folder of the results (<runs>/store).")
    if command == "clean":
        parser.add_argument("--delete", action="store_true", help="Delete them.")
    return parser


def _add_model_options(parser: ArgumentParser, command: str) -> None:
    if command == "predict":
        parser.add_argument("videos", type=str, nargs="+", help="Videos, and folders of them.")
        parser.add_argument("--top", type=int, default=5, help="How many classes of each are named.")
        about = "CSV file to write: video, rank, class, probability, cause."
    else:
        about = "Form of the file: torch (torch.export.load reads it) or onnx."
        parser.add_argument("--format", type=Literal["torch", "onnx"], default="torch", help=about)
        about = "File to write (model.pt2 or model.onnx beside the classifier)."
    parser.add_argument("--out", type=str | None, default=None, help=about)
    parser.add_argument("--run", type=str | None, default=None, help="Name of the run.")
    about = "Folder of a classifier (<runs>/<run>/model)."
    parser.add_argument("--model", type=str | None, default=None, help=about)
    about = "Run the config of a network of mmaction2, which is a program of whoever made the classifier."
    parser.add_argument("--trust_config", action="store_true", help=about)


def _stage_options(command: str) -> ArgumentParser:
    from l2a_ray.config.loading import settings_parser

    parser = settings_parser(description=f"{_sentence(STAGES[command])}\n{EXAMPLES}")
    # Switches have no default, so that --print_config prints settings alone, which every command takes.
    if command == "prepare":
        about = "Read the videos' headers only and say what the data set lacks; prepare nothing."
        parser.add_argument("--check", action="store_true", default=argparse.SUPPRESS, help=about)
    if command in ("prepare", "run"):
        about = "Look at the videos again though they are prepared: new and changed ones, and those that failed."
        parser.add_argument("--refresh", action="store_true", default=argparse.SUPPRESS, help=about)
    if command == "export":
        about = "Write what is missing of an export that is there, and try again what failed."
        parser.add_argument("--refresh", action="store_true", default=argparse.SUPPRESS, help=about)
    return parser


def _table_options(command: str) -> ArgumentParser:
    from l2a_ray.config.loading import settings_parser

    parser = settings_parser(description=f"{_sentence((STAGES | TABLE)[command])}\n{TABLE_HELP}")
    parser.add_argument("table", type=str, help="The table's YAML file.")
    about = "These rows alone; give it several times for several. What is there of the others is shown."
    parser.add_argument("--only", type=str, action="append", metavar="ROW", help=about)
    parser.add_argument("--tables", type=str, metavar="FOLDER", help="Folder that holds all tables (tables).")
    if command not in TABLE:
        return parser
    about = "How many results are made at the same time (as many as a cluster has room for; without one, one)."
    parser.add_argument("--at-once", type=int, metavar="N", help=about)
    parser.add_argument("--dry-run", action="store_true", help="Say what is there and what is missing; make nothing.")
    parser.add_argument("--reports", action="store_true", help="Write the report of each run too, and link to it.")
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; errors that a user can mend are printed without a traceback, with exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else None
    about_table = command in TABLE or (command == "plan" and len(given) > 1 and not given[1].startswith("-"))
    if (
        command in STAGES
        and not about_table
        and not any(argument.startswith(("--config", "-h", "--help")) for argument in given)
    ):
        logging.info("no --config: for real videos and no GPU, as %s says", WITHOUT_CONFIG)
        given[1:1] = ["--config", str(WITHOUT_CONFIG)]
    try:
        # Of a table, what is given alone: a file's differences come between the base and the command line.
        parsed = build_parser(command, about_table).parse_args(given, defaults=not about_table)
        _execute(parsed.subcommand, parsed[parsed.subcommand], about_table, given)
    except L2AError as error:
        print(f"l2a: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # Seldom ours to foresee: storage that has gone away, most often. The traceback is for a report of a fault.
        traceback.print_exception(error)
        cause = getattr(error, "cause", error)  # a Ray task's error has its own text around it
        print(f"l2a: error: {cause}. Is the storage there? The same command goes on where it stopped", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("l2a: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)


def _execute(command: str, chosen: Namespace, about_table: bool, given: Sequence[str]) -> None:
    if command == "generate":
        _generate(chosen)
    elif command in MODEL_USERS:
        _use_model(command, chosen)
    elif command in OTHERS:
        _keep_house(command, chosen)
    elif about_table:
        _make_table(command, chosen)
    else:
        _run_stage(command, chosen, given)


def _generate(chosen: Namespace) -> None:
    from l2a_ray.config.building import build
    from l2a_ray.videos.generate import generate
    from l2a_ray.videos.settings import GenerateSettings

    generate(Path(chosen.root), build(GenerateSettings, chosen.generate.as_dict(), "generate"), chosen.seed)


def _use_model(command: str, chosen: Namespace) -> None:
    from l2a_ray.storage.files import as_path

    if (chosen.run is None) == (chosen.model is None):
        raise SettingError("run", chosen.run, "name a run, or by --model the folder of a classifier")
    folder = as_path(chosen.model) if chosen.model else as_path(chosen.runs) / chosen.run / "model"
    if command == "predict":
        _predict(folder, chosen)
    else:
        _export_model(folder, chosen)


def _predict(folder: "AnyPath", chosen: Namespace) -> None:
    from l2a_ray.deploy.classifier import load_classifier
    from l2a_ray.deploy.predict import find_videos, predict_videos, tell
    from l2a_ray.storage.files import as_path, write_bytes

    if chosen.top < 1:
        raise SettingError("top", chosen.top, "must be at least 1")
    videos = find_videos(chosen.videos)
    table = predict_videos(load_classifier(folder, trust_config=chosen.trust_config), videos, chosen.top)
    print("\n".join(tell(table)))
    if chosen.out:
        write_bytes(as_path(chosen.out), table.to_csv(index=False).encode(errors="surrogateescape"))
    if (table["cause"] != "").any():
        sys.exit(1)


def _export_model(folder: "AnyPath", chosen: Namespace) -> None:
    from l2a_ray.deploy.classifier import load_classifier
    from l2a_ray.deploy.convert import SUFFIXES, export_classifier
    from l2a_ray.storage.files import as_path, write_bytes

    classifier = load_classifier(folder, "cpu", chosen.trust_config)
    out = as_path(chosen.out) if chosen.out else folder / f"model{SUFFIXES[chosen.format]}"
    write_bytes(out, export_classifier(classifier, chosen.format))
    logging.info("export-model: %s", out)


def _keep_house(command: str, chosen: Namespace) -> None:
    from l2a_ray.pipeline.housekeeping import clean, tell_runs
    from l2a_ray.storage.files import as_path

    runs = as_path(chosen.runs).absolute()
    store = as_path(chosen.store).absolute() if chosen.store else runs / "store"
    if command == "runs":
        tell_runs(runs, store)
    else:
        clean(store, delete=chosen.delete)


def _make_table(command: str, chosen: Namespace) -> None:
    from l2a_ray.config.loading import plain_values
    from l2a_ray.experiments.table import plan, table

    given = plain_values(chosen)
    options = {name: given.pop(name) for name in ("only", "dry_run", "reports", "tables", "at_once") if name in given}
    for name, place in {"runs": "runs", "tables": "tables", **given, **options}.items():
        if name in ("runs", "store", "tables"):
            _refuse_job_copy(name, place)
    file = given.pop("table")
    if command == "plan":
        plan(file, given, **options)
    elif not table(file, given, **options):
        sys.exit(1)


def _tell_what_has_no_effect(settings: "Settings", given: Sequence[str]) -> None:
    """Name the settings among the options given that do nothing beside the others, for no arm."""
    from l2a_ray.fields import overruled

    trained = [settings]
    for name, arm in settings.arms_by_name.items():  # an arm may train otherwise than the run
        with owned_by(f"arms.{name}"):
            trained.append(replace(settings, classifier=arm.trained(settings.classifier)))
    for option in given:
        name = option.removeprefix("--").partition("=")[0]
        owners = [overruled(one, name) for one in trained] if option.startswith("--") else [None]
        if all(owners):
            logging.warning("--%s has no effect with %s", name, owners[0])


def _run_stage(command: str, chosen: Namespace, given: Sequence[str]) -> None:
    from l2a_ray.config.loading import settings_from
    from l2a_ray.storage.files import as_path, out_of_reach

    settings = settings_from(chosen)
    _tell_what_has_no_effect(settings, given)
    for name in ("runs", "store"):
        _refuse_job_copy(name, getattr(settings, name))
    try:
        _make(command, settings, check="check" in chosen, refresh="refresh" in chosen)
    except L2AError:
        raise
    except Exception as error:  # object stores' own, from anywhere: ask whether they are there
        if gone := out_of_reach(settings.folder, settings.store_folder, as_path(settings.data.root)):
            raise StorageError(f"{gone}. The same command goes on where it stopped") from error
        raise


def _make(command: str, settings: "Settings", check: bool, refresh: bool) -> None:
    from l2a_ray.pipeline import commands

    if command in MAKERS:
        commands.make(settings, command)
    elif check:
        commands.check(settings)
    elif command in ("prepare", "run", "export"):
        getattr(commands, command)(settings, refresh)
    else:
        getattr(commands, command)(settings)


def _refuse_job_copy(name: str, place: str | None) -> None:
    """Refuse a folder that goes with the job."""
    if place and "://" not in place and JOB_COPY in Path(place).absolute().parts:
        reason = "lies in this job's own copy of the working directory, which Ray deletes: name a folder of all nodes"
        raise SettingError(name, place, reason)
