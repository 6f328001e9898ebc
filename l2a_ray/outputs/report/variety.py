"""How varied the pairs of an arm are: how many clips they use, how evenly, and how much of a composite is actor.

A selection may earn its reward by pairs that change next to nothing, or by a handful of clips. Both show here.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from l2a_ray.composites.composite import CompositeSettings, label_weight
from l2a_ray.outputs.report.spread import Json
from l2a_ray.pairs.table import ENDS

COLLAPSED = 0.5
"""Of random pairs' clips in use (:func:`in_use`), the share below which a selection is said to have collapsed. Ours."""
QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}


def in_use(clips: "pd.Series[str]") -> float:
    """Return how many clips, all used alike, would be as varied: 1 / sum p^2 of their shares p (Hill 1973, order 2)."""
    return float(1 / (clips.value_counts(normalize=True) ** 2).sum())


def variety(pairs: pd.DataFrame, index: pd.DataFrame, composite: CompositeSettings) -> Json:
    """Describe the pairs of one arm and repetition.

    Args:
        pairs: columns foreground, background; at least one row.
        index: the store's; the size of each clip's actor is read from it.
        composite: how the pairs are composited.

    Returns:
        ``pairs``; ``foregrounds`` and ``backgrounds``, how many clips are used as such, and ``foregrounds_in_use`` and
        ``backgrounds_in_use`` (:func:`in_use`); where the label is mixed by the actor's size, ``lambda_low``,
        ``lambda_median`` and ``lambda_high``: the 5 %, 50 % and 95 % quantiles of the foreground's share in it, in
        [0, 1], before an actor is cut by another aspect.
    """
    about: Json = {"pairs": len(pairs)}
    for end in ENDS:
        about |= {f"{end}s": int(pairs[end].nunique()), f"{end}s_in_use": in_use(pairs[end])}
    if composite.kind == "paste" and composite.region == "masks" and composite.mix_labels:
        sizes = index.set_index("id")["people_ratio" if composite.objects == "people" else "foreground_ratio"]
        shares = [label_weight(size, composite.alpha) for size in sizes.loc[pairs["foreground"]]]
        about |= {f"lambda_{name}": float(np.quantile(shares, at)) for name, at in QUANTILES.items()}
    return about


def collapsed(varieties: Mapping[str, Json], random: str | None) -> list[str]:
    """Return a sentence for each arm that uses far fewer clips than random pairs do.

    Args:
        varieties: what :func:`variety` says of each arm.
        random: the arm of random pairs; None: there is none, so nothing can be said.
    """
    if random is None:
        return []
    found, chance = [], varieties[random]
    for arm, about in varieties.items():
        for end in ENDS:
            used, usual = about[f"{end}s_in_use"], chance[f"{end}s_in_use"]
            if used < COLLAPSED * usual:
                found.append(
                    f"{arm}: its pairs use {end} clips as if there were {used:.0f} of them, random pairs {usual:.0f}: "
                    "what is selected has collapsed on few clips, and classifiers of it see little that is new"
                )
    return found
