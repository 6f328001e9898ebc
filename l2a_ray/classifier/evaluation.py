"""Accuracy and loss of a trained classifier on clips that it has not seen. Axes: N clips, V views, L classes."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from l2a_ray.classifier.features import read_clips
from l2a_ray.classifier.settings import CENTRE, ClassifierSettings, EvaluateSettings
from l2a_ray.classifier.step import predict
from l2a_ray.classifier.zoo import load_network
from l2a_ray.errors import StageError, owned_by
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, write_bytes
from l2a_ray.videos.splits import Role, may


def evaluate_model(
    model: AnyPath,
    store: ClipStore,
    settings: ClassifierSettings,
    out: AnyPath,
    looks: EvaluateSettings = CENTRE,
    role: Role = "test",
) -> None:
    """Test a classifier on the clips of one role, on this process's GPU if it has one.

    Writes ``predictions.parquet`` (a row a clip: id, label, predicted label, the predicted label's probability) and
    ``metrics.parquet`` (one row: top1, top5 in [0, 1], loss, the mean cross-entropy in nats, and the number of clips).

    Args:
        model: its ``model.safetensors``.
        store: the prepared clips.
        settings: those it was trained with.
        out: folder to write to.
        looks: the views of each clip, whose probabilities are averaged; by default its centre crop and middle frames.
        role: of the clips: `test`, or `validate` for those of D_val.

    Raises:
        StageError: the store has no such clips.
        StorageError: the model's file is missing, damaged or of another network.
    """
    index = store.columns("id", "label", "split")
    rows = index[may(index["split"], role)]
    if rows.empty:
        raise StageError(f"{store.root}: no clip for the role {role!r} was prepared; its failed.parquet says why")
    ids, labels = rows["id"].to_list(), rows["label"].to_numpy(dtype=np.int64)
    with owned_by("network"):
        network = load_network(model, settings.network, len(store.classes))
    batch = settings.evaluation_batch
    views = read_clips(store, ids, settings.crop, settings.frame_sampling, batch, looks)
    parts = [predict(network, clips, batch) for clips in views]
    logits = average(torch.cat(parts).double().numpy().reshape(len(ids), looks.views, -1))
    predicted = logits.argmax(axis=1)
    chances = np.exp(_log_softmax(logits))[np.arange(len(ids)), predicted].astype(np.float32)
    predictions = pd.DataFrame({"id": ids, "label": labels, "predicted": predicted, "probability": chances})
    write_bytes(out / "predictions.parquet", predictions.to_parquet(index=False))
    write_bytes(out / "metrics.parquet", pd.DataFrame([score(logits, labels)]).to_parquet(index=False))


def average(logits_NVL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits (N, L) whose softmax is the mean of the views' softmax; those of a single view as they are."""
    if logits_NVL.shape[1] == 1:
        return logits_NVL[:, 0]
    # Of logarithms, because a probability may be too small for a float.
    logs = _log_softmax(logits_NVL)
    highest = logs.max(axis=1)
    return np.asarray(highest + np.log(np.exp(logs - highest[:, None]).mean(axis=1)))


def score(logits_NL: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return top1 and top5 accuracy in [0, 1], the mean cross-entropy and the number of clips."""
    order = np.argsort(-logits_NL, axis=1, kind="stable")
    hits = order == labels[:, None]
    loss = -_log_softmax(logits_NL)[np.arange(len(labels)), labels].mean()
    top1, top5 = hits[:, 0].mean(), hits[:, :5].any(axis=1).mean()
    return {"top1": float(top1), "top5": float(top5), "loss": float(loss), "clips": len(labels)}


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
