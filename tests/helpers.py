"""Small builders that several test files share. Imports no Ray: tests/test_no_ray.py runs them without it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from envs.pair_selection import PairSelectionEnv
from envs.settings import EnvSettings
from envs.trial import ClassifierTrial
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.pairs.settings import EmbeddingSettings
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    ClipStore,
    StoredClip,
    clip_path,
    write_clip,
    write_index,
)
from l2a_ray.selector.file import Selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.videos.generate import GenerateSettings

CLASSES = ("red", "green", "blue")
FRAMES, HEIGHT, WIDTH, CROP = 4, 20, 24, 20
SPLITS = ("train", "train", "train", "val", "val", "test")
NETWORK = NetworkSettings(name="small3d", width=4)
SMALL_VIDEOS = GenerateSettings(
    width=64, height=48, frames=8, train_per_class=8, test_per_class=2, wrong_label_share=0, lost_share=0
)
"""60 videos."""
SMALL_RUN = """
arms: [real, selected]
data: {layout: folder, root: videos, val_fraction: 0.25}
decode: {frames: 4, size: 32}
segment: {kind: motion}
match: {kind: random}
env: {pairs: 8}
selector: {steps: 64, steps_per_update: 4, steps_per_iteration: 16, checkpoint_every: 1, hidden: [16], labels: one_hot}
select: {budget: 0.5, without_signal: score}
classifier: &classifier {network: {name: small3d, width: 4}, epochs: 2, batch_size: 4, crop: 28}
warm_start: {classifier: *classifier}
"""
"""All stages, as short as they can be, of videos as small as those."""


def noise_clip(rng: np.random.Generator, frames: int, height: int, width: int) -> StoredClip:
    frames_THWC, background_THWC = (rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8) for _ in range(2))
    masks = (rng.random((frames, height, width)) < share for share in (0.3, 0.2, 0.5, 0.4))
    return StoredClip(frames_THWC, background_THWC, Planes(*masks))


def small_store(root: Path, count: int = 18) -> ClipStore:
    """Noise in which channel number `label` is brighter; each class has clips of every split."""
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        label, clip_id = i % 3, f"{i:016x}"
        clip = noise_clip(rng, FRAMES, HEIGHT, WIDTH)
        clip.frames_THWC[..., label] //= 2
        clip.frames_THWC[..., label] += 100
        write_clip(clip_path(root / "clips", clip_id, "0"), clip, {"k": "v"})
        row = {"id": clip_id, "path": f"{i}.mp4", "group": str(i), "split": SPLITS[i // 3 % len(SPLITS)]}
        rows.append(dict.fromkeys(INDEX_DTYPES, 0) | row | {"class_name": CLASSES[label], "label": label})
    index = pd.DataFrame(rows).astype(INDEX_DTYPES)
    write_index(root, root / "clips", CLASSES, index, pd.DataFrame(columns=list(FAILED_COLUMNS)))
    return ClipStore(root)


def small_network() -> Network:
    torch.manual_seed(0)
    return build_network(NETWORK, len(CLASSES))


def small_vectors(store: ClipStore) -> ClipVectors:
    """Random features of five numbers and one-hot labels, of all clips but the test clips, as `train-selector` has."""
    rows = store.index[store.index["split"] != "test"]
    features_NF = np.random.default_rng(1).normal(size=(len(rows), 5)).astype(np.float32)
    labels_NL = np.eye(3, dtype=np.float32)[rows["label"].to_numpy()]
    return ClipVectors(rows["id"].to_numpy().astype(np.bytes_), features_NF, labels_NL)


@dataclass(frozen=True)
class Problem:
    """All that an environment is made of; `env` makes one, each with a network of its own."""

    store: ClipStore
    vectors: ClipVectors
    foreground: NDArray[np.str_]
    background: NDArray[np.str_]

    @property
    def loader(self) -> SampleLoader:
        return SampleLoader(self.store, CompositeSettings(), CROP)

    @property
    def validation(self) -> list[str]:
        ids: list[str] = self.store.rows("val")["id"].tolist()
        return ids

    def trial(self, settings: EnvSettings) -> ClassifierTrial:
        return ClassifierTrial(
            network=small_network(),
            num_classes=len(CLASSES),
            loader=self.loader,
            validation=self.validation,
            settings=settings,
        )

    def env(self, settings: EnvSettings) -> PairSelectionEnv:
        return PairSelectionEnv(
            trial=self.trial(settings),
            vectors=self.vectors,
            foreground=self.vectors.rows(self.foreground),
            background=self.vectors.rows(self.background),
            settings=settings,
        )


def small_problem(root: Path) -> Problem:
    """All ordered pairs of training clips of two classes."""
    store = small_store(root)
    train = store.rows("train")
    pairs = train.merge(train, how="cross", suffixes=("_f", "_b")).query("label_f != label_b")
    return Problem(
        store,
        small_vectors(store),
        pairs["id_f"].to_numpy(dtype=np.str_),
        pairs["id_b"].to_numpy(dtype=np.str_),
    )


def name_selector(network: Callable[[int], SelectorNetwork], crop: int) -> Selector:
    """A Selector that sees agreement and name embeddings; `network` makes its network for a number of features."""
    backbone = small_network()
    return Selector(
        network=network(backbone.feature_size + 1),
        agreement=True,
        encoding="name",
        embedding=EmbeddingSettings(),
        classes=None,
        backbone=backbone.state_dict(),
        backbone_settings=NETWORK,
        backbone_classes=len(CLASSES),
        crop=crop,
    )


def selector_network() -> SelectorNetwork:
    torch.manual_seed(0)
    made = SelectorNetwork(5, 3, hidden=(16, 8))
    made.standardise(np.random.default_rng(0).normal(3, 2, (50, 5)).astype(np.float32))
    return made


def some_clips(count: int, seed: int = 1) -> ClipVectors:
    rng = np.random.default_rng(seed)
    return ClipVectors(
        ids_N=np.array([f"{i:016x}" for i in range(count)], dtype=np.bytes_),
        features_NF=rng.normal(3, 2, (count, 5)).astype(np.float32),
        labels_NL=np.eye(3, dtype=np.float32)[rng.integers(3, size=count)],
    )
