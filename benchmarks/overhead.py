"""RLlib's share of a REINFORCE iteration: its time less the environment's own, on a run's own environment.

The environment's own time is that of its `step`: composites, SGD steps, validation, and the rest (putting the
classifier back to its start, drawing pairs); with several env runners, which work side by side, their mean. So "RLlib"
is all else: drawing masks, the Selector's forward and backward passes, moving data, and other processes in the way. The
first iteration, in which workers start, is left out.

With ``env.tune=head`` a pair's features are kept once it has been composited, so steps become cheap; `all` is the
paper's form, in which every step composites its pairs and changes every weight.

Run it where the run was made: ``python benchmarks/overhead.py runs/demo [--runners 0 1 2] [--iterations 20]``
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import ray
from selection import Run

from envs.settings import EnvSettings
from l2a_ray.selector.file import load_selector
from l2a_ray.selector.rl.training import SelectorTraining, build_algorithm, env_files, sample_and_learn

PARTS = ("composite", "train", "validate", "rest")
TUNED: dict[Literal["head", "all"], dict[str, Any]] = {"head": {}, "all": {"learning_rate": 0.05}}


def measure(run: Run, runners: int, env: EnvSettings, iterations: int) -> pd.DataFrame:
    """Return a row an iteration: seconds of it, and of its environments' parts (means over the runners)."""
    settings = SelectorTraining.of(run.settings)
    selector = replace(settings.selector, algorithm="REINFORCE", env_runners=runners, options={})
    if env.tune == "all":  # whose steps are long: two updates an iteration are enough
        selector = replace(selector, steps_per_iteration=2 * selector.steps_per_update)
        selector = replace(selector, steps=selector.steps_per_iteration)
    settings = replace(settings, selector=selector, env=env)
    trained = run.folder / "train-selector"
    files = env_files(run.store, run.folder / "match" / "pairs.parquet", settings, trained)
    algorithm = build_algorithm(load_selector(trained).network, files, settings)
    rows = []
    try:
        for iteration in range(iterations + 1):
            start = time.perf_counter()
            steps = pd.DataFrame(sample_and_learn(algorithm, settings.seed, iteration))
            seconds = time.perf_counter() - start
            rows.append({part: steps[f"seconds_{part}"].sum() / max(1, runners) for part in PARTS} | {"all": seconds})
    finally:
        algorithm.stop()
    return pd.DataFrame(rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--runners", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=19, help="with env.tune=head; `all` does 2")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    ray.init(include_dashboard=False, log_to_driver=False)
    names = ["env.tune", "env runners", "seconds an iteration", *PARTS, "RLlib and the Selector"]
    print(f"| {' | '.join(names)} |")
    print("|---" * 8 + "|")
    for tune, changes in TUNED.items():
        for runners in arguments.runners:
            env = replace(run.settings.env, tune=tune, **changes)
            table = measure(run, runners, env, arguments.iterations if tune == "head" else 2)
            means = table.mean()
            shares = [*(means[part] / means["all"] for part in PARTS)]
            cells = " | ".join(f"{share:.0%}" for share in (*shares, 1 - sum(shares)))
            print(f"| {tune} | {runners} | {means['all']:.2f} | {cells} |", flush=True)
            if tune == "head":
                last = table.tail(3).mean()
                rest = 1 - last[list(PARTS)].sum() / last["all"]
                print(f"| {tune}, last 3 | {runners} | {last['all']:.2f} | | | | | {rest:.0%} |", flush=True)


if __name__ == "__main__":
    main()
