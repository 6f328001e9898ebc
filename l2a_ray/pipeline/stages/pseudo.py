"""Clips without labels that bear a classifier's guess for one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from l2a_ray.classifier.files import MODEL
from l2a_ray.classifier.settings import PseudoSettings
from l2a_ray.pipeline import demands
from l2a_ray.pipeline.stage import Inputs
from l2a_ray.pipeline.stages.clips import Clips, Prepare, SeededStage, open_store
from l2a_ray.pipeline.stages.selection import WarmStart
from l2a_ray.storage.files import AnyPath

if TYPE_CHECKING:
    from l2a_ray.planning.counts import Counts


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoLabel(SeededStage, Clips):
    """The clips of the data set, those that a warm start is sure of with its guess as their label."""

    name: ClassVar[str] = "pseudo-label"
    prepare: Prepare
    warm_start: WarmStart
    pseudo: PseudoSettings

    def reserves(self) -> Mapping[str, float]:
        return demands.network(self.warm_start.workers)

    def size(self, counts: "Counts") -> float:
        return counts.unlabelled * self.pseudo.views

    def work(self, inputs: Inputs, out: AnyPath) -> None:
        from l2a_ray.classifier.pseudo import write_pool
        from l2a_ray.runtime.progress import Bar

        store, model = open_store(inputs, self.prepare), inputs.folder(self.warm_start) / MODEL
        with Bar(total=len(store.rows("unlabelled")), desc=self.title, unit="clip") as bar:
            write_pool(store, model, self.warm_start.warm_start.classifier, self.pseudo, out, bar.update)
