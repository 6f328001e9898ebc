"""What a Selector's training came to on the held-out part of D_val: which weights are kept, and whether it learned.

An iteration's objective is what the scores did to the held-out loss: that after a step on all pairs weighted by score
less that after a step on all pairs of the same state alike; or the plain loss after a step on the pairs drawn, where
the others are not known. The weights stand for the masks that are drawn with these probabilities: one mask tells little
but its own luck. Lower is better.

Axes: I iterations, W of them in a window, G source videos held out, R resamples.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.storage.files import AnyPath, read_bytes

WINDOW = 5
"""Iterations of the trailing mean (ours: one iteration of 80 steps tells little more than the luck of its masks)."""
RESAMPLES = 2000
LEARNED = "learned.json"
Json = dict[str, Any]


def trailing(objective_I: NDArray[np.floating[Any]], window: int = WINDOW) -> NDArray[np.float64]:
    """Return the mean of each iteration and those before it, so many in all where there are so many."""
    return pd.Series(objective_I, dtype=np.float64).rolling(window, min_periods=1).mean().to_numpy()


def best_iteration(objective_IG: NDArray[np.float32]) -> int:
    """Return the iteration whose trailing mean is lowest, the first of equal ones: 0 is before anything was learned."""
    return int(np.argmin(trailing(objective_IG.mean(axis=1, dtype=np.float64))))


def judge(history: pd.DataFrame, objective_IG: NDArray[np.float32], kept: int) -> Json:
    """Say whether a Selector learned anything that shows on clips it was not rewarded on.

    The 95 % interval is of a bootstrap over the held-out source videos and the iterations of the window, both drawn
    anew. It does not know that the best iteration was chosen by the same clips, and that makes it too kind.

    Args:
        history: a row a step, as ``train-selector`` writes it.
        objective_IG: of each iteration and source, scaled so that the mean over sources is the one over clips.
        kept: the iteration whose first weights are kept.
    """
    compared = "held_out_all" in history
    first = max(0, kept - WINDOW + 1)
    window_WG = objective_IG[first : kept + 1].astype(np.float64)
    rows = history[history["iteration"].between(first, kept)]
    reference = (
        rows["held_out_all"].mean() if compared else history.loc[history["iteration"] == 0, "held_out_loss"].mean()
    )
    if not compared:
        window_WG = window_WG - objective_IG[0]
    low, high = _interval(window_WG)
    at = history[history["iteration"] == kept]
    return {
        "against": "all" if compared else "untrained",
        "kept_step": int(at["step"].min()),
        "steps": len(history),
        "difference": float(window_WG.mean()),
        "low": low,
        "high": high,
        "reference": float(reference),
        "none": float(history["held_out_none"].iloc[0]),
        "omega_low": float(at["omega_low"].mean()),
        "omega_high": float(at["omega_high"].mean()),
        "sources": int(objective_IG.shape[1]),
        "learned": kept > 0 and high is not None and high < 0,
    }


def _interval(values_WG: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Return the ends of the 95 % interval of the mean; none where there is one source alone."""
    rng = np.random.default_rng(0)
    size, sources = values_WG.shape
    if sources < 2:
        return None, None
    drawn_RW, drawn_RG = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in (size, sources))
    low, high = np.quantile(np.einsum("rw,wg,rg->r", drawn_RW, values_WG, drawn_RG), [0.025, 0.975])
    return float(low), float(high)


def read_learned(folder: AnyPath) -> Json:
    """Read what :mod:`l2a_ray.selector.rl.training` wrote of it; empty where nothing is known."""
    path = folder / LEARNED
    return dict(json.loads(read_bytes(path))) if path.is_file() else {}


def carries_signal(found: Mapping[str, Any]) -> bool | None:
    """Return whether two parts of D_val surely agree on which pairs help; None where that is not known."""
    signal = found.get("signal")
    return None if signal is None else bool(signal["low"] > 0)


def tell(found: Mapping[str, Any]) -> list[str]:
    """Say in a sentence each what is known: whether it learned, and whether the reward means anything."""
    lines = [_tell_learned(found)] if "learned" in found else []
    if (surely := carries_signal(found)) is not None:
        measured = "correlation {correlation:.2f}, 95 % interval {low:.2f} to {high:.2f}".format(**found["signal"])
        if surely:
            lines.append(f"the reward carries signal: two parts of D_val agree on which pairs help ({measured})")
        else:
            lines.append(
                "the reward carries no sure signal on this data: two parts of D_val do not surely agree on which pairs "
                f"help ({measured}); random pairs are the honest choice"
            )
    return lines


def _tell_learned(found: Mapping[str, Any]) -> str:
    to_percent = 100 / found["reference"]
    share, ends = to_percent * found["difference"], [found["low"], found["high"]]
    what, other = "a step on pairs weighted by score", "one on all pairs alike"
    if found["against"] == "untrained":
        what, other = "a step on chosen pairs", "the untrained Selector's"
    interval = "one source video tells no interval"
    if None not in ends:
        interval = "95 % interval of the difference {:+.2g} to {:+.2g} %".format(*(to_percent * end for end in ends))
    if found["learned"]:
        verdict = "it learned"
    elif found["kept_step"]:
        verdict = "it learned nothing that surely shows on clips it was not rewarded on"
    else:
        verdict = "it learned nothing that shows on clips it was not rewarded on, and is kept untrained"
    return (
        f"on held-out D_val {what} ends {abs(share):.2g} % {'below' if share < 0 else 'above'} {other} "
        f"({interval}), scores from {found['omega_low']:.2f} to {found['omega_high']:.2f}, kept as before step "
        f"{found['kept_step']} of {found['steps']}: {verdict}"
    )
