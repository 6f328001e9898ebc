"""Samples as a frozen backbone sees them: where they come back, their features are computed once.

Axes: B samples, V views of a sample, T time, H height, W width, C channel, F features, L classes.
"""

from collections.abc import Generator, Hashable, Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray

from l2a_ray.classifier.feed import Place, Source, make_batches
from l2a_ray.classifier.network import Network, backbone_digest
from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.composites.schedule import Drawn, Stacked

STEPS = 32  # whose samples the backbone sees in one go, before the head learns of them
BATCH = 8  # samples that a task makes at a time
MEMORY = 2**30


class Known(NamedTuple):
    """One sample: its views as float32 features (V, F), and its label distribution, float32 (L,)."""

    features: NDArray[np.float32]
    label: NDArray[np.float32]


class KeptFeatures(LRUCache[Hashable, Known]):
    """The samples seen last, of all trainings of a process, whatever their backbones.

    Args:
        memory: bytes that they may take.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        super().__init__(memory, getsizeof=lambda known: known.features.nbytes + known.label.nbytes)


def backbone_is_frozen(network: Network) -> bool:
    """Return whether the head alone learns."""
    return not any(parameter.requires_grad for parameter in network.backbone.parameters())


class FrozenFeed:
    """The way of training samples to a head whose backbone is frozen.

    Args:
        network: computes where it is.
        settings: what it was built with.
        source: where the samples come from.
        kept: what is known of samples, to which this adds.
    """

    def __init__(self, network: Network, settings: NetworkSettings, source: Source, kept: KeptFeatures) -> None:
        self._network, self._source, self._kept = network, source, kept
        self._about = (
            backbone_digest(network),
            settings,
            source.crop,
            source.sampling,
            source.augment,
            source.schedule.seed,
        )

    def __call__(self, first: int, last: int, rank: int, workers: int) -> Generator[Stacked, None, None]:
        """Yield what :func:`~l2a_ray.classifier.feed.feed` does, but with features (B, F) in the place of clips."""
        positions = self._source.schedule.part(rank, workers)
        for start in range(first, last, STEPS):
            steps = range(start, min(start + STEPS, last))
            places = [(step, position) for step in steps for position in positions]
            samples = dict(zip(places, self._source.schedule.at(places), strict=True))
            known = self._find(samples)
            for step in steps:
                at = [(step, position) for position in positions]
                yield _stack([samples[place] for place in at], [known[place] for place in at])

    def _find(self, samples: Mapping[Place, Drawn]) -> dict[Place, Known]:
        """Return what is known of some samples, having computed what was not."""
        keys = {place: self._key(drawn) for place, drawn in samples.items()}
        places = {key: place for place, key in keys.items()}  # where each of them can be made
        found = {key: self._kept[key] for key in places if key in self._kept}
        unknown = {key: places[key] for key in places if key not in found}
        views = [len(samples[place].stream.views) for place in unknown.values()]
        with closing(self._compute(list(unknown.values()), views)) as computed:
            for key, known in zip(unknown, computed, strict=True):
                found[key] = known
                if known.features.nbytes + known.label.nbytes <= self._kept.maxsize:
                    self._kept[key] = known
        return {place: found[key] for place, key in keys.items()}

    def _compute(self, places: list[Place], views: list[int]) -> Generator[Known, None, None]:
        groups = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
        counts = iter(views)
        with closing(make_batches(self._source, groups.__getitem__, len(groups))) as batches:
            for group, stacked in zip(groups, batches, strict=True):
                features, row = self._features(torch.tensor(stacked.clips)), 0
                for _ in group:
                    rows = slice(row, row + next(counts))
                    yield Known(features[rows], stacked.labels[row].copy())
                    row = rows.stop

    def _features(self, clips_BTHWC: torch.Tensor) -> NDArray[np.float32]:
        """Return the features of clips, (B, F)."""
        device = self._network.mean.device
        # One clip at a time: a batch's size changes the last bits, and a resumed run must see the same ones. On a GPU
        # no bits are promised.
        parts = torch.split(clips_BTHWC, 1 if device.type == "cpu" else len(clips_BTHWC))
        self._network.eval()
        with torch.no_grad():
            return torch.cat([self._network.features(part.to(device)).cpu() for part in parts]).numpy()

    def _key(self, drawn: Drawn) -> Hashable:
        ids = [part for part in (drawn.sample.foreground, drawn.sample.background) if part is not None]
        labels = tuple(self._source.labels.of(ids).tolist()) if drawn.stream.labelled else None
        composite = self._source.composite if len(ids) > 1 else None
        return self._about, drawn.sample, labels, composite, drawn.key, drawn.stream.views, drawn.stream.augment


def _stack(batch: list[Drawn], known: list[Known]) -> Stacked:
    """Return the samples of one step in the form of :func:`~l2a_ray.composites.schedule.stack`."""
    views = [view for drawn in batch for view in drawn.stream.views]
    names = [drawn.stream.name for drawn in batch for _ in drawn.stream.views]
    labels = [one.label for one in known for _ in one.features]
    features = np.concatenate([one.features for one in known])
    return Stacked(features, np.stack(labels), np.array(names), np.array(views))
