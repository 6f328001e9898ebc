"""Temporal Contrastive Learning (https://arxiv.org/abs/2102.02751): a clip is the same at two speeds.

Losses and numbers are those of https://github.com/CVIR/TCL (main.py, README).

Axes: B clips in a batch, T time, L classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.learner import Seen
from l2a_ray.classifier.methods.losses import masked_cross_entropy, nt_xent
from l2a_ray.classifier.methods.semi import SemiSupervised

LAST = 0.125
"""Share of the steps, at the end, that learn pseudo-labels: 50 of 400 epochs."""


class TCL(SemiSupervised):
    """The probabilities of a slow view, of half as many frames, must find those of the fast view among all clips'.

    A slow view has a crop of its own, and one frame, drawn, of each two that the fast one has: both views of a sample
    show the same frames here, so its frames are not drawn from the whole video anew.
    """

    views = ("weak", "weak")
    needs_clips = True

    def parts(self, labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> list[Tensor]:
        """Return labelled clips, fast views, and slow ones of half the frames."""
        fast, slow = unlabelled
        frames = slow.clips.shape[1]
        pairs = torch.arange(0, max(1, frames - 1), 2)
        times = (pairs + torch.randint(2, pairs.shape)).clamp(max=frames - 1)
        return [labelled[0].clips, fast.clips, slow.clips[:, times.to(slow.clips.device)]]

    def parts_loss(
        self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch], done: float
    ) -> Tensor:
        """Return the labelled loss plus, after the warm-up, both contrasts and, at the end, that of pseudo-labels."""
        loss = self.labelled_loss(seen[0].logits, labelled[0])
        fast, slow = seen[1].logits, seen[2].logits
        label, kept = self.guess(fast)
        if done < 1 - LAST:
            return loss + self.weight(done) * self.unlabelled_loss(seen, labelled, unlabelled)
        # The slow view plays no part, but workers that share a step must all have a gradient of all that is seen.
        return loss + self.weight(done) * masked_cross_entropy(fast, label, kept) + 0 * slow.sum()

    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return the contrast between clips and that between classes."""
        fast, slow = (one.logits.softmax(dim=1) for one in seen[1:])
        fast = fast.detach()
        return self.semi.instance * nt_xent(fast, slow) + self.semi.group * group_contrast(fast, slow)


def group_contrast(fast_BL: Tensor, slow_BL: Tensor) -> Tensor:
    """Return the contrast between the mean probabilities of the classes that clips of both views are taken for."""
    groups = [(fast_BL.argmax(dim=1) == label, slow_BL.argmax(dim=1) == label) for label in range(fast_BL.shape[1])]
    groups = [(one, other) for one, other in groups if one.any() and other.any()]
    if not groups:
        return 0 * slow_BL.sum()
    means = [(fast_BL[one].mean(dim=0), slow_BL[other].mean(dim=0)) for one, other in groups]
    return nt_xent(torch.stack([one for one, _ in means]), torch.stack([other for _, other in means]))
