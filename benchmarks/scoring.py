"""Scoring pairs with the first layer computed once a clip and a running top K, against the plain way.

The plain way concatenates both clips' vectors, runs the whole network and sorts all scores. Both run here on one thread
by turns, at the paper's sizes (F = 512, L = 101, layers 2048, 1024, 512), on random weights and clips, and must keep
the same pairs. The first layer holds 49 % of the network's multiplications, so in float32 about 2 is the most that
computing it once a clip can gain.

Run it: ``python benchmarks/scoring.py [--pairs 20000] [--clips 1000] [--rounds 12]``

Measured, best of 12 rounds, one thread of a busy Xeon with AVX-512, 20,000 pairs of 1,000 clips, K = 2,400:

| way                                 | pairs/s | ratio |
|-------------------------------------|---------|-------|
| plain: concatenate, whole MLP, sort |   7,417 |  1    |
| halves once a clip, running top K   |  14,138 |  1.91 |
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from l2a_ray.selector.network import SelectorNetwork, pair_observation
from l2a_ray.selector.scoring import BATCH, Floats, Rows, TopK, best_first, clip_halves, score_halves

Way = Callable[[SelectorNetwork, Floats, Rows, Rows, int], Rows]


@torch.no_grad()
def plain(network: SelectorNetwork, clips_NV: Floats, foreground_B: Rows, background_B: Rows, k: int) -> Rows:
    """Concatenate, whole MLP, sort everything; in batches too, as one product of all pairs is slower still."""
    mean, std = network.feature_mean_F.numpy(), network.feature_scale_F.numpy()
    size = network.feature_size
    clips_NV = np.concatenate([(clips_NV[:, :size] - mean) / std, clips_NV[:, size:]], axis=1)
    scores = []
    for start in range(0, len(foreground_B), BATCH):
        part = slice(start, start + BATCH)
        pairs = torch.from_numpy(pair_observation(clips_NV, foreground_B[part], background_B[part]))
        scores.append(network.head(network.first(pairs)).sigmoid().numpy())
    return best_first(np.concatenate(scores), np.arange(len(foreground_B)))[:k]


def ours(network: SelectorNetwork, clips_NV: Floats, foreground_B: Rows, background_B: Rows, k: int) -> Rows:
    halves, top = clip_halves(network, clips_NV), TopK(k)
    for start in range(0, len(foreground_B), BATCH):
        part = slice(start, start + BATCH)
        scores = score_halves(network, halves, foreground_B[part], background_B[part])
        top.update(scores, np.arange(start, start + len(scores)))
    return top.result()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--clips", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = SelectorNetwork(512, 101)
    features = rng.exponential(size=(arguments.clips, 512)).astype(np.float32)
    network.standardise(features)
    clips = np.hstack([features, np.eye(101, dtype=np.float32)[rng.integers(101, size=arguments.clips)]])
    foreground, background = rng.integers(arguments.clips, size=(2, arguments.pairs))
    k = round(0.12 * arguments.pairs)

    seconds: dict[str, float] = {}
    kept: dict[str, set[int]] = {}
    ways: dict[str, Way] = {"plain": plain, "ours": ours}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            kept[name] = set(way(network, clips, foreground, background, k).tolist())
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)
    for name in ways:
        print(f"{name:6} {arguments.pairs / seconds[name]:9,.0f} pairs/s")
    print(f"ratio  {seconds['plain'] / seconds['ours']:9.2f}")
    print(f"kept in common: {len(kept['plain'] & kept['ours'])} of {k}")


if __name__ == "__main__":
    main()
