"""The stages, one function each: videos in, a better classifier and a report out.

Each reads what the stages before it wrote to the run folder and writes its own; it does nothing if that is complete.
Each imports what it needs when it runs: Ray, RLlib, PyTorch and matplotlib take seconds each, and few stages need all.
"""

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from l2a_ray.config.settings import Settings
from l2a_ray.errors import DatasetError
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.rl.settings import RANDOM
from l2a_ray.storage.files import AnyPath, absolute_name, as_path, read_bytes, write_bytes, write_json
from l2a_ray.storage.run import RunFolder, claim
from l2a_ray.videos.catalog import read_catalog
from l2a_ray.videos.published import ListedClip

if TYPE_CHECKING:
    from l2a_ray.prepare.job import PrepareSettings

logger = logging.getLogger(__name__)

CLIPS = ("data", "decode", "segment", "inpaint", "seed")
MATCH = (*CLIPS, "match")
SELECTOR = (*MATCH, "composite", "env", "selector", "classifier")
SELECT = (*SELECTOR, "select")


def prepare(settings: Settings) -> AnyPath:
    """Fill the clip store (``prepare/``): each video decoded, segmented and inpainted once."""
    from l2a_ray.pipeline.demands import demands
    from l2a_ray.prepare import job as preparation
    from l2a_ray.runtime.session import ray_session

    run = _open(settings)
    catalog = read_catalog(settings.data, settings.seed)
    with ray_session(demands(settings, "segment")):
        store = preparation.prepare(catalog, _clip_settings(settings), run.path / "prepare")
    write_json(run.path / "notes.json", list(catalog.notes))
    missing = pd.DataFrame(catalog.missing, columns=list(ListedClip._fields)).astype("str")
    write_bytes(run.path / "missing.parquet", missing.to_parquet(index=False))
    if catalog.missing:
        logger.warning("prepare: %d clips of the published list are not there: missing.parquet", len(missing))
    run.describe()
    _tell_failures(store)
    return store.root


def check(settings: Settings) -> AnyPath:
    """Read every video's header, and write and tell what the data set lacks (``check.parquet``); prepares nothing.

    Raises:
        DatasetError: not one video is usable.
    """
    from l2a_ray.videos.check import check_videos, summarise

    catalog, out = read_catalog(settings.data, settings.seed), settings.folder / "check.parquet"
    table = check_videos(catalog)
    write_bytes(out, table.to_parquet(index=False))
    for line in (*catalog.notes, *summarise(table, catalog.classes, settings.decode.frames)):
        logger.info("check: %s", line)
    if (table["cause"] != "").all():
        raise DatasetError(f"{settings.data.root}: not one video is usable; {out} says why of each")
    logger.info("check: %s tells of each clip", out)
    return out


def match(settings: Settings) -> AnyPath:
    """Write the candidate pairs (``match/``)."""
    from l2a_ray.pairs.match import match as match_pairs

    run, store = _open(settings), _store(settings)
    actors = "people_ratio" if settings.composite.objects == "people" else "foreground_ratio"

    def work(out: AnyPath) -> None:
        match_pairs(store.index, store.classes, settings.match, settings.seed, out, actors)

    return run.stage(
        "match", settings.flat(*MATCH) | {"composite.objects": settings.composite.objects} | _clips(store), work
    )


def train_selector(settings: Settings) -> AnyPath:
    """Train the plain classifier and, against it, the Selector (``train-selector/``)."""
    run, store = _open(settings), _store(settings)
    if settings.selector.algorithm == RANDOM:
        logger.info("train-selector: nothing to train, selector.algorithm=%s scores pairs by chance", RANDOM)
        return run.path
    from l2a_ray.pipeline.demands import demands
    from l2a_ray.runtime.session import ray_session
    from l2a_ray.selector.rl import training as selector_training

    pairs = run.folder("match") / "pairs.parquet"
    parts = selector_training.SelectorTraining.of(settings)

    def work(out: AnyPath) -> None:
        with ray_session(demands(settings, "classifier", "selector")):
            selector_training.train_selector(store, pairs, parts, out)

    return run.stage("train-selector", settings.flat(*SELECTOR) | _clips(store), work)


def select(settings: Settings) -> AnyPath:
    """Score all candidate pairs and keep the best under the budget (``select/``)."""
    from l2a_ray.pairs.vectors import ClipVectors, only_ids
    from l2a_ray.pipeline.demands import demands
    from l2a_ray.runtime.session import ray_session
    from l2a_ray.selector.file import load_selector
    from l2a_ray.selector.scoring import RandomScorer, Scorer, pair_scorer
    from l2a_ray.selector.selection import select as select_pairs

    run, store = _open(settings), _store(settings)
    by_chance = settings.selector.algorithm == RANDOM
    trained = run.path if by_chance else run.folder("train-selector")
    pairs = run.folder("match") / "pairs.parquet"

    def work(out: AnyPath) -> None:
        vectors = only_ids(store) if by_chance else ClipVectors.load(trained / "vectors.safetensors")
        scorer: Scorer = RandomScorer(settings.seed)
        if not by_chance:
            scorer = pair_scorer(load_selector(trained).network, vectors.clips_NFL)
        with ray_session(demands(settings)):
            select_pairs(pairs, vectors, scorer, settings.select, settings.seed, out)

    return run.stage("select", settings.flat(*SELECT) | _clips(store), work)


def train(settings: Settings) -> AnyPath:
    """Train a classifier for every arm and seed (``train/<arm>-<seed>/``)."""
    from l2a_ray.classifier.training import TrainingRun, train_classifiers
    from l2a_ray.pipeline.demands import demands
    from l2a_ray.runtime.session import ray_session

    run, store = _open(settings), _store(settings)
    runs = [
        TrainingRun(f"{arm}-{seed}", settings.seed + seed, _pairs(run, arm))
        for seed in range(settings.seeds)
        for arm in settings.arm_names
    ]

    def work(out: AnyPath) -> None:
        with ray_session(demands(settings, "classifier")):
            train_classifiers(runs, store.root, settings.classifier, settings.composite, out)

    return run.stage("train", settings.flat(*SELECT) | _clips(store), work, _extent(settings))


def evaluate(settings: Settings) -> AnyPath:
    """Test every classifier on the test split, which nothing before has seen (``evaluate/``)."""
    from l2a_ray.classifier.evaluation import evaluate as evaluate_models

    run, store = _open(settings), _store(settings)
    trained = run.folder("train")
    models = [
        (arm, seed, trained / f"{arm}-{seed}" / "model.safetensors")
        for arm in settings.arm_names
        for seed in range(settings.seeds)
    ]

    def work(out: AnyPath) -> None:
        evaluate_models(models, store, settings.classifier, out)

    return run.stage("evaluate", settings.flat(*SELECT) | _clips(store), work, _extent(settings))


def report(settings: Settings) -> AnyPath:
    """Write the report (``report/index.html``) and say in a few lines what came out. It is always written anew."""
    from l2a_ray.outputs.report import write_report

    run, store = _open(settings), _store(settings)
    run.folder("evaluate")
    out = run.path / "report"
    metrics = write_report(run.path, store, out)
    for arm, summary in metrics["arms"].items():
        top1 = summary["classifier/top1"]
        spread = "" if top1["std"] is None else f" +- {100 * top1['std']:.1f} (standard deviation of {top1['n']} seeds)"
        logger.info("%s: %.1f %% of the test clips right%s", arm, 100 * top1["mean"], spread)
    _tell_failures(store)
    logger.info("report: %s", out / "index.html")
    return out


def preview(settings: Settings) -> AnyPath:
    """Write pairs to look at (``preview/index.html``). It needs `match`, and is always written anew."""
    from l2a_ray.outputs.preview import choose, write_preview

    run, store = _open(settings), _store(settings)
    out = run.path / "preview"
    write_preview(settings.name, choose(run, settings.preview), store, settings.composite, out)
    logger.info("preview: %s", out / "index.html")
    return out


def export(settings: Settings) -> AnyPath:
    """Write the composites of selected or random pairs as videos (``export/<which>/``); does what is missing."""
    from l2a_ray.outputs.export import export as export_pairs
    from l2a_ray.pairs.table import open_pairs
    from l2a_ray.pipeline.demands import demands
    from l2a_ray.runtime.session import ray_session

    run, store = _open(settings), _store(settings)
    path = run.folder("select") / f"{settings.export.pairs}.parquet"
    pairs = open_pairs(path).read().to_pandas()
    digest = hashlib.blake2b(read_bytes(path), digest_size=8).hexdigest()
    made_with = settings.flat(*CLIPS, "composite", "export") | _clips(store) | {"pairs": digest}
    out = run.path / "export" / settings.export.pairs
    claim(out, made_with)
    with ray_session(demands(settings)):
        export_pairs(store, pairs, settings.composite, settings.export, out)
    return out


def run(settings: Settings) -> AnyPath:
    """Run all stages that the arms need."""
    from l2a_ray.pipeline.demands import demands
    from l2a_ray.runtime.session import ray_session

    with ray_session(demands(settings, "segment", "classifier", "selector")):
        prepare(settings)
        if set(settings.arm_names) != {"real"}:
            match(settings)
            train_selector(settings)
            select(settings)
        train(settings)
        evaluate(settings)
        return report(settings)


def _clip_settings(settings: Settings) -> "PrepareSettings":
    """Return what the clips are made with; precomputed masks lie beside the videos unless told otherwise."""
    from l2a_ray.prepare.job import PrepareSettings

    segment = settings.segment
    if segment.kind == "precomputed" and segment.masks is None:
        segment = replace(segment, masks=str(as_path(settings.data.root) / "masks"))
    return PrepareSettings(
        decode=settings.decode,
        segment=segment.with_absolute_paths(),
        inpaint=replace(settings.inpaint, model=absolute_name(settings.inpaint.model)),
        max_failures=settings.data.max_failures,
    )


def _open(settings: Settings) -> RunFolder:
    return RunFolder(settings.folder, settings.plain(), settings.seed)


def _store(settings: Settings) -> ClipStore:
    return ClipStore(settings.folder / "prepare")


def _clips(store: ClipStore) -> dict[str, str]:
    """Return a digest of the clips: other clips are another data set, as much as another setting is."""
    columns = store.index[["id", "label", "split", "source_hash"]]
    return {"clips": hashlib.blake2b(columns.to_csv(index=False).encode(), digest_size=8).hexdigest()}


def _pairs(run: RunFolder, arm: str) -> str | None:
    return None if arm == "real" else str(run.folder("select") / f"{arm}.parquet")


def _extent(settings: Settings) -> dict[str, object]:
    """Arms and seeds may be added to a run that is complete."""
    return {"arms": sorted(settings.arm_names), "seeds": settings.seeds}


def _tell_failures(store: ClipStore) -> None:
    for remark, count in store.index["remark"].value_counts().items():
        if remark:
            logger.info("prepare: %d clips with %s; docs/prepare.md says what becomes of them", count, remark)
    if store.failed.empty:
        logger.info("prepare: %d clips, none lost", len(store.index))
        return
    logger.warning("prepare: %d clips; %d videos could not be used:", len(store.index), len(store.failed))
    for row in store.failed.itertuples():
        logger.warning("  %s: %s. %s", row.path, row.cause, row.advice)
