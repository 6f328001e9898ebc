"""Meta-training of TRX's head on the features of base classes; plain PyTorch. Imports no Ray.

On stored features an episode takes a fraction of a second on one core, so no worker of Ray Train is started for it.
Every episode and its dropout are functions of the seed and the episode's number: a training that was stopped ends with
the same weights, on a CPU to the bit.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from l2a_ray.errors import StageError, StorageError
from l2a_ray.fewshot.episodes import Clips, draw_episodes, half_width
from l2a_ray.fewshot.evaluation import accuracies, by_trx
from l2a_ray.fewshot.settings import TrxSettings
from l2a_ray.fewshot.splits import ClassSplit
from l2a_ray.fewshot.trx import TrxHead
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes, write_json

logger = logging.getLogger(__name__)
MODEL, CHECKPOINT, HISTORY = "head.safetensors", ".checkpoint.safetensors", "history.json"


def build_head(settings: TrxSettings, frames: int, features: int) -> TrxHead:
    """Build a head; its weights come from torch's global generator."""
    return TrxHead(frames, features, settings.cardinalities, settings.width, settings.dropout)


def load_head(folder: AnyPath, settings: TrxSettings, frames: int, features: int) -> TrxHead:
    """Load the head that :func:`train_head` chose."""
    head = build_head(settings, frames, features)
    head.load_state_dict(safetensors.torch.load(read_bytes(folder / MODEL)))
    return head.eval()


def train_head(
    features_NTF: NDArray[np.float32],
    clips: Clips,
    split: ClassSplit,
    settings: TrxSettings,
    *,
    way: int,
    shot: int,
    seed: int,
    out: AnyPath,
) -> None:
    """Train a head on episodes of base classes; keep the weights that do best on the validation classes.

    Where fewer classes than ``way`` are base, or validation, episodes there have as many ways as classes.

    Args:
        features_NTF: of all clips.
        clips: the same clips.
        split: the classes.
        settings: the training.
        way: classes of an episode.
        shot: supports of a class.
        seed: of weights, episodes and dropout.
        out: folder: ``head.safetensors``, ``history.json`` (a row a validation: episodes done, loss of the episodes
            since the last one, accuracy on validation classes), and a checkpoint until it is done.

    Raises:
        DatasetError: a class has too few clips for an episode.
        StageError: the loss is no longer finite.
    """
    torch.manual_seed(seed)
    head = build_head(settings, *features_NTF.shape[1:])
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.learning_rate)
    features = torch.from_numpy(features_NTF)
    test = draw_episodes(
        clips,
        split.validation,
        numbers=range(settings.validation_episodes),
        way=min(way, len(split.validation)),
        shot=shot,
        queries=1,
        seed=seed,
        split=f"{split.name}/validation",
    )
    state = _State(head, optimizer, out / CHECKPOINT)
    done = state.read()
    with Bar(total=settings.episodes, initial=done, desc=f"TRX, {shot}-shot", unit="episode") as bar:
        while done < settings.episodes:
            batch = range(done, min(done + settings.accumulate, settings.episodes))
            episodes = draw_episodes(
                clips,
                split.base,
                numbers=batch,
                way=min(way, len(split.base)),
                shot=shot,
                queries=settings.queries,
                seed=seed,
                split=f"{split.name}/base",
            )
            head.train()
            optimizer.zero_grad()
            for place, number in enumerate(batch):
                torch.manual_seed(int(np.random.default_rng([seed, number]).integers(2**62)))  # of the dropout
                queries = episodes.queries_EWQ[place]
                logits = head(features[queries.reshape(-1)], features[episodes.supports_EWS[place]])
                labels = torch.arange(len(queries)).repeat_interleave(queries.shape[1])
                loss = functional.cross_entropy(logits, labels) / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                state.losses.append(float(loss.detach()) * len(batch))
            if not np.isfinite(state.losses).all():
                raise StageError(f"TRX's loss is not finite after {done} episodes. Lower fewshot.trx.learning_rate")
            optimizer.step()
            before, done = done, batch.stop
            bar.update(len(batch))
            if done // settings.validate_every > before // settings.validate_every or done == settings.episodes:
                learner = by_trx(head, features_NTF)
                supports = test.supports_EWS
                right = accuracies(learner, test.queries_EWQ, supports, np.ones(supports.shape, np.bool_), head.cost)
                state.judge(done, float(right.mean()))
                logger.info("TRX %d-shot: %s", shot, _tell(state.history[-1], half_width(right)))
            if done // settings.checkpoint_every > before // settings.checkpoint_every:
                state.write(done)
    write_json(out / HISTORY, {"rows": state.history})
    write_bytes(out / MODEL, safetensors.torch.save(state.best))
    (out / CHECKPOINT).unlink(missing_ok=True)


def _tell(row: Mapping[str, float], width: float | None) -> str:
    interval = "" if width is None else f" +- {100 * width:.1f}"
    return f"{row['episodes']} episodes, loss {row['loss']:.3f}, validation {100 * row['accuracy']:.1f}{interval} %"


class _State:
    """All that a training goes on with: weights, Adam's moments, the best weights so far, and its history."""

    def __init__(self, head: TrxHead, optimizer: torch.optim.Adam, path: AnyPath) -> None:
        self._head, self._optimizer, self._path = head, optimizer, path
        self.best = self._weights()
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []

    def judge(self, episodes: int, accuracy: float) -> None:
        """Note an accuracy on validation classes; of equal ones the first counts."""
        if accuracy > max((row["accuracy"] for row in self.history), default=-1.0):
            self.best = self._weights()
        self.history.append({"episodes": episodes, "loss": float(np.mean(self.losses)), "accuracy": accuracy})
        self.losses = []

    def write(self, episodes: int) -> None:
        """Write a checkpoint in place of the last one."""
        tensors = {f"now.{name}": value for name, value in self._weights().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": torch.as_tensor(value).clone() for name, value in moments.items()}
        rows = [[row["episodes"], row["loss"], row["accuracy"]] for row in self.history]
        tensors["history"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["episodes"] = torch.tensor(episodes)
        write_bytes(self._path, safetensors.torch.save(tensors))

    def read(self) -> int:
        """Go on from the checkpoint, if there is one; return the episodes that are done."""
        if not self._path.is_file():
            return 0
        try:
            tensors = safetensors.torch.load(read_bytes(self._path))
            self._head.load_state_dict(_part(tensors, "now."))
            self.best = _part(tensors, "best.")
            state = self._optimizer.state_dict()
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _part(tensors, "adam.").items():
                number, _, moment = name.partition(".")
                moments.setdefault(int(number), {})[moment] = value
            self._optimizer.load_state_dict(state | {"state": moments})
            self.history = [
                {"episodes": int(count), "loss": loss, "accuracy": accuracy}
                for count, loss, accuracy in tensors["history"].tolist()
            ]
            self.losses = tensors["losses"].tolist()
            return int(tensors["episodes"])
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise StorageError(f"{self._path}: damaged ({error}). Delete it, and the training begins anew") from error

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._head.state_dict().items()}


def _part(tensors: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
