"""The features of any clips. Imports no Ray. Axes: N clips, T time, C channel, F features."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.classifier.network import Network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.prepare.store import ClipStore

BATCH = 32  # clips in memory at a time


def extract_features(
    network: Network, store: ClipStore, ids: Sequence[str], crop: int, batch: int = BATCH
) -> NDArray[np.float32]:
    """Return the input of the network's head for the centre crops of some clips, (N, F); sets eval mode.

    They are computed where the network is.
    """
    device = next(network.parameters()).device
    network.eval()
    features = np.empty((len(ids), network.feature_size), dtype=np.float32)
    with torch.inference_mode():
        for i, clips in enumerate(read_clips(store, ids, crop, batch)):
            features[i * batch : (i + 1) * batch] = network.features(clips.to(device)).cpu().numpy()
    return features


def read_clips(store: ClipStore, ids: Sequence[str], crop: int, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Yield the centre crops of some clips, uint8 (up to ``batch``, T, crop, crop, C), in order."""
    loader = SampleLoader(store, CompositeSettings(), crop)
    for start in range(0, len(ids), batch):
        frames = [loader(Sample(clip_id), None)[0] for clip_id in ids[start : start + batch]]
        yield torch.from_numpy(np.stack(frames))
