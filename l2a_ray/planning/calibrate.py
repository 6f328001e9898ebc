"""Measuring on this machine what a run is made of: a sample of the videos really prepared, a few steps really taken.

Axes: N clips, B pairs or clips in a batch.
"""

import io
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray
from ray.util import placement_group, remove_placement_group

from l2a_ray.classifier.evaluation import best_device, read_clips
from l2a_ray.classifier.feed import Source, feed
from l2a_ray.classifier.network import Network, save_network
from l2a_ray.classifier.step import make_optimizer, predict, train_step
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.schedule import BatchPlan, stack
from l2a_ray.config.settings import Settings
from l2a_ray.errors import DatasetError
from l2a_ray.pairs.match import candidate_pairs
from l2a_ray.planning.plan import Costs
from l2a_ray.prepare.inpaint.fill import build_inpainter
from l2a_ray.prepare.job import PrepareSettings, Row, prepare_or_fail
from l2a_ray.prepare.segment import build_segmenter
from l2a_ray.prepare.store import FAILED_COLUMNS, INDEX_DTYPES, ClipStore, clip_path, write_index
from l2a_ray.runtime.nodes import resources
from l2a_ray.runtime.session import ray_session
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.settings import RANDOM
from l2a_ray.selector.rl.training import SelectorTraining, begin, build_algorithm, sample_and_learn
from l2a_ray.selector.scoring import BATCH, Scorer, make_screen, pair_scorer, worth_screening
from l2a_ray.videos.catalog import Catalog

VALIDATION = 32  # clips of D_val while measuring; the time of more of them is in proportion
PAIRS = 32
MOST = 200  # times that something is done
SCORED = 16 * BATCH


def measure(
    settings: Settings, parts: PrepareSettings, catalog: Catalog, neighbours: NDArray[np.int64] | None, pairs: int
) -> Costs:
    """Measure for about ``plan.seconds``, in a temporary folder beside the run's.

    Args:
        settings: of the run.
        parts: what its clips are made with.
        catalog: its videos.
        neighbours: label of each class's neighbour, or None.
        pairs: number of the run's candidate pairs.

    Raises:
        DatasetError: not one video of the sample could be used.
    """
    # Where the run is in an object store, the folder is anywhere on this machine: the store's times are not measured.
    beside = settings.folder if isinstance(settings.folder, Path) else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with ray_session(), tempfile.TemporaryDirectory(dir=beside, prefix=".plan-") as folder:
        there = resources()
        found: dict[str, float] = {"session": time.perf_counter() - start}
        found |= {"cpus": there.get("CPU", 1), "gpus": there.get("GPU", 0)}
        rows, prepared = _prepare(settings, parts, catalog, Path(folder), int(found["cpus"]))
        store = _miniature(Path(folder), catalog, rows)
        network, trained = _train(settings, store)
        trained |= _fed(settings, store, network)
        selected = _select(settings, catalog, store, network.cpu(), Path(folder), pairs)
        found |= prepared | trained | selected
    found["pair_bytes"] = _pair_bytes(settings, catalog, neighbours)
    found["driver_gib"] = _peak_gib()
    return Costs(**found)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _prepare(
    settings: Settings, parts: PrepareSettings, catalog: Catalog, folder: Path, cpus: int
) -> tuple[list[Row], dict[str, float]]:
    """Prepare a sample on all CPUs; each process's first clip, for which it starts and loads, is not counted."""
    chosen = np.random.default_rng(settings.seed).permutation(len(catalog.videos))[: settings.plan.videos]
    data = folder.absolute() / "data"

    @ray.remote(num_cpus=1, num_gpus=parts.segment.gpus_per_worker if resources().get("GPU") else 0)
    def work(position: int) -> tuple[Row, int, float, float]:
        cv2.setNumThreads(1)
        begun = time.perf_counter()
        tools = build_segmenter(parts.segment), build_inpainter(parts.inpaint)
        built = time.perf_counter()
        row = prepare_or_fail(catalog.videos[position], parts, *tools, data)
        return row | {"seconds": time.perf_counter() - built}, os.getpid(), built - begun, _peak_gib()

    running: list[ray.ObjectRef[tuple[Row, int, float, float]]] = []
    done: list[tuple[Row, int, float, float]] = []
    began, waiting, first = time.perf_counter(), chosen.tolist(), 0.0
    while running or waiting:
        while waiting and len(running) < cpus and (not done or time.perf_counter() - began < settings.plan.seconds / 3):
            running.append(work.remote(waiting.pop()))
        if not running:
            break
        ready, running = ray.wait(running)
        done += ray.get(ready)
        first = first or time.perf_counter() - began
    rows = [row for row, *_ in done]
    good = [row for row in rows if "cause" not in row]
    if not good:
        raise DatasetError(f"not one of {len(rows)} videos drawn for measuring could be used: {rows[0]['cause']}")
    processes = [process for _, process, *_ in done]
    warm = [row["seconds"] for i, (row, process, *_) in enumerate(done) if process in processes[:i]]
    sizes = [clip_path(data, row["id"]).stat().st_size for row in good]
    return good, {
        "worker": first,
        "clip": statistics.mean(warm or [row["seconds"] for row in rows]),
        "failed_share": 1 - len(good) / len(rows),
        "clip_bytes": statistics.mean(sizes),
        "worker_gib": max(peak for *_, peak in done),
    }


def _miniature(folder: Path, catalog: Catalog, rows: list[Row]) -> ClipStore:
    """Make a store of the sample: all train, and again, under other names, as D_val."""
    data, index = folder / "data", []
    for number in range(max(len(rows), VALIDATION)):
        row = rows[number % len(rows)]
        for part, letter in (("train", "a"), ("val", "b")):
            name = f"{letter}{number:015x}"
            clip_path(data, name).parent.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                os.link(str(clip_path(data, row["id"])), str(clip_path(data, name)))
            index.append(row | {"id": name, "split": part})
    table = pd.DataFrame(index, columns=list(INDEX_DTYPES)).astype(INDEX_DTYPES).sort_values("id", ignore_index=True)
    write_index(folder, "data", catalog.classes, table, pd.DataFrame(columns=list(FAILED_COLUMNS)))
    return ClipStore(folder)


def _often(work: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Return the median time of some work, which is done once before and then until the time is over."""
    work()
    times, began = list[float](), time.perf_counter()
    while len(times) < least or (time.perf_counter() - began < seconds and len(times) < MOST):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads in this process, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(settings: Settings, store: ClipStore) -> tuple[Network, dict[str, float]]:
    """Time samples, SGD steps of a worker's part of the batch, and predictions."""
    classifier, share = settings.classifier, settings.plan.seconds / 12
    loader = SampleLoader(store, settings.composite, classifier.crop)
    ids = store.rows("train")["id"].to_numpy(dtype=np.str_)
    rng, turns = np.random.default_rng(0), iter(range(10**9))

    def make(background: int | None) -> None:
        turn = next(turns)
        loader(Sample(ids[turn % len(ids)], None if background is None else ids[(turn + background) % len(ids)]), rng)

    network = build_network(classifier.network, len(store.classes)).to(best_device())
    optimizer = make_optimizer(network, classifier)
    part = classifier.batch_size // max(1, classifier.workers)
    clips, labels = (
        torch.from_numpy(array) for array in stack(loader, BatchPlan(ids, None, part, 0, 0), 0, range(part))
    )
    found = {"real": _often(lambda: make(None), share / 2), "composite": _often(lambda: make(1), share / 2)}
    with _threads(classifier.threads):
        found["step"] = _often(lambda: train_step(network, optimizer, clips, labels), 2 * share)
    some = ids[: min(len(ids), VALIDATION)].tolist()

    def classify() -> None:
        for clips_NTHWC in read_clips(store, some, classifier.crop):
            predict(network, clips_NTHWC, len(some))

    found["predict"] = _often(classify, share / 2) / len(some)
    found["model_bytes"] = float(sum(value.numel() * value.element_size() for value in network.state_dict().values()))
    return network, found


def _fed(settings: Settings, store: ClipStore, network: Network) -> dict[str, float]:
    """Time SGD steps while Ray Data makes the samples beside them, which on few CPUs slows the steps."""
    classifier, seconds = settings.classifier, settings.plan.seconds / 12
    ids = store.rows("train")["id"].to_numpy(dtype=np.str_)
    optimizer = make_optimizer(network, classifier)
    cpus = classifier.cpus_per_worker if classifier.workers else 0
    found = dict[str, float]()
    # As in the run, a worker's CPUs are not the feed's, which needs one: a plan for a cluster may be made on less.
    held = placement_group([{"CPU": cpus}]) if 0 < cpus <= resources().get("CPU", 0) - 1 else None
    if held is not None:
        held.wait(30)
    mixed = np.stack([ids, np.roll(ids, 1)], axis=1)
    for name, pairs in (("mixed", mixed), ("real", None), ("mixed", mixed)):  # once in vain: processes start and load
        plan = BatchPlan(ids, pairs, classifier.batch_size, classifier.composite_share, 0)
        source = Source(str(store.root.absolute()), settings.composite, classifier.crop, plan)
        began = time.perf_counter()
        stream = feed(source, 0, MOST + 2, 0, max(1, classifier.workers))
        with closing(stream) as batches, _threads(classifier.threads):

            def step() -> None:
                clips_BTHWC, labels_BL = next(batches)
                train_step(network, optimizer, torch.tensor(clips_BTHWC), torch.tensor(labels_BL))

            step()
            found["stream"] = time.perf_counter() - began
            found[f"fed_{name}"] = _often(step, seconds)
    if held is not None:
        remove_placement_group(held)
    return found


def _select(
    settings: Settings, catalog: Catalog, store: ClipStore, network: Network, folder: Path, pairs: int
) -> dict[str, float]:
    """Time the Selector's algorithm and environment at their real sizes, and the scoring of pairs."""
    if settings.selector.algorithm == RANDOM or set(settings.arm_names) == {"real"}:
        return dict.fromkeys(("feature", "build", "env_step", "score", "screen", "selector_bytes"), 0.0)
    steps = settings.selector.steps_per_update if settings.env.tune == "head" else 1
    selector = replace(settings.selector, algorithm="REINFORCE", options={}, env_runners=0, gpus_per_env_runner=0)
    selector = replace(selector, steps_per_update=steps, steps_per_iteration=steps, steps=steps, discount=0)
    validated = min(settings.env.validation_clips, sum(video.split == "val" for video in catalog.videos))
    parts = replace(
        SelectorTraining.of(settings), selector=selector, env=replace(settings.env, validation_clips=VALIDATION)
    )
    save_network(folder / "warm" / "model.safetensors", network)
    ids = store.rows("train")["id"].to_numpy()[:PAIRS]
    pd.DataFrame({"foreground": ids, "background": np.roll(ids, 1)}).to_parquet(folder / "pairs.parquet")
    start = time.perf_counter()
    vectors, learner, files = begin(store, folder / "pairs.parquet", parts, folder)
    algorithm = build_algorithm(learner, files, parts)
    build, ends, rows = time.perf_counter() - start, list[float](), list[dict[str, float]]()
    try:
        began = time.perf_counter()
        for iteration in range(30):  # the first composites the pairs; each pair's own cost is measured beside
            rows += sample_and_learn(algorithm, settings.seed, iteration)
            ends.append(time.perf_counter())
            if len(ends) > 3 and ends[-1] - began > settings.plan.seconds / 6:
                break
    finally:
        algorithm.stop()
    step = statistics.median(np.diff(ends)) / steps
    step += statistics.mean(row["seconds_validate"] for row in rows) * (validated / VALIDATION - 1)
    clip_1THWC = next(read_clips(store, [str(ids[0])], settings.classifier.crop))
    with torch.inference_mode():
        feature = _often(lambda: network.eval().features(clip_1THWC), settings.plan.seconds / 60)
    found = {"build": build, "env_step": step, "feature": feature}
    found["selector_bytes"] = float(sum(value.numel() * 4 for value in learner.state_dict().values()))
    return found | _score(learner, vectors.clips_NFL, pairs, round(settings.select.budget * pairs))


def _score(learner: SelectorNetwork, clips_NV: NDArray[np.float32], pairs: int, kept: int) -> dict[str, float]:
    """Time a chunk of pairs on one thread, as `select`'s tasks have it; roughly too, where `select` would do so."""
    front_B, back_B = np.random.default_rng(0).integers(len(clips_NV), size=(2, SCORED))
    exact = pair_scorer(learner, clips_NV)

    def time_of(scorer: Scorer) -> float:
        return _often(lambda: scorer(front_B, back_B), 1, least=1) / SCORED

    with _threads(1):
        found = {"score": time_of(exact), "screen": 0.0}
        if worth_screening(kept, pairs):
            found["screen"] = time_of(make_screen(exact, front_B, back_B).scorer)
    return found


def _pair_bytes(settings: Settings, catalog: Catalog, neighbours: NDArray[np.int64] | None) -> float:
    """Write the candidates of the first class, one class being all that is ever held; return the bytes of a pair."""
    rows = [{"id": clip.id, "label": clip.label, "split": clip.split} for clip in catalog.videos]
    index = pd.DataFrame(rows).assign(foreground_ratio=0.5, people_ratio=0.5, remark="")
    match = replace(settings.match, min_foreground=0.0, max_foreground=1.0)
    table = next(candidate_pairs(index, catalog.classes, match, neighbours, settings.seed))
    pq.write_table(table, content := io.BytesIO())
    return content.tell() / int(table.num_rows)
