"""FixMatch (https://arxiv.org/abs/2001.07685): a guess from a weak view is learned from a strong view.

Numbers are those of https://github.com/kekmodel/FixMatch-pytorch. With soft targets it is UDA
(https://arxiv.org/abs/1904.12848), as ActorCutMix's code has it.
"""

from collections.abc import Sequence

from torch import Tensor

from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.learner import Seen
from l2a_ray.classifier.methods.losses import masked_cross_entropy
from l2a_ray.classifier.methods.semi import SemiSupervised


class FixMatch(SemiSupervised):
    """(1 / B) sum 1[max p(weak) >= threshold] CE(z(strong), target(weak)) over the unlabelled clips."""

    views = ("weak", "strong")

    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy of the strong views to the targets that are kept."""
        label, kept = self.guess(seen[1].logits)
        target = label if self.semi.targets == "hard" else self.sharpened(seen[1].logits)
        return masked_cross_entropy(seen[2].logits, target, kept)

    def sharpened(self, logits_BL: Tensor) -> Tensor:
        """Return UDA's targets, float (B, L)."""
        return (logits_BL.detach() / self.semi.temperature).softmax(dim=1)
