"""Which samples each step of a training sees. Imports no Ray.

Axes: N clips, P pairs, B samples in a batch, T time, H height, W width, C channel, L classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.settings import UNCHANGED, AugmentSettings
from l2a_ray.composites.views import VIEWS

REAL, COMPOSITES = "real", "composites"
_NUMBERS = {REAL: 0, COMPOSITES: 1}
_CROPS = 2  # beside the streams' shuffles, a seed's independent random numbers


@dataclass(frozen=True, eq=False)
class Stream:
    """Samples of one kind, in shuffled passes, each item once a pass; a pass runs on over batches and epochs.

    Args:
        name: tells its samples apart, and its shuffles from those of others.
        items: rows of the schedule's ids, int32: real clips (N,), or pairs (P, 2) of foreground and background.
        share: of what the streams before it leave of a batch, in [0, 1]. Exact over any number of steps to one sample.
        per_step: samples at each step, beside the batch and in place of a share of it.
        views: names in ``VIEWS``: each is cut out of the same sample with random numbers of its own.
    """

    name: str
    items: NDArray[np.int32]
    share: float = 1.0
    per_step: int | None = None
    views: tuple[str, ...] = ("weak",)


class Drawn(NamedTuple):
    """A sample of one step."""

    stream: Stream
    sample: Sample


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
    """

    ids: NDArray[np.bytes_]
    streams: tuple[Stream, ...]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps that hold as many samples as the last of the streams with a share has items, rounded up."""
        return -(-len(self._sharing[-1].items) // self.batch_size)

    def batch(self, step: int) -> list[Drawn]:
        """Return the samples of one step, counted from 0 over all epochs: the batch, then the streams beside it."""
        sharing, first = self._sharing, step * self.batch_size
        drawn = [self._shared(number, sharing) for number in range(first, first + self.batch_size)]
        for stream, count in self._beside:
            drawn += [self._draw(stream, step * count + position) for position in range(count)]
        return drawn

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

    def rng(self, step: int, position: int, view: int = 0) -> np.random.Generator:
        """Return the generator of one view of one sample; the first also draws frames and mixes."""
        return np.random.default_rng((self.seed, _CROPS, step, position, *([view] if view else [])))

    @property
    def _sharing(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.per_step is None]

    @property
    def _beside(self) -> list[tuple[Stream, int]]:
        return [(stream, stream.per_step) for stream in self.streams if stream.per_step is not None]

    def _shared(self, number: int, sharing: Sequence[Stream]) -> Drawn:
        """Return sample ``number`` of the endless row: each stream in turn takes it, or leaves it to the next."""
        for stream in sharing[:-1]:
            before = int(number * stream.share)
            if int((number + 1) * stream.share) > before:
                return self._draw(stream, before)
            number -= before
        return self._draw(sharing[-1], number)

    def _draw(self, stream: Stream, number: int) -> Drawn:
        key = _NUMBERS[stream.name] if stream.name in _NUMBERS else crc32(stream.name.encode())
        rows = stream.items[_shuffled(self.seed, key, len(stream.items), number)].reshape(-1)
        return Drawn(stream, Sample(*[self.ids[row].decode() for row in rows]))


class Stacked(NamedTuple):
    """Samples of one step as arrays; a sample of several views has as many rows, side by side.

    Args:
        clips: uint8 (B, T, crop, crop, C).
        labels: float32 (B, L).
        streams: name of each row's stream, (B,).
        views: name of each row's view, (B,).
    """

    clips: NDArray[np.uint8]
    labels: NDArray[np.float32]
    streams: NDArray[np.str_]
    views: NDArray[np.str_]


def stack(
    loader: SampleLoader,
    schedule: Schedule,
    step: int,
    positions: Sequence[int],
    augment: AugmentSettings = UNCHANGED,
) -> Stacked:
    """Make the samples at some positions of one step; all views of a sample show the same frames."""
    drawn, rows = schedule.batch(step), []
    for position in positions:
        stream, sample = drawn[position]
        rng = schedule.rng(step, position)
        frames, label = loader.blend(sample, rng)
        for number, view in enumerate(stream.views):
            rng = schedule.rng(step, position, number) if number else rng
            rows.append((VIEWS[view](frames, loader.crop, rng, augment), label, stream.name, view))
    clips, labels, names, views = zip(*rows, strict=True)
    return Stacked(np.stack(clips), np.stack(labels), np.array(names), np.array(views))


def _shuffled(seed: int, stream: int, size: int, number: int) -> int:
    """Return item ``number`` of an endless row of shuffles of range(size)."""
    return int(_permutation(seed, stream, size, number // size)[number % size])


@lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, size: int, turn: int) -> NDArray[np.int32]:
    return np.random.default_rng((seed, stream, turn)).permutation(size).astype(np.int32)
