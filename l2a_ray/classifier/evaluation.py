"""What trained classifiers are worth: accuracy and loss on the test split; and features of any clips.

Axes: N clips, T time, H height, W width, C channel, F features, L classes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.classifier.step import predict
from l2a_ray.classifier.zoo import load_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.errors import StageError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.device import best_device
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, write_bytes

BATCH = 32  # clips in memory at a time


def evaluate(
    models: Sequence[tuple[str, int, AnyPath]], store: ClipStore, settings: ClassifierSettings, out: AnyPath
) -> None:
    """Test classifiers on the centre crops of the ``test`` split.

    Writes ``metrics.parquet`` (a row a model: arm, seed, top1, top5 in [0, 1], mean cross-entropy, number of clips) and
    ``predictions.parquet`` (a row a model and clip: label, predicted label, the predicted label's probability).

    Args:
        models: arm, seed and ``model.safetensors`` of each.
        store: the prepared clips.
        settings: those they were trained with.
        out: folder to write to.

    Raises:
        StageError: the store has no test clips.
        StorageError: a model's file is missing, damaged or of another network.
    """
    rows = store.rows("test")
    if rows.empty:
        raise StageError(f"{store.root}: no clip of the test split was prepared; its failed.parquet says why")
    ids, labels_N = rows["id"].to_list(), rows["label"].to_numpy(dtype=np.int64)
    metrics, predictions = [], []
    for arm, seed, path in Bar(models, desc="evaluate", unit="model"):
        network = load_network(path, settings.network, len(store.classes)).to(best_device())
        clips = read_clips(store, ids, settings.crop)
        logits_NL = torch.cat([predict(network, clips_NTHWC, BATCH) for clips_NTHWC in clips]).double().numpy()
        metrics.append({"arm": arm, "seed": seed} | score(logits_NL, labels_N))
        predicted_N = logits_NL.argmax(axis=1)
        chances_N = np.exp(_log_softmax(logits_NL))[np.arange(len(ids)), predicted_N].astype(np.float32)
        columns = {"id": ids, "label": labels_N, "predicted": predicted_N, "probability": chances_N}
        predictions.append(pd.DataFrame({"arm": arm, "seed": seed} | columns))
    write_bytes(out / "predictions.parquet", pd.concat(predictions, ignore_index=True).to_parquet(index=False))
    write_bytes(out / "metrics.parquet", pd.DataFrame(metrics).to_parquet(index=False))


def score(logits_NL: NDArray[np.float64], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Return top1 and top5 accuracy in [0, 1], the mean cross-entropy and the number of clips."""
    order_NL = np.argsort(-logits_NL, axis=1, kind="stable")
    hits_NL = order_NL == labels_N[:, None]
    loss = -_log_softmax(logits_NL)[np.arange(len(labels_N)), labels_N].mean()
    top1, top5 = hits_NL[:, 0].mean(), hits_NL[:, :5].any(axis=1).mean()
    return {"top1": float(top1), "top5": float(top5), "loss": float(loss), "clips": len(labels_N)}


def extract_features(
    network: Network, store: ClipStore, ids: Sequence[str], crop: int, batch: int = BATCH
) -> NDArray[np.float32]:
    """Return the input of the network's head for the centre crops of some clips, (N, F); sets eval mode."""
    device = next(network.parameters()).device
    network.eval()
    features_NF = np.empty((len(ids), network.feature_size), dtype=np.float32)
    with torch.inference_mode():
        for i, clips_NTHWC in enumerate(read_clips(store, ids, crop, batch)):
            features_NF[i * batch : (i + 1) * batch] = network.features(clips_NTHWC.to(device)).cpu().numpy()
    return features_NF


def read_clips(store: ClipStore, ids: Sequence[str], crop: int, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Yield the centre crops of some clips, uint8 (up to ``batch``, T, crop, crop, C), in order."""
    loader = SampleLoader(store, CompositeSettings(), crop)
    for start in range(0, len(ids), batch):
        frames = [loader(Sample(clip_id), None)[0] for clip_id in ids[start : start + batch]]
        yield torch.from_numpy(np.stack(frames))


def _log_softmax(logits_NL: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_NL = logits_NL - logits_NL.max(axis=1, keepdims=True)
    return np.asarray(shifted_NL - np.log(np.exp(shifted_NL).sum(axis=1, keepdims=True)))
