"""Keeping the best 12 % of many pairs, against the plain way.

The plain way concatenates both clips' vectors, runs the whole network in float32 and sorts all scores. Against it run,
by turns and on one thread: the first layer once a clip with a running top K (`float32`), and the same behind a screen
in bfloat16 (`screened`), which is what `select` does where bfloat16 is fast (AMX, AMD's AVX-512). The sizes are the
paper's (F = 512, L = 101, layers 2048, 1024, 512), weights and clips are random, every clip is there seven times so
that scores tie, and pairs come a foreground after another, as in `pairs.parquet`. All ways must keep the same pairs.
The times are those of the processor, the best of all rounds.

The first layer holds 49 % of the network's multiplications, so in float32 about 2 is the most that there is to gain.
The screen leaves some 15 of 100 pairs to float32, 12 of them because they are kept.

Run it: ``python benchmarks/scoring.py [--pairs 200000] [--clips 1001] [--rounds 5]``; the memory of many pairs, without
the plain way: ``python benchmarks/scoring.py --only screened --pairs 10000000 --clips 10003 --rounds 1``

Measured on one thread of a Xeon with AMX that others used too:

| way                                                | 200,000 pairs   | ratio | 100,000 pairs   | ratio |
|----------------------------------------------------|-----------------|-------|-----------------|-------|
| plain: concatenate, whole MLP, sort                | 10,641 pairs/s  | 1     | 10,730 pairs/s  | 1     |
| float32: halves once a clip, running top K         | 20,828 pairs/s  | 1.96  | 22,099 pairs/s  | 2.06  |
| screened: in bfloat16, what it leaves in float32   | 63,922 pairs/s  | 6.01  | 57,386 pairs/s  | 5.35  |

and on one of an AMD EPYC with AVX-512's bfloat16, whose screen cannot be much quicker than half of float32's time:

| way                                                | 200,000 pairs   | ratio | 100,000 pairs   | ratio |
|----------------------------------------------------|-----------------|-------|-----------------|-------|
| plain                                              | 8,700 pairs/s   | 1     | 8,553 pairs/s   | 1     |
| float32                                            | 17,435 pairs/s  | 2.00  | 16,954 pairs/s  | 1.98  |
| screened                                           | 28,115 pairs/s  | 3.23  | 26,975 pairs/s  | 3.15  |

All keep the same pairs. On the Xeon, another hour gave 5.33 (200,000 pairs), 3.71 (100,000) and, one round, 5.50
(1,000,000). With other programs beside it 200,000 gave as little as 3.5: the more the caches are shared, the sooner
bfloat16 waits for memory. Peak memory of `screened` with 10,003 clips: 1.05 GiB for 1 million pairs, 1.08 GiB for 10
million.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from l2a_ray.pairs.vectors import pair_observation
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import Floats, Rows, Scorer, make_screen, pair_scorer
from l2a_ray.selector.selection import SAMPLE
from l2a_ray.selector.tally import Batch, best_first, tally_pairs

Way = Callable[[SelectorNetwork, Floats, int, int], tuple[Floats, Rows]]

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
def plain(network: SelectorNetwork, clips_NV: Floats, total: int, k: int) -> tuple[Floats, Rows]:
    """Concatenate, whole MLP, sort everything; in batches too, as one product of all pairs is slower still."""
    mean, std = network.feature_mean_F.numpy(), network.feature_scale_F.numpy()
    size = network.feature_size
    clips_NV = np.concatenate([(clips_NV[:, :size] - mean) / std, clips_NV[:, size:]], axis=1)
    foreground, background = pairs_of(np.arange(total), len(clips_NV), total)
    scores = []
    for start in range(0, total, PLAIN_BATCH):
        part = slice(start, start + PLAIN_BATCH)
        pairs = torch.from_numpy(pair_observation(clips_NV, foreground[part], background[part]))
        scores.append(network.head(network.first(pairs)).numpy())
    scores_B = np.concatenate(scores)
    order = best_first(scores_B, np.arange(total))[:k]
    return scores_B[order], order


def float32(network: SelectorNetwork, clips_NV: Floats, total: int, k: int) -> tuple[Floats, Rows]:
    return ours(network, clips_NV, total, k, screened=False)


def screened(network: SelectorNetwork, clips_NV: Floats, total: int, k: int) -> tuple[Floats, Rows]:
    return ours(network, clips_NV, total, k, screened=True)


def ours(network: SelectorNetwork, clips_NV: Floats, total: int, k: int, *, screened: bool) -> tuple[Floats, Rows]:
    """All that `select` does but reading and writing files and drawing pairs at random."""

    def stream(scorer: Scorer, rows_R: Rows | None) -> Iterator[Batch]:
        for start in range(0, total, GROUP):
            end = min(start + GROUP, total)
            rows = np.arange(start, end) if rows_R is None else rows_R[slice(*np.searchsorted(rows_R, [start, end]))]
            yield scorer(*pairs_of(rows, len(clips_NV), total)), rows, np.zeros_like(rows)

    exact = pair_scorer(network, clips_NV)
    sample = pairs_of(np.linspace(0, total - 1, SAMPLE, dtype=np.int64), len(clips_NV), total)
    screen = make_screen(exact, *sample) if screened else None
    return tally_pairs(stream, exact, screen, {0: k}, np.zeros(1, np.int64), total).best[0].result()


WAYS: dict[str, Way] = {"plain": plain, "float32": float32, "screened": screened}


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
    clips = np.tile(
        np.hstack([features, np.eye(101, dtype=np.float32)[rng.integers(101, size=len(features))]]), (COPIES, 1)
    )
    k = round(BUDGET * arguments.pairs)

    seconds: dict[str, list[float]] = {}
    kept: dict[str, tuple[Floats, Rows]] = {}
    names = [arguments.only] if arguments.only else list(WAYS)
    for _ in range(arguments.rounds):
        for name in names:
            start = time.process_time()
            kept[name] = WAYS[name](network, clips, arguments.pairs, k)
            seconds.setdefault(name, []).append(time.process_time() - start)
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
