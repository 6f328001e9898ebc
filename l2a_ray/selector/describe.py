"""What a Selector must know of clips, computed with its backbone.

Axes: N clips, F features, L length of a label vector.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.classifier.evaluation import extract_features
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.zoo import build_network
from l2a_ray.pairs.vectors import ClipVectors, class_agreement, label_vectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.file import Selector, check_classes


def describe_clips(
    store: ClipStore,
    rows: pd.DataFrame,
    backbone: Network,
    crop: int,
    labels_LD: NDArray[np.float32],
    *,
    agreement: bool,
) -> ClipVectors:
    """Compute what a Selector knows of some clips.

    Args:
        store: the prepared clips.
        rows: rows of ``store.index``.
        backbone: its input to the head is the feature.
        crop: side of the centre crop that it sees, pixels.
        labels_LD: vector of each class, ``label_vectors``.
        agreement: add ``class_agreement`` as the last feature.
    """
    features_NF = extract_features(backbone, store, rows["id"].tolist(), crop)
    label_N = rows["label"].to_numpy(np.int64)
    if agreement:
        features_NF = np.column_stack([features_NF, class_agreement(features_NF, label_N)])
    return ClipVectors(rows["id"].to_numpy().astype(np.bytes_), features_NF, labels_LD[label_N])


def describe_for(selector: Selector, store: ClipStore) -> ClipVectors:
    """Compute what a trained Selector must know of a store's clips, of whatever data set, to score pairs of them.

    Test clips are left out. The classes may be others than those of its training, if its label encoding is ``name``.

    Raises:
        SelectorFileError: its labels are one-hot over other classes.
    """
    check_classes(selector, store.classes, store.root)
    backbone = build_network(selector.backbone_settings, selector.backbone_classes)
    backbone.load_state_dict(dict(selector.backbone))
    labels_LD = label_vectors(store.classes, selector.encoding, selector.embedding)
    rows = store.index[store.index["split"] != "test"]
    return describe_clips(store, rows, backbone, selector.crop, labels_LD, agreement=selector.agreement)
