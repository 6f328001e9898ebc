"""How near `l2a plan` comes: it is asked, then the run is made, and both are set side by side, stage by stage.

    python benchmarks/plan.py --config configs/demo.yaml --seeds [0] --runs NEW_FOLDER
    python benchmarks/plan.py --config configs/jhmdb.yaml --data.root PATH --runs NEW_FOLDER

All arguments are those of `l2a run`; the run's folder must not be there yet.
"""

import json
import logging
import sys
import time
from collections import Counter

from l2a_ray.config.loading import settings_from, settings_parser
from l2a_ray.pairs.table import count_pairs
from l2a_ray.pipeline import commands
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.housekeeping import list_store
from l2a_ray.pipeline.stages import open_store


def made(pipeline: Pipeline) -> tuple[Counter[str], Counter[str], float]:
    """Make the run; return seconds and bytes of each stage, and the seconds of all of it."""
    targets, seconds, sizes = pipeline.answers, Counter[str](), Counter[str]()
    start = time.perf_counter()
    pipeline.results.make(targets)
    total = time.perf_counter() - start
    for stage, record in pipeline.results.records(targets):
        seconds[stage.name] += record["seconds"] / record["together"]
    for one in list_store(pipeline.results.store):
        sizes["prepare" if one.stage == "clips" else one.stage] += one.size
    return seconds, sizes, total


def main() -> None:
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    settings = settings_from(settings_parser().parse_args(sys.argv[1:]))
    if settings.folder.exists():
        raise SystemExit(f"{settings.folder} is there already: name another --runs")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    start = time.perf_counter()
    planned = json.loads(commands.plan(settings).read_bytes())
    print(f"planning took {time.perf_counter() - start:.0f} s")
    pipeline = Pipeline(settings)
    seconds, sizes, total = made(pipeline)
    rows: list[tuple[str, float, float, str]]
    rows = [(name, stage["wall_s"], seconds[name], "s") for name, stage in planned["stages"].items()]
    rows.append(("in all", planned["total"]["wall_s"], total, "s"))
    for name, stage in planned["stages"].items():
        rows.append((f"storage of {name}", stage["storage_bytes"] / 2**20, sizes[name] / 2**20, "MiB"))
    rows.append(
        ("clips", sum(planned["clips"].values()), len(open_store(pipeline.results, pipeline.prepare).index), "")
    )
    if planned["pairs"]:
        match = pipeline.results.folder(pipeline.match(settings.seeds[0]))
        rows.append(("pairs", planned["pairs"], count_pairs(match / "pairs.parquet"), ""))
    print("| | estimated | measured | ratio |\n|---|---|---|---|")
    for name, guess, truth, unit in rows:
        print(f"| {name} | {guess:,.1f} {unit} | {truth:,.1f} {unit} | {guess / truth:.2f} |")


if __name__ == "__main__":
    main()
