"""Pseudo-labels: a classifier's guesses of clips without labels, and the clips that are sure enough to be paired.

Learn2Augment uses them "as additional data for augmentation" (paper, 5.2). Imports no Ray. Axes: N clips, L classes.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.classifier.evaluation import log_softmax, logits_of
from l2a_ray.classifier.settings import ClassifierSettings, PseudoSettings
from l2a_ray.classifier.zoo import load_network
from l2a_ray.composites.scenes import clip_sets
from l2a_ray.errors import owned_by
from l2a_ray.pairs.labels import GUESSES
from l2a_ray.prepare.store import ClipStore, write_index
from l2a_ray.storage.files import AnyPath, write_bytes

logger = logging.getLogger(__name__)


class Guess(NamedTuple):
    """What a classifier takes clips for.

    Args:
        label: the likeliest class, int32 (N,).
        confidence: its probability, float64 (N,).
        kept: whether it is sure enough, bool (N,).
    """

    label: NDArray[np.int32]
    confidence: NDArray[np.float64]
    kept: NDArray[np.bool_]


def guess(probabilities_NL: NDArray[np.float64], settings: PseudoSettings) -> Guess:
    """Guess labels and decide which are kept; of equally sure clips the first, of equally likely classes too."""
    label, confidence = probabilities_NL.argmax(axis=1).astype(np.int32), probabilities_NL.max(axis=1)
    if settings.keep_share is None:
        return Guess(label, confidence, confidence >= settings.threshold)
    kept, groups = np.zeros(len(label), np.bool_), label if settings.per_class else np.zeros_like(label)
    surest = np.argsort(-confidence, kind="stable")
    for group in np.unique(groups):
        among = surest[groups[surest] == group]
        kept[among[: max(settings.keep_share > 0, round(settings.keep_share * len(among)))]] = True
    return Guess(label, confidence, kept)


def write_pool(
    store: ClipStore,
    model: AnyPath,
    classifier: ClassifierSettings,
    settings: PseudoSettings,
    out: AnyPath,
    seen: Callable[[int], object] = lambda clips: None,
) -> None:
    """Write the same clip store, but that clips whose guess is kept bear it as their label, in the part ``pseudo``.

    Clips of D_val's source videos are not kept, however sure.

    Beside it lies ``guesses.parquet``: id, label (int32), confidence, kept, and truth, the label that the data set
    knows, int32, -1 where it knows none. The truth is for figures alone: nothing here decides by it.

    Args:
        store: the prepared clips.
        model: ``model.safetensors`` of the classifier.
        classifier: its settings.
        settings: which guesses are kept.
        out: folder to write to.
        seen: told how many more clips were looked at.

    Raises:
        StageError: there is no clip without a label.
        StorageError: the model's file, or a clip's, is missing, damaged or of another network.
    """
    (unlabelled,) = clip_sets(store, "unlabelled")
    with owned_by("network"):
        network = load_network(model, classifier.network, len(store.classes))
    logits = logits_of(network, store, classifier, unlabelled, settings, seen)
    found = guess(np.exp(log_softmax(logits)), settings)
    # What was cut from the same videos as D_val would flatter whoever learns it; published lists cut through videos.
    sources = store.columns("id", "group", "split").set_index("id")
    shared = sources["group"].isin(sources.loc[sources["split"] == "val", "group"])
    found = found._replace(kept=found.kept & ~shared[unlabelled.clips["id"]].to_numpy())
    table = pd.DataFrame({"id": unlabelled.clips["id"].to_numpy(), **found._asdict()})
    table["truth"] = unlabelled.clips["label"].to_numpy(np.int32)
    write_bytes(out / GUESSES, table.to_parquet(index=False))
    kept = table[table["kept"]].set_index("id")
    index = store.index
    rows = index["id"].isin(kept.index)
    labels = kept["label"].reindex(index.loc[rows, "id"]).to_numpy(np.int32)
    index.loc[rows, "split"] = "pseudo"
    index.loc[rows, "label"] = labels
    index.loc[rows, "class_name"] = np.array(store.classes, dtype=object)[labels]
    write_index(out, store.clips, store.classes, index, store.failed)
    if kept.empty:
        logger.warning(
            "pseudo-label: of %d clips none was sure enough, the surest at %.2f; what follows learns from labelled "
            "clips alone. Lower pseudo.threshold, or give pseudo.keep_share",
            len(table),
            found.confidence.max(),
        )
    else:
        logger.info("pseudo-label: %d of %d clips kept, of %d classes", len(kept), len(table), kept["label"].nunique())
