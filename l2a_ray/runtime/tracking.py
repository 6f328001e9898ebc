"""Curves for those who watch: TensorBoard files always, Weights & Biases and MLflow if asked for."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l2a_ray.fields import Rule, check, setting
from l2a_ray.storage.files import AnyPath, write_bytes

COPY_SECONDS = 30
Log = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where a Selector's curves are sent besides the TensorBoard files beside it; no result depends on it."""

    wandb: str | None = setting(None, execution=True)
    """Project of Weights & Biases (`pip install wandb`, `wandb login`)."""
    mlflow: str | None = setting(None, execution=True)
    """Tracking URI of MLflow (`pip install mlflow`), a server or a folder."""

    def __post_init__(self) -> None:
        check(self, wandb=_installed("wandb"), mlflow=_installed("mlflow"))


def _installed(package: str) -> Rule:
    reason = f"needs a package that is not installed: `pip install {package}`, or leave the setting out"
    return lambda value: reason if value is not None and find_spec(package) is None else None


class Tracker:
    """Sends numbers to all that listen.

    Args:
        folder: of the TensorBoard files.
        settings: who else listens.
        name: of the run, for them.
        config: the run's settings, for them.
        first_step: what an interrupted run wrote at this step or later is superseded.
    """

    def __init__(
        self, folder: AnyPath, settings: TrackingSettings, name: str, config: dict[str, Any], first_step: int
    ) -> None:
        # Here, for they take seconds: who tracks nothing need not wait.
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard appends to its files, which object stores cannot: there they are copied from time to time.
        self._folder, self._copied = folder, time.monotonic()
        self._local = None if isinstance(folder, Path) else TemporaryDirectory()
        self._board = SummaryWriter(self._local.name if self._local else str(folder), purge_step=first_step)
        self._listeners: list[tuple[Log, Callable[[], None]]] = []
        if settings.wandb is not None:
            self._listeners.append(_wandb(settings.wandb, name, config))
        if settings.mlflow is not None:
            self._listeners.append(_mlflow(settings.mlflow, name, config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one moment; ``step`` counts the environment's steps, or the optimiser's."""
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        for send, _ in self._listeners:
            send(step, values)
        if time.monotonic() > self._copied + COPY_SECONDS:
            self._copy()

    def close(self) -> None:
        """Send what is left and end."""
        self._board.close()
        self._copy()
        if self._local:
            self._local.cleanup()
        for _, end in self._listeners:
            end()

    def _copy(self) -> None:
        self._copied = time.monotonic()
        if self._local:
            self._board.flush()
            for file in Path(self._local.name).iterdir():
                write_bytes(self._folder / file.name, file.read_bytes())


def _wandb(project: str, name: str, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    from ray.air.integrations.wandb import setup_wandb

    run = setup_wandb(config, project=project, name=name)
    return (lambda step, values: run.log(dict(values), step=step)), run.finish


def _mlflow(uri: str, name: str, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    from ray.air.integrations.mlflow import setup_mlflow

    mlflow = setup_mlflow(config, tracking_uri=uri, experiment_name=name, create_experiment_if_not_exists=True)
    return (lambda step, values: mlflow.log_metrics(dict(values), step=step)), mlflow.end_run
