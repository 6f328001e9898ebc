"""Results that no stage has made: a run's store filled by hand, as the stages would leave it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers import small_store

from l2a_ray.config.settings import Settings
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.results import RECORD
from l2a_ray.pipeline.stage import Stage
from l2a_ray.prepare.segment.settings import SegmentSettings
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath, write_json

MADE_BY = {
    "code": "c0de",
    "commit": "abc123",
    "hardware": {"cpus": 2, "gpus": None, "machine": "x86_64", "memory_gib": 8.0},
    "packages": {"ray": "2.60.0", "av": None},
    "python": "3.11.9",
    "seed": 0,
    "system": "Linux",
}


def record(title: str, **changes: Any) -> dict[str, Any]:
    """What lies beside a result."""
    known = {"title": title, "key": "0123456789abcdef", "seconds": 1.5, "together": 1, "files": {}, "content": None}
    times = {"started": "2026-01-02T03:04:05+00:00", "complete": True}
    return known | times | {"made_by": [MADE_BY | changes]}


def place(pipeline: Pipeline, stage: Stage) -> Path:
    """Where a result belongs."""
    folder = pipeline.results.store / stage.name / str(pipeline.results.key(stage))
    assert isinstance(folder, Path)
    return folder


def finish(pipeline: Pipeline, stage: Stage, summary: dict[str, Any] | None = None, **tables: pd.DataFrame) -> Path:
    """Put a complete result of some tables where the stage's work would have put it."""
    folder = place(pipeline, stage)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False, row_group_size=10)
    if summary is not None:
        write_json(folder / "summary.json", summary)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != RECORD}
    about = {"key": folder.name, "content": stage.content(folder), "files": sizes}
    write_json(folder / RECORD, record(stage.title) | about)
    return folder


def small_run(root: AnyPath, **changes: Any) -> tuple[Settings, Pipeline, ClipStore]:
    """A run of noise whose `prepare` is complete."""
    given: dict[str, Any] = {"name": "run", "runs": str(root), "segment": SegmentSettings(kind="motion")} | changes
    settings = Settings(**given)
    pipeline = Pipeline(settings)
    store = small_store(place(pipeline, pipeline.prepare))
    write_json(store.root / "notes.json", ["a note"])
    finish(pipeline, pipeline.prepare)
    return settings, pipeline, store


def all_pairs(store: ClipStore) -> pd.DataFrame:
    """All ordered pairs of training clips of two classes, with falling scores."""
    train = store.rows("train")
    pairs = train.merge(train, how="cross", suffixes=("_f", "_b")).query("label_f != label_b")
    names = {"id_f": "foreground", "id_b": "background", "label_f": "foreground_label", "label_b": "background_label"}
    table = pairs.rename(columns=names)[list(names.values())].reset_index(drop=True)
    return table.assign(score=np.linspace(0.9, 0.1, len(table), dtype=np.float32))


def without_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs as `match` and `draw` write them."""
    return table.drop(columns="score")


def finish_selection(pipeline: Pipeline, arm: str, seed: int, table: pd.DataFrame) -> None:
    """The pairs of an arm whose pairs are scored."""
    stage = pipeline.pairs(arm, seed)
    assert stage is not None
    left = np.arange(50) / 50
    finish(
        pipeline,
        stage,
        {"candidates": len(table), "budget": 20, "threshold": float(table["score"][19]), "by_chance": False},
        selected=table.head(20),
        sample=table[10:30],
        worst=table[:-13:-1],
        histogram=pd.DataFrame({"left": left, "right": left + 0.02, "count": 1}),
    )
