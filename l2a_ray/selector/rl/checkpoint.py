"""The checkpoint of a Selector's training: one safetensors file, alike for all algorithms. Nothing is unpickled.

An iteration owes nothing to the one before it but what the learner holds (:mod:`l2a_ray.selector.rl.runner`): the
modules' weights, Adam's state, the coefficient of PPO's and APPO's KL term, and how many steps there were. The rows of
``history.parquet`` so far and the reward's signal are kept with them; and where part of D_val is held out, the weights
that are best so far, and the held-out objective of each iteration.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from safetensors import SafetensorError

from envs.held_out import Signal
from l2a_ray.errors import StorageError
from l2a_ray.selector.learned import best_iteration
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes

CHECKPOINT = "checkpoint.safetensors"
Tensors = dict[str, NDArray[Any]]
Row = dict[str, Any]


@dataclass
class Kept:
    """The weights that are kept: those with which the iteration of the best held-out objective began."""

    signal: Signal | None = None
    """Whether the reward means anything, as measured before the first iteration."""
    objective: list[NDArray[np.float32]] = field(default_factory=list)
    """Of each iteration, by source video."""
    iteration: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, began_with: dict[str, torch.Tensor], objective_SG: list[NDArray[np.float32]]) -> None:
        """Take in an iteration: the weights it began with, and the objective of each of its steps."""
        self.objective.append(np.stack(objective_SG).mean(axis=0, dtype=np.float64).astype(np.float32))
        if best_iteration(np.stack(self.objective)) == len(self.objective) - 1:
            self.iteration, self.weights = len(self.objective) - 1, began_with


def save_checkpoint(algorithm: Algorithm, rows: list[Row], path: AnyPath, kept: Kept) -> None:
    """Write a checkpoint in place of the one before.

    Raises:
        StorageError: it cannot be written.
    """
    state = _state(algorithm)
    tensors = {f"module.{name}": value for name, value in state[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID].items()}
    (adam,) = state[COMPONENT_OPTIMIZER].values()
    for number, memory in adam["state"]["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in memory.items()}
    tensors |= {f"history.{name}": column.to_numpy() for name, column in pd.DataFrame(rows).items()}
    about = {"kl": json.dumps(_of_learner(algorithm, _kl)), "columns": json.dumps(list(rows[0]))}
    about["signal"] = json.dumps(kept.signal and asdict(kept.signal))
    if kept.objective:
        tensors |= {f"kept.{name}": value.numpy() for name, value in kept.weights.items()}
        tensors["objective"] = np.stack(kept.objective)
        about["kept"] = json.dumps(kept.iteration)
    write_bytes(
        path, safetensors.numpy.save({key: np.array(value, order="C") for key, value in tensors.items()}, about)
    )


def restore_checkpoint(algorithm: Algorithm, path: AnyPath) -> tuple[list[Row], Kept]:
    """Set a fresh algorithm to what ``save_checkpoint`` wrote; return the steps up to it and what was kept.

    Both are empty where there is no file.

    Raises:
        StorageError: the file is damaged, or of a Selector of other sizes.
    """
    if not path.is_file():
        return [], Kept()
    content = read_bytes(path)
    try:
        tensors = safetensors.numpy.load(content)
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        columns, kl = json.loads(about["columns"]), json.loads(about["kl"])
        history = {name: tensors[f"history.{name}"].tolist() for name in columns}
        signal = json.loads(about["signal"])
        kept = Kept(signal and Signal(**signal))
        if "kept" in about:
            kept.objective, kept.iteration = list(tensors["objective"]), json.loads(about["kept"])
            kept.weights = {name: torch.from_numpy(value) for name, value in _part(tensors, "kept.").items()}
        _set_state(algorithm, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        _refuse(path, error)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*history.values(), strict=True)]
    _of_learner(algorithm, partial(_set_coefficients, kl=kl, steps=len(rows)))
    # RLlib's schedules go by the number of steps, which it takes from env runners alone.
    counted = MetricsLogger(root=False)
    counted.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, len(rows), reduce="lifetime_sum")
    algorithm.metrics.aggregate([counted.reduce(compile=False)], key=ENV_RUNNER_RESULTS)
    assert algorithm.env_runner_group is not None
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)
    return rows, kept


def _state(algorithm: Algorithm) -> dict[str, Any]:
    assert algorithm.learner_group is not None
    state: dict[str, Any] = algorithm.learner_group.get_state()[COMPONENT_LEARNER]
    return state


def _set_state(algorithm: Algorithm, tensors: Tensors) -> None:
    """Set weights and Adam's state; what else describes the optimiser is as the settings have made it."""
    state = _state(algorithm)
    ((name, adam),) = state[COMPONENT_OPTIMIZER].items()
    memory: dict[int, Tensors] = {}
    for number, key in (place.split(".", 1) for place in _part(tensors, "adam.")):
        memory.setdefault(int(number), {})[key] = tensors[f"adam.{number}.{key}"]
    adam["state"]["state"] = memory
    assert algorithm.learner_group is not None
    module = {DEFAULT_MODULE_ID: _part(tensors, "module.")}
    learner = {COMPONENT_RL_MODULE: module, COMPONENT_OPTIMIZER: {name: adam}}
    algorithm.learner_group.set_state({COMPONENT_LEARNER: learner})


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _of_learner(algorithm: Algorithm, ask: Any) -> Any:
    """Return what a function of the learner returns; there is one (``selector.learners``)."""
    assert algorithm.learner_group is not None
    return next(iter(algorithm.learner_group.foreach_learner(ask))).get()


def _kl(learner: Learner) -> dict[str, float]:
    return {module: float(value) for module, value in getattr(learner, "curr_kl_coeffs_per_module", {}).items()}


def _set_coefficients(learner: Any, kl: dict[str, float], steps: int) -> None:
    """Set the KL term's coefficients, and the entropy term's to where their schedule is after so many steps."""
    for module, value in kl.items():
        learner.curr_kl_coeffs_per_module[module].data.fill_(value)
    if hasattr(learner, "entropy_coeff_schedulers_per_module"):
        learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].update(timestep=steps)


def _refuse(path: AnyPath, error: Exception) -> NoReturn:
    advice = "Delete it, and train-selector starts again"
    raise StorageError(f"{path}: is damaged or of another Selector ({error}). {advice}") from error
