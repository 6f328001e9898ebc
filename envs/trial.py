"""A classifier on trial: put back to its start, trained one step on some pairs, and validated.

Axes: B pairs, T time, H height, W width, C channel, F features, L classes, N validation clips.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.credit import HeadStep, NetworkStep, step_weights, turned, worth
from envs.settings import EnvSettings
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.step import balanced_weights, predict, train_step
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.scenes import ACTORS

BATCH = 64
ALL, WEIGHTED = "all", "weighted"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """What the parts of a step took. Any two are equal: two runs that differ in nothing but the clock are the same."""

    composite: float = field(default=0.0, compare=False)
    """Reading clips and compositing them."""
    train: float = field(default=0.0, compare=False)
    """The SGD step and, of a frozen body, its features of new composites."""
    validate: float = field(default=0.0, compare=False)
    rest: float = field(default=0.0, compare=False)
    """Of the environment: putting the classifier back to its start, drawing pairs and describing them."""

    def of(self, total: float) -> "Seconds":
        """Return the same with the rest of what took so long in all."""
        return replace(self, rest=total - self.composite - self.train - self.validate)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step did; the loss is in nats."""

    val_loss: float
    val_accuracy: float
    held_out: Tensor | None = field(default=None, compare=False)
    """Loss of each held-out clip, (N,); None where none is held out."""
    instead: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)
    """Loss of each clip, of D_val and held out of it, had the step been taken on ``ALL`` pairs of the state alike, or
    on all ``WEIGHTED`` by their scores; empty where that was not asked."""
    seconds: Seconds = Seconds()


class ClassifierTrial:
    """Trains and validates one classifier, over and over from the same start.

    Args:
        network: the classifier at its warm start.
        num_classes: L.
        loader: turns a pair of clip ids into a composite and its label.
        validation: ids of the clips of D_val; what the learner sees of them is held in memory.
        scenes: of D_val too, actors before other clips' scenes; their labels are the actors'.
        held_out: clips and scenes of D_val that the loss and the accuracy of validation do not see.
        settings: what is trained, and by which SGD step.

    ``sources`` are the source videos of all clips validated on and of those held out.
    """

    def __init__(
        self,
        *,
        network: Network,
        num_classes: int,
        loader: SampleLoader,
        validation: Sequence[str],
        settings: EnvSettings,
        scenes: Sequence[Sample] = (),
        held_out: Sequence[Sample] = (),
    ) -> None:
        self._loader, self._settings = loader, settings
        judged = SampleLoader(loader.store, ACTORS, loader.crop, loader.labels, loader.sampling)
        rewarding = [*map(Sample, validation), *scenes]
        clips, labels = _load(judged, rewarding, None)
        self._body: Callable[[Tensor], Tensor] = _as_it_is
        self._learner: nn.Module = network
        self._seen: dict[Sample, tuple[Tensor, Tensor]] | None = None
        if settings.tune == "head":
            self._body = FrozenFeatures(network, clips)
            self._learner = _zero_head(network.feature_size, num_classes)  # on the CPU: it is small, and so are steps
            self._seen = {}
        self._start = deepcopy(self._learner.state_dict())
        self._val_inputs = _in_batches(self._body, clips)
        self._val_labels = labels.argmax(dim=1)
        index = loader.store.columns("id", "group").astype(str)
        source = dict(zip(index["id"], index["group"], strict=True))
        of_val, apart = ([source[sample.foreground] for sample in part] for part in (rewarding, held_out))
        self.sources: tuple[list[str], list[str]] = of_val, apart
        if held_out:
            clips, labels = _load(judged, held_out, None)
            self._held_out_inputs, self._held_out_labels = _in_batches(self._body, clips), labels.argmax(dim=1)
        self._outcome_at_start = self._validate()
        self.reset()

    @property
    def at_start(self) -> Outcome:
        """The validation before any step."""
        return self._outcome_at_start

    @property
    def holds_out(self) -> bool:
        """Whether clips are held out."""
        return bool(self.sources[1])

    @property
    def labels(self) -> tuple[list[int], list[int]]:
        """The labels of all clips validated on and of those held out."""
        return self._val_labels.tolist(), self._held_out_labels.tolist() if self.holds_out else []

    @property
    def of_head(self) -> bool:
        """Whether a head is trained, so that what other steps would have come to is one product."""
        return self._seen is not None

    @property
    def compares(self) -> bool:
        """Whether a step also tells what others of the same state would have come to.

        It costs no other step; but each pair of the state is composited, chosen or not, the first time it is seen.
        """
        return self.holds_out and self.of_head

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
            return replace(self._last, seconds=Seconds())
        start = time.perf_counter()
        inputs, labels, composited = self._inputs(pairs, rng)
        self._last = self._train(inputs, labels, start, composited, self._validate)
        return self._last

    def compared_step(
        self,
        pairs: Sequence[Sample],
        chosen: NDArray[np.bool_],
        rng: np.random.Generator,
        scores: NDArray[np.float32] | None = None,
    ) -> Outcome:
        """Take the step on the chosen pairs of a state; where the trial ``compares``, also say what others had come to.

        They are that on all pairs alike and, where ``scores`` are given, (B,), on all weighted by them.
        """
        taken = torch.from_numpy(chosen)
        if not self.compares:
            return self.step([pair for pair, used in zip(pairs, chosen, strict=True) if used], rng)
        start = time.perf_counter()
        inputs, labels, composited = self._inputs_of_state(pairs, taken, rng)
        instead = self._instead(inputs, labels, scores)
        self._last = self._train(inputs[taken], labels[taken], start, composited, self._validate)
        return replace(self._last, instead=instead)

    def credited_step(
        self,
        pairs: Sequence[Sample],
        chosen: NDArray[np.bool_],
        rng: np.random.Generator,
        scores: NDArray[np.float32] | None = None,
    ) -> tuple[Outcome, NDArray[np.float32]]:
        """Take the step on the chosen pairs, the same as without asking, and say what choosing each pair was worth.

        Args:
            pairs: of the state.
            chosen: which of them the step is taken on, (B,).
            rng: as :meth:`step`.
            scores: as :meth:`compared_step`.

        Returns:
            What the step did, as :meth:`compared_step`; and float32 (B,), in nats: the loss without the pair less the
            loss with it, all other choices as they are; above 0 where it helps. Of a head it is exact, of all weights
            of first order. Not finite where a loss is not.
        """
        start = time.perf_counter()
        taken = torch.from_numpy(chosen)
        inputs, labels, composited = self._inputs_of_state(pairs, taken, rng)
        weights = step_weights(turned(taken), labels, self._settings.balance)
        if isinstance(self._learner, nn.Linear):
            head = HeadStep.of(self._learner, self._optimizer)
            instead = self._instead(inputs, labels, scores) if self.compares else {}
            self._last = self._train(inputs[taken], labels[taken], start, composited, self._validate)
            losses = head.losses(inputs, labels, weights, self._val_inputs, self._val_labels)
        else:
            whole, instead = NetworkStep.of(self._learner, self._optimizer), {}
            self._last = self._train(inputs[taken], labels[taken], start, composited, self._validate_with_gradient)
            losses = whole.losses(self._learner, inputs, labels, weights, self._last.val_loss)
        credit: NDArray[np.float32] = worth(losses, taken).numpy()
        return replace(self._last, instead=instead), credit

    def credits_by_clip(
        self, pairs: Sequence[Sample], chosen: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what choosing each pair would be worth to each clip, (N, B): of D_val and of what is held out of it.

        Nothing is trained. For a trial ``of_head``.
        """
        taken = torch.from_numpy(chosen)
        inputs, labels, _ = self._inputs(pairs, None)
        weights = step_weights(turned(taken), labels, self._settings.balance)
        of_val, *of_held_out = (worth(losses, taken).T.numpy() for losses in self._head_losses(inputs, labels, weights))
        return of_val, of_held_out[0] if of_held_out else np.empty((0, len(pairs)), np.float32)

    def _head_losses(self, inputs: Tensor, labels: Tensor, weights_KB: Tensor) -> list[Tensor]:
        """Return the loss of each clip, (K, N), of D_val and of what is held out, after steps that are not taken."""
        assert isinstance(self._learner, nn.Linear)
        head = HeadStep.of(self._learner, self._optimizer)
        parts = [(self._val_inputs, self._val_labels)]
        if self.holds_out:
            parts.append((self._held_out_inputs, self._held_out_labels))
        return [head.clip_losses(inputs, labels, weights_KB, *part) for part in parts]

    def _instead(
        self, inputs: Tensor, labels: Tensor, scores: NDArray[np.float32] | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what a head's other steps would have come to, as :class:`Outcome` has it."""
        masks = {ALL: torch.ones(len(labels))}
        if scores is not None:
            masks[WEIGHTED] = torch.from_numpy(scores)
        weights = step_weights(torch.stack(list(masks.values())), labels, self._settings.balance)
        of_val, of_held_out = self._head_losses(inputs, labels, weights)
        return dict(zip(masks, zip(of_val, of_held_out, strict=True), strict=True))

    def _train(
        self, inputs: Tensor, labels: Tensor, start: float, composited: float, validate: Callable[[], Outcome]
    ) -> Outcome:
        """Take one SGD step, if there is anything to take it on, and validate."""
        if len(inputs):
            weights = balanced_weights(labels) if self._settings.balance else None
            train_step(self._learner, self._optimizer, inputs, labels, weights)
        trained = time.perf_counter()
        outcome = validate()
        seconds = Seconds(
            composite=composited - start, train=trained - composited, validate=time.perf_counter() - trained
        )
        return replace(outcome, seconds=seconds)

    def _inputs_of_state(
        self, pairs: Sequence[Sample], taken: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, float]:
        """Return as :meth:`_inputs`, of all pairs; for those not taken a copy of ``rng`` is drawn from."""
        if self._seen is not None:
            return self._inputs(pairs, None)
        apart = deepcopy(rng)
        loaded = [self._loader(pair, rng if used else apart) for pair, used in zip(pairs, taken.tolist(), strict=True)]
        return *_stack(loaded), time.perf_counter()

    def _inputs(self, pairs: Sequence[Sample], rng: np.random.Generator | None) -> tuple[Tensor, Tensor, float]:
        """Return what the learner sees of the composites, their labels, and when the last of them was made.

        A frozen body sees a pair the same way each time (its centre, not flipped), so each is composited once: what is
        kept is F numbers a pair, of at most ``env.candidates`` pairs.
        """
        if self._seen is None:
            return *_load(self._loader, pairs, rng), time.perf_counter()
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._seen]
        composited = time.perf_counter()
        if new:
            clips, new_labels = _load(self._loader, new, None)
            composited = time.perf_counter()
            # One clip at a time: a batch's size changes the last bits, and a resumed run must see the same ones.
            features = [self._body(clip)[0] for clip in torch.split(clips, 1)]
            self._seen |= zip(new, zip(features, new_labels, strict=True), strict=True)
        inputs, labels = zip(*(self._seen[pair] for pair in pairs), strict=True)
        return torch.stack(inputs), torch.stack(labels), composited

    def _validate(self) -> Outcome:
        return self._outcome(predict(self._learner, self._val_inputs, BATCH))

    def _validate_with_gradient(self) -> Outcome:
        """Validate, and leave the loss's gradient in the weights' ``grad``."""
        self._learner.eval()
        self._learner.zero_grad()
        device, found = next(self._learner.parameters()).device, []
        batches = zip(torch.split(self._val_inputs, BATCH), torch.split(self._val_labels, BATCH), strict=True)
        for clips, labels in batches:
            logits = self._learner(clips.to(device)).float()
            loss = nn.functional.cross_entropy(logits, labels.to(device), reduction="sum") / len(self._val_labels)
            loss.backward()  # type: ignore[no-untyped-call]
            found.append(logits.detach().cpu())
        return self._outcome(torch.cat(found))

    def _outcome(self, logits: Tensor) -> Outcome:
        loss = nn.functional.cross_entropy(logits, self._val_labels)
        accuracy = (logits.argmax(dim=1) == self._val_labels).float().mean()
        held_out = None
        if self.holds_out:
            apart = predict(self._learner, self._held_out_inputs, BATCH)
            held_out = nn.functional.cross_entropy(apart, self._held_out_labels, reduction="none")
        return Outcome(val_loss=loss.item(), val_accuracy=accuracy.item(), held_out=held_out)


class FrozenFeatures:
    """A network's features, centred and scaled to a mean square length of 1 over the clips of D_val.

    So one learning rate means the same for any network, and no step is spent on what all clips have in common.
    """

    def __init__(self, network: Network, clips_NTHWC: Tensor) -> None:
        self._network = network.eval()
        features = _in_batches(self._raw, clips_NTHWC)
        self._mean = features.mean(dim=0)
        self._length = (features - self._mean).square().sum(dim=1).mean().sqrt().clamp(min=1e-6)

    def __call__(self, clips_BTHWC: Tensor) -> Tensor:
        """Return float32 features (B, F) of uint8 clips, on the CPU."""
        return (self._raw(clips_BTHWC) - self._mean) / self._length

    def _raw(self, clips_BTHWC: Tensor) -> Tensor:
        device = next(self._network.parameters()).device
        with torch.no_grad():
            return self._network.features(clips_BTHWC.to(device)).cpu()


def _zero_head(feature_size: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(feature_size, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _in_batches(body: Callable[[Tensor], Tensor], clips_NTHWC: Tensor) -> Tensor:
    return torch.cat([body(clips) for clips in torch.split(clips_NTHWC, BATCH)])


def _as_it_is(clips_BTHWC: Tensor) -> Tensor:
    return clips_BTHWC


def _load(loader: SampleLoader, samples: Sequence[Sample], rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
    return _stack([loader(sample, rng) for sample in samples])


def _stack(loaded: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(np.stack([frames for frames, _ in loaded])),
        torch.from_numpy(np.stack([label for _, label in loaded])),
    )
