"""What a run tells Prometheus while it goes on, through Ray's own metrics; docs/metrics.md shows the queries.

Imports no Ray: code that runs without it counts too, and where no Ray is running nothing is recorded.
"""

import sys
from functools import cache
from typing import Any

COUNTERS = {
    "l2a_clips_prepared": "Clips written to the clip store",
    "l2a_clips_failed": "Videos that could not be used",
    "l2a_samples_composited": "Composites made, for training and for the Selector's environment",
    "l2a_selector_steps": "Environment steps of the Selector's training",
    "l2a_train_steps": "SGD steps of classifiers",
}
"""What only grows; Ray exports ``name`` as ``ray_<name>_total``."""
GAUGES = {
    "l2a_selector_reward": "Mean reward of the last iteration's steps, nats",
    "l2a_selector_val_loss": "Mean cross-entropy on D_val after a step, last iteration, nats",
    "l2a_selector_baseline": "Mean moving baseline of the validation loss, last iteration, nats",
    "l2a_selector_share_selected": "Share of the pairs that was selected in the last iteration",
    "l2a_selector_mean_omega": "Mean score omega of the last iteration's pairs",
    "l2a_selector_held_out_difference": "Mean loss on held-out D_val, step by score less step on all, nats",
    "l2a_selector_held_out_loss": "Mean loss on held-out D_val after a step, where that difference is not known, nats",
    "l2a_train_kept_share": "Share of an epoch's guesses so far that were sure enough to be learned, first worker",
    "l2a_train_loss": "Mean cross-entropy of the last SGD step of a classifier, nats",
}
"""What goes up and down; Ray exports ``name`` as ``ray_<name>``."""


def count(name: str, amount: float = 1) -> None:
    """Add to one of ``COUNTERS``, where Ray is running."""
    if amount > 0 and _running():
        _metric(name).inc(amount)


def show(name: str, value: float) -> None:
    """Set one of ``GAUGES``, where Ray is running."""
    if _running():
        _metric(name).set(value)


def _running() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _metric(name: str) -> Any:
    """Make a metric once a process: Ray keeps it over sessions."""
    from ray.util.metrics import Counter, Gauge

    return Counter(name, COUNTERS[name]) if name in COUNTERS else Gauge(name, GAUGES[name])
