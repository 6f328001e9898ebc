"""What the Selector knows of a clip: its feature and the vector of its label, kept for all clips of a store.

Axes: N clips, F features of the backbone, L length of a label vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from l2a_ray.errors import StageError
from l2a_ray.pairs.names import EmbeddingSettings, embed_names
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, read_bytes, write_bytes

LabelEncoding = Literal["one_hot", "name"]


@dataclass(frozen=True)
class ClipVectors:
    """One row a clip.

    Args:
        ids_N: clip ids, 16 ASCII characters each, sorted.
        features_NF: float32 features of the backbone and, if the Selector is told it, the agreement as the last column.
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

    def save(self, path: AnyPath) -> None:
        """Write all three arrays to one safetensors file, atomically."""
        ids = self.ids_N.view(np.uint8).reshape(len(self.ids_N), -1)
        write_bytes(path, safetensors.numpy.save({"ids": ids, "features": self.features_NF, "labels": self.labels_NL}))

    @classmethod
    def load(cls, path: AnyPath) -> "ClipVectors":
        """Read what ``save`` wrote."""
        tensors = safetensors.numpy.load(read_bytes(path))
        ids = np.ascontiguousarray(tensors["ids"])
        return cls(
            ids_N=ids.view(f"S{ids.shape[1]}").ravel(), features_NF=tensors["features"], labels_NL=tensors["labels"]
        )


def only_ids(store: ClipStore) -> ClipVectors:
    """Return the ids of all clips but the test clips, with no feature and no label."""
    ids_N = np.sort(store.index.loc[store.index["split"] != "test", "id"].to_numpy().astype(np.bytes_))
    nothing = np.empty((len(ids_N), 0), np.float32)
    return ClipVectors(ids_N, nothing, nothing)


def pair_observation(
    clip_vectors_NV: NDArray[np.float32], foreground_B: NDArray[np.int64], background_B: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Build what the network sees of pairs: rows of clip vectors -> (B, 2V), the foreground's values first."""
    return np.concatenate([clip_vectors_NV[foreground_B], clip_vectors_NV[background_B]], axis=1)


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


def class_agreement(features_NF: NDArray[np.float32], label_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return how much nearer each clip's feature is to its own class than to any other, in [-2, 2].

    That is the cosine to the mean of its class's other clips, less the largest cosine to the mean of another class, all
    features centred. Low where a label is wrong. Needs no classifier, so it means the same for any data set's classes.
    Ours; DVRL (https://arxiv.org/abs/1909.11671) tells its estimator how far a prediction is from the label likewise.

    Args:
        features_NF: float32 (N, F).
        label_N: int (N,).

    Returns:
        float32 (N,); 0 for a clip that is alone in its class, and where there is one class only.
    """
    classes, own_N = np.unique(label_N, return_inverse=True)
    if len(classes) < 2:
        return np.zeros(len(label_N), np.float32)
    centred_NF = (features_NF - features_NF.mean(axis=0)).astype(np.float64)
    count_L = np.bincount(own_N)
    sum_LF = np.zeros((len(classes), features_NF.shape[1]))
    np.add.at(sum_LF, own_N, centred_NF)
    clips_NF = _unit(centred_NF)
    cosine_NL = clips_NF @ _unit(sum_LF).T
    rows_N = np.arange(len(label_N))
    cosine_NL[rows_N, own_N] = -np.inf
    other_N = cosine_NL.max(axis=1)
    same_N = (clips_NF * _unit(sum_LF[own_N] - centred_NF)).sum(axis=1)
    return np.where(count_L[own_N] > 1, same_N - other_N, 0).astype(np.float32)


def _unit(vectors_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    length_N1: NDArray[np.float64] = np.linalg.norm(vectors_NF, axis=1, keepdims=True)
    return vectors_NF / np.maximum(length_N1, 1e-12)
