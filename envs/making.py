"""Making the environment: of parts, or of what a run has trained its Selector with."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.pair_selection import EnvFiles, PairSelectionEnv
from l2a_ray.config.building import build
from l2a_ray.storage.files import AnyPath, as_path, read_bytes
from l2a_ray.storage.run import find_result

ENVIRONMENT = "environment.json"
PATHS = ("store", "pairs", "vectors", "warm_start")
"""Fields of ``EnvFiles`` that are written relative to the store, so that it may be moved."""


def make(run: str | None = None, seed: int | None = None, **parts: Any) -> PairSelectionEnv:
    """Make the environment: ``gymnasium.make("l2a/PairSelection-v0", run="runs/demo")``.

    Args:
        run: folder of a run with the stage train-selector.
        seed: of its repetitions; None: the first.
        parts: in place of ``run``, the arguments of :class:`PairSelectionEnv`.

    Raises:
        StageError: the run has no such stage.
    """
    return PairSelectionEnv(**parts) if run is None else PairSelectionEnv.from_files({"files": files_of(run, seed)})


def files_of(run: str, seed: int | None = None) -> EnvFiles:
    """Return what the environment of a run is made of.

    Raises:
        StageError: the run has no such stage.
    """
    folder = find_result(as_path(run), "train-selector", seed)
    content = json.loads(read_bytes(folder / ENVIRONMENT))
    return build(EnvFiles, content | {name: str(folder.parent.parent / content[name]) for name in PATHS})


def relative_files(files: EnvFiles, store: AnyPath) -> dict[str, Any]:
    """Return what ``files_of`` reads back, as JSON knows it."""
    content = asdict(files)
    local = isinstance(store, Path)
    places = {
        name: os.path.relpath(content[name], str(store)) if local else content[name].removeprefix(f"{store}/")
        for name in PATHS
    }
    return content | places
