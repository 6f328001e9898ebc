"""What the Selector knows of a clip: its feature and the vector of its label, kept for all clips of a store.

Axes: N clips, F features of the backbone, L length of a label vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from l2a_ray.errors import StageError
from l2a_ray.pairs.names import embed_names
from l2a_ray.pairs.settings import EmbeddingSettings
from l2a_ray.pairs.settings import LabelEncoding as LabelEncoding
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
CHUNK = 8192
"""Clips whose features are turned to float64 at a time."""


@dataclass(frozen=True)
class ClipVectors:
    """One row a clip.

    Args:
        ids_N: clip ids, 16 ASCII characters each, sorted.
        features_NF: float32 features of the backbone and, if the Selector uses it, the agreement as the last column.
        labels_NL: float32 label vectors (one-hot, or the embedding of the class name).
    """

    ids_N: NDArray[np.bytes_]
    features_NF: NDArray[np.float32]
    labels_NL: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def clip_size(self) -> int:
        """Values in one clip's vector, its feature followed by its label: F + L."""
        return int(self.features_NF.shape[1] + self.labels_NL.shape[1])

    def of(self, rows: NDArray[np.integer[Any]]) -> Floats:
        """Return feature and label of some clips, side by side: rows (B,) -> (B, F + L)."""
        return np.concatenate([self.features_NF[rows], self.labels_NL[rows]], axis=1)

    def only_ids(self) -> "ClipVectors":
        """Return the ids with no feature and no label."""
        nothing = np.empty((len(self), 0), np.float32)
        return ClipVectors(self.ids_N, nothing, nothing)

    def rows(self, ids: NDArray[np.str_] | list[str]) -> Rows:
        """Return the row of each clip id.

        Raises:
            StageError: a clip has no vector, because the store changed after the vectors were made.
        """
        wanted = np.asarray(ids).astype(np.bytes_)
        rows = np.searchsorted(self.ids_N, wanted).clip(max=len(self.ids_N) - 1)
        unknown = wanted[self.ids_N[rows] != wanted]
        if unknown.size:
            raise StageError(
                f"clip {unknown[0].decode()} has no feature: the clip store changed after train-selector. "
                "Run train-selector again under another run name"
            )
        return rows.astype(np.int64)

    def save(self, path: AnyPath) -> None:
        """Write all three arrays to one safetensors file, atomically."""
        ids = self.ids_N.view(np.uint8).reshape(len(self.ids_N), -1)
        write_bytes(path, safetensors.numpy.save({"ids": ids, "features": self.features_NF, "labels": self.labels_NL}))

    @classmethod
    def load(cls, path: AnyPath) -> "ClipVectors":
        """Read what ``save`` wrote."""
        # A local file need not be read as a whole before its arrays are made.
        local = isinstance(path, Path)
        tensors = safetensors.numpy.load_file(str(path)) if local else safetensors.numpy.load(read_bytes(path))
        ids = np.ascontiguousarray(tensors["ids"])
        return cls(
            ids_N=ids.view(f"S{ids.shape[1]}").ravel(), features_NF=tensors["features"], labels_NL=tensors["labels"]
        )


def pair_observation(
    clips: ClipVectors, foreground: NDArray[np.integer[Any]], background: NDArray[np.integer[Any]]
) -> Floats:
    """Build what the network sees of pairs, given by their rows: (B, 2F + 2L), the foreground's values first."""
    return np.concatenate([clips.of(foreground), clips.of(background)], axis=1)


def label_vectors(classes: Sequence[str], encoding: LabelEncoding, embedding: EmbeddingSettings) -> NDArray[np.float32]:
    """Return a vector for every class: one-hot, or the sentence embedding of its name.

    Only name embeddings let a Selector score pairs of other classes than it was trained on (ours; the paper's Table 3,
    "+Pre-training", needs it).

    Returns:
        float32 of shape (classes, L): an identity matrix, or unit rows.
    """
    if encoding == "one_hot":
        return np.eye(len(classes), dtype=np.float32)
    return embed_names(classes, embedding)


def class_agreement(features_NF: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return how much nearer each clip's feature is to its own class than to any other, in [-2, 2].

    That is the cosine to the mean of its class's other clips, less the largest cosine to the mean of another class, all
    features centred. Low where a label is wrong. Needs no classifier, so it means the same for any data set's classes.
    Ours; DVRL (https://arxiv.org/abs/1909.11671) also gives its estimator how far a prediction is from the label.

    Args:
        features_NF: float32 (N, F).
        labels: int (N,).

    Returns:
        float32 (N,); 0 for a clip that is alone in its class, and where there is one class only.
    """
    classes, own = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return np.zeros(len(labels), np.float32)
    mean, count = features_NF.mean(axis=0), np.bincount(own)
    chunks = [slice(start, start + CHUNK) for start in range(0, len(own), CHUNK)]
    sums = np.zeros((len(classes), features_NF.shape[1]))
    for part in chunks:
        np.add.at(sums, own[part], (features_NF[part] - mean).astype(np.float64))
    agreement = np.empty(len(own), np.float32)
    for part in chunks:
        centred, label = (features_NF[part] - mean).astype(np.float64), own[part]
        clips = _unit(centred)
        cosine = clips @ _unit(sums).T
        cosine[np.arange(len(label)), label] = -np.inf
        same = (clips * _unit(sums[label] - centred)).sum(axis=1)
        agreement[part] = np.where(count[label] > 1, same - cosine.max(axis=1), 0)
    return agreement


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)
