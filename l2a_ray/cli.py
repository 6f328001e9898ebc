"""The command ``l2a``: one subcommand a stage, and ``run`` for all of them."""

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from l2a_ray.config.settings import Settings
from l2a_ray.errors import L2AError, SettingError, StorageError
from l2a_ray.storage.files import as_path, out_of_reach
from l2a_ray.storage.run import RunFolder
from l2a_ray.videos.generate import GenerateSettings, generate

STAGES = {
    "run": "all stages, from videos to the report",
    "prepare": "decode, segment and inpaint every video once, into the clip store",
    "match": "list the candidate pairs: each class with its nearest neighbour by name",
    "train-selector": "train the plain classifier and, by reinforcement learning, the Selector",
    "select": "score all candidate pairs and keep the best under the budget",
    "train": "train a classifier for every arm and seed, compositing on the way in",
    "evaluate": "test every classifier on the test split",
    "report": "write metrics.json, plots, contact sheets and index.html",
    "preview": "look before you train: a page with videos and contact sheets of pairs, once match is complete",
    "export": "write the composites of selected or random pairs as mp4, for mmaction2 and torchvision",
}
LOOKERS = ("preview", "report")
"""Stages that may run beside another: they only look at what is there, and write what is theirs alone."""
JOB_COPY = "working_dir_files"
"""Part of the path where Ray unpacks a job's working directory on each node."""
EXAMPLES = """
examples:
  l2a run --config configs/demo.yaml
  l2a run --name mine --data.layout folder --data.root PATH   (PATH/<class>/*.mp4)
  l2a run --config configs/jhmdb.yaml --data.root PATH --seeds 3
  l2a run --config configs/demo.yaml --print_config           (shows every setting)
  l2a preview --config configs/demo.yaml --preview.pairs 20 --preview.which selected,worst
  l2a export --config configs/demo.yaml --export.pairs random

Every stage does only what is missing: the same command goes on after an interruption.
"""


def build_parser() -> ArgumentParser:
    """Return the parser of all subcommands."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="l2a",
        description="Learn which pairs of videos to composite, and train a better action classifier with them.",
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, purpose in STAGES.items():
        command = ArgumentParser(description=f"{purpose[0].upper()}{purpose[1:]}.\n{EXAMPLES}")
        command.add_argument("--config", action="config", help="YAML file with settings; give several to layer them.")
        command.add_class_arguments(Settings, sub_configs=True)
        if name == "prepare":
            # Without a default, so that --print_config prints settings alone, which every command takes.
            about = "Read the videos' headers only and say what the data set lacks; prepare nothing."
            command.add_argument("--check", action="store_true", default=argparse.SUPPRESS, help=about)
        commands.add_subcommand(name, command, help=purpose)
    demo = ArgumentParser(description="Make the demo's videos: real H.264 files, the same bytes from the same seed.")
    demo.add_argument("--root", type=str, default="demo_videos", help="Folder to write; must not hold other files.")
    demo.add_argument("--seed", type=int, default=0, help="Seed of everything that is drawn.")
    demo.add_class_arguments(GenerateSettings, "generate")
    commands.add_subcommand("generate", demo, help="make the demo's videos")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; errors that a user can mend are printed without a traceback, with exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        _execute(parser, parsed)
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


def _execute(parser: ArgumentParser, parsed: Namespace) -> None:
    command: str = parsed.subcommand
    chosen = parser.instantiate(parsed)[command]
    if command == "generate":
        generate(Path(chosen.root), chosen.generate, chosen.seed)
        return
    settings = Settings(**{name: chosen[name] for name in Settings.__dataclass_fields__})
    if "://" not in settings.runs and JOB_COPY in Path(settings.runs).absolute().parts:
        reason = "lies in this job's own copy of the working directory, which Ray deletes: name a folder of all nodes"
        raise SettingError("runs", settings.runs, reason)
    # Here, not above: Ray, RLlib and PyTorch take seconds to import, which `--help` need not wait for.
    from l2a_ray.pipeline import stages

    if "check" in chosen and chosen.check:
        command = "check"
    stage = getattr(stages, command.replace("-", "_"))
    if command in LOOKERS:
        stage(settings)
        return
    try:
        with RunFolder(settings.folder, settings.plain(), settings.seed).held():
            stage(settings)
    except L2AError:
        raise
    except Exception as error:  # object stores' own, from anywhere: ask whether they are there
        if gone := out_of_reach(settings.folder, as_path(settings.data.root)):
            raise StorageError(f"{gone}. The same command goes on where it stopped") from error
        raise
