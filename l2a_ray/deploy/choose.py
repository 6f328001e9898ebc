"""Which arm and seed a run recommends, by D_val alone: real clips alone unless another arm is surely better.

The test clips play no part, so what they say of the recommended classifier stays an estimate of its worth.

Axes: S seeds, N clips, G source videos, R draws of the bootstrap.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2a_ray.storage.files import AnyPath, read_table

DRAWS = 10_000
_AT_ONCE = 2**22  # numbers in memory
Json = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """What the classifiers of an arm do on D_val.

    Args:
        hits_SN: whether each seed's classifier is right of each clip.
        losses_S: mean cross-entropy of each seed's classifier, nats.
    """

    hits_SN: NDArray[np.bool_]
    losses_S: NDArray[np.float64]

    @property
    def worth(self) -> tuple[float, float]:
        """What arms are ordered by: accuracy, then falling loss, over all seeds."""
        return float(self.hits_SN.mean()), -float(self.losses_S.mean())


def read_scores(folders: Sequence[tuple[str, AnyPath]]) -> tuple[dict[str, Scores], list[str]]:
    """Read what ``evaluate_model`` wrote of some classifiers.

    Args:
        folders: of each classifier the arm and where its tables lie; seeds in the same order for every arm.

    Returns:
        The scores by arm, and the ids of the clips; nothing where there are no tables, for want of clips.
    """
    hits, losses = defaultdict[str, list[NDArray[np.bool_]]](list), defaultdict[str, list[float]](list)
    ids: list[str] = []
    for arm, folder in folders:
        if not (folder / "predictions.parquet").is_file():
            return {}, []
        predictions = read_table(folder / "predictions.parquet").sort_values("id")
        ids = predictions["id"].tolist()
        hits[arm].append((predictions["label"] == predictions["predicted"]).to_numpy())
        losses[arm].append(float(read_table(folder / "metrics.parquet")["loss"].iloc[0]))
    return {arm: Scores(np.stack(hits[arm]), np.array(losses[arm])) for arm in hits}, ids


def recommend(
    arms: Mapping[str, Scores], seeds: Sequence[int], sources_N: Sequence[str], baseline: str | None, sureness: float
) -> Json:
    """Choose an arm and a seed.

    Of the arms that beat the baseline surely enough, the one of the best accuracy; without any, the baseline; without a
    baseline, the best of all. Of its seeds the one whose classifier does best: a classifier must be handed over, and
    D_val is there to choose by. Equal accuracies are decided by the loss, then by the order given.

    Args:
        arms: by name.
        seeds: of the rows of each arm's scores.
        sources_N: which source video each clip was cut from.
        baseline: the arm of real clips alone, if there is one.
        sureness: in [0.5, 1), see :func:`paired_bootstrap`.

    Returns:
        The content of ``recommendation.json``: ``arm``, ``seed``, ``baseline``, ``sureness``, number of ``clips``,
        ``seeds`` and, in ``arms``, by name ``top1`` in [0, 1] and ``loss`` (the mean and ``by_seed``) and, of all but
        the baseline, ``against`` it: what :func:`paired_bootstrap` returns.
    """
    found: dict[str, Json] = {}
    for name, scores in arms.items():
        top1_S = scores.hits_SN.mean(axis=1)
        about: Json = {
            "top1": float(top1_S.mean()),
            "loss": float(scores.losses_S.mean()),
            "by_seed": {
                str(seed): {"top1": float(top1), "loss": float(loss)}
                for seed, top1, loss in zip(seeds, top1_S, scores.losses_S, strict=True)
            },
        }
        if baseline is not None and name != baseline:
            difference_SN = scores.hits_SN.astype(np.int64) - arms[baseline].hits_SN
            about["against"] = paired_bootstrap(difference_SN, sources_N)
        found[name] = about
    able = [name for name, about in found.items() if baseline is None or is_better(about, sureness)]
    arm = max(able, key=lambda name: arms[name].worth) if able else str(baseline)
    chosen = arms[arm]
    row = max(range(len(seeds)), key=lambda row: (chosen.hits_SN[row].mean(), -chosen.losses_S[row]))
    about = {"arm": arm, "seed": seeds[row], "baseline": baseline, "sureness": sureness}
    return about | {"clips": len(sources_N), "seeds": list(seeds), "arms": found}


def is_better(about: Json, sureness: float) -> bool:
    """Return whether an arm, as :func:`recommend` describes it, beats the baseline, and that surely enough."""
    against = about.get("against")
    return against is not None and against["mean"] > 0 and against["better"] >= sureness


def without_scores(arms: Sequence[str], seeds: Sequence[int], baseline: str | None, sureness: float) -> Json:
    """Return what is recommended where there is no clip to choose by: the baseline, without one the first arm.

    The form is that of :func:`recommend`; there are no clips and nothing is known of any arm.
    """
    about = {"arm": baseline or arms[0], "seed": seeds[0], "baseline": baseline, "sureness": sureness}
    return about | {"clips": 0, "seeds": list(seeds), "arms": {}}


def paired_bootstrap(difference_SN: NDArray[np.int64], sources_N: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Return how sure a mean difference is, if clips and repetitions had been others of their kind.

    Seeds are drawn anew with replacement and, apart from them, source videos with all their clips, because clips of one
    source resemble each other (the percentile bootstrap; Efron and Tibshirani 1993, chapters 13 and 16). Two or three
    seeds show too little of their spread, and one none.

    Args:
        difference_SN: of the same seed and clip, as 1 for right where the other is wrong, -1 for the reverse.
        sources_N: which source video each clip was cut from.
        seed: of the draws.

    Returns:
        ``mean``; ``low`` and ``high``, between which 95 % of the draws lie; ``better``, the share of the draws above 0,
        those at 0 counted half.
    """
    _, source_N = np.unique(np.asarray(sources_N), return_inverse=True)
    sizes_G = np.bincount(source_N)
    sums_SG = np.stack([np.bincount(source_N, row, len(sizes_G)) for row in difference_SN])
    seeds, sources = sums_SG.shape
    rng, parts = np.random.default_rng(seed), []
    for count in _blocks(DRAWS, max(1, _AT_ONCE // sources)):
        taken_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), count)
        taken_RG = rng.integers(sources, size=(count, sources))
        sums_RG = np.take_along_axis(taken_RS @ sums_SG, taken_RG, axis=1)
        parts.append(sums_RG.sum(axis=1) / (seeds * sizes_G[taken_RG].sum(axis=1)))
    means_R = np.concatenate(parts)
    low, high = np.quantile(means_R, (0.025, 0.975))
    better = (means_R > 0).mean() + (means_R == 0).mean() / 2
    return {"mean": float(difference_SN.mean()), "low": float(low), "high": float(high), "better": float(better)}


def _blocks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def tell(found: Json) -> list[str]:
    """Return a recommendation as sentences: a line an arm that was compared, then what is recommended and why."""
    arm, baseline, lines = found["arm"], found["baseline"], []
    if not found["arms"]:
        why = (
            f"{baseline} stands for real clips alone" if baseline else "it is the first; no arm is of real clips alone"
        )
        return [f"recommended: {arm}. No clip of D_val is left to compare arms on (classifier.train_on): {why}"]
    for name, about in found["arms"].items():
        if "against" in about:
            lines.append(f"{name}: {_difference(about, baseline, found)}")
    top1 = f"{100 * found['arms'][arm]['top1']:.1f} % of D_val right"
    if baseline is None:
        why = f"{top1}, the most of all; no arm is of real clips alone, so whether composites help is not known"
    elif arm != baseline:
        why = top1
    elif lines:
        why = f"{top1}; no other arm is {100 * found['sureness']:g} % sure to be better (recommend.sureness)"
    else:
        why = f"{top1}; there is no other arm"
    return [*lines, f"recommended: {arm}, seed {found['seed']}: {why}"]


def _difference(about: Json, baseline: str, found: Json) -> str:
    against, enough = about["against"], is_better(about, found["sureness"])
    mean, low, high = (100 * against[name] for name in ("mean", "low", "high"))
    seeds = len(found["seeds"])
    counted = f"{found['clips']} clips{'' if seeds == 1 else f', {seeds} seeds'}"
    # Some draws are on the other side, though none may have come up.
    chance = min(99.0, max(1.0, round(100 * against["better"])))
    sure = f"{chance:.0f} % sure that it is better{'' if enough else ', not enough'}"
    return f"{mean:+.1f} points over {baseline} on D_val, 95 % interval {low:.1f} to {high:.1f}, {counted}: {sure}"
