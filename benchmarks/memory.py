"""Peak memory at the size of Kinetics-400: 240,000 clips and 144 million candidate pairs, made up, without videos.

Each part runs in a process of its own, as it does in a run:

- environment: what an env runner holds before its first step, the clips' vectors and its candidates;
- random: drawing as many pairs as the budget keeps (`draw_pairs`);
- select: scoring all pairs and keeping the best, without Ray: one process reads, scores and tallies in turn, and so has
  what of a run the driver has and what each of its workers has. The Selector is a narrow one (``--hidden``) unless told
  otherwise: what it takes in memory is `hidden[0]` floats for each clip of a row group, and its time is no matter here;
- ray: the same as a run does it; the peak is that of the driver.

Run it: ``python benchmarks/memory.py [--scale 1] [--features 512] [--hidden 64 32] [--parts environment select]``

Expect each part to stay below 4 GiB. Figures: docs/benchmarks.md.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.selector.scoring import PairScorer

CLIPS, CLASSES, PAIRS = 240_000, 400, 144_000_000
NAMES = 384
"""Numbers of a class name's embedding."""


def make(folder: Path, scale: float, features: int) -> None:
    """Write vectors, and pairs as `match` does: a row group a class, its clips with those of one other class."""
    from l2a_ray.pairs.match import PAIR_SCHEMA

    side = round((scale * PAIRS / CLASSES) ** 0.5)
    clips, rng = max(round(scale * CLIPS), side * CLASSES), np.random.default_rng(0)
    ids = np.char.mod("%016x", np.arange(clips)).astype(np.bytes_)
    label = np.arange(clips) % CLASSES
    ClipVectors(
        ids,
        rng.standard_normal((clips, features), np.float32),
        rng.standard_normal((CLASSES, NAMES), np.float32)[label],
    ).save(folder / "vectors.safetensors")
    names = pa.array(ids.astype(str))
    with pq.ParquetWriter(folder / "pairs.parquet", PAIR_SCHEMA) as writer:
        for number in range(CLASSES):
            other = (number + 1) % CLASSES
            front, back = (np.flatnonzero(label == one)[:side] for one in (number, other))
            first, second = np.repeat(front, len(back)), np.tile(back, len(front))
            labels = [np.full(len(first), one, np.int32) for one in (number, other)]
            writer.write_table(pa.table([names.take(first), names.take(second), *labels], schema=PAIR_SCHEMA))


def environment(folder: Path, hidden: list[int]) -> None:
    """Hold what an env runner holds."""
    from l2a_ray.pairs.draw import draw_candidates
    from l2a_ray.pairs.table import clip_rows
    from l2a_ray.pairs.vectors import pair_observation

    vectors = ClipVectors.load(folder / "vectors.safetensors")
    rows = clip_rows(vectors, draw_candidates(folder / "pairs.parquet", 100_000, 0))
    pair_observation(vectors, rows[0][:64], rows[1][:64])


def random(folder: Path, hidden: list[int]) -> None:
    """Draw as many pairs as the budget keeps."""
    from l2a_ray.pairs.draw import draw_pairs
    from l2a_ray.pairs.settings import SelectSettings

    draw_pairs(folder / "pairs.parquet", SelectSettings(), 0, folder / "select")


def select(folder: Path, hidden: list[int]) -> None:
    """Select in one process."""
    from l2a_ray.pairs.groups import Groups
    from l2a_ray.pairs.settings import SelectSettings
    from l2a_ray.pairs.table import spans
    from l2a_ray.selector.selection import begin_tally, score_group

    pairs, (vectors, scorer) = folder / "pairs.parquet", scoring(folder, hidden)
    tally = begin_tally(pairs, vectors, SelectSettings(), 0)
    for group, (start, _) in enumerate(spans(pairs)):
        tally.update(*score_group(pairs, group, start, vectors, scorer, Groups("all")))
    tally.write(pairs, folder / "select")


def ray(folder: Path, hidden: list[int]) -> None:
    """Select as a run does."""
    from l2a_ray.pairs.settings import SelectSettings
    from l2a_ray.runtime.session import ray_session
    from l2a_ray.selector.selection import select_pairs

    vectors, scorer = scoring(folder, hidden)
    with ray_session():
        select_pairs(folder / "pairs.parquet", vectors, scorer, SelectSettings(), 0, folder / "select")


def scoring(folder: Path, hidden: list[int]) -> tuple[ClipVectors, PairScorer]:
    import torch

    from l2a_ray.selector.network import SelectorNetwork
    from l2a_ray.selector.scoring import pair_scorer

    torch.set_num_threads(1)
    vectors = ClipVectors.load(folder / "vectors.safetensors")
    return vectors, pair_scorer(SelectorNetwork(vectors.features_NF.shape[1], NAMES, hidden), vectors)


PARTS: dict[str, Callable[[Path, list[int]], None]] = {
    "environment": environment,
    "random": random,
    "select": select,
    "ray": ray,
}


def child(part: str, folder: Path, hidden: list[int]) -> None:
    start = time.perf_counter()
    PARTS[part](folder, hidden)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {part} | {peak:.2f} GiB | {time.perf_counter() - start:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of clips and pairs")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["environment", "random", "select"])
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = spawn.Process(target=make, args=(folder, arguments.scale, arguments.features))
        maker.start()
        maker.join()
        metadata = pq.ParquetFile(folder / "pairs.parquet").metadata
        print(f"{metadata.num_rows} pairs in {metadata.num_row_groups} row groups, {arguments.features} features")
        print("| part | peak | time |\n|---|---|---|", flush=True)
        for part in arguments.parts:
            process = spawn.Process(target=child, args=(part, folder, arguments.hidden))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
