"""What the parts of a run reserve of a Ray cluster."""

from typing import Literal

from l2a_ray.config.settings import Settings
from l2a_ray.runtime.cluster import Demand, Phase
from l2a_ray.selector.rl.settings import RANDOM

Part = Literal["segment", "classifier", "selector"]


def demands(settings: Settings, *parts: Part) -> list[Phase]:
    """Return what parts of a run reserve, one after the other; without any, what Ray Data's tasks alone need."""
    found: list[Phase] = [[Demand(spare=1)]]
    segment, classifier, selector = settings.segment, settings.classifier, settings.selector
    if "segment" in parts:
        gpus = segment.gpus_per_worker
        found.append([Demand(1, {"GPU": gpus}, {"GPU": ("segment.gpus_per_worker", gpus)})])
    if "classifier" in parts:
        each = {"CPU": classifier.cpus_per_worker, "GPU": classifier.gpus_per_worker}
        names = {"CPU": "classifier.cpus_per_worker", "GPU": "classifier.gpus_per_worker"}
        found.append([Demand(classifier.workers, each, {key: (names[key], each[key]) for key in each}, spare=1)])
    if "selector" in parts and selector.algorithm != RANDOM and set(settings.arm_names) != {"real"}:
        gpus, count = selector.gpus_per_env_runner, selector.env_runners
        fields = {"CPU": ("selector.env_runners", count), "GPU": ("selector.gpus_per_env_runner", gpus)}
        runners = Demand(count, {"CPU": 1, "GPU": gpus}, fields)
        gpus, count = selector.gpus_per_learner, selector.learners
        fields = {"CPU": ("selector.learners", count), "GPU": ("selector.gpus_per_learner", gpus)}
        # RLlib's own rule: a learner reserves a GPU or a CPU, never both.
        found.append([runners, Demand(count, {"CPU": float(not gpus), "GPU": gpus}, fields)])
    return found
