"""The settings of the recommendation; apart from the code, so that reading them loads nothing else."""

from dataclasses import dataclass

from l2a_ray.errors import SettingError
from l2a_ray.fields import check, setting


@dataclass(frozen=True, kw_only=True)
class RecommendSettings:
    """Which classifier a run recommends in the end, and what it is trained on."""

    sureness: float = 0.9
    """How sure D_val must be that an arm beats real clips alone before it is recommended in their place: the share of
    the bootstrap's draws in which it does, at least 0.5 and below 1. Ours."""

    retrain: bool = setting(False, execution=True)
    """Train the recommended arm once more on all training clips, those of D_val among them, and hand over that
    classifier. Then no clips are left that could tell what it is worth. Ours."""

    def __post_init__(self) -> None:
        check(self)
        if not 0.5 <= self.sureness < 1:
            raise SettingError("sureness", self.sureness, "must be at least 0.5 and below 1")
