"""Cross-entropy on labelled clips and on composites (paper, 4.2)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.methods.base import Batch
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings
from l2a_ray.classifier.step import soft_cross_entropy
from l2a_ray.composites.schedule import COMPOSITES, REAL, Stream


class Supervised:
    """Real clips and, in their share of each batch, composites; the network itself is the result."""

    def __init__(self, settings: ClassifierSettings, network: Network) -> None:
        self._share = settings.composite_share

    def streams(self, data: TrainingData) -> Sequence[Stream]:
        """Return the composites, if there are pairs, and the real clips, which fill what is left of each batch."""
        real = Stream(REAL, data.real)
        return [real] if data.pairs is None else [Stream(COMPOSITES, data.pairs, self._share), real]

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Return the mean cross-entropy to the label distributions."""
        return soft_cross_entropy(model(batch.clips), batch.labels)

    def after_step(self, network: Network) -> None:
        """Nothing follows a step."""

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing: there is no state beside the network's."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to go back to."""

    def predictor(self, network: Network) -> Network:
        """Return the network."""
        return network
