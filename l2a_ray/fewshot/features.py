"""Features of frames of clips and composites, computed once and kept in parts. Imports no Ray.

Axes: N samples, V views, T time, H height, W width, C channel, F features of a frame.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from l2a_ray.classifier.features import look_at
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import Looks, NetworkSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.loader import ClipLoader, Sample
from l2a_ray.composites.settings import ALL_FRAMES, CompositeSettings
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.device import best_device
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes

PART = 64  # samples in a file: what an interruption can cost
Features = NDArray[np.float32]


def write_features(
    store: ClipStore,
    samples: Sequence[Sample],
    network: NetworkSettings,
    crop: int,
    crops: int,
    composite: CompositeSettings,
    out: AnyPath,
    what: str,
) -> None:
    """Write the features of samples, (N, T, F), in the order given; parts that are there stay.

    Args:
        store: the clips.
        samples: clips and composites.
        network: sees them, and is frozen.
        crop: side of the square that it sees, pixels.
        crops: squares of each frame whose features are averaged.
        composite: how composites are made.
        out: folder of the parts.
        what: these are, for the progress bar.

    Raises:
        SettingError: of ``crop`` or of ``network``: it cannot be.
        StorageError: a clip's file is damaged, or ``out`` cannot be written.
    """
    if not samples:
        return
    torch.manual_seed(0)  # of a network without weights
    model = build_network(network, 1).to(best_device()).eval()
    loader = ClipLoader(store, composite)
    looks = Looks(crops=3 if crops == 3 else 1)
    with Bar(total=len(samples), desc=what, unit="clip") as bar:
        for start in range(0, len(samples), PART):
            path, part = _part(out, start // PART), samples[start : start + PART]
            if not path.is_file():
                found = np.stack([_features(model, loader, sample, crop, looks) for sample in part])
                write_bytes(path, safetensors.numpy.save({"features": found}))
            bar.update(len(part))


def _features(model: Network, loader: ClipLoader, sample: Sample, crop: int, looks: Looks) -> Features:
    """Return the mean over the views, (T, F); one sample at a time, as a batch's size changes the last bits."""
    frames, _ = loader.blend(sample, None)
    views = torch.from_numpy(np.ascontiguousarray(look_at(frames, crop, ALL_FRAMES, looks)))
    with torch.inference_mode():
        mean: Features = model.frame_features(views.to(next(model.parameters()).device)).mean(dim=0).cpu().numpy()
    return mean


def read_features(folder: AnyPath) -> Features:
    """Read what :func:`write_features` wrote, (N, T, F); no row where there was nothing to write."""
    parts = sorted(path for path in folder.iterdir() if re.fullmatch(r"part-\d+\.safetensors", path.name))
    found: list[Any] = [safetensors.numpy.load(read_bytes(path))["features"] for path in parts]
    return np.concatenate(found) if found else np.empty((0, 0, 0), np.float32)


def _part(folder: AnyPath, number: int) -> AnyPath:
    return folder / f"part-{number:06}.safetensors"
