"""S4L with rotation (https://arxiv.org/abs/1905.03670): tell by which quarter turn a clip was rotated.

Numbers are those of https://github.com/google-research/s4l (config/s4l_rotation.sh). The paper does not say which of
its tasks Table 3 has, nor how a clip is turned; all frames of a clip by one angle, after the crop: ours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.learner import Seen, add_head
from l2a_ray.classifier.methods.semi import SemiSupervised
from l2a_ray.classifier.network import Network

ROTATION = "rotation"


def quarter_turns(clips_BTHWC: Tensor) -> Tensor:
    """Return clips turned by 0, 1, 2 and 3 quarters, (4 B, T, H, W, C): all as they are first, then all turned once."""
    return torch.cat([torch.rot90(clips_BTHWC, turns, dims=(2, 3)) for turns in range(4)])


class S4L(SemiSupervised):
    """Labels are learned from all four turns, and the turns from labelled and unlabelled clips, by a head of four."""

    needs_clips = True

    def add_heads(self, network: Network) -> None:
        """Add the head that tells turns apart."""
        add_head(network, ROTATION, 4)

    def parts(self, labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> list[Tensor]:
        """Return all turns."""
        return [quarter_turns(part[0].clips) for part in (labelled, unlabelled)]

    def parts_loss(
        self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch], done: float
    ) -> Tensor:
        """Return the mean cross-entropy of the labels over the turns, plus that of the turns over all clips."""
        first = labelled[0]
        turned = first.rows(np.tile(np.arange(len(first.clips)), 4))
        loss = self.labelled_loss(seen[0].logits, turned)
        return loss + self.weight(done) * self.unlabelled_loss(seen, labelled, unlabelled)

    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return the mean cross-entropy of the turns."""
        said = torch.cat([one.others[ROTATION] for one in seen])
        turns = torch.cat([torch.arange(4, device=said.device).repeat_interleave(len(one.logits) // 4) for one in seen])
        return nn.functional.cross_entropy(said, turns)
