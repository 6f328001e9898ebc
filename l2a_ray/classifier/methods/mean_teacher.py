"""Mean Teacher (https://arxiv.org/abs/1703.01780): agree with the average of your own weights on another view.

Numbers are those of https://github.com/CuriousAI/mean-teacher (pytorch), but for the weight and the ramp.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.methods.learner import Average, Seen, look, still_statistics
from l2a_ray.classifier.methods.semi import SemiSupervised
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.errors import SettingError


class MeanTeacher(SemiSupervised):
    """Mean over all clips, labelled ones too, and classes of (p(student) - p(teacher))^2; the teacher is the result.

    Each sample has two weak views, one for each. The teacher normalises a batch by the batch's own statistics, as its
    authors' does; the running statistics that it ends with are the student's.
    """

    views = ("weak", "weak")
    labelled_views = 2

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        super().__init__(settings, network)
        if self.average is None:
            raise SettingError("semi.ema", 0, "leaves method mean_teacher no teacher: must be above 0")
        self._teacher: Average = self.average

    def parts(self, labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> list[Tensor]:
        """Return the first views; the second ones are the teacher's."""
        return [labelled[0].clips, unlabelled[0].clips]

    def growth(self, share: float) -> float:
        """Return exp(-5 (1 - x)^2)."""
        return math.exp(-5 * (1 - share) ** 2)

    def unlabelled_loss(self, seen: Sequence[Seen], labelled: Sequence[Batch], unlabelled: Sequence[Batch]) -> Tensor:
        """Return the mean squared difference."""
        teacher = self._teacher.network.train()
        with torch.no_grad(), still_statistics(teacher):
            target = look(teacher, torch.cat([labelled[1].clips, unlabelled[1].clips])).logits.softmax(dim=1)
        return nn.functional.mse_loss(torch.cat([one.logits for one in seen]).softmax(dim=1), target)
