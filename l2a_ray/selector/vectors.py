"""What the Selector knows of a clip: its feature and the vector of its label, kept for all clips of a store.

Axes: N clips, F features of the backbone, L length of a label vector.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from l2a_ray.errors import StageError
from l2a_ray.files import write_bytes


@dataclass(frozen=True)
class ClipVectors:
    """One row a clip.

    Args:
        ids_N: clip ids, 16 ASCII characters each, sorted.
        features_NF: float32 features of the backbone.
        labels_NL: float32 label vectors (one-hot, or the embedding of the class name).
    """

    ids_N: NDArray[np.bytes_]
    features_NF: NDArray[np.float32]
    labels_NL: NDArray[np.float32]

    @cached_property
    def clips_NFL(self) -> NDArray[np.float32]:
        """Feature and label of each clip side by side, shape (N, F + L)."""
        return np.concatenate([self.features_NF, self.labels_NL], axis=1)

    def rows(self, ids: NDArray[np.str_] | list[str]) -> NDArray[np.int64]:
        """Return the row of each clip id.

        Raises:
            StageError: a clip has no vector, because the store changed after the vectors were made.
        """
        wanted = np.asarray(ids).astype(np.bytes_)
        rows = np.searchsorted(self.ids_N, wanted).clip(max=len(self.ids_N) - 1)
        strangers = wanted[self.ids_N[rows] != wanted]
        if strangers.size:
            raise StageError(
                f"clip {strangers[0].decode()} has no feature: the clip store changed after train-selector. "
                "Run train-selector again under another run name"
            )
        return rows.astype(np.int64)

    def save(self, path: Path) -> None:
        """Write all three arrays to one safetensors file, atomically."""
        ids = self.ids_N.view(np.uint8).reshape(len(self.ids_N), -1)
        write_bytes(path, safetensors.numpy.save({"ids": ids, "features": self.features_NF, "labels": self.labels_NL}))

    @classmethod
    def load(cls, path: Path) -> "ClipVectors":
        """Read what ``save`` wrote."""
        tensors = safetensors.numpy.load_file(path)
        ids = np.ascontiguousarray(tensors["ids"])
        return cls(
            ids_N=ids.view(f"S{ids.shape[1]}").ravel(), features_NF=tensors["features"], labels_NL=tensors["labels"]
        )
