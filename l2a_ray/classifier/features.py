"""The features of any clips. Imports no Ray. Axes: N clips, V views, T time, C channel, F features."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import CENTRE, Looks
from l2a_ray.composites.frames import even_frames
from l2a_ray.composites.loader import Sample
from l2a_ray.composites.scenes import REAL, SHOWN, SetName
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.composites.views import even_crops
from l2a_ray.prepare.store import ClipStore

BATCH = 32  # clips in memory at a time


def extract_features(
    network: Network,
    store: ClipStore,
    ids: Sequence[str],
    crop: int,
    sampling: FrameSampling = ALL_FRAMES,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """Return the input of the network's head for centre crops and middle frames of some clips, (N, F); sets eval mode.

    They are computed where the network is.
    """
    device = next(network.parameters()).device
    network.eval()
    features = np.empty((len(ids), network.feature_size), dtype=np.float32)
    with torch.inference_mode():
        for i, clips in enumerate(read_clips(store, ids, crop, sampling, batch)):
            features[i * batch : (i + 1) * batch] = network.features(clips.to(device)).cpu().numpy()
    return features


def read_clips(
    store: ClipStore,
    ids: Sequence[str],
    crop: int,
    sampling: FrameSampling = ALL_FRAMES,
    batch: int = BATCH,
    looks: Looks = CENTRE,
) -> Iterator[torch.Tensor]:
    """Yield the views of some clips that draw nothing, by default centre crops and middle frames, in order.

    Each is uint8 (up to ``batch``, T, crop, crop, C), with the views of a clip side by side and never apart.
    """
    return read_samples(store, [Sample(clip_id) for clip_id in ids], crop, sampling, batch, looks)


def read_samples(
    store: ClipStore,
    samples: Sequence[Sample],
    crop: int,
    sampling: FrameSampling = ALL_FRAMES,
    batch: int = BATCH,
    looks: Looks = CENTRE,
    shown: SetName = REAL,
) -> Iterator[torch.Tensor]:
    """Yield the same views of what a set of clips to test on shows of each sample."""

    def choice(stored: int) -> NDArray[np.int64]:
        return even_frames(stored, sampling, looks.clips).reshape(-1)

    step = max(1, batch // looks.views)
    for start in range(0, len(samples), step):
        clips = [SHOWN[shown](store, sample, choice) for sample in samples[start : start + step]]
        yield torch.from_numpy(np.concatenate([_crops(clip, crop, looks) for clip in clips]))


def look_at(frames_THWC: NDArray[np.uint8], crop: int, sampling: FrameSampling, looks: Looks) -> NDArray[np.uint8]:
    """Return the views of a clip, all of whose frames are at hand, (V, T, crop, crop, C).

    Raises:
        SettingError: the crop is larger than the frames.
    """
    return _crops(frames_THWC[even_frames(len(frames_THWC), sampling, looks.clips).reshape(-1)], crop, looks)


def _crops(frames_THWC: NDArray[np.uint8], crop: int, looks: Looks) -> NDArray[np.uint8]:
    return np.concatenate([even_crops(clip, crop, looks.crops) for clip in np.split(frames_THWC, looks.clips)])
