"""Settings of the plan; reading them loads neither Ray nor PyTorch."""

from dataclasses import dataclass

from l2a_ray.fields import at_least, check


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How much `l2a plan` really runs: all stages on a sample of the data, and again on one of three times the size."""

    clips_per_class: int = 4
    """At most so many clips of each class and part are in the first sample (ours)."""
    steps: int = 60
    """About so many SGD steps of each classifier are taken on the first sample, and never part of an epoch (ours)."""
    iterations: int = 3
    """At most so many iterations of each Selector, of `selector.steps_per_iteration` steps, are trained on the first
    sample (ours)."""

    def __post_init__(self) -> None:
        one = at_least(1)
        check(self, clips_per_class=one, steps=one, iterations=one)
