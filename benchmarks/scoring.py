"""Keeping the best 12 % of many pairs, against the plain way.

The plain way concatenates both clips' vectors, runs the whole network and sorts all scores. Against it runs, by turns
and on one thread, what `select` does but reading and writing files: the first layer once a clip, then a running top K.
The sizes are the paper's (F = 512, L = 101, layers 2048, 1024, 512), weights and clips are random, every clip is there
seven times so that scores tie, and pairs come a foreground after another, as in `pairs.parquet`. Both must keep the
same pairs. The times are those of the processor, the best of all rounds; with a GPU, those of the clock.

The first layer holds half of the network's multiplications, so about 2 is the most that there is to gain on a CPU.

Run it: ``python benchmarks/scoring.py [--pairs 200000] [--clips 1001] [--rounds 5]``. Figures: docs/benchmarks.md.
"""

import argparse
import copy
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from l2a_ray.pairs.vectors import ClipVectors, Floats, Rows, pair_observation
from l2a_ray.runtime.device import best_device
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import pair_scorer
from l2a_ray.selector.tally import Tally, best_first

Way = Callable[[SelectorNetwork, ClipVectors, int, int], tuple[Floats, Rows]]

PLAIN_BATCH = 1024
GROUP = 50_000
COPIES = 7
BUDGET = 0.12


def pairs_of(rows_B: Rows, clips: int, total: int) -> tuple[Rows, Rows]:
    """Make up the pairs: each clip is the foreground of as many, and copies of a clip have the same backgrounds."""
    foreground_B = rows_B * clips // total
    place_B = rows_B - -(-foreground_B * total // clips)
    return foreground_B, (foreground_B % (clips // COPIES) * 7919 + place_B * 104_729) % clips


@torch.no_grad()
def plain(network: SelectorNetwork, clips: ClipVectors, total: int, k: int) -> tuple[Floats, Rows]:
    """Concatenate, whole MLP, sort everything; in batches too, as one product of all pairs is slower still."""
    mean, std, device = network.feature_mean_F.numpy(), network.feature_scale_F.numpy(), best_device()
    scaled = ClipVectors(clips.ids_N, (clips.features_NF - mean) / std, clips.labels_NL)
    foreground, background = pairs_of(np.arange(total), len(clips), total)
    network = copy.deepcopy(network).to(device)
    scores = []
    for start in range(0, total, PLAIN_BATCH):
        part = slice(start, start + PLAIN_BATCH)
        pairs = torch.from_numpy(pair_observation(scaled, foreground[part], background[part])).to(device)
        scores.append(network.head(network.first(pairs)).cpu().numpy())
    logits = np.concatenate(scores)
    order = best_first(logits, np.arange(total))[:k]
    return logits[order], order


def ours(network: SelectorNetwork, clips: ClipVectors, total: int, k: int) -> tuple[Floats, Rows]:
    """All that `select` does but reading and writing files and drawing pairs at random."""
    scorer, tally = pair_scorer(network, clips), Tally({0: k}, 12, np.zeros(1, np.int64), total)
    for start in range(0, total, GROUP):
        rows = np.arange(start, min(start + GROUP, total))
        tally.update(scorer(*pairs_of(rows, len(clips), total)), rows, np.zeros_like(rows))
    return tally.best[0].result()


WAYS: dict[str, Way] = {"plain": plain, "ours": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--clips", type=int, default=1_001)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=WAYS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = SelectorNetwork(512, 101)
    features = rng.exponential(size=(arguments.clips // COPIES, 512)).astype(np.float32)
    network.standardise(features)
    labels = np.eye(101, dtype=np.float32)[rng.integers(101, size=len(features))]
    clips = ClipVectors(
        np.array([f"{i:016x}" for i in range(COPIES * len(features))], np.bytes_),
        np.tile(features, (COPIES, 1)),
        np.tile(labels, (COPIES, 1)),
    )
    clock = time.perf_counter if best_device().type == "cuda" else time.process_time
    k = round(BUDGET * arguments.pairs)

    seconds: dict[str, list[float]] = {}
    kept: dict[str, tuple[Floats, Rows]] = {}
    names = [arguments.only] if arguments.only else list(WAYS)
    for _ in range(arguments.rounds):
        for name in names:
            start = clock()
            kept[name] = WAYS[name](network, clips, arguments.pairs, k)
            seconds.setdefault(name, []).append(clock() - start)
    for name in names:
        scores, rows = kept[name]
        line = f"{name:8} {arguments.pairs / min(seconds[name]):9,.0f} pairs/s"
        if not arguments.only:
            line += f", {min(seconds['plain']) / min(seconds[name]):.2f} times plain's"
            line += f"; keeps {len(np.intersect1d(rows, kept['plain'][1]))} of plain's {k}"
        print(f"{line}; {len(np.unique(scores))} different scores, the last {(scores == scores[-1]).sum()} times")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
