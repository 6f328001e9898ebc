"""ActorCutMix (https://arxiv.org/abs/2103.16165): FixMatch, whose strong view may be an actor before another clip.

Numbers are those of https://github.com/vt-vl-lab/video-data-aug. Axes: B clips, T time, H height, W width, C channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.fixmatch import FixMatch
from l2a_ray.classifier.methods.learner import Seen
from l2a_ray.classifier.methods.losses import masked_cross_entropy
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings


class ActorCut(FixMatch):
    """In a share of the steps the strong views are weak ones, but outside the boxes around people the mirrored clip.

    The clip at the mirrored place of the batch gives the background, and its target a share of the label, also if it is
    not sure of it. Its own people are not removed.
    """

    views = ("weak", "strong_in_time")
    boxes = True
    needs_clips = True

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        super().__init__(settings, network)
        self._shares: Tensor | None = None

    def parts(self, labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> list[Tensor]:
        """Return labelled clips, weak views and, as chance has it, cut or strong views."""
        weak, strong = unlabelled
        self._shares = None
        if torch.rand(()).item() >= self.semi.cut:
            return [labelled[0].clips, weak.clips, strong.clips]
        assert weak.boxes is not None, "its stream has boxes"
        clips, self._shares = cut_actors(weak.clips, weak.boxes)
        return [labelled[0].clips, weak.clips, clips]

    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return FixMatch's, or that of the cut views to the mixed targets of those whose actor's clip is kept."""
        if self._shares is None:
            return super().unlabelled_loss(seen, labelled, unlabelled)
        label, kept = self.guess(seen[1].logits)
        hard = nn.functional.one_hot(label, seen[1].logits.shape[1]).float()
        target = hard if self.semi.targets == "hard" else self.sharpened(seen[1].logits)
        share = self._shares[:, None]
        return masked_cross_entropy(seen[2].logits, share * target + (1 - share) * target.flip(0), kept)


def cut_actors(clips_BTHWC: Tensor, boxes_BTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return clips with all but the boxes taken from the clip at the mirrored place, and each one's share of the label.

    The share is 1 - (1 - r)^4, where r is the share of the pixels in boxes. Clips without a box or all in boxes, and
    the middle of an odd batch, stay as they are, and their share is 1.
    """
    ratio = boxes_BTHW.float().mean(dim=(1, 2, 3))
    own = torch.arange(len(ratio), device=ratio.device)
    whole = (ratio == 0) | (ratio == 1) | (own == own.flip(0))
    stays = boxes_BTHW | whole[:, None, None, None]
    share = torch.where(whole, torch.ones_like(ratio), 1 - (1 - ratio) ** 4)
    return torch.where(stays[..., None], clips_BTHWC, clips_BTHWC.flip(0)), share
