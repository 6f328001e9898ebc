"""What a run will cost: its stages are really made on two samples of the data, and the costs of each extrapolated."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.config.settings import Settings
from l2a_ray.errors import owned_by
from l2a_ray.pairs.match import nearest_neighbours
from l2a_ray.pairs.names import embed_names
from l2a_ray.pairs.settings import MatchSettings
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.housekeeping import size_text, time_text
from l2a_ray.pipeline.results import closure
from l2a_ray.pipeline.stage import Stage
from l2a_ray.planning.counts import Counts, Line, count_clips, count_pairs, fit, train_counts
from l2a_ray.planning.sample import Chosen, Sample, Targets, answers, measure, sample_data, sample_settings
from l2a_ray.storage.files import AnyPath, remove_folder
from l2a_ray.videos.catalog import Catalog, read_catalog
from l2a_ray.videos.settings import DataSettings

TIMES = (1, 3)
"""Sizes of the two samples, in units of what the settings ``plan`` say."""
Plan = dict[str, Any]


@dataclass
class Part:
    """Stages of which samples are made together, because they differ in size alone.

    Args:
        pipeline: the run that is sampled, with one repetition.
        targets: which of its stages are made of a sample.
        stages: all of the part, with the run that each belongs to.
        needed: those of them that are not complete.
    """

    pipeline: Pipeline
    targets: Targets
    stages: list[tuple[Pipeline, Stage]]
    needed: set[Stage]


def make_plan(settings: Settings) -> Plan:
    """Measure two samples of a run, the second of three times the size, and return the plan as plain values.

    Each sample has a store and a run of its own in the run's folder, which are removed at the end.

    Raises:
        L2AError: the data cannot be used; or as the stages' work, on a sample.
    """
    pipeline = Pipeline(settings)
    targets = pipeline.answers
    stages = [(pipeline, stage) for stage in closure(targets)]
    part = Part(pipeline, answers, stages, set(pipeline.results.needed(targets)))
    return plan_parts([part], settings.folder)


def plan_parts(parts: Sequence[Part], folder: AnyPath) -> Plan:
    """Measure two samples of each part, the second of three times the size; return the plan of all as plain values.

    What parts share is made once of a sample too. Clips and pairs are those of the largest data set.

    Args:
        parts: at least one.
        folder: samples lie in there, and are removed at the end.

    Raises:
        L2AError: the data cannot be used; or as the stages' work, on a sample.
    """
    count = _Counter()
    place = folder / f".plan-{uuid4().hex[:8]}"
    chosen: list[list[Chosen]] = []
    for times in TIMES:
        chosen.append([])
        for number, part in enumerate(parts):
            settings = part.pipeline.settings
            # One choice for all: samples reserve no GPU.
            settings = replace(settings, segment=part.pipeline.prepare.clips.segment)
            size = count(sample_data(settings, times), settings.match)
            name = f"sample{number}"
            chosen[-1].append((sample_settings(settings, size, times, place / str(times), name), size, part.targets))
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            measured = list(pool.map(measure, chosen))
    finally:
        remove_folder(place)
    plans = [_plan_part(part, first, second, count) for part, first, second in zip(parts, *measured, strict=True)]
    plan = _sum([one for own in plans for one in own], measured[-1][0])
    largest = max(range(len(parts)), key=lambda number: count.of(parts[number].pipeline).clips)
    settings, sample = parts[largest].pipeline.settings, measured[-1][largest]
    plan["memory_bytes"] = memory(settings, count.of(parts[largest].pipeline), sample.values)
    plan["sample_peak_bytes"] = sample.peak
    needed = [stage for part in parts for stage in part.needed]
    sizes = [sampled[largest][1] for sampled in chosen]
    plan["assumptions"] = _assumptions(plan, needed, sizes, [own[largest] for own in measured])
    return plan


class _Counter:
    """Counts clips and pairs; reads a list of videos once."""

    def __init__(self) -> None:
        self._catalogs: dict[str, Catalog] = {}
        self._counts: dict[str, Counts] = {}

    def __call__(self, data: DataSettings, match: MatchSettings) -> Counts:
        if repr(data) not in self._catalogs:
            self._catalogs[repr(data)] = _catalog(data)
        catalog, about = self._catalogs[repr(data)], repr((data, match))
        if about not in self._counts:
            self._counts[about] = _count(catalog, match, _neighbours(catalog.classes, match))
        return self._counts[about]

    def of(self, pipeline: Pipeline) -> Counts:
        """Count what a run has."""
        return self(pipeline.settings.data, pipeline.settings.match)


def _plan_part(part: Part, first: Sample, second: Sample, count: _Counter) -> Iterator[Plan]:
    """Yield a plan for each size that stages of a part have."""
    sizes: dict[Counts, list[Stage]] = {}
    for pipeline, stage in part.stages:
        sizes.setdefault(count.of(pipeline), []).append(stage)
    for counts, stages in sizes.items():
        yield estimate(stages, [stage for stage in stages if stage in part.needed], counts, first, second)


def _sum(plans: Sequence[Plan], sample: Sample) -> Plan:
    """Return one plan for all."""
    stages: dict[str, Plan] = {}
    for plan in plans:
        for name, one in plan["stages"].items():
            known = stages.setdefault(name, {"results": 0, "missing": 0} | dict.fromkeys(COLUMNS, 0.0) | {"size": -1})
            largest = max(known, one, key=lambda about: about["size"])
            known |= {key: known[key] + one[key] for key in ("results", "missing", *COLUMNS)}
            known |= {key: largest[key] for key in ("size", "measured")}
    totals: dict[str, float] = {key: sum(stage[key] for stage in stages.values()) for key in COLUMNS}
    totals["wall_s"] += sample.start if any(stage["missing"] for stage in stages.values()) else 0
    clips = max((plan["clips"] for plan in plans), key=lambda clips: sum(clips.values()))
    pairs = max(plan["pairs"] for plan in plans)
    return {"clips": clips, "pairs": pairs, "stages": stages, "total": totals}


def _catalog(data: DataSettings) -> Catalog:
    with owned_by("data"):
        return read_catalog(data)


def _neighbours(classes: Sequence[str], match: MatchSettings) -> NDArray[np.int64] | None:
    """Return the label of each class's nearest neighbour by name, where pairs are made of those."""
    if match.kind != "semantic":
        return None
    with owned_by("match.embedding"):
        return nearest_neighbours(embed_names(classes, match.embedding))[0]


def _count(catalog: Catalog, match: MatchSettings, neighbours: NDArray[np.int64] | None) -> Counts:
    return count_clips(catalog, count_pairs(train_counts(catalog), match.kind, neighbours))


def estimate(stages: Sequence[Stage], needed: Sequence[Stage], counts: Counts, first: Sample, second: Sample) -> Plan:
    """Extrapolate time and storage of each stage from two samples.

    Args:
        stages: of the run.
        needed: those of them that are not complete.
        counts: of the run.
        first: the smaller sample.
        second: the larger sample.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(stage.name for stage in stages):
        before, after = (_means(sample, name) for sample in (first, second))
        missing = [stage for stage in needed if stage.name == name]
        sizes = [stage.size(counts) for stage in missing]
        seconds, room = (
            fit((before["size"], before[key]), (after["size"], after[key])) for key in ("seconds", "bytes")
        )
        wall = sum(map(seconds.at, sizes))
        found[name] = {
            "results": sum(stage.name == name for stage in stages),
            "missing": len(missing),
            "wall_s": wall,
            "cpu_hours": wall * second.cpus / 3600,
            "gpu_hours": wall * second.gpus / 3600 if any(map(_asks_for_gpus, missing)) else 0.0,
            "storage_bytes": sum(map(room.at, sizes)),
            "size": max(sizes, default=0),
            "measured": [before, after],
        }
    totals: dict[str, float] = {key: sum(stage[key] for stage in found.values()) for key in COLUMNS}
    totals["wall_s"] += second.start if needed else 0
    clips = {"train": counts.train, "val": counts.val, "test": counts.test}
    pairs = counts.pairs if "match" in found else 0
    return {"clips": clips, "pairs": pairs, "stages": found, "total": totals}


COLUMNS = {"wall_s": "wall time", "cpu_hours": "CPU hours", "gpu_hours": "GPU hours", "storage_bytes": "storage"}


def _means(sample: Sample, name: str) -> dict[str, float]:
    """Return what a result of a stage is and took in a sample, on average."""
    results = [result for result in sample.results if result.stage == name]
    return {key: mean(getattr(result, key) for result in results) for key in ("size", "seconds", "bytes")}


def _line(before: Plan, after: Plan, cost: str) -> Line:
    return fit((before["size"], before[cost]), (after["size"], after[cost]))


def _asks_for_gpus(stage: Stage) -> bool:
    return any(demand.each.get("GPU", 0) for phase in stage.demands() for demand in phase)


def memory(settings: Settings, counts: Counts, values: int) -> dict[str, float]:
    """Return by name the bytes of what grows with the data, and of what settings say.

    Args:
        settings: of the run.
        counts: of the run.
        values: numbers that describe a clip to a Selector, F + L; 0: nothing describes it.
    """
    clips, kept = counts.train + counts.val, settings.select.budget * counts.pairs
    candidates = min(settings.env.candidates, counts.pairs)
    features = values if settings.env.tune == "head" else 0
    found = {
        # ids of 16 characters; rows of real clips; of each pair two rows and its place in a shuffle
        "a training's schedule": 16 * counts.clips + 4 * counts.train + 12 * kept,
        # a logit and a row number each, of up to twice the pairs that are kept
        "pairs kept while they are scored": 2 * 12 * kept,
        "object store": settings.runtime.object_store_gib * 2**30,
    }
    if values:
        found |= {
            "clips' vectors, in each process that reads them": 4 * clips * values,
            "halves of the Selector's first layer, at most": 2 * 4 * clips * settings.selector.hidden[0],
            "candidates of an env runner": candidates * (8 + 4 * features),
            "clips kept by an env runner, at most": settings.env.clip_memory,
        }
    return found


def _assumptions(plan: Plan, needed: Sequence[Stage], sizes: Sequence[Counts], samples: Sequence[Sample]) -> list[str]:
    """Say in sentences what the plan rests on."""
    larger, stages = samples[-1], plan["stages"]
    complete = sum(stage["results"] - stage["missing"] for stage in stages.values())
    sentences = [
        f"measured with the {larger.cpus:g} CPUs and {larger.gpus:g} GPUs that Ray has now, beside whatever else they "
        "do; hours are of all CPUs and, in stages that ask for GPUs, of all GPUs: a run holds them",
        f"{larger.failed} of {sizes[-1].clips} sampled videos could not be used; clips and pairs are counted as if all "
        "could be",
        "not in it: downloads, queues, a cluster's start, the report, preview, export and recommend.retrain",
    ]
    if complete:
        sentences.append(f"{complete} results are complete already and not counted")
    if flat := [name for name, stage in stages.items() if _is_flat(stage)]:
        sentences.append(
            f"no growth could be measured of {', '.join(flat)}: taken as constant. Larger samples tell more "
            "(plan.clips_per_class, plan.steps, plan.iterations)"
        )
    if "pseudo-label" in stages:
        sentences.append(
            "clips that get a pseudo-label are not counted as training clips: pairs, and whatever grows with them and "
            "with training clips, grow with what is kept"
        )
    if sizes[0].clips < 4 * larger.cpus:
        sentences.append(
            f"{sizes[0].clips} clips do not keep {larger.cpus:g} CPUs busy, so the time of prepare is rough. Raise "
            "plan.clips_per_class"
        )
    if not larger.gpus and any(map(_asks_for_gpus, needed)):
        sentences.append(
            "THE SETTINGS ASK FOR GPUs AND THERE ARE NONE HERE: measured on CPUs, far slower than the run will be"
        )
    return sentences


def _is_flat(stage: Plan) -> bool:
    """Return whether a stage of the run is larger than the samples', and theirs took no longer for being larger."""
    before, after = stage["measured"]
    return bool(stage["size"] > after["size"] > before["size"] and after["seconds"] <= before["seconds"])


def tell(plan: Plan) -> list[str]:
    """Return a plan as lines to read."""
    rows = {**plan["stages"], "in all": plan["total"]}
    table = pd.DataFrame.from_dict(rows, orient="index")[list(COLUMNS)]
    table["wall_s"] = [time_text(seconds) for seconds in table["wall_s"]]
    table["storage_bytes"] = [size_text(size) for size in table["storage_bytes"]]
    return [
        f"{sum(plan['clips'].values()):,} clips, {plan['pairs']:,} candidate pairs",
        *table.rename(columns=COLUMNS).to_string(float_format="{:.2f}".format).splitlines(),
        "memory at this size:",
        *(f"  {name}: {size_text(size)}" for name, size in plan["memory_bytes"].items()),
        f"  the command's own process had {size_text(plan['sample_peak_bytes'])} at most on the larger sample",
        *(f"- {sentence}" for sentence in plan["assumptions"]),
    ]
