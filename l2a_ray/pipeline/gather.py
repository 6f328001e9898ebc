"""What a run has come to, read from its results for those who look at it: the report and the preview."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.errors import SettingError
from l2a_ray.outputs.preview import Shown
from l2a_ray.outputs.report.tables import RunTables, Selection, scored
from l2a_ray.outputs.settings import CANDIDATES, WORST, PreviewSettings
from l2a_ray.pairs.labels import GUESSES
from l2a_ray.pairs.table import ENDS, open_pairs, read_pairs
from l2a_ray.pairs.truth import read_truth
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.stage import Stage
from l2a_ray.pipeline.stages.classifiers import OF_STUDENT
from l2a_ray.selector import learned as of_selector
from l2a_ray.storage.files import AnyPath, as_path, read_bytes, read_table


def gather(pipeline: Pipeline) -> RunTables:
    """Read what there is of a run with these settings.

    Raises:
        StageError: the clips are not there, or a result is damaged.
    """
    settings, results = pipeline.settings, pipeline.results
    seeds, prepared = settings.seeds, results.folder(pipeline.prepare)
    match = _folder(pipeline, next(iter(pipeline.all("match")), None))
    evaluated = [pipeline.evaluate(arm, seed) for seed in seeds for arm in pipeline.arms]
    return RunTables(
        name=settings.name,
        arms=pipeline.arms,
        neighbours=_table(match, "neighbours.parquet"),
        left_out=_table(match, "left_out.parquet"),
        guesses=_joined(_guesses(pipeline)),
        history=_joined(_histories(pipeline)),
        learned=read_learned(pipeline),
        selections=list(_selections(pipeline, seeds)),
        curves=_joined(_of_arms(pipeline, pipeline.train, "history.parquet")),
        results=_joined(_of_arms(pipeline, pipeline.evaluate, "metrics.parquet")),
        students=_joined(_of_arms(pipeline, pipeline.evaluate, f"{OF_STUDENT}/metrics.parquet")),
        predictions=_joined(_of_arms(pipeline, pipeline.evaluate, "predictions.parquet")),
        recommendation=read_recommendation(pipeline),
        truth=read_truth(settings.data.root),
        missing=_table(prepared, "missing.parquet"),
        config=yaml.safe_dump(settings.plain(), sort_keys=False),
        made=[record for _, record in results.records(evaluated)],
        notes=json.loads(read_bytes(prepared / "notes.json")),
    )


def read_recommendation(pipeline: Pipeline) -> dict[str, Any] | None:
    """Read which classifier is recommended; None if that was not asked yet."""
    folder = _folder(pipeline, pipeline.recommend)
    return None if folder is None else dict(json.loads(read_bytes(folder / "recommendation.json")))


def read_learned(pipeline: Pipeline) -> dict[int, dict[str, Any]]:
    """Read whether the Selector of each repetition learned, and had anything to learn, where that is known."""
    if not any(arm.needs_own_selector for arm in pipeline.arms.values()):
        return {}
    found = {}
    for seed in pipeline.settings.seeds:
        folder = _folder(pipeline, pipeline.train_selector(seed))
        if folder is not None and (about := of_selector.read_learned(folder)):
            found[seed] = about
    return found


def choose_pairs(pipeline: Pipeline) -> dict[str, Shown]:
    """Choose the pairs that the preview shows, by kind, of the first repetition.

    Raises:
        SettingError: `preview.which` names what is not there.
    """
    settings, seed = pipeline.settings.preview, pipeline.settings.seeds[0]
    selections = list(_selections(pipeline, [seed]))
    there = {one.arm: _of_arm(pipeline, one) for one in selections}
    for one in scored(selections, pipeline.arms):
        if one.worst is not None:
            composite = _composite(pipeline, one.arm)
            about = f"The pairs that were scored lowest for the arm {one.arm}, lowest first."
            there[WORST] = Shown(pairs=one.worst.head(settings.pairs), meaning=about, composite=composite)
    chosen: dict[str, Shown] = {}
    for kind in settings.which or [*there] or [CANDIDATES]:
        if kind != CANDIDATES and kind not in there:
            reason = f"not there. There are {', '.join([*there, CANDIDATES])}; `l2a select` chooses the pairs of arms"
            raise SettingError("preview.which", kind, reason)
        chosen[kind] = there[kind] if kind in there else _candidates(pipeline, seed)
    return chosen


def _of_arm(pipeline: Pipeline, one: Selection) -> Shown:
    """Return the best pairs of an arm or, where nothing scored them, some drawn at random."""
    settings, ordered = pipeline.settings.preview, one.summary is not None
    pairs = one.pairs.head(settings.pairs) if ordered else one.pairs.iloc[_sample(len(one.pairs), settings)]
    label = f" ({pipeline.arms[one.arm].label})" if pipeline.arms[one.arm].label else ""
    about = f"Pairs of the arm {one.arm}{label}, {'the best first' if ordered else 'drawn at random'}."
    return Shown(pairs=pairs, meaning=about, composite=_composite(pipeline, one.arm))


def _candidates(pipeline: Pipeline, seed: int) -> Shown:
    settings, path = pipeline.settings, pipeline.results.folder(pipeline.match(seed)) / "pairs.parquet"
    rows = _sample(open_pairs(path).metadata.num_rows, settings.preview)
    about = "Pairs drawn at random from all candidates."
    return Shown(pairs=read_pairs(path, rows).to_pandas(), meaning=about, composite=settings.composite)


def _composite(pipeline: Pipeline, arm: str) -> CompositeSettings:
    return pipeline.arms[arm].composite or pipeline.settings.composite


def _sample(total: int, settings: PreviewSettings) -> NDArray[np.int64]:
    """Draw the rows that are shown, in their order."""
    rng = np.random.default_rng(settings.seed)
    return np.sort(rng.choice(total, min(settings.pairs, total), replace=False))


def _folder(pipeline: Pipeline, stage: Stage | None) -> AnyPath | None:
    """Return the folder of a stage's result, if it is there."""
    if stage is None or not pipeline.results.is_complete(stage):
        return None
    return pipeline.results.folder(stage)


def _table(folder: AnyPath | None, name: str) -> pd.DataFrame | None:
    path = None if folder is None else folder / name
    return read_table(path) if path is not None and path.is_file() else None


def _joined(tables: Iterator[pd.DataFrame]) -> pd.DataFrame | None:
    found = list(tables)
    return pd.concat(found, ignore_index=True) if found else None


def _histories(pipeline: Pipeline) -> Iterator[pd.DataFrame]:
    if not any(arm.needs_own_selector for arm in pipeline.arms.values()):
        return
    for seed in pipeline.settings.seeds:
        table = _table(_folder(pipeline, pipeline.train_selector(seed)), "history.parquet")
        if table is not None:
            yield table.assign(seed=seed)


def _guesses(pipeline: Pipeline) -> Iterator[pd.DataFrame]:
    for seed in pipeline.settings.seeds if pipeline.settings.pseudo.rounds else []:
        table = _table(_folder(pipeline, pipeline.clips(seed)), GUESSES)
        if table is not None:
            yield table.assign(seed=seed)


def _of_arms(pipeline: Pipeline, stage: Any, name: str) -> Iterator[pd.DataFrame]:
    for seed in pipeline.settings.seeds:
        for arm in pipeline.arms:
            table = _table(_folder(pipeline, stage(arm, seed)), name)
            if table is not None:
                yield pd.concat([pd.DataFrame({"arm": arm, "seed": seed}, index=table.index), table], axis=1)


def _selections(pipeline: Pipeline, seeds: Sequence[int]) -> Iterator[Selection]:
    for seed in seeds:
        for arm, about in pipeline.arms.items():
            stage = pipeline.pairs(arm, seed)
            folder = _folder(pipeline, stage)
            if about.file is not None:
                # Whatever else it says of a clip, training did not read.
                yield Selection(arm=arm, seed=seed, pairs=read_table(as_path(about.file), columns=ENDS))
            elif stage is not None and folder is not None:
                pairs = _table(folder, stage.table)
                assert pairs is not None
                summary = folder / "summary.json"
                yield Selection(
                    arm=arm,
                    seed=seed,
                    pairs=pairs,
                    sample=_table(folder, "sample.parquet"),
                    worst=_table(folder, "worst.parquet"),
                    histogram=_table(folder, "histogram.parquet"),
                    summary=json.loads(read_bytes(summary)) if summary.is_file() else None,
                )
