"""A classifier on trial: put back to its start, trained one step on some pairs, and validated.

Axes: B pairs, T time, H height, W width, C channel, F features, L classes, N validation clips.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from envs.settings import EnvSettings
from l2a_ray.classifier.networks import Network
from l2a_ray.classifier.step import predict, train_step
from l2a_ray.samples import Sample, SampleLoader

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step did. Losses in nats, times in seconds."""

    val_loss: float
    val_accuracy: float
    seconds_composite: float = 0.0
    seconds_train: float = 0.0
    seconds_validate: float = 0.0


class ClassifierTrial:
    """Trains and validates one classifier, over and over from the same start.

    Args:
        body: what stays as it is: turns uint8 clips (B, T, H, W, C) into the learner's inputs.
        learner: what is trained, at its start; maps inputs to logits (B, L).
        loader: turns a pair of clip ids into a composite and its label.
        validation: ids of the clips of D_val; their inputs to the learner are held in memory.
        settings: learning rate, momentum and weight decay of the SGD step.
    """

    def __init__(
        self,
        *,
        body: Callable[[Tensor], Tensor],
        learner: nn.Module,
        loader: SampleLoader,
        validation: Sequence[str],
        settings: EnvSettings,
    ) -> None:
        self._body, self._learner, self._loader, self._settings = body, learner, loader, settings
        self._start = deepcopy(learner.state_dict())
        inputs_N, labels_NL = _load(loader, [Sample(clip_id) for clip_id in validation], None)
        self._val_inputs_N = torch.cat([body(clips) for clips in torch.split(inputs_N, BATCH)])
        self._val_labels_N = labels_NL.argmax(dim=1)
        self._outcome_at_start = self._validate()
        self.reset()

    def reset(self) -> Outcome:
        """Restore the start, with an optimiser that has no memory; return the validation there."""
        self._learner.load_state_dict(self._start)
        self._optimizer = torch.optim.SGD(
            self._learner.parameters(),
            lr=self._settings.learning_rate,
            momentum=self._settings.momentum,
            weight_decay=self._settings.weight_decay,
        )
        self._last = self._outcome_at_start
        return self._last

    def step(self, pairs: Sequence[Sample], rng: np.random.Generator) -> Outcome:
        """Take one SGD step on the composites of ``pairs`` and validate. No pairs: nothing changes, nothing is run."""
        if not pairs:
            return replace(self._last, seconds_composite=0.0, seconds_train=0.0, seconds_validate=0.0)
        start = time.perf_counter()
        clips_BTHWC, labels_BL = _load(self._loader, pairs, rng)
        composited = time.perf_counter()
        train_step(self._learner, self._optimizer, self._body(clips_BTHWC), labels_BL)
        trained = time.perf_counter()
        self._last = replace(
            self._validate(),
            seconds_composite=composited - start,
            seconds_train=trained - composited,
        )
        self._last = replace(self._last, seconds_validate=time.perf_counter() - trained)
        return self._last

    def _validate(self) -> Outcome:
        logits_NL = predict(self._learner, self._val_inputs_N, BATCH)
        loss = nn.functional.cross_entropy(logits_NL, self._val_labels_N)
        accuracy = (logits_NL.argmax(dim=1) == self._val_labels_N).float().mean()
        return Outcome(val_loss=loss.item(), val_accuracy=accuracy.item())


def whole_network(network: Network) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Return body and learner of a trial of all weights, from the warm start."""
    return _as_it_is, network


def fresh_head(network: Network, num_classes: int) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Return body and learner of a trial of a new linear head, all zeros, on the warm start's frozen features."""
    head = nn.Linear(network.feature_size, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return FrozenFeatures(network), head


class FrozenFeatures:
    """A network's features, each clip's scaled to length 1, so that a learning rate means the same for any network."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    def __call__(self, clips_BTHWC: Tensor) -> Tensor:
        """Return float32 features (B, F) of uint8 clips, on the CPU."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            return nn.functional.normalize(self.network.features(clips_BTHWC.to(device)), dim=1).cpu()


def _as_it_is(clips_BTHWC: Tensor) -> Tensor:
    return clips_BTHWC


def _load(loader: SampleLoader, samples: Sequence[Sample], rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
    loaded = [loader(sample, rng) for sample in samples]
    return (
        torch.from_numpy(np.stack([frames_THWC for frames_THWC, _ in loaded])),
        torch.from_numpy(np.stack([label_L for _, label_L in loaded])),
    )
