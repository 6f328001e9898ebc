"""What a Selector must know of clips, computed with its backbone.

Axes: C classes, L length of a label vector.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.classifier.features import extract_features
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.classifier.zoo import build_network, load_network
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.errors import SelectorFileError, SettingError
from l2a_ray.pairs.settings import EmbeddingSettings
from l2a_ray.pairs.vectors import ClipVectors, LabelEncoding, class_agreement, label_vectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.device import best_device
from l2a_ray.selector.file import Selector, check_classes
from l2a_ray.selector.find import METADATA
from l2a_ray.storage.files import AnyPath
from l2a_ray.videos.splits import may


def describe_clips(
    store: ClipStore,
    rows: pd.DataFrame,
    backbone: Network,
    crop: int,
    labels_CL: NDArray[np.float32],
    *,
    agreement: bool,
    sampling: FrameSampling = ALL_FRAMES,
) -> ClipVectors:
    """Compute what a Selector knows of some clips.

    Args:
        store: the prepared clips.
        rows: rows of ``store.index``.
        backbone: its input to the head is the feature.
        crop: side of the centre crop that it sees, pixels.
        labels_CL: label vector of each class, as ``label_vectors`` makes them.
        agreement: add ``class_agreement`` as the last feature.
        sampling: which of the stored frames it sees, the middle ones always.
    """
    features = extract_features(backbone, store, rows["id"].tolist(), crop, sampling)
    labels = rows["label"].to_numpy(np.int64)
    if agreement:
        features = np.column_stack([features, class_agreement(features, labels)])
    return ClipVectors(rows["id"].to_numpy().astype(np.bytes_), features, labels_CL[labels])


def write_vectors(
    store: ClipStore,
    warm_model: AnyPath,
    network: NetworkSettings,
    crop: int,
    encoding: LabelEncoding,
    embedding: EmbeddingSettings,
    path: AnyPath,
    *,
    agreement: bool,
    sampling: FrameSampling = ALL_FRAMES,
) -> None:
    """Write what a Selector is to know of every clip that may be learned, as ``ClipVectors.load`` reads it.

    Args:
        store: the prepared clips.
        warm_model: weights of the warm start, the backbone.
        network: what it is.
        crop: as :func:`describe_clips`.
        encoding: how classes become label vectors.
        embedding: of class names, for the encoding ``name``.
        path: file to write.
        agreement: as :func:`describe_clips`.
        sampling: as :func:`describe_clips`.

    Raises:
        StorageError: the weights are not of that network, or a clip's file is damaged.
    """
    backbone = load_network(warm_model, network, len(store.classes))
    index = store.columns("id", "label", "split")
    rows = index[may(index["split"], "train")]
    labels = label_vectors(store.classes, encoding, embedding)
    describe_clips(store, rows, backbone, crop, labels, agreement=agreement, sampling=sampling).save(path)


def describe_for(
    selector: Selector, store: ClipStore, rows: pd.DataFrame | None = None, *, trust_config: bool = False
) -> ClipVectors:
    """Compute what a trained Selector must know of a store's clips, of whatever data set, to score pairs of them.

    The classes may be others than those of its training, if its label encoding is ``name``.

    Args:
        selector: the Selector.
        store: the clips.
        rows: rows of ``store.index``, those that are described; None: all that may be learned.
        trust_config: allow that its backbone is built by a config file, which is a program and is run.

    Raises:
        SelectorFileError: its labels are one-hot over other classes, its backbone is built by a config that is not
            trusted, or has not the features that its network was trained with; or the clips are too small for it.
    """
    check_classes(selector, store.classes, store.root)
    if selector.backbone_settings.config is not None and not trust_config:
        raise SelectorFileError(
            f"{METADATA}: the Selector's backbone is built by the program {selector.backbone_settings.config}, which "
            "would be run. If it is from someone you trust, allow it by trust_config=True"
        )
    backbone = build_network(selector.backbone_settings, selector.backbone_classes)
    features = backbone.feature_size + selector.agreement
    if features != selector.network.feature_size:
        raise SelectorFileError(
            f"{METADATA}: the Selector was trained with {selector.network.feature_size} features a clip, its backbone "
            f"makes {features}. Use the Selector's own files, as train-selector wrote them"
        )
    backbone.load_state_dict(dict(selector.backbone))
    backbone.to(best_device())
    labels = label_vectors(store.classes, selector.encoding, selector.embedding)
    if rows is None:
        index = store.columns("id", "label", "split")
        rows = index[may(index["split"], "train")]
    try:
        return describe_clips(
            store,
            rows,
            backbone,
            selector.crop,
            labels,
            agreement=selector.agreement,
            sampling=selector.sampling,
        )
    except SettingError as error:  # of the crop
        raise SelectorFileError(
            f"{METADATA}: the Selector sees squares of {selector.crop} pixels, and the clips of {store.root} are "
            f"smaller. Prepare them with decode.size={selector.crop} or more"
        ) from error
