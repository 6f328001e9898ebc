"""How prepare, match, select and the training's feed grow: 1, 4, 16 and 64 times a small data set.

    python benchmarks/scaling.py PATH [--clips 40] [--times 1 4 16 64]

PATH is a folder data set (PATH/train/<class>/*.mp4, as `l2a generate` writes it). Links to its training videos, under
other names, are a data set of classes of 20 clips; classes grow in number and not in size, as from UCF101 to Kinetics,
so that pairs grow as clips do. Each factor runs in a process of its own, for its peak memory is the driver's: Ray and
PyTorch loaded take most of it, which 1x shows. Ray's processes are started before the clock.

Columns are for each stage: milliseconds a clip (select: microseconds a pair; feed: milliseconds a sample), the ratio to
1x, and the driver's peak memory after it.

What a clip costs falls towards its own work as the start of a stage spreads over more of them; nothing should grow. The
candidate table is written and read a class (a row group) at a time; `largest group` is the most that is ever held.
Figures: docs/benchmarks.md.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

CLASS = 20  # clips
STAGES = ("prepare", "match", "select", "feed")
SELECTOR = (128, 384, (256, 128))  # features, label values, hidden layers: small, to see what lies around the network
KINETICS = {"clips": 240_000, "pairs": 144_000_000}


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def data_set(root: Path, folder: Path, clips: int) -> None:
    """Link so many videos, in classes of ``CLASS``."""
    originals = sorted(root.glob("train/*/*.mp4"))
    for number in range(clips):
        place = folder / "train" / f"class {number // CLASS:05d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}.mp4").symlink_to(originals[number * 7 % len(originals)].absolute())


def measure(root: Path, clips: int, out: Path) -> dict[str, Any]:
    """Run the stages on so many clips; returns seconds and the driver's peak memory after each."""
    import ray

    from l2a_ray.classifier.data import read_data
    from l2a_ray.classifier.feed import Source, feed
    from l2a_ray.classifier.settings import ClassifierSettings
    from l2a_ray.composites.composite import CompositeSettings
    from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule, Stream
    from l2a_ray.pairs.labels import Labels
    from l2a_ray.pairs.match import MatchSettings, write_candidates
    from l2a_ray.pairs.settings import SelectSettings
    from l2a_ray.pairs.vectors import ClipVectors
    from l2a_ray.prepare.job import prepare_clips
    from l2a_ray.prepare.segment import SegmentSettings
    from l2a_ray.prepare.settings import PrepareSettings
    from l2a_ray.runtime.session import ray_session
    from l2a_ray.selector.network import SelectorNetwork
    from l2a_ray.selector.scoring import pair_scorer
    from l2a_ray.selector.selection import select_pairs
    from l2a_ray.videos.catalog import DataSettings, read_catalog
    from l2a_ray.videos.decode import DecodeSettings

    data_set(root, out / "videos", clips)
    found: dict[str, Any] = {"clips": clips}

    def stage(name: str, start: float) -> None:
        found[name], found[f"{name} GiB"] = time.perf_counter() - start, peak_gib()

    @ray.remote
    def wake() -> None:
        import torch  # noqa: F401

        import l2a_ray.prepare.job  # noqa: F401

        time.sleep(5)

    with ray_session():
        ray.get([wake.remote() for _ in range(int(ray.cluster_resources()["CPU"]))])  # type: ignore[no-untyped-call]
        start = time.perf_counter()
        catalog = read_catalog(DataSettings(root=str(out / "videos"), val_fraction=0.05, test_fraction=0.05))
        parts = PrepareSettings(decode=DecodeSettings(frames=8, size=56), segment=SegmentSettings(kind="motion"))
        store = prepare_clips(catalog, parts, out / "clips", out / "store")
        stage("prepare", start)
        start = time.perf_counter()
        write_candidates(store.index, store.classes, MatchSettings(kind="random", min_foreground=0.0), 0, out / "match")
        stage("match", start)
        features, labels, hidden = SELECTOR
        table, rng = store.index[store.index["split"] != "test"], np.random.default_rng(0)
        vectors = ClipVectors(
            table["id"].to_numpy().astype(np.bytes_),
            rng.normal(size=(len(table), features)).astype(np.float32),
            rng.normal(size=(len(table), labels)).astype(np.float32),
        )
        scorer = pair_scorer(SelectorNetwork(features, labels, hidden), vectors)
        start = time.perf_counter()
        select_pairs(out / "match" / "pairs.parquet", vectors, scorer, SelectSettings(), 0, out / "select")
        stage("select", start)
        data = read_data(store, str(out / "select" / "selected.parquet"), ClassifierSettings())
        assert data.pairs is not None
        schedule = Schedule(data.ids, (Stream(COMPOSITES, data.pairs, 0.5), Stream(REAL, data.real)), 16, 0)
        start, steps = time.perf_counter(), 2 * schedule.steps_per_epoch
        source = Source(str(store.root), CompositeSettings(), 48, Labels.given(store.index), schedule)
        for _ in feed(source, 0, steps, 0, 1):
            pass
        stage("feed", start)
    metadata = pq.ParquetFile(out / "match" / "pairs.parquet").metadata
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return found | {"pairs": metadata.num_rows, "samples": steps * 16, "largest group": max(groups)}


def child(root: Path, clips: int, result: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result.write_text(json.dumps(measure(root, clips, Path(folder))))


def show(rows: list[dict[str, Any]]) -> None:
    """Print what each stage takes a unit, and what a straight line through the last two makes of Kinetics-400."""
    units = {"prepare": ("clips", 1e3), "match": ("clips", 1e3), "select": ("pairs", 1e6), "feed": ("samples", 1e3)}
    print("| clips | pairs | largest group | " + " | ".join(f"{name}, ratio, GiB" for name in STAGES) + " |")
    print("|---" * (3 + len(STAGES)) + "|")
    for row in rows:
        cells = []
        for name in STAGES:
            unit, scale = units[name]
            each, first = (scale * it[name] / it[unit] for it in (row, rows[0]))
            cells.append(f"{each:.2f}, {each / first:.2f}, {row[f'{name} GiB']:.2f}")
        print(f"| {row['clips']} | {row['pairs']} | {row['largest group']} | " + " | ".join(cells) + " |")
    if len(rows) < 2:
        return
    small, large = rows[-2:]
    memory = (large["prepare GiB"] - small["prepare GiB"]) / (large["clips"] - small["clips"])
    print(
        f"\nKinetics-400 ({KINETICS['clips']:,} clips, {KINETICS['pairs']:,} pairs), by what the last factor added to"
    )
    print("the one before; clips of this size, this segmenter, this Selector's layers, these CPUs:")
    for name, unit in (("prepare", "clips"), ("match", "pairs"), ("select", "pairs")):
        each = (large[name] - small[name]) / (large[unit] - small[unit])
        print(f"  {name}: {each * KINETICS[unit] / 3600:.2f} h")
    print(
        f"  driver's memory: {large['feed GiB'] + memory * (KINETICS['clips'] - large['clips']):.2f} GiB, and 20 bytes"
    )
    print(f"  for each pair that select keeps, twice: {2 * 20 * 0.12 * KINETICS['pairs'] / 2**30:.2f} GiB at 12 %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="PATH")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16, 64])
    arguments = parser.parse_args()
    rows = []
    for factor in arguments.times:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "found.json"
            job = (arguments.root, arguments.clips * factor, result)
            process = multiprocessing.get_context("spawn").Process(target=child, args=job)
            process.start()
            process.join()
            rows.append(json.loads(result.read_text()))
        print(rows[-1], flush=True)
    show(rows)


if __name__ == "__main__":
    main()
