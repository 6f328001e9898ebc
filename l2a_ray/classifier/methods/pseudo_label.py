"""Pseudo-labels: what the network is sure of is learned as if it were true, of the same view.

Lee 2013, with the threshold and the ramp of USB (semilearn/algorithms/pseudolabel of
https://github.com/microsoft/Semi-supervised-learning). VideoSSL (https://arxiv.org/abs/2003.00197) is the same without
a ramp and with a teacher's opinion distilled; its threshold and weights are not published: ours.
"""

from collections.abc import Sequence

from torch import Tensor

from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.learner import Seen
from l2a_ray.classifier.methods.losses import masked_cross_entropy
from l2a_ray.classifier.methods.semi import SemiSupervised


class PseudoLabel(SemiSupervised):
    """(1 / B) sum 1[max p >= threshold] CE(z, argmax p) over the unlabelled clips; no gradient through p."""

    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy to the guesses that are kept."""
        label, kept = self.guess(seen[1].logits)
        return masked_cross_entropy(seen[1].logits, label, kept)
