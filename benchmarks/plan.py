"""How near `l2a plan` comes: it is asked, and then the run is made and measured, stage by stage.

    python benchmarks/plan.py --config configs/demo.yaml --runs NEW_FOLDER
    python benchmarks/plan.py --config configs/jhmdb.yaml --data.root PATH --runs NEW_FOLDER

All arguments are those of `l2a run`; the run's folder must not be there yet.
"""

import json
import logging
import sys
import time
from typing import Any

import pyarrow.parquet as pq

from l2a_ray.cli import STAGES, build_parser
from l2a_ray.config.settings import Settings
from l2a_ray.pipeline import stages
from l2a_ray.runtime.session import ray_session
from l2a_ray.storage.files import write_json


def settings_of(arguments: list[str]) -> Settings:
    parser = build_parser()
    chosen = parser.instantiate(parser.parse_args(["run", *arguments]))["run"]
    return Settings(**{name: chosen[name] for name in Settings.__dataclass_fields__})


def made(settings: Settings, planned: dict[str, Any]) -> dict[str, float]:
    """Run all stages; return the seconds of each, and of starting Ray."""
    start = time.perf_counter()
    with ray_session():
        seconds = {"Ray's start": time.perf_counter() - start}
        for name in (name for name in STAGES if name in planned["stages"]):
            start = time.perf_counter()
            getattr(stages, name.replace("-", "_"))(settings)
            seconds[name] = time.perf_counter() - start
    return seconds


def size(settings: Settings, *parts: str) -> int:
    """Return the bytes of all files that match."""
    files = {path for part in parts for path in settings.folder.glob(part) if path.is_file()}
    return sum(path.stat().st_size for path in files)


def main() -> None:
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    settings = settings_of(sys.argv[1:])
    if settings.folder.exists():
        raise SystemExit(f"{settings.folder} is there already: name another --runs")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    start = time.perf_counter()
    planned = json.loads(stages.plan(settings).read_text(encoding="utf-8"))
    print(f"planning took {time.perf_counter() - start:.0f} s")
    seconds = made(settings, planned)
    write_json(settings.folder / "seconds.json", seconds)
    estimated = {"Ray's start": planned["measured"]["session"]}
    estimated |= {name: stage["wall_s"] for name, stage in planned["stages"].items()}
    rows = [(name, estimated[name], seconds[name], "s") for name in seconds]
    rows.append(("in all", planned["total"]["wall_s"], sum(seconds.values()), "s"))
    storage = planned["storage_bytes"]
    models = ("train/*/model.safetensors", "train-selector/warm/model.safetensors", "train-selector/*.safetensors")
    rows.append(("clip store", storage["clip_store"] / 2**20, size(settings, "prepare/**/*") / 2**20, "MiB"))
    rows.append(("models", storage["models"] / 2**20, size(settings, *models) / 2**20, "MiB"))
    pairs = settings.folder / "match" / "pairs.parquet"
    if pairs.is_file():
        tables = size(settings, "match/pairs.parquet", "select/*.parquet")
        rows.append(("pairs' tables", storage["pairs"] / 2**20, tables / 2**20, "MiB"))
        rows.append(("pairs", planned["pairs"], pq.ParquetFile(pairs).metadata.num_rows, ""))
    clips = pq.ParquetFile(settings.folder / "prepare" / "index.parquet").metadata.num_rows
    rows.append(("clips", planned["clips"]["all"], clips, ""))
    print("| | estimated | measured | ratio |\n|---|---|---|---|")
    for name, guess, truth, unit in rows:
        print(f"| {name} | {guess:,.1f} {unit} | {truth:,.1f} {unit} | {guess / truth:.2f} |")


if __name__ == "__main__":
    main()
