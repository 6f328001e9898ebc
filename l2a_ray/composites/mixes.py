"""How two clips become one: the paper's paste with the switches of its Table 2, and the mixes that it is compared with.

All are chosen by ``composite.kind`` and made pair by pair, so that each can be trained with in the same way.

Axes: T time, H height, W width, C channel (RGB).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, composite, foreground_ratio, label_weight, place
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import StoredClip

Frames = NDArray[np.uint8]
CUTMIX_ALPHA, MIXUP_ALPHA = 1.0, 0.2  # of the Beta distribution, from either's paper on ImageNet
CUTOUT_AREA = 0.25  # 16 of 32 pixels a side, its paper's on CIFAR-10


@dataclass(frozen=True)
class Mixed:
    """A clip made of two.

    Args:
        frames_THWC: uint8.
        weight: share of the foreground's label, in [0, 1]; the rest is the background's.
    """

    frames_THWC: Frames
    weight: float


def mix(front: StoredClip, back: StoredClip, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """Mix two clips as the settings say; ``rng`` draws what the kind leaves to chance, `paste` nothing."""
    mixed = _KINDS[settings.kind](front, back, settings, rng)
    return mixed if settings.mix_labels else Mixed(mixed.frames_THWC, 1.0)


def pasted(planes: Planes, settings: CompositeSettings) -> NDArray[np.bool_]:
    """Return the plane that is pasted, bool (T, H, W)."""
    boxes = settings.region == "boxes"
    if settings.objects == "people":
        return planes.people_boxes if boxes else planes.people
    return planes.boxes if boxes else planes.objects


def _paste(front: StoredClip, back: StoredClip, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """Eq. 1, with lambda of Eq. 8. Boxes of people on the clip as it is: ActorCutMix (https://arxiv.org/abs/2103.16165)."""
    scene_THWC = back.background_THWC if settings.inpaint else back.frames_THWC
    frames_THWC, masks_THW = place(front.frames_THWC, pasted(front.planes, settings), *scene_THWC.shape[1:3])
    pasted_THWC = composite(frames_THWC[None], masks_THW[None], scene_THWC[None], settings.feather)[0]
    return Mixed(pasted_THWC, label_weight(foreground_ratio(masks_THW), settings.alpha))


def _cutmix(front: StoredClip, back: StoredClip, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """CutMix (https://arxiv.org/abs/1905.04899): one box of the background clip, at all times."""
    return _by_torchvision("CutMix", CUTMIX_ALPHA, front, back, rng)


def _mixup(front: StoredClip, back: StoredClip, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """MixUp (https://arxiv.org/abs/1710.09412): a weighted mean of both clips."""
    return _by_torchvision("MixUp", MIXUP_ALPHA, front, back, rng)


def _cutout(front: StoredClip, back: StoredClip, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """CutOut (https://arxiv.org/abs/1708.04552): a black square, at all times; the background plays no part."""
    from torchvision.transforms import v2

    erase = v2.RandomErasing(p=1.0, scale=(CUTOUT_AREA, CUTOUT_AREA), ratio=(1.0, 1.0), value=0)
    return Mixed(_frames(_draw(erase, rng, _video(_placed(front, back)))), 1.0)


def _videomix(front: StoredClip, back: StoredClip, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """Spatio-temporal VideoMix (https://arxiv.org/abs/2012.03457): a cuboid of the background clip."""
    frames_THWC = _placed(front, back).copy()
    size = np.array(frames_THWC.shape[:3])
    sides = np.round(size * np.cbrt(1 - rng.beta(1, 1))).astype(int)
    starts = rng.integers(size - sides, endpoint=True)
    cuboid = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    frames_THWC[cuboid] = back.frames_THWC[cuboid]
    return Mixed(frames_THWC, 1.0 - float(np.prod(sides) / np.prod(size)))


_KINDS: dict[str, Callable[[StoredClip, StoredClip, CompositeSettings, np.random.Generator], Mixed]] = {
    "paste": _paste,
    "cutmix": _cutmix,
    "mixup": _mixup,
    "cutout": _cutout,
    "videomix": _videomix,
}


# Torch is imported where it is needed: processes that only paste start sooner and take 300 MB less without it.
def _by_torchvision(name: str, alpha: float, front: StoredClip, back: StoredClip, rng: np.random.Generator) -> Mixed:
    """Mix by a transform of labelled batches: of a batch of two, the first is mixed with the second."""
    import torch
    from torchvision.transforms import v2

    both_2THWC = np.stack([_placed(front, back), back.frames_THWC])
    transform = getattr(v2, name)(alpha=alpha, num_classes=2)
    mixed_2TCHW, labels_22 = _draw(transform, rng, _video(both_2THWC), torch.tensor([0, 1]))
    return Mixed(_frames(mixed_2TCHW[0]), float(labels_22[0, 0]))


def _draw(transform: Any, rng: np.random.Generator, *inputs: Any) -> Any:
    """Call a transform; it draws from torch's global generator, which is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return transform(*inputs)


def _video(frames: Frames) -> Any:
    """Return frames (..., H, W, C) as a float video (..., C, H, W), all of which a transform changes alike."""
    import torch
    from torchvision import tv_tensors

    return tv_tensors.Video(torch.from_numpy(frames.copy()).movedim(-1, -3).float())


def _frames(video: Any) -> Frames:
    return np.ascontiguousarray(video.round().byte().movedim(-3, -1).numpy())


def _placed(front: StoredClip, back: StoredClip) -> Frames:
    """Return the whole foreground clip, centred on a canvas of the background's size."""
    everything = np.ones(front.frames_THWC.shape[:3], np.bool_)
    return place(front.frames_THWC, everything, *back.frames_THWC.shape[1:3])[0]
