"""What clips are made with."""

import hashlib
import json
from dataclasses import dataclass, field, replace

from l2a_ray.fields import relevant, setting
from l2a_ray.prepare.inpaint.settings import InpaintSettings
from l2a_ray.prepare.segment.settings import SegmentSettings
from l2a_ray.videos.settings import DecodeSettings

MAKER = 2
"""Raised when the same video and settings give another clip than before."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What clips are made with."""

    decode: DecodeSettings = field(default_factory=DecodeSettings)
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    inpaint: InpaintSettings = field(default_factory=InpaintSettings)
    max_failures: int = setting(3, execution=True)
    """``data.max_failures``."""

    @property
    def key(self) -> str:
        """16 hex digits that stand for all that a video's clip depends on besides the video and its masks' files.

        Clips of one key lie in one folder, whatever data set, split or run they are made for.
        """
        # Not the folder of masks: what is in a mask's file is part of its clip's name.
        segment = replace(self.segment, masks=None)
        uses = {"decode": relevant(self.decode), "segment": relevant(segment), "inpaint": relevant(self.inpaint)}
        return hashlib.blake2b(json.dumps([MAKER, uses], sort_keys=True).encode(), digest_size=8).hexdigest()
