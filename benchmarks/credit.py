"""What credit for every pair costs a step, and how near the one of all weights comes to the exact one.

Steps with and without credit are taken by turns, in the same states and with the same masks, on one thread, by the
thread's own time. "new pairs": a head's step that composites most of its pairs, as at the beginning of a training;
"known pairs": later, when their features are kept. `all` composites every pair of every step.

The exact credit of all weights takes B + 1 steps a state, each with one choice turned; the correlation is over states
and pairs.

Run it where the run was made: ``python benchmarks/credit.py runs/demo [--steps 30] [--states 4]``. Figures:
docs/benchmarks.md.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from selection import Run

from envs.pair_selection import EnvFiles, PairSelectionEnv, build_trial, read_candidates
from envs.settings import EnvSettings
from envs.trial import ClassifierTrial
from l2a_ray.composites.loader import Sample, SampleLoader


class Still(SampleLoader):
    """Draws no crop, so that every mask sees a pair alike."""

    def __call__(self, sample: Sample, rng: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return a pair as it is seen in a test."""
        return super().__call__(sample, None)


def seconds_a_step(files: EnvFiles, steps: int, warm_up: int) -> list[float]:
    """Return the mean seconds of a step without credit and with it."""
    envs = [PairSelectionEnv.from_files({"files": replace(files, credit=credit)}) for credit in (False, True)]
    seconds = [0.0, 0.0]
    rng = np.random.default_rng(0)
    for step in range(warm_up + steps):
        mask = rng.integers(0, 2, files.settings.pairs, dtype=np.int8)
        for i, env in enumerate(envs):
            if step % files.settings.steps == 0:
                env.reset(seed=step)
            start = time.thread_time()
            env.step(mask)
            seconds[i] += (time.thread_time() - start) * (step >= warm_up) / steps
    return seconds


def exact(trial: ClassifierTrial, pairs: list[Sample], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the difference that each choice makes, by steps."""

    def loss(mask: NDArray[np.bool_]) -> float:
        trial.reset()
        rng = np.random.default_rng(0)
        return trial.step([pair for pair, taken in zip(pairs, mask, strict=True) if taken], rng).val_loss

    as_is, credit = loss(chosen), np.empty(len(pairs))
    for i in range(len(pairs)):
        turned = chosen.copy()
        turned[i] = not turned[i]
        credit[i] = (loss(turned) - as_is) * (1 if chosen[i] else -1)
    return credit


def correlation(run: Run, files: EnvFiles, states: int) -> float:
    """Return that of the credit of all weights with the exact one."""
    trial = build_trial(files)
    trial._loader = Still(run.store, files.composite, files.crop, sampling=files.sampling)
    front, back = read_candidates(files, run.store, run.vectors)
    ids, rng, both = run.vectors.ids_N.astype(str), np.random.default_rng(0), []
    for _ in range(states):
        rows = rng.integers(len(front), size=files.settings.pairs)
        pairs = [Sample(str(ids[front[i]]), str(ids[back[i]])) for i in rows]
        chosen = rng.random(len(pairs)) < 0.5
        trial.reset()
        both.append([trial.credited_step(pairs, chosen, rng)[1], exact(trial, pairs, chosen)])
    found, wanted = np.concatenate(both, axis=1)
    return float(np.corrcoef(found, wanted)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--states", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(arguments.run)
    env: EnvSettings = run.settings.env
    whole = replace(env, tune="all", learning_rate=0.05, balance=False)
    print("| step | without, s | with, s | more |\n|---|---|---|---|")
    for name, settings, warm_up in (
        ("head, new pairs", env, 0),
        ("head, known pairs", replace(env, candidates=256), 40),
        ("all", whole, 1),
    ):
        plain, told = seconds_a_step(replace(run.files, settings=settings), arguments.steps, warm_up)
        print(f"| {name} | {plain:.4f} | {told:.4f} | {told / plain - 1:+.0%} |", flush=True)
    print("\n| learning rate of all weights | correlation with the exact credit |\n|---|---|")
    for rate in (0.01, 0.05):
        settings = replace(whole, learning_rate=rate)
        print(
            f"| {rate} | {correlation(run, replace(run.files, settings=settings), arguments.states):.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
