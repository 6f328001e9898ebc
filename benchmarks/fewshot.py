"""What an episode of TRX costs: frames projected once for each place in a tuple, against tuples that are concatenated.

An episode as published: 5 ways, 5 shots, one query a class, 8 frames of 2048 features, tuples of 2 and 3 frames, width
1152. Both forms share weights, take turns, and must agree; "known" is what an episode costs where the keys and values
of its clips are there already, as in `l2a fewshot`. One thread, times of the thread itself, the best of all rounds.

An episode must be at least 3 times as fast as the plain form.

Run it: ``python benchmarks/fewshot.py [--features 2048] [--rounds 3]``. Figures: docs/benchmarks.md.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from l2a_ray.fewshot.trx import TrxHead, TupleProjection, Tuples, trx_logits

WAYS, SHOTS, FRAMES = 5, 5, 8


def concatenated(head: TrxHead, frames_NTF: Tensor) -> list[Tuples]:
    """Return keys and values as TRX's code has them: every tuple's frames side by side, through the whole layer."""
    found = []
    for layer in head.projections:
        assert isinstance(layer, TupleProjection)
        tuples = (frames_NTF + head.positions)[:, layer.places].flatten(2)
        found.append(Tuples(layer.norm(layer.key(tuples)), layer.value(tuples)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = TrxHead(FRAMES, arguments.features, (2, 3), 1152, 0.1).eval()
    clips = torch.rand(WAYS + WAYS * SHOTS, FRAMES, arguments.features)

    def logits(tuples: list[Tuples]) -> Tensor:
        queries = [Tuples(*(part[:WAYS][None] for part in one)) for one in tuples]
        supports = [Tuples(*(part[WAYS:].reshape(1, WAYS, SHOTS, *part.shape[1:]) for part in one)) for one in tuples]
        return trx_logits(queries, supports)

    with torch.inference_mode():
        known = head.project(clips)
        ways: dict[str, Callable[[], Tensor]] = {
            "concatenated": lambda: logits(concatenated(head, clips)),
            "by place": lambda: logits(head.project(clips)),
            "known": lambda: logits(known),
        }
        results = [way() for way in ways.values()]
        assert all(torch.allclose(result, results[0], rtol=1e-3) for result in results)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                start = time.thread_time()
                way()
                seconds[name].append(time.thread_time() - start)
    for name, taken in seconds.items():
        ratio = min(seconds["concatenated"]) / min(taken)
        print(f"{name:12} {min(taken):7.3f} s an episode, {ratio:.1f} times as fast as concatenated")


if __name__ == "__main__":
    main()
