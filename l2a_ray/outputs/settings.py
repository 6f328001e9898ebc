"""What is shown and written of a run's pairs; apart from the code, so that reading the settings loads nothing else."""

from dataclasses import dataclass, field

from l2a_ray.fields import at_least, check, setting, within

WORST, CANDIDATES = "worst", "candidates"
"""Kinds of pairs that can be looked at beside those of the arms."""


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Which pairs `l2a preview` shows, and how many."""

    pairs: int = 8
    """Pairs of each kind; of the worst, `select` keeps `select.worst`."""

    which: list[str] = field(default_factory=list)
    """Names of arms (the best pairs first, or drawn where nothing scored them), `worst` (the lowest scores) and
    `candidates` (drawn from all, no scores); none named: the arms whose pairs are chosen and the worst, candidates
    before any are."""

    seed: int = 0
    """Seed by which random pairs and candidates are drawn."""

    def __post_init__(self) -> None:
        check(self, pairs=at_least(1), seed=at_least(0))


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Which composites `l2a export` writes, and how well."""

    arm: str = setting("selected", execution=True)
    """The arm whose pairs are written, as the first repetition chose them."""

    crf: int = 18
    """Constant rate factor of x264, 0 (best) to 51 (worst). Ours: 18 is next to free of visible loss."""

    def __post_init__(self) -> None:
        check(self, crf=within(0, 51))
