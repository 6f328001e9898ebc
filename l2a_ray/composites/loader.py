"""Training samples: real clips and composites, cropped and flipped.

Imports no Ray. Axes: T time, H height, W width, C channel, L classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, mix_labels
from l2a_ray.composites.frames import choice_of
from l2a_ray.composites.mixes import mix, parts_of_pair
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.composites.views import crop_and_flip
from l2a_ray.errors import StageError
from l2a_ray.pairs.labels import NONE, Labels
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.telemetry import count


@dataclass(frozen=True)
class Sample:
    """What one sample is made of.

    Args:
        foreground: id of the clip whose actor is seen.
        background: id of the clip whose cleaned background it is pasted on; None: the foreground clip as it is.
    """

    foreground: str
    background: str | None = None


class ClipLoader:
    """Reads clips and makes composites of them.

    Args:
        store: the prepared clips.
        settings: how composites are made and labelled.
        labels: of the clips; None: those that the data set gives.
        sampling: which of the stored frames are shown.
    """

    def __init__(
        self,
        store: ClipStore,
        settings: CompositeSettings,
        labels: Labels | None = None,
        sampling: FrameSampling = ALL_FRAMES,
    ) -> None:
        self.store, self.settings, self.sampling = store, settings, sampling
        self.labels = labels or Labels.given(store.columns("id", "label"))
        self.one_hot = np.eye(len(store.classes), dtype=np.float32)

    def blend(
        self, sample: Sample, rng: np.random.Generator | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the whole frames, uint8 (T, H, W, C), neither cropped nor flipped, and the label distribution (L,).

        ``rng`` draws the frames, where not all that are stored are shown, and what a kind of mix leaves to chance, if
        anything; None: the middle frames, and the same mix for the same pair.

        Raises:
            StageError: a clip has no label.
            StorageError: a clip's file is missing or damaged.
        """
        wanted, wanted_behind = parts_of_pair(self.settings)
        choice = choice_of(self.sampling, rng)
        front = self.store.read_parts(sample.foreground, ("frames",) if sample.background is None else wanted, choice)
        front_label = self.one_hot[self.label(sample.foreground)]
        if sample.background is None:
            return front["frames"], front_label
        if rng is None:
            rng = np.random.default_rng(list(f"{sample.foreground}{sample.background}".encode()))
        mixed = mix(front, self.store.read_parts(sample.background, wanted_behind, choice), self.settings, rng)
        count("l2a_samples_composited")
        back_label = self.one_hot[self.label(sample.background)]
        return mixed.frames_THWC, mix_labels(front_label, back_label, mixed.weight)

    def unlabelled(self, clip_id: str, rng: np.random.Generator | None, boxes: bool) -> NDArray[np.uint8]:
        """Return the whole frames of a clip whose label plays no part, uint8 (T, H, W, C), as ``blend`` does.

        With ``boxes`` a last channel is 255 in the boxes around its people and 0 elsewhere, so that all that is done to
        the frames' places is done to it.

        Raises:
            StorageError: the clip's file is missing or damaged.
        """
        parts = self.store.read_parts(
            clip_id, ("frames", "people_boxes") if boxes else ("frames",), choice_of(self.sampling, rng)
        )
        frames: NDArray[np.uint8] = parts["frames"]
        if not boxes:
            return frames
        return np.concatenate([frames, 255 * parts["people_boxes"][..., None].astype(np.uint8)], axis=3)

    def label(self, clip_id: str) -> int:
        """Return a clip's label.

        Raises:
            StageError: it has none.
        """
        label = int(self.labels.of([clip_id])[0])
        if label == NONE:
            reason = f"clip {clip_id} of {self.store.root} has no label ({self.labels.source} labels), and is about to"
            raise StageError(f"{reason} be used as a labelled one. Leave it out, or label it")
        return label


class SampleLoader(ClipLoader):
    """Makes training samples: clips and composites, cropped.

    Args:
        store: the prepared clips.
        settings: how composites are made and labelled.
        crop: side of the square that is cut out, pixels.
        labels: of the clips; None: those that the data set gives.
        sampling: which of the stored frames are shown.
    """

    def __init__(
        self,
        store: ClipStore,
        settings: CompositeSettings,
        crop: int,
        labels: Labels | None = None,
        sampling: FrameSampling = ALL_FRAMES,
    ) -> None:
        super().__init__(store, settings, labels, sampling)
        self.crop = crop

    def __call__(
        self, sample: Sample, rng: np.random.Generator | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return uint8 frames (T, crop, crop, C) and the float32 label distribution (L,).

        Args:
            sample: a real clip or a pair.
            rng: draws the frames and, alike for all of them and after compositing, the crop's place and the flip; None:
                the middle frames, the centre, not flipped.

        Raises:
            SettingError: the crop is larger than the clip.
            StageError: a clip has no label.
            StorageError: a clip's file is missing or damaged.
        """
        frames, label = self.blend(sample, rng)
        return crop_and_flip(frames, self.crop, rng), label
