"""What a run will cost: clips, pairs, storage, hours, memory. The arithmetic; what is measured comes from calibrate.

Imports no Ray. Axes: L classes.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from math import exp
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envs.settings import CLIPS_KEPT
from l2a_ray.errors import SettingError
from l2a_ray.pairs.match import Kind
from l2a_ray.selector.rl.settings import RANDOM
from l2a_ray.videos.catalog import Catalog

if TYPE_CHECKING:
    from l2a_ray.config.settings import Settings

FIT_S = {True: 20.0, False: 3.0}
"""Seconds that Ray Train takes to start, with workers of its own and without."""
REPORT_S = 6.0
"""Seconds of `report`."""
STREAM_SHARE = 0.95
"""What Ray Data leaves of a plain loop's throughput (benchmarks/prepare.py)."""
OBJECT_STORE_GIB = 2.0
RESCORED = 0.03
"""Share of the pairs, beyond those kept, that a screen leaves to float32 (benchmarks/scoring.py)."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How long `l2a plan` measures before it estimates."""

    seconds: float = 60
    """About how long the measuring may take, seconds; starting Ray comes on top."""

    videos: int = 64
    """At most this many videos of the data set, drawn evenly, are prepared to measure."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise SettingError("plan.seconds", self.seconds, "must be positive")
        if self.videos < 8:
            raise SettingError("plan.videos", self.videos, "must be at least 8")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured, a unit of each. Seconds unless the name says otherwise."""

    cpus: float  # of the whole cluster
    gpus: float
    session: float  # Ray's start
    worker: float  # a Ray process's start, imports included
    clip: float  # one clip prepared, all CPUs being busy
    failed_share: float
    clip_bytes: float
    worker_gib: float
    real: float  # a real sample made
    composite: float  # a composite made
    step: float  # an SGD step of the classifier with a worker's part of the batch, nothing else at work
    fed_real: float  # the same step, its real samples made beside it by Ray Data
    fed_mixed: float  # with composites among the samples
    stream: float  # a stream of Ray Data started, its processes being there
    predict: float  # a clip read and classified
    feature: float  # a feature of a single clip
    model_bytes: float
    build: float  # the Selector's algorithm built
    env_step: float  # a step of the environment, of RLlib and of the Selector
    score: float  # a pair scored
    screen: float  # a pair scored roughly; 0 where that does not pay
    selector_bytes: float
    pair_bytes: float
    driver_gib: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage takes; hours are of CPUs and GPUs, memory is of one node."""

    wall_s: float
    cpu_hours: float
    gpu_hours: float = 0.0
    memory_gib: float


def count_pairs(train_L: NDArray[np.int64], kind: Kind, neighbour_L: NDArray[np.int64] | None) -> int:
    """Count the candidate pairs as ``match.candidate_pairs`` makes them, if every training clip can be used.

    Args:
        train_L: training clips of each class.
        kind: as ``MatchSettings.kind``.
        neighbour_L: label of each class's neighbour, for the semantic kind.
    """
    if kind == "random":
        others_L = train_L.sum() - train_L
        return int((train_L * -(-others_L // max(1, len(train_L) - 1))).sum())
    if kind == "same_class" or neighbour_L is None:
        return int((train_L * (train_L - 1)).sum())
    return int((train_L * train_L[neighbour_L]).sum())


def train_counts(catalog: Catalog) -> NDArray[np.int64]:
    """Count the training clips of each class (L,)."""
    labels = [video.label for video in catalog.videos if video.split == "train"]
    return np.bincount(labels, minlength=len(catalog.classes)).astype(np.int64)


def estimate(settings: "Settings", catalog: Catalog, pairs: int, costs: Costs) -> dict[str, Any]:
    """Return clips, pairs, storage in bytes, and what each stage takes, as plain values."""
    clips = Counter(video.split for video in catalog.videos)
    runs = len(settings.arm_names) * settings.seeds
    composites = set(settings.arm_names) != {"real"}
    learned = composites and settings.selector.algorithm != RANDOM
    stages = {"prepare": _prepare(settings, clips.total(), costs)}
    if composites:
        stages["match"] = Stage(wall_s=1 + pairs / 2e6, cpu_hours=pairs / 2e6 / 3600, memory_gib=costs.driver_gib)
        if learned:
            stages["train-selector"] = _train_selector(settings, clips, pairs, costs)
        stages["select"] = _select(settings, pairs, costs, learned)
    stages["train"] = _train(settings, clips["train"], costs, list(settings.arm_names) * settings.seeds)
    seconds = runs * clips["test"] * costs.predict
    stages["evaluate"] = Stage(wall_s=seconds, cpu_hours=seconds / 3600, memory_gib=costs.driver_gib)
    stages["report"] = Stage(wall_s=REPORT_S, cpu_hours=REPORT_S / 3600, memory_gib=costs.driver_gib)
    storage = {
        "clip_store": clips.total() * (1 - costs.failed_share) * costs.clip_bytes,
        "pairs": composites * pairs * costs.pair_bytes * (1 + 2 * settings.select.budget),
        "models": (runs + 2 * learned) * costs.model_bytes
        + learned * costs.selector_bytes,  # the Selector keeps its backbone
        "checkpoints_at_most": max(2 * costs.model_bytes, learned * 6 * costs.selector_bytes),
    }
    return {
        "clips": dict(clips) | {"all": clips.total()},
        "pairs": composites * pairs,
        "storage_bytes": {name: round(value) for name, value in storage.items()},
        "stages": {name: asdict(stage) for name, stage in stages.items()},
        "total": {
            "wall_s": sum(stage.wall_s for stage in stages.values()) + costs.session,
            "cpu_hours": sum(stage.cpu_hours for stage in stages.values()),
            "gpu_hours": sum(stage.gpu_hours for stage in stages.values()),
            "memory_gib": max(stage.memory_gib for stage in stages.values()),
            "storage_bytes": round(sum(storage.values())),
        },
        "measured": asdict(costs),
    }


def _prepare(settings: "Settings", clips: int, costs: Costs) -> Stage:
    gpus = settings.segment.gpus_per_worker
    parallel = min(costs.cpus, costs.gpus / gpus if gpus and costs.gpus else costs.cpus)
    seconds = clips * costs.clip / STREAM_SHARE
    return Stage(
        wall_s=costs.worker + costs.stream + seconds / parallel,
        cpu_hours=seconds / 3600,
        gpu_hours=seconds * gpus / 3600,
        memory_gib=costs.driver_gib + parallel * costs.worker_gib,
    )


def _train(settings: "Settings", train_clips: int, costs: Costs, arms: list[str]) -> Stage:
    """A step takes what one of a worker beside its feed does, or what all CPUs take to feed and train all workers."""
    classifier, workers = settings.classifier, max(1, settings.classifier.workers)
    share, gpus = classifier.composite_share, workers * classifier.gpus_per_worker
    own = costs.step * workers * (1 if gpus else classifier.threads)
    wall = cpu = 0.0
    for arm in arms:
        mixed = 0 if arm == "real" else share
        made = classifier.batch_size * (mixed * costs.composite + (1 - mixed) * costs.real)
        steps = classifier.epochs * -(-train_clips // classifier.batch_size)
        fed = costs.fed_mixed if mixed else costs.fed_real
        wall += steps * max(fed, (own + made) / costs.cpus) + costs.stream
        cpu += steps * (own + made)
    return Stage(
        wall_s=wall + FIT_S[classifier.workers > 0],
        cpu_hours=cpu / 3600,
        gpu_hours=wall * gpus / 3600,
        memory_gib=(1 + workers) * costs.driver_gib + costs.cpus * costs.worker_gib + OBJECT_STORE_GIB,
    )


def _train_selector(settings: "Settings", clips: Counter[Any], pairs: int, costs: Costs) -> Stage:
    """The plain classifier, all clips' features, and the environment's steps."""
    warm = _train(settings, clips["train"], costs, [settings.selector.warm_start])
    env, steps, runners = settings.env, settings.selector.steps, max(1, settings.selector.env_runners)
    features = (clips["train"] + clips["val"]) * costs.predict
    new = 0.0
    if env.tune == "head":  # a pair is composited once; half of those drawn are selected
        held = max(1, min(pairs, env.candidates))
        drawn = steps * env.pairs * (0.5 + (env.restart == "step") / env.steps)
        new = held * (1 - exp(-drawn / held)) * (costs.composite + costs.feature)
        new += min(env.validation_clips, clips["val"]) * costs.predict
    learning = new + steps * costs.env_step
    return Stage(
        wall_s=warm.wall_s + features + costs.build + learning * max(1.0, runners / costs.cpus),
        cpu_hours=warm.cpu_hours + (features + learning * runners) / 3600,
        gpu_hours=warm.gpu_hours + learning * runners * settings.selector.gpus_per_env_runner / 3600,
        memory_gib=warm.memory_gib + settings.selector.env_runners * costs.driver_gib + runners * CLIPS_KEPT / 2**30,
    )


def _select(settings: "Settings", pairs: int, costs: Costs, learned: bool) -> Stage:
    score = costs.score if learned else 1e-6
    if learned and costs.screen:
        score = costs.screen + (settings.select.budget + RESCORED) * costs.score
    return Stage(
        wall_s=costs.stream + pairs * score / costs.cpus,
        cpu_hours=pairs * score / 3600,
        memory_gib=costs.driver_gib + costs.cpus * costs.worker_gib,
    )


def tell(plan: dict[str, Any]) -> list[str]:
    """Return a plan as lines to read."""
    size = {name: f"{value / 2**30:.2f} GiB" for name, value in plan["storage_bytes"].items()}
    rows = {**plan["stages"], "in all": plan["total"]}
    table = pd.DataFrame.from_dict(rows, orient="index")[list(Stage.__dataclass_fields__)]
    table["wall_s"] = [_time(seconds) for seconds in table["wall_s"]]
    table.columns = ["wall time", "CPU hours", "GPU hours", "GiB a node"]
    return [
        f"{plan['clips']['all']:,} clips, {plan['pairs']:,} candidate pairs",
        "storage: " + ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in size.items()),
        *table.to_string(float_format="{:.2f}".format).splitlines(),
        *(f"- {line}" for line in plan["assumptions"]),
    ]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def assumptions(settings: "Settings", costs: Costs) -> list[str]:
    """Say in sentences what an estimate rests on."""
    lines = [
        f"parallel: {costs.cpus:g} CPUs and {costs.gpus:g} GPUs, what Ray has now; measured on one node, with whatever "
        "else runs on it",
        "not in it: downloads, checking, export, queues, a cluster's start, slower storage than the run folder's",
        f"{costs.failed_share:.0%} of the sampled videos could not be used; pairs are counted as if all could be",
    ]
    if settings.env.tune == "head":
        lines.append("the Selector selects half of what it is shown, and each pair is composited once")
    if settings.selector.algorithm not in ("REINFORCE", RANDOM):
        lines.append(f"{settings.selector.algorithm} is taken to cost what REINFORCE does")
    if not costs.gpus and (settings.classifier.gpus_per_worker or settings.segment.gpus_per_worker):
        lines.append(
            "THE SETTINGS ASK FOR GPUs AND THERE ARE NONE HERE: measured on CPUs, far slower than the run will be"
        )
    return lines
