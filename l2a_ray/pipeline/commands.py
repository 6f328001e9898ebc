"""What the commands of ``l2a`` do, one function each; each makes what it needs and is missing."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l2a_ray.classifier import files
from l2a_ray.config.settings import Settings
from l2a_ray.errors import DatasetError, owned_by
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import closure
from l2a_ray.storage.files import AnyPath, write_bytes, write_json

if TYPE_CHECKING:
    import pandas as pd

    from l2a_ray.prepare.store import ClipStore

logger = logging.getLogger(__name__)
MODEL = "model"
"""Folder of the run in which the recommended classifier is left."""
OTHER_SETS = {
    "classifier/top1_scenes": "before other scenes",
    "classifier/top1_stripes": "before stripes",
    "classifier/top1_still": "still before stripes (lower is better)",
}


def prepare(settings: Settings, refresh: bool = False) -> AnyPath:
    """Decode, segment and inpaint every video once.

    Args:
        settings: of the run.
        refresh: look at the videos again though they are prepared: new and changed ones, and those that failed.
    """
    pipeline = Pipeline(settings)
    if refresh:
        pipeline.results.make_again(pipeline.prepare)
    pipeline.results.make([pipeline.prepare])
    _tell_clips(_store(pipeline))
    return pipeline.results.folder(pipeline.prepare)


def check(settings: Settings) -> AnyPath:
    """Read every video's header, and write and tell what the data set lacks (``check.parquet``); prepares nothing.

    Raises:
        DatasetError: not one video is usable.
    """
    from l2a_ray.videos.catalog import read_catalog
    from l2a_ray.videos.check import check_videos, summarise

    with owned_by("data"):
        catalog = read_catalog(settings.data)
    out = settings.folder / "check.parquet"
    table = check_videos(catalog)
    write_bytes(out, table.to_parquet(index=False))
    for line in (*catalog.notes, *summarise(table, catalog.classes, settings.decode.frames)):
        logger.info("check: %s", line)
    if (table["cause"] != "").all():
        raise DatasetError(f"{settings.data.root}: not one video is usable; {out} says why of each")
    logger.info("check: %s tells of each clip", out)
    return out


def make(settings: Settings, stage: str) -> None:
    """Make the results of a stage of ``l2a_ray.cli.MAKERS``."""
    pipeline = Pipeline(settings)
    wanted = pipeline.all(stage)
    if not wanted:
        why = "pseudo.rounds is 0" if stage == "pseudo-label" else f"no arm of {', '.join(pipeline.arms)} needs it"
        logger.info("%s: nothing to do, %s", stage, why)
    pipeline.results.make(wanted)
    for one in wanted:
        logger.info("%s: %s", one.title, pipeline.results.folder(one))
    if stage == "train-selector":
        from l2a_ray.pipeline.gather import read_learned

        _tell_learned(read_learned(pipeline))


def run(settings: Settings, refresh: bool = False) -> AnyPath:
    """Make all that the arms need, and the report."""
    pipeline = Pipeline(settings)
    old = pipeline.results.run.old_stages()
    if old:
        logger.warning(
            "%s: %s are of an older release, which nothing reads any more. Clips and results are made anew in %s; "
            "delete these folders when you like",
            settings.folder,
            ", ".join(old),
            settings.store_folder,
        )
    if refresh:
        pipeline.results.make_again(pipeline.prepare)
    pipeline.results.make(pipeline.answers)
    lines = _hand_over(pipeline)
    out = _report(pipeline)
    _tell(lines)
    return out


def recommend(settings: Settings) -> AnyPath:
    """Choose a classifier by D_val, leave it in ``model/`` and say why; no test clip is looked at."""
    pipeline = Pipeline(settings)
    pipeline.results.make([pipeline.recommend])
    _tell(_hand_over(pipeline))
    return settings.folder / MODEL


def report(settings: Settings) -> AnyPath:
    """Write the report (``report/index.html``) and say in a few lines what came out. It is always written anew."""
    return _report(Pipeline(settings))


def _report(pipeline: Pipeline) -> AnyPath:
    from l2a_ray.outputs.report import few_clips, write_report
    from l2a_ray.pipeline.gather import gather

    out = pipeline.settings.folder / "report"
    store = _store_of_pairs(pipeline)
    tables = gather(pipeline)
    metrics = write_report(tables, store, pipeline.settings.composite, out)
    for arm, summary in metrics["arms"].items():
        top1 = summary["classifier/top1"]
        spread = "" if top1["std"] is None else f" +- {100 * top1['std']:.1f} (standard deviation of {top1['n']} seeds)"
        others = [
            f"{meaning} {100 * summary[name]['mean']:.1f} %"
            for name, meaning in OTHER_SETS.items()
            if name in summary and summary[name]["mean"] is not None
        ]
        told = "".join([spread, "; of their actors ", ", ".join(others)] if others else [spread])
        logger.info("%s: %.1f %% of the test clips right%s", arm, 100 * top1["mean"], told)
    _tell_learned(tables.learned)
    _tell_clips(store)
    _tell_left_out(tables.left_out)
    for line in few_clips(tables, metrics):
        logger.warning("%s", line)
    logger.info("report: %s", out / "index.html")
    return out


def plan(settings: Settings) -> AnyPath:
    """Say what a run will cost (``plan.json``). Nothing of it is made; it may be asked beside one.

    Raises:
        L2AError: as the stages' work, on a sample of the data.
    """
    from l2a_ray.planning.plan import make_plan, tell

    out, found = settings.folder / "plan.json", make_plan(settings)
    write_json(out, found)
    for line in tell(found):
        logger.info("%s", line)
    logger.info("plan: %s", out)
    return out


def preview(settings: Settings) -> AnyPath:
    """Write pairs to look at (``preview/index.html``). It makes what `match` needs, and is always written anew."""
    from l2a_ray.outputs.preview import write_preview
    from l2a_ray.pipeline.gather import choose_pairs

    pipeline = Pipeline(settings)
    pipeline.results.make([pipeline.match(settings.seeds[0])])
    out = settings.folder / "preview"
    write_preview(settings.name, choose_pairs(pipeline), _store_of_pairs(pipeline), settings.composite, out)
    logger.info("preview: %s", out / "index.html")
    return out


def export(settings: Settings, refresh: bool = False) -> AnyPath:
    """Write the composites of an arm as videos.

    Args:
        settings: of the run.
        refresh: write what is missing of an export that is there, and try again what failed.
    """
    pipeline = Pipeline(settings)
    if refresh:
        pipeline.results.make_again(pipeline.export)
    pipeline.results.make([pipeline.export])
    out = pipeline.results.folder(pipeline.export)
    logger.info("export: %s", out)
    return out


def fewshot(settings: Settings) -> AnyPath:
    """Test learners of new classes in episodes, and report (``fewshot/index.html``, always written anew).

    Raises:
        L2AError: as the stages' work; too few classes or clips for an episode are told before any other work.
    """
    from l2a_ray.fewshot.bank import novel_episodes, read_clips
    from l2a_ray.fewshot.episodes import write_episodes
    from l2a_ray.fewshot.outcome import aligned, summarise, table
    from l2a_ray.fewshot.page import write_page
    from l2a_ray.pipeline.fewshot import FewshotPipeline

    pipeline, out = Pipeline(settings), settings.folder / "fewshot"
    pipeline.results.make([pipeline.prepare])
    store = _store(pipeline)
    few, clips = FewshotPipeline(pipeline, store.classes), read_clips(store)
    episodes = {shot: novel_episodes(settings.fewshot.episodes, shot, few.split, clips) for shot in few.settings.shots}
    write_episodes(out / "episodes.parquet", episodes, clips)
    if few.base is not None:
        few.base.results.make([few.base.train_selector(seed) for seed in settings.seeds])
    pipeline.results.make([stage for stages in few.cells.values() for stage in stages])
    measured = few.measured()
    metrics = summarise(measured, settings.fewshot, few.split, few.features_told)
    notes = few.notes(metrics)
    write_page(settings.name, metrics, measured, notes, store, settings.composite, out)
    _tell([*(f"fewshot: {note}" for note in notes), *aligned(table(metrics)), f"fewshot: {out / 'index.html'}"])
    return out


def _hand_over(pipeline: Pipeline) -> list[str]:
    """Leave the recommended classifier in the run's folder; return the reasons for it."""
    from l2a_ray.deploy.choose import tell
    from l2a_ray.deploy.classifier import save_classifier
    from l2a_ray.pipeline.gather import read_recommendation

    settings, results = pipeline.settings, pipeline.results
    found = read_recommendation(pipeline)
    assert found is not None
    train = pipeline.train(found["arm"], found["seed"])
    if settings.recommend.retrain:
        train = pipeline.retrain(found["arm"], found["seed"])
    if train not in closure([pipeline.recommend]):
        results.make([train])
    *_, (_, record) = results.records([train])
    lines = tell(found)
    about = {name: found[name] for name in ("arm", "seed")} | {
        "trained_on": train.classifier.train_on,
        "recommendation": found,
        "why": lines,
        "settings": train.settings(),
        "made": {name: record[name] for name in ("title", "key", "made_by")},
    }
    weights, out = results.folder(train) / files.MODEL, settings.folder / MODEL
    with owned_by("classifier"):
        save_classifier(
            out,
            weights,
            train.classifier.network,
            _store(pipeline).classes,
            settings.decode,
            train.classifier.crop,
            about,
            train.classifier.frame_sampling,
            settings.evaluate.looks,
        )
    return [*lines, f"model: {out}, trained on {train.classifier.train_on}; `l2a predict` asks it about videos"]


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        logger.info("%s", line)


def _store(pipeline: Pipeline) -> "ClipStore":
    from l2a_ray.pipeline.stages import open_store

    return open_store(pipeline.results, pipeline.prepare)


def _store_of_pairs(pipeline: Pipeline) -> "ClipStore":
    """Open the clips as the first repetition pairs them; as they were prepared, if that is all there is."""
    from l2a_ray.pipeline.stages import open_store

    clips = pipeline.clips(pipeline.settings.seeds[0])
    return open_store(pipeline.results, clips) if pipeline.results.is_complete(clips) else _store(pipeline)


def _tell_clips(store: "ClipStore") -> None:
    for remark, count in store.index["remark"].value_counts().items():
        if remark:
            logger.info("prepare: %d clips with %s; docs/prepare.md says what becomes of them", count, remark)
    if store.failed.empty:
        logger.info("prepare: %d clips, none lost", len(store.index))
        return
    logger.warning("prepare: %d clips; %d videos could not be used:", len(store.index), len(store.failed))
    for row in store.failed.itertuples():
        logger.warning("  %s: %s. %s", row.path, row.cause, row.advice)


def _tell_learned(learned: Mapping[int, dict[str, Any]]) -> None:
    """Say of each repetition whether its Selector learned."""
    from l2a_ray.selector.learned import tell

    for seed, found in learned.items():
        for line in tell(found):
            logger.info("Selector %d: %s", seed, line)


def _tell_left_out(left_out: "pd.DataFrame | None") -> None:
    """Name in one line the classes that composites lack."""
    if left_out is None or left_out.empty:
        return
    classes = left_out.groupby("role", sort=False)["class_name"].agg(", ".join)
    roles = "; ".join(f"as {role}: {names}" for role, names in classes.items())
    logger.warning("match: no clip of these classes can serve %s. The report says why", roles)
