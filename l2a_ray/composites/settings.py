"""How samples are made; apart from the code, so that reading the settings loads no OpenCV."""

from dataclasses import dataclass
from typing import Literal

from l2a_ray.fields import above, at_least, between, check, setting, within

PASTE = {"kind": ["paste"]}
RANDAUGMENT = {"kind": ["randaugment"]}
Sampling = Literal["segments", "stretch"]


@dataclass(frozen=True, kw_only=True)
class CompositeSettings:
    """How pairs are composited and labelled."""

    kind: Literal["paste", "cutmix", "mixup", "cutout", "videomix", "stillmix", "fame"] = "paste"
    """`paste`: Eq. 1. The others are the rivals' mixes of two clips, for comparison; see mixes.py."""

    inpaint: bool = setting(True, only_for=PASTE)
    """Paste on the background clip without its own actors; false: on the clip as it is. Origin: the paper, Table 2."""

    region: Literal["masks", "boxes"] = setting("masks", only_for=PASTE)
    """Paste the actors' pixels, or the boxes around them. Origin: the paper, Table 2."""

    objects: Literal["all", "people"] = setting("all", only_for=PASTE)
    """Paste all detected objects, or people alone. Origin: the paper, Table 2."""

    feather: float = setting(0.0, only_for=PASTE)
    """Width of the soft edge of what is pasted, a Gaussian's standard deviation in pixels, at most 32; 0: the paper's
    hard edge. Ours."""

    alpha: float = setting(4.0, only_for={**PASTE, "mix_labels": [True]})
    """Exponent of Eq. 8, no unit: the larger, the more a small actor weighs in the label. Origin: the paper, 4.2."""

    mix_labels: bool = setting(True, only_for={"kind": ["paste", "cutmix", "mixup", "videomix"]})
    """Mix both labels by their shares (Eq. 7); false: the foreground's alone. Origin: the paper, 4.2 (false: 5.2)."""

    cutmix_alpha: float = setting(1.0, only_for={"kind": ["cutmix"]})
    """Of the Beta distribution that the area of `cutmix` is drawn from. Origin: the CutMix paper, on ImageNet."""

    mixup_alpha: float = setting(0.2, only_for={"kind": ["mixup"]})
    """Of the Beta distribution that the weights of `mixup` are drawn from. Origin: the MixUp paper, on ImageNet."""

    cutout_area: float = setting(0.25, only_for={"kind": ["cutout"]})
    """Share of the frame that `cutout` blackens, above 0 and below 1. Origin: the CutOut paper, 16 of 32 pixels a side
    on CIFAR-10."""

    videomix_alpha: float = setting(1.0, only_for={"kind": ["videomix"]})
    """Of the Beta distribution that the volume of `videomix` is drawn from. Origin: the VideoMix paper."""

    stillmix_alpha: float = setting(200.0, only_for={"kind": ["stillmix"]})
    """Of the Beta distribution that the weights of `stillmix` are drawn from. Origin: the StillMix authors' code."""

    fame_share: float = setting(0.5, only_for={"kind": ["fame"]})
    """Share of the frame that `fame` pastes, above 0 and below 1. Origin: the FAME authors' code, its beta."""

    def __post_init__(self) -> None:
        check(
            self,
            feather=within(0, 32, "pixels"),
            alpha=above(0),
            cutmix_alpha=above(0),
            mixup_alpha=above(0),
            cutout_area=between(0, 1),
            videomix_alpha=above(0),
            stillmix_alpha=above(0),
            fame_share=between(0, 1),
        )


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Which of a clip's stored frames a sample shows: ``classifier.frames`` and ``classifier.sampling``."""

    count: int | None = None
    """Frames a sample; None: all that are stored."""
    kind: Sampling = "segments"
    """How they are chosen."""

    def __post_init__(self) -> None:
        check(self, count=lambda count: None if count is None else at_least(1)(count))


ALL_FRAMES = FrameSampling()


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What training does to a sample after it is cropped and flipped."""

    kind: Literal["none", "randaugment"] = "none"
    """`randaugment`: operations of torchvision's RandAugment, drawn once a clip: its frames change alike."""
    num_ops: int = setting(2, only_for=RANDAUGMENT)
    """Operations one after the other. Origin: torchvision's default, the RandAugment paper's for ImageNet."""
    magnitude: int = setting(9, only_for=RANDAUGMENT)
    """How strong they are, 0 to 30. Origin: torchvision's default, the RandAugment paper's for ImageNet."""

    def __post_init__(self) -> None:
        check(self, num_ops=at_least(1), magnitude=within(0, 30))


UNCHANGED = AugmentSettings()
