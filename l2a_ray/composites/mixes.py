"""How two clips become one: the paper's paste with the switches of its Table 2, and the mixes that it is compared with.

All are chosen by ``composite.kind`` and made pair by pair, so that each can be trained with in the same way.

Axes: T time, H height, W width, C channel (RGB).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, composite, foreground_ratio, label_weight, place
from l2a_ray.composites.fame import moving
from l2a_ray.composites.transforms import as_frames, as_video, draw
from l2a_ray.prepare.store import Part

Frames = NDArray[np.uint8]
Parts = Mapping[Part, NDArray[Any]]
"""Of a clip those arrays that are needed, by name; ``StoredClip.parts`` has all."""


@dataclass(frozen=True)
class Mixed:
    """A clip made of two.

    Args:
        frames_THWC: uint8.
        weight: share of the foreground's label, in [0, 1]; the rest is the background's.
    """

    frames_THWC: Frames
    weight: float


def parts_of_pair(settings: CompositeSettings) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Return which parts of the foreground clip and of the background clip a mix needs."""
    if settings.kind != "paste":
        return ("frames",), ("frames",)
    return ("frames", pasted(settings)), ("background" if settings.inpaint else "frames",)


def mix(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """Mix two clips as the settings say; ``rng`` draws what the kind leaves to chance, `paste` nothing.

    Args:
        front: parts of the foreground clip, at least those of ``parts_of_pair``.
        back: parts of the background clip, likewise.
        settings: how.
        rng: see above.
    """
    mixed = _KINDS[settings.kind](front, back, settings, rng)
    return mixed if settings.mix_labels else Mixed(mixed.frames_THWC, 1.0)


def pasted(settings: CompositeSettings) -> Part:
    """Return the name of the plane that is pasted."""
    boxes = settings.region == "boxes"
    if settings.objects == "people":
        return "people_boxes" if boxes else "people"
    return "boxes" if boxes else "objects"


def _paste(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """Eq. 1, with lambda of Eq. 8. Boxes of people on the clip as it is: ActorCutMix (https://arxiv.org/abs/2103.16165)."""
    scene = back["background" if settings.inpaint else "frames"]
    frames, masks = place(front["frames"], front[pasted(settings)], *scene.shape[1:3])
    made = composite(frames[None], masks[None], scene[None], settings.feather)[0]
    return Mixed(made, label_weight(foreground_ratio(masks), settings.alpha))


def _cutmix(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """CutMix (https://arxiv.org/abs/1905.04899): one box of the background clip, at all times."""
    return _by_torchvision("CutMix", settings.cutmix_alpha, front, back, rng)


def _mixup(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """MixUp (https://arxiv.org/abs/1710.09412): a weighted mean of both clips."""
    return _by_torchvision("MixUp", settings.mixup_alpha, front, back, rng)


def _cutout(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """CutOut (https://arxiv.org/abs/1708.04552): a black square, at all times; the background plays no part."""
    from torchvision.transforms import v2

    erase = v2.RandomErasing(p=1.0, scale=(settings.cutout_area, settings.cutout_area), ratio=(1.0, 1.0), value=0)
    return Mixed(as_frames(draw(erase, rng, as_video(_placed(front, back).astype(np.float32)))), 1.0)


def _videomix(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """Spatio-temporal VideoMix (https://arxiv.org/abs/2012.03457): a cuboid of the background clip."""
    frames = _placed(front, back).copy()
    size = np.array(frames.shape[:3])
    sides = np.round(size * np.cbrt(1 - rng.beta(settings.videomix_alpha, settings.videomix_alpha))).astype(int)
    starts = rng.integers(size - sides, endpoint=True)
    cuboid = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    frames[cuboid] = back["frames"][cuboid]
    return Mixed(frames, 1.0 - float(np.prod(sides) / np.prod(size)))


def _stillmix(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """StillMix (https://arxiv.org/abs/2211.12883) with a random frame of the background clip, not one of a bank."""
    weight = rng.beta(settings.stillmix_alpha, settings.stillmix_alpha)
    still = back["frames"][rng.integers(len(back["frames"]))].astype(np.float32)
    return Mixed(np.rint(weight * _placed(front, back) + (1 - weight) * still).astype(np.uint8), 1.0)


def _fame(front: Parts, back: Parts, settings: CompositeSettings, rng: np.random.Generator) -> Mixed:
    """FAME (https://arxiv.org/abs/2109.15130): what seems to move, on the background clip as it is; draws nothing."""
    mask = moving(front["frames"], settings.fame_share)
    masks = np.broadcast_to(mask, front["frames"].shape[:3])
    frames, masks = place(front["frames"], masks, *back["frames"].shape[1:3])
    return Mixed(composite(frames[None], np.ascontiguousarray(masks)[None], back["frames"][None])[0], 1.0)


_KINDS: dict[str, Callable[[Parts, Parts, CompositeSettings, np.random.Generator], Mixed]] = {
    "paste": _paste,
    "cutmix": _cutmix,
    "mixup": _mixup,
    "cutout": _cutout,
    "videomix": _videomix,
    "stillmix": _stillmix,
    "fame": _fame,
}


def _by_torchvision(name: str, alpha: float, front: Parts, back: Parts, rng: np.random.Generator) -> Mixed:
    """Mix by a transform of labelled batches: of a batch of two, the first is mixed with the second."""
    import torch
    from torchvision.transforms import v2

    both = np.stack([_placed(front, back), back["frames"]])
    transform = getattr(v2, name)(alpha=float(alpha), num_classes=2)
    mixed, labels = draw(transform, rng, as_video(both.astype(np.float32)), torch.tensor([0, 1]))
    return Mixed(as_frames(mixed[0]), float(labels[0, 0]))


def _placed(front: Parts, back: Parts) -> Frames:
    """Return the whole foreground clip, centred on a canvas of the background's size."""
    everything = np.ones(front["frames"].shape[:3], np.bool_)
    return place(front["frames"], everything, *back["frames"].shape[1:3])[0]
