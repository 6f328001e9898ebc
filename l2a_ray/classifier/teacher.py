"""What a network of images says of each frame of each clip, kept to be distilled from.

So VideoSSL distils a network trained on ImageNet into one of videos (https://arxiv.org/abs/2003.00197), and the
paper after it (5.2). Imports no Ray. Axes: N clips, T frames of a clip, H height, W width, C channel, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from l2a_ray.classifier.features import read_clips
from l2a_ray.classifier.framewise import FramewiseNetwork
from l2a_ray.classifier.network import check_input
from l2a_ray.classifier.settings import TeacherSettings
from l2a_ray.classifier.zoo import build_with_head
from l2a_ray.errors import StageError, StorageError, owned_by
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.device import best_device
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, read_bytes, read_table, write_bytes

CLIPS, KEY = "clips.parquet", "probabilities"
PART = 512
"""Clips a file."""


def write_probabilities(store: ClipStore, settings: TeacherSettings, out: AnyPath) -> None:
    """Write the probabilities of all clips, float16; goes on where it was interrupted.

    Raises:
        SettingError: of ``settings``: there is no such network, its weights cannot be had or have no head, it takes no
            frames of this size, or the crop is larger than a frame.
        StorageError: a clip's file is missing or damaged, or ``out`` cannot be written.
    """
    index = store.columns("id", "height", "width")
    ids, crop = index["id"].tolist(), settings.crop or int(index[["height", "width"]].to_numpy().min())
    with owned_by("teacher"):
        network = cast(FramewiseNetwork, build_with_head(settings.network))
        check_input(network, settings.backbone, 1, crop, "backbone")
    network.to(best_device())
    with owned_by("teacher"), Bar(total=len(ids), desc="teach", unit="clip") as bar:
        for part, start in enumerate(range(0, len(ids), PART)):
            path, wanted = out / _name(part), ids[start : start + PART]
            if not path.is_file():
                write_bytes(path, safetensors.numpy.save({KEY: _probabilities(network, store, wanted, crop, bar)}))
            bar.update(start + len(wanted) - bar.n)
    write_bytes(out / CLIPS, pd.DataFrame({"id": ids}).to_parquet(index=False))


def _probabilities(
    network: FramewiseNetwork, store: ClipStore, ids: Sequence[str], crop: int, bar: Bar
) -> NDArray[np.float16]:
    """Return the probabilities of some clips, (N, T, K)."""
    device, found = next(network.parameters()).device, []
    with torch.inference_mode():
        for clips in read_clips(store, ids, crop, batch=8):
            found.append(network.frame_logits(clips.to(device)).softmax(dim=2).half().cpu().numpy())
            bar.update(len(clips))
    return np.concatenate(found)


def _name(part: int) -> str:
    return f"{KEY}-{part:05}.safetensors"


class Teacher:
    """The probabilities that :func:`write_probabilities` wrote.

    Args:
        folder: where.

    Raises:
        StorageError: they are not there, or not all.
    """

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        try:
            ids = read_table(folder / CLIPS, columns=["id"])["id"].to_numpy().astype(np.bytes_)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{folder / CLIPS}: cannot be read ({error}). Run `l2a teach`") from error
        self._order = np.argsort(ids)
        self._ids = ids[self._order]

    @property
    def classes(self) -> int:
        """Number of its classes, K."""
        return int(self._read(0).shape[-1])

    def of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the probabilities of some clips, (N, T, K); those of a frame sum to 1.

        Raises:
            StageError: it has never seen one of the clips.
            StorageError: a file is missing or damaged.
        """
        wanted = np.asarray(ids).astype(np.bytes_)
        places = np.searchsorted(self._ids, wanted).clip(max=len(self._ids) - 1)
        if (unknown := wanted[self._ids[places] != wanted]).size:
            reason = f"{self._folder}: the teacher has not seen clip {unknown[0].decode()}"
            raise StageError(f"{reason}: it was shown other clips. Run `l2a teach` for these")
        rows = self._order[places]
        found: NDArray[np.float32] = np.stack([self._read(int(row)) for row in rows]).astype(np.float32)
        found /= found.sum(axis=2, keepdims=True)
        return found

    def _read(self, row: int) -> NDArray[np.float16]:
        """Return the probabilities of one clip, (T, K); of an object, its whole file is read."""
        path = self._folder / _name(row // PART)
        found: NDArray[np.float16]
        try:
            if isinstance(path, Path):
                with safe_open(path, framework="numpy") as file:
                    found = file.get_slice(KEY)[row % PART]
            else:
                found = safetensors.numpy.load(read_bytes(path))[KEY][row % PART]
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise StorageError(f"{path}: cannot be read ({error}). Delete its folder, and it is made anew") from error
        return found
