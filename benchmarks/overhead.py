"""RLlib's share of a REINFORCE iteration: its time less the environment's own, on a run's own environment.

The environment's own time is that of its `reset` and `step`: composites, SGD steps (with ``env.tune=head`` the frozen
features too), validation, and the rest (putting the classifier back to its start, drawing pairs). Several env runners
work side by side: their mean, and apart from it how long an update waits for the slowest. "Selector" is what any loop
would do besides: masks drawn and gradients taken, timed alone in plain PyTorch. So "RLlib" is all else: moving data,
counting, and other processes in the way. The first iteration, in which workers start, is left out.

With ``env.tune=head`` a pair's features are kept once it has been composited, so steps become cheap; `all` is the
paper's form, in which every step composites its pairs and changes every weight.

Expect the features of new composites, or with `all` the steps, to take most of the time, and RLlib little.

Run it where the run was made: ``python benchmarks/overhead.py runs/demo [--tune head] [--runners 0 1 2]``. Figures:
docs/benchmarks.md.
"""

import argparse
import statistics
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import ray
import torch
from selection import Run

from envs.settings import EnvSettings
from l2a_ray.selector.file import load_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.distribution import IndependentBernoulli
from l2a_ray.selector.rl.reinforce import reinforce_loss
from l2a_ray.selector.rl.settings import SelectorSettings
from l2a_ray.selector.rl.training import build_algorithm, sample_and_learn

ENV = ("composite", "train", "validate", "rest")
PARTS = (*ENV, "waiting", "Selector")
TUNED: dict[Literal["head", "all"], dict[str, Any]] = {"head": {}, "all": {"learning_rate": 0.05}}


def measure(run: Run, runners: int, env: EnvSettings, iterations: int) -> pd.DataFrame:
    """Return a row an iteration: its seconds, its environments' by part, what they waited, the Selector's."""
    selector = replace(run.settings.selector, algorithm="REINFORCE", env_runners=runners, options={})
    if env.tune == "all":  # whose steps are long: two updates an iteration are enough
        selector = replace(selector, steps_per_iteration=2 * selector.steps_per_update)
        selector = replace(selector, steps=selector.steps_per_iteration)
    files, seed = replace(run.files, settings=env), run.seed
    network = load_selector(run.result("train-selector")).network
    own = passes(network, selector, env.pairs)
    algorithm = build_algorithm(network, files, selector, seed)
    rows = []
    try:
        for iteration in range(iterations + 1):
            start = time.perf_counter()
            steps = pd.DataFrame(sample_and_learn(algorithm, seed, iteration))
            seconds = time.perf_counter() - start
            rows.append(environments(steps, runners, selector.steps_per_update) | {"Selector": own, "all": seconds})
    finally:
        algorithm.stop()
    return pd.DataFrame(rows[1:])


def environments(steps: pd.DataFrame, runners: int, steps_per_update: int) -> dict[str, float]:
    """Return the seconds of each part, as means over the runners, and those that updates wait for the slowest.

    An iteration's steps come update by update, and in each of them runner by runner.
    """
    parts = steps[[f"seconds_{part}" for part in ENV]].to_numpy()
    parts_URSP = parts.reshape(-1, max(1, runners), steps_per_update, len(ENV))
    seconds_UR = parts_URSP.sum(axis=(2, 3))
    waiting = float((seconds_UR.max(axis=1) - seconds_UR.mean(axis=1)).sum())
    return dict(zip(ENV, parts_URSP.mean(axis=1).sum(axis=(0, 1)).tolist(), strict=True)) | {"waiting": waiting}


def passes(network: SelectorNetwork, selector: SelectorSettings, pairs: int) -> float:
    """Return the seconds that an iteration's masks and gradients take in plain PyTorch."""
    network = deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters())
    state_1B2V = torch.randn(1, pairs, 2 * network.clip_size)
    states_NB2V = state_1B2V.repeat(selector.steps_per_update * max(1, selector.env_runners), 1, 1)

    def iteration() -> float:
        start = time.perf_counter()
        for _ in range(selector.steps_per_iteration // selector.steps_per_update):
            for _ in range(selector.steps_per_update):
                with torch.no_grad():
                    policy = IndependentBernoulli.from_logits(network(state_1B2V))
                    mask_1B = policy.sample()
                    policy.logp(mask_1B)
            log_prob_N = IndependentBernoulli.from_logits(network(states_NB2V)).logp(mask_1B)
            optimizer.zero_grad()
            reinforce_loss(log_prob_N, torch.ones(len(states_NB2V))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return time.perf_counter() - start

    return statistics.median(iteration() for _ in range(7))


def tell(tune: str, runners: int, table: pd.DataFrame) -> None:
    means = table.mean()
    shares = [means[part] / means["all"] for part in PARTS]
    cells = " | ".join(f"{share:.0%}" for share in (*shares, 1 - sum(shares)))
    print(f"| {tune} | {runners} | {means['all']:.2f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--runners", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tune", nargs="+", choices=list(TUNED), default=list(TUNED))
    parser.add_argument("--iterations", type=int, default=19, help="with env.tune=head; `all` does 2")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    ray.init(include_dashboard=False, log_to_driver=False)
    names = ["env.tune", "env runners", "seconds an iteration", *PARTS, "RLlib"]
    print(f"| {' | '.join(names)} |")
    print("|---" * len(names) + "|")
    for tune in arguments.tune:
        for runners in arguments.runners:
            env = replace(run.settings.env, tune=tune, **TUNED[tune])
            table = measure(run, runners, env, arguments.iterations if tune == "head" else 2)
            tell(tune, runners, table)
            if tune == "head":
                tell("head, its last 3 iterations", runners, table.tail(3))


if __name__ == "__main__":
    main()
