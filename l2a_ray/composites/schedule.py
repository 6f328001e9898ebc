"""Which samples each step of a training sees. Imports no Ray.

Axes: N clips, P pairs, B samples in a batch, T time, H height, W width, C channel, L classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.settings import UNCHANGED, AugmentSettings
from l2a_ray.composites.views import VIEWS

REAL, COMPOSITES, UNLABELLED = "real", "composites", "unlabelled"
_NUMBERS = {REAL: 0, COMPOSITES: 1}
_CROPS, _FRAMES = 2, 3  # beside the streams' shuffles, a seed's independent random numbers


@dataclass(frozen=True, eq=False)
class Stream:
    """Samples of one kind, in shuffled passes, each item once a pass; a pass runs on over batches and epochs.

    Args:
        name: tells its samples apart, and its shuffles from those of others.
        items: rows of the schedule's ids, int32: real clips (N,), or pairs (P, 2) of foreground and background.
        share: of what the streams before it leave of a batch, in [0, 1]. Exact over any number of steps to one sample.
        per_step: samples at each step, beside the batch and in place of a share of it.
        views: names in ``VIEWS``: each is cut out of the same sample with random numbers of its own.
        labelled: whether its samples show their labels; if not, they are clips whose labels are never looked up.
        boxes: whether samples without labels come with the boxes around their people.
        augment: what is done to its strong views; None: what is done to all.
    """

    name: str
    items: NDArray[np.int32]
    share: float = 1.0
    per_step: int | None = None
    views: tuple[str, ...] = ("weak",)
    labelled: bool = True
    boxes: bool = False
    augment: AugmentSettings | None = None


class Drawn(NamedTuple):
    """A sample of one step.

    Args:
        stream: whose it is.
        sample: the clip or pair.
        key: what its random numbers come from, beside the seed; samples of one clip or pair and key are the same.
    """

    stream: Stream
    sample: Sample
    key: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """Which samples each step sees: a pure function of the seed and the step, so that a restart sees the same ones.

    The samples of all batches form one endless row, and each stream that has a share takes its part of the row, the
    last one what the others leave. So every batch is full, and trainings with the same last stream take the same
    number of steps an epoch, as many as one pass over it would, whatever they mix in.

    Args:
        ids: clip ids, bytes (N,).
        streams: those with a share and, beside the batch, those with a number of samples of their own.
        batch_size: samples a step of all streams that have a share.
        seed: of the shuffles, crops and flips.
        looks: passes after which a clip's or pair's frames, crop and flip come back; None: never.
    """

    ids: NDArray[np.bytes_]
    streams: tuple[Stream, ...]
    batch_size: int
    seed: int
    looks: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that hold as many samples as the last of the streams with a share has items, rounded up."""
        return -(-len(self._sharing[-1].items) // self.batch_size)

    def batch(self, step: int) -> list[Drawn]:
        """Return the samples of one step, counted from 0 over all epochs: the batch, then the streams beside it."""
        sharing, first = self._sharing, step * self.batch_size
        turns = [self._shared(number, sharing) for number in range(first, first + self.batch_size)]
        for stream, count in self._beside:
            turns += [(stream, step * count + position) for position in range(count)]
        return [self._draw(stream, number, (step, position)) for position, (stream, number) in enumerate(turns)]

    def at(self, places: Iterable[tuple[int, int]]) -> list[Drawn]:
        """Return the samples at some places, each a step and a position in it."""
        wanted = list(places)
        steps = {step: self.batch(step) for step in {step for step, _ in wanted}}
        return [steps[step][position] for step, position in wanted]

    def part(self, rank: int, workers: int) -> list[int]:
        """Return which positions of every step are one worker's: the rank-th of equal parts of the batch and streams.

        ``workers`` must divide the batch size and each stream's number of samples a step.
        """
        positions: list[int] = []
        start = 0
        for size in (self.batch_size, *(count for _, count in self._beside)):
            each = size // workers
            positions += range(start + rank * each, start + (rank + 1) * each)
            start += size
        return positions

    def rng(self, drawn: Drawn, view: int = 0) -> np.random.Generator:
        """Return the generator of one view of one sample; the first also draws frames and mixes."""
        return np.random.default_rng((self.seed, _CROPS, *drawn.key, *([view] if view else [])))

    def frame(self, drawn: Drawn, count: int) -> int:
        """Return which of a sample's ``count`` frames is drawn to be asked a teacher about."""
        return int(np.random.default_rng((self.seed, _FRAMES, *drawn.key)).integers(count))

    @property
    def _sharing(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.per_step is None]

    @property
    def _beside(self) -> list[tuple[Stream, int]]:
        return [(stream, stream.per_step) for stream in self.streams if stream.per_step is not None]

    def _shared(self, number: int, sharing: Sequence[Stream]) -> tuple[Stream, int]:
        """Say whose sample ``number`` of the endless row is, and which of it: each stream takes it, or leaves it."""
        for stream in sharing[:-1]:
            before = int(number * stream.share)
            if int((number + 1) * stream.share) > before:
                return stream, before
            number -= before
        return sharing[-1], number

    def _draw(self, stream: Stream, number: int, place: tuple[int, int]) -> Drawn:
        shuffle = _NUMBERS[stream.name] if stream.name in _NUMBERS else crc32(stream.name.encode())
        rows = stream.items[_shuffled(self.seed, shuffle, len(stream.items), number)].reshape(-1).tolist()
        key: tuple[int, ...] = place
        if self.looks is not None:
            key = number // len(stream.items) % self.looks, len(rows), *rows
        return Drawn(stream, Sample(*[self.ids[row].decode() for row in rows]), key)


class Stacked(NamedTuple):
    """Samples of one step as arrays; a sample of several views has as many rows, side by side.

    Args:
        clips: uint8 (B, T, crop, crop, C).
        labels: float32 (B, L); 0 where the stream has no labels.
        streams: name of each row's stream, (B,).
        views: name of each row's view, (B,).
        boxes: bool (B, T, crop, crop), the boxes around people in weak views of streams that have them, elsewhere
            False; None if no stream has.
        teacher: float32 (B, K), a teacher's probabilities of one frame of a real clip, 0 for composites; None: no
            teacher was asked.
    """

    clips: NDArray[np.uint8]
    labels: NDArray[np.float32]
    streams: NDArray[np.str_]
    views: NDArray[np.str_]
    boxes: NDArray[np.bool_] | None = None
    teacher: NDArray[np.float32] | None = None


def stack(
    loader: SampleLoader, schedule: Schedule, samples: Iterable[Drawn], augment: AugmentSettings = UNCHANGED
) -> Stacked:
    """Make some samples of a schedule; all views of a sample show the same frames."""
    rows, no_label = [], np.zeros(len(loader.store.classes), np.float32)
    for drawn in samples:
        rng, stream = schedule.rng(drawn), drawn.stream
        if stream.labelled:
            frames, label = loader.blend(drawn.sample, rng)
        else:
            frames, label = loader.unlabelled(drawn.sample.foreground, rng, stream.boxes), no_label
        for number, view in enumerate(stream.views):
            rng = schedule.rng(drawn, number) if number else rng
            seen = frames if view == "weak" else frames[..., :3]
            rows.append((VIEWS[view](seen, loader.crop, rng, stream.augment or augment), label, stream.name, view))
    clips, labels, names, views = zip(*rows, strict=True)
    boxes = None
    if any(stream.boxes for stream in schedule.streams):
        boxes = np.stack(
            [clip[..., 3] > 0 if clip.shape[3] > 3 else np.zeros(clip.shape[:3], np.bool_) for clip in clips]
        )
    return Stacked(
        np.stack([clip[..., :3] for clip in clips]), np.stack(labels), np.array(names), np.array(views), boxes
    )


def _shuffled(seed: int, stream: int, size: int, number: int) -> int:
    """Return item ``number`` of an endless row of shuffles of range(size)."""
    return int(_permutation(seed, stream, size, number // size)[number % size])


@lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, size: int, turn: int) -> NDArray[np.int32]:
    return np.random.default_rng((seed, stream, turn)).permutation(size).astype(np.int32)
