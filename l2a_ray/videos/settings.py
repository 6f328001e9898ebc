"""The settings of the videos; apart from the code, so that reading them loads nothing that reads or draws videos."""

from dataclasses import dataclass
from typing import Literal

from l2a_ray.errors import SettingError
from l2a_ray.fields import Rule, at_least, between, check, setting, within
from l2a_ray.videos.published import SETS

MIN_SIDE = 16  # pixels; a narrower picture shows no action


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the videos are and how they are split."""

    root: str = ""
    """Folder of the data set."""
    layout: Literal["folder", "jhmdb", "ucf101", "hmdb51", "kinetics100", "kinetics400"] = "folder"
    """How it is laid out: `<root>/<class>/*` or `<root>/{train,val,test}/<class>/*` (`folder`), or a data set as it is
    published; the clips of UCF101, HMDB51 and Kinetics are found by their names, and need not all be there."""
    split: Literal[1, 2, 3] = setting(1, only_for={"layout": ["jhmdb", "ucf101", "hmdb51"]})
    """Which of the three published splits of J-HMDB, UCF101 or HMDB51; other layouts have one."""
    labelled_share: float = 1.0
    """Share of the training clips whose labels are used. As VideoSSL published it for split 1: 0.05, 0.1, 0.2 or 0.5 of
    UCF101 and Kinetics-100; 0.4, 0.5 or 0.6 of HMDB51. Of a `folder` and of `jhmdb` any, drawn by `data.seed`: whole
    source videos, of each class at least one clip (ours). 1: all."""
    unlabelled: Literal["leave_out", "keep"] = "leave_out"
    """The training clips whose labels are not used: left out, or kept for [methods](methods.md) that learn from clips
    without labels, and for pseudo-labels (`pseudo.rounds`). Their labels serve for figures alone."""
    labels: str | None = setting(None, content=True)
    """Text file with a class name a line: these classes alone are used, in this order (default: all, sorted)."""
    val_fraction: float = 0.2
    """Share of each class's training clips cut off as D_val, where no val folder is given (ours)."""
    test_fraction: float = setting(0.2, only_for={"layout": ["folder"]})
    """Share of each class's clips drawn as test part, where no test folder is given (ours)."""
    seed: int = 0
    """Seed by which parts that the data set does not publish are drawn; the repetitions (`seeds`) share them."""
    limit: int | None = None
    """At most so many clips of each class in each part, drawn evenly by `data.seed`, to try a whole run on little data
    first; a larger limit draws the same clips and more. None: all (ours)."""
    max_failures: int = setting(3, execution=True)
    """How many processes may die while they prepare the same video before it is given up (ours)."""

    def __post_init__(self) -> None:
        check(self, max_failures=at_least(0), val_fraction=between(0, 1), test_fraction=between(0, 1))
        if self.limit is not None and self.limit < 1:
            raise SettingError("limit", self.limit, "must be at least 1, or null for all clips")
        published = SETS.get(self.layout)
        if published and self.split > published.splits:
            raise SettingError("split", self.split, f"must be 1 for {self.layout}")
        shares = (*(published.shares if published and self.split == 1 else ()), 1)
        if published is None:
            rule = within(0, 1)
            check(self, labelled_share=lambda share: rule(share) or ("must be above 0" if not share else None))
        elif self.labelled_share not in shares:
            allowed = ", ".join(map(str, shares))
            reason = f"must be {allowed} for split {self.split} of {self.layout}"
            raise SettingError("labelled_share", self.labelled_share, reason)


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How many frames are taken from a video, and how large they are."""

    frames: int = 8
    """Frames a clip, at uniform times over the whole video (paper, section 5.1)."""
    spacing: Literal["frames", "time"] = "frames"
    """`frames`: every so many frames of the file; `time`: every so many seconds, which is another thing where the frame
    rate varies, as in recordings of phones and screens. Ours."""
    size: int = 128
    """Short side of a frame in pixels, aspect kept; at least `classifier.crop` (ours: room for the 112 x 112 crops of
    section 5.1)."""
    borders: Literal["keep", "cut"] = "keep"
    """`cut`: what is black on two opposite sides in all frames, as in films on television and upright phone video in a
    wide frame, is cut off before resizing; such a file is decoded twice. Ours."""
    border_level: int = setting(24, only_for={"borders": ["cut"]})
    """Up to which red, green and blue count as black, 0 to 255 (FFmpeg's cropdetect has 24)."""

    def __post_init__(self) -> None:
        check(
            self,
            frames=at_least(2, "frames: motion needs two"),
            size=at_least(MIN_SIDE, "pixels"),
            border_level=within(0, 255),
        )


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """The demo's data set."""

    width: int = 80
    """Width of a video in pixels, even. Ours."""
    height: int = 72
    """Height of a video in pixels, even. Ours."""
    frames: int = 24
    """Frames a video. Ours."""
    rate: int = 12
    """Frames per second. Ours."""
    train_per_class: int = 40
    """Training videos in each class's folder, bad ones included. Ours."""
    test_per_class: int = 20
    """Test videos of each class. Ours."""
    correlation: float = 0.9
    """Share of a class's training videos that show its own scene, in [0, 1]; the others are drawn from the rest."""
    wrong_label_share: float = 0.15
    """Share of a class's training videos that show the next class's action, as an annotator who takes one action for
    another leaves them. Ours."""
    lost_share: float = 0.05
    """Share of a class's training videos whose actor is hard to see, so that segmenters lose it. Ours."""

    def __post_init__(self) -> None:
        share = within(0, 1)
        check(
            self,
            width=_even_from(32),
            height=_even_from(32),
            frames=at_least(8),
            rate=at_least(1),
            train_per_class=at_least(1),
            test_per_class=at_least(1),
            correlation=share,
            wrong_label_share=share,
            lost_share=share,
        )
        if self.wrong_label_share + self.lost_share > 1:
            reason = f"must be at most 1 together with wrong_label_share={self.wrong_label_share}"
            raise SettingError("lost_share", self.lost_share, reason)


def _even_from(low: int) -> Rule:
    return lambda side: f"must be even (yuv420p) and at least {low}" if side < low or side % 2 else None
