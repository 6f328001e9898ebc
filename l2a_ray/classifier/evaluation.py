"""Accuracy and loss of a trained classifier on clips that it has not seen. Axes: N clips, V views, L classes."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from cachetools import LRUCache
from numpy.typing import NDArray

from l2a_ray.classifier.features import read_samples
from l2a_ray.classifier.network import Network, backbone_digest
from l2a_ray.classifier.settings import CENTRE, ClassifierSettings, Looks
from l2a_ray.classifier.step import predict
from l2a_ray.classifier.zoo import load_network
from l2a_ray.composites.scenes import ClipSet
from l2a_ray.errors import owned_by
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, write_bytes


class BackboneFeatures(LRUCache[Hashable, NDArray[np.float32]]):
    """What a frozen backbone made of the clips tested last, (V, F) a clip, for all classifiers that share it.

    Args:
        memory: bytes that they may take.
    """

    def __init__(self, memory: int = 2**30) -> None:
        super().__init__(memory, getsizeof=lambda features: features.nbytes)


def evaluate_model(
    model: AnyPath,
    store: ClipStore,
    settings: ClassifierSettings,
    sets: Sequence[ClipSet],
    out: AnyPath,
    looks: Looks = CENTRE,
    seen: Callable[[int], object] = lambda clips: None,
    kept: BackboneFeatures | None = None,
) -> None:
    """Test a classifier on some sets of clips, on this process's GPU if it has one.

    Writes ``predictions.parquet`` (a row a clip: set, id, label, background, predicted label, the predicted label's
    probability) and ``metrics.parquet`` (a row a set: set, top1, top5 in [0, 1], loss, the mean cross-entropy in nats,
    the number of clips, and of those left out). A set without clips has no accuracy and no loss: NaN.

    Args:
        model: its ``model.safetensors``.
        store: the prepared clips.
        settings: those it was trained with.
        sets: the clips.
        out: folder to write to.
        looks: the views of each clip, whose probabilities are averaged; by default its centre crop and middle frames.
        seen: told how many more clips were tested.
        kept: of classifiers tested before, to which this adds where the backbone is frozen; None: none.

    Raises:
        StorageError: the model's file is missing, damaged or of another network, or a clip's is.
    """
    with owned_by("network"):
        network = load_network(model, settings.network, len(store.classes))
    predictions, scores = [], []
    for one in sets:
        logits = logits_of(network, store, settings, one, looks, seen, kept)
        labels = one.clips["label"].to_numpy(dtype=np.int64)
        predicted = logits.argmax(axis=1)
        chances = np.exp(log_softmax(logits))[np.arange(len(labels)), predicted].astype(np.float32)
        found = one.clips.assign(set=one.name, label=labels, predicted=predicted, probability=chances)
        predictions.append(found[["set", "id", "label", "background", "predicted", "probability"]])
        scores.append({"set": one.name} | score(logits, labels) | {"left_out": one.left_out})
    table = pd.concat(predictions, ignore_index=True)
    write_bytes(out / "predictions.parquet", table.to_parquet(index=False))
    write_bytes(out / "metrics.parquet", pd.DataFrame(scores).to_parquet(index=False))


def logits_of(
    network: Network,
    store: ClipStore,
    settings: ClassifierSettings,
    one: ClipSet,
    looks: Looks,
    seen: Callable[[int], object] = lambda clips: None,
    kept: BackboneFeatures | None = None,
) -> NDArray[np.float64]:
    """Return what a network says of a set of clips, logits (N, L) whose softmax is the mean of the views'.

    Args:
        network: the classifier.
        store: as of :func:`evaluate_model`, and so are the others.
        settings: those it was trained with.
        one: the clips.
        looks: the views of each clip.
        seen: told how many more clips were looked at.
        kept: features of a frozen backbone.
    """
    parts = [torch.empty(0, len(store.classes))]
    for part in _predictions(network, store, settings, one, looks, kept):
        parts.append(part)
        seen(len(part) // looks.views)
    return average(torch.cat(parts).double().numpy().reshape(len(one.clips), looks.views, len(store.classes)))


def _predictions(
    network: Network,
    store: ClipStore,
    settings: ClassifierSettings,
    one: ClipSet,
    looks: Looks,
    kept: BackboneFeatures | None,
) -> Iterator[torch.Tensor]:
    """Yield logits of some clips after the other, with the views of a clip side by side."""
    batch, sampling = settings.evaluation_batch, settings.frame_sampling
    if kept is None or "backbone" not in settings.freeze:
        for clips in read_samples(store, one.samples, settings.crop, sampling, batch, looks, shown=one.name):
            yield predict(network, clips, batch)
        return
    about = backbone_digest(network), settings.network, settings.crop, sampling, looks, one.name
    step = max(1, batch // looks.views)
    for start in range(0, len(one.samples), step):
        samples = one.samples[start : start + step]
        keys = [(about, sample) for sample in samples]
        known = [kept[key] for key in keys if key in kept]
        if len(known) < len(keys):
            (clips,) = read_samples(store, samples, settings.crop, sampling, batch, looks, shown=one.name)
            known = np.split(_features(network, clips), len(samples))
            if kept.maxsize >= sum(features.nbytes for features in known):
                kept.update(zip(keys, known, strict=True))
        yield predict(network.head, torch.from_numpy(np.concatenate(known)), batch)


def _features(network: Network, clips: torch.Tensor) -> NDArray[np.float32]:
    network.eval()
    with torch.inference_mode():
        found: NDArray[np.float32] = network.features(clips.to(network.mean.device)).cpu().numpy()
    return found


def average(logits_NVL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits (N, L) whose softmax is the mean of the views' softmax; those of a single view as they are."""
    if logits_NVL.shape[1] == 1:
        return logits_NVL[:, 0]
    # Of logarithms, because a probability may be too small for a float.
    logs = log_softmax(logits_NVL)
    highest = logs.max(axis=1)
    return np.asarray(highest + np.log(np.exp(logs - highest[:, None]).mean(axis=1)))


def score(logits_NL: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return top1 and top5 accuracy in [0, 1], the mean cross-entropy, all NaN without clips, and their number."""
    if not len(labels):
        return dict.fromkeys(("top1", "top5", "loss"), float("nan")) | {"clips": 0}
    order = np.argsort(-logits_NL, axis=1, kind="stable")
    hits = order == labels[:, None]
    loss = -log_softmax(logits_NL)[np.arange(len(labels)), labels].mean()
    top1, top5 = hits[:, 0].mean(), hits[:, :5].any(axis=1).mean()
    return {"top1": float(top1), "top5": float(top5), "loss": float(loss), "clips": len(labels)}


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities that logits (..., L) stand for."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
