"""How well omega, the Selector's score, tells pairs with a right label from pairs with a wrong one.

Reads a finished run on a generated demo, whose ``truth.parquet`` says which labels are wrong; run it where the run was
made, as `data.root` may be relative. Beside omega, on the same pairs drawn at random: chance; the agreement of the
foreground's feature with its label, which is an input of the Selector and needs no training; and the oracle, the exact
fall of the validation loss after a step on that pair alone (envs/oracle.py), also as the mean over the drawn pairs of
one foreground, which evens out backgrounds. AUC: how often a pair with a right label scores above one with a wrong
label, over all pairs, or among those of one foreground class (mean over classes). Last column: wrong labels in the best
half of each class.

Run it: ``python benchmarks/selection.py runs/demo [--pairs 1500]``, ``... --ablate [--seeds 2]``

Expect omega to do no better than the agreement and, without that input, little better than chance (--ablate): what the
Selector learns from the rewards is mostly to trust the agreement. The oracle is no upper bound: it knows a pair by one
step alone, the Selector learns from many. Few clips carry the numbers, so that small differences say nothing.

``--ablate`` trains the Selector anew, with one setting changed at a time, and prints the AUC in class over all
candidates. The warm start, its features and their composites are the run's; the seeds draw the Selector's weights, the
states and the masks. It trains by the plain PyTorch loop below instead of RLlib's, whose updates are equal to it
(tests/test_reinforce.py). Figures: docs/benchmarks.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from envs.making import files_of
from envs.oracle import one_step_gains
from envs.pair_selection import EnvFiles, PairSelectionEnv, build_trial
from envs.trial import ClassifierTrial
from l2a_ray.composites.loader import Sample
from l2a_ray.config import load
from l2a_ray.config.settings import Settings
from l2a_ray.outputs.report.truth import auc, auc_by_class
from l2a_ray.pairs.draw import draw_candidates
from l2a_ray.pairs.table import clip_rows
from l2a_ray.pairs.truth import mark_wrong, read_truth
from l2a_ray.pairs.vectors import ClipVectors, class_agreement, label_vectors
from l2a_ray.prepare.store import ClipStore
from l2a_ray.selector.file import load_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.rl.credit import credited_loss
from l2a_ray.selector.rl.exploration import exploration_penalty
from l2a_ray.selector.scoring import score_pairs
from l2a_ray.storage.files import AnyPath
from l2a_ray.storage.run import find_result

CHANGES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("selector", "steps", (400, 800, 1600, 3200, 6400)),
    ("selector", "learning_rate", (3e-5, 1e-4, 3e-4, 1e-3)),
    ("selector", "exploration", (0.0, 1000.0)),
    ("selector", "agreement", (True, False)),
    ("selector", "labels", ("one_hot", "name")),
    ("env", "pairs", (32, 64, 128)),
    ("env", "steps", (1, 20)),
)


@dataclass(frozen=True)
class Run:
    """A finished run: of its first repetition the candidate pairs (marked wrong or not) and the classifier on trial."""

    folder: Path

    @cached_property
    def settings(self) -> Settings:
        """As ``config.yaml`` has them."""
        return load(self.folder / "config.yaml", runs=str(self.folder.absolute().parent))

    @property
    def seed(self) -> int:
        """Of that repetition."""
        return self.settings.seeds[0]

    def result(self, stage: str) -> AnyPath:
        """Return the folder of a result of that repetition."""
        return find_result(self.folder, stage, self.seed)

    @cached_property
    def store(self) -> ClipStore:
        """The clips."""
        return ClipStore(find_result(self.folder, "prepare"))

    @cached_property
    def vectors(self) -> ClipVectors:
        """What the run's own Selector was told of each clip."""
        return ClipVectors.load(self.result("describe") / "vectors.safetensors")

    @cached_property
    def labels_N(self) -> NDArray[np.int64]:
        """Label of each clip that has a vector."""
        labels = self.store.index.set_index("id")["label"]
        return labels.loc[self.vectors.ids_N.astype(str)].to_numpy(np.int64)

    @cached_property
    def features_NF(self) -> NDArray[np.float32]:
        """The backbone's features alone."""
        features = self.vectors.features_NF
        return features[:, :-1] if self.settings.selector.agreement else features

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """Columns foreground, background, front and back (their rows of the vectors), foreground_label, wrong."""
        truth = read_truth(self.settings.data.root)
        if truth is None:
            raise SystemExit(f"{self.settings.data.root} holds no truth.parquet: give a run on a generated demo")
        table = draw_candidates(self.result("match") / "pairs.parquet", self.settings.env.candidates, self.seed)
        front, back = clip_rows(self.vectors, table)
        pairs = table.to_pandas().astype(str).assign(front=front, back=back)
        pairs = pairs.assign(foreground_label=self.labels_N[pairs["front"]])
        return mark_wrong(pairs, truth, self.store.index, self.store.classes)

    @cached_property
    def trial(self) -> ClassifierTrial:
        """One for all: a pair that it has seen, it need not composite again."""
        return build_trial(self.files)

    @cached_property
    def files(self) -> EnvFiles:
        """What the run's own environment is built from."""
        return files_of(str(self.folder), self.seed)


def in_class(pairs: pd.DataFrame, score: NDArray[np.floating[Any]]) -> float:
    return float(auc_by_class(pairs.assign(score=score)).mean())


def wrong_in_best_half(pairs: pd.DataFrame, score: NDArray[np.floating[Any]]) -> float:
    ranked = pairs.assign(score=score).groupby("foreground_label")["score"].rank(pct=True, method="first")
    return float(pairs["wrong"][ranked > 0.5].mean())


def compare(run: Run, count: int) -> None:
    """Print the table of omega, agreement and oracle on some of the candidates."""
    pairs = run.candidates.sample(min(count, len(run.candidates)), random_state=0)
    network = load_selector(run.result("train-selector")).network
    omega = score_pairs(network, run.vectors, pairs["front"].to_numpy(), pairs["back"].to_numpy())
    samples = [Sample(*ends) for ends in zip(pairs["foreground"], pairs["background"], strict=True)]
    gain = pd.Series(one_step_gains(run.trial, samples, np.random.default_rng(0)), index=pairs.index)
    scores = {
        "omega": omega,
        "agreement": class_agreement(run.features_NF, run.labels_N)[pairs["front"]],
        "oracle": gain,
        "oracle, mean of a foreground": gain.groupby(pairs["foreground"]).transform("mean"),
    }
    wrong = pairs["wrong"]
    print(f"{len(pairs)} of {len(run.candidates)} candidates; {wrong.sum()} of them show one of ", end="")
    print(f"{pairs['foreground'][wrong].nunique()} clips with a wrong label")
    print("| score | AUC | AUC in class | wrong labels in the best half |\n|---|---|---|---|")
    print(f"| chance | 0.500 | 0.500 | {wrong.mean():.1%} |")
    for name, values in scores.items():
        score = np.asarray(values, dtype=np.float64)
        half = wrong_in_best_half(pairs, score)
        print(f"| {name} | {auc(score, wrong):.3f} | {in_class(pairs, score):.3f} | {half:.1%} |")


def variations(settings: Settings) -> Iterator[tuple[str, Settings, bool]]:
    """Yield the run's own settings, then one changed at a time; False: the Selector is not told the class."""
    yield "the run's settings", settings, True
    for section, field, values in CHANGES:
        part = getattr(settings, section)
        for value in values:
            if value != getattr(part, field):
                changed: Any = {section: replace(part, **{field: value})}
                yield f"`{section}.{field}={str(value).lower()}`", replace(settings, **changed), True
    yield "no label", settings, False


def describe(run: Run, settings: Settings, labelled: bool) -> ClipVectors:
    """Return what the Selector is told of each clip."""
    features_NF, labels_LD = run.features_NF, np.empty((len(run.store.classes), 0), np.float32)
    if settings.selector.agreement:
        features_NF = np.column_stack([features_NF, class_agreement(features_NF, run.labels_N)])
    if labelled:
        labels_LD = label_vectors(run.store.classes, settings.selector.labels, settings.selector.embedding)
    return ClipVectors(run.vectors.ids_N, features_NF, labels_LD[run.labels_N])


def train(run: Run, changed: Settings, vectors: ClipVectors, seed: int) -> SelectorNetwork:
    """Train a Selector by REINFORCE in plain PyTorch (paper, Eq. 3 to 5); each step's return is its own reward."""
    settings, pairs, trial = changed.selector, run.candidates, run.trial
    torch.manual_seed(seed)  # after the trial, which is built once and draws weights
    network = SelectorNetwork(vectors.features_NF.shape[1], vectors.labels_NL.shape[1], settings.hidden)
    blocks = (run.features_NF.shape[1], 1) if settings.agreement else None
    network.standardise(vectors.features_NF[vectors.rows(run.store.rows("train")["id"].tolist())], blocks)
    env = PairSelectionEnv(
        trial=trial,
        vectors=vectors,
        foreground=pairs["front"].to_numpy(),
        background=pairs["back"].to_numpy(),
        settings=changed.env,
        credit=settings.credit == "pair",
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    observation, _ = env.reset(seed=seed)
    for _ in range(settings.steps // settings.steps_per_update):
        losses = list[torch.Tensor]()
        for _ in range(settings.steps_per_update):
            logits_B = network(torch.from_numpy(observation))
            mask_B = torch.bernoulli(logits_B.detach().sigmoid())
            log_prob = -binary_cross_entropy_with_logits(logits_B, mask_B, reduction="sum")
            observation, reward, _, truncated, info = env.step(mask_B.numpy().astype(np.int8))
            loss = -reward * log_prob
            if "credit" in info:
                loss = credited_loss(logits_B[None], torch.from_numpy(info["credit"])[None])
            losses.append(settings.exploration * exploration_penalty(logits_B) + loss)
            if truncated:
                observation, _ = env.reset()
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network


def ablate(run: Run, seeds: Sequence[int]) -> None:
    """Print the AUC in class of Selectors that were trained otherwise."""
    if run.settings.selector.discount > 0:
        raise SystemExit("--ablate trains with selector.discount=0 alone")
    front, back = run.candidates["front"].to_numpy(), run.candidates["back"].to_numpy()
    print(f"| changed | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |\n{'|---' * (len(seeds) + 2)}|")
    for name, changed, labelled in variations(run.settings):
        vectors = describe(run, changed, labelled)
        found = []
        for seed in seeds:
            network = train(run, changed, vectors, seed)
            found.append(in_class(run.candidates, score_pairs(network, vectors, front, back)))
        print(f"| {name} | {' | '.join(f'{auc:.3f}' for auc in found)} | {np.mean(found):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--pairs", type=int, default=1500, help="candidates to draw for the oracle")
    parser.add_argument("--ablate", action="store_true", help="train the Selector with other settings instead")
    parser.add_argument("--seeds", type=int, default=2, help="Selectors trained with each setting")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(arguments.run)
    ablate(run, range(arguments.seeds)) if arguments.ablate else compare(run, arguments.pairs)


if __name__ == "__main__":
    main()
