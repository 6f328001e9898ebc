"""Settings of the Selector's training; apart from the code so that reading them loads no RLlib."""

from dataclasses import dataclass, field
from typing import Any, Literal

from l2a_ray.errors import SettingError
from l2a_ray.pairs.vectors import LabelEncoding

ALGORITHMS = ("REINFORCE", "PPO", "APPO", "IMPALA")
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class SelectorSettings:
    """The Selector and how it is trained."""

    algorithm: str = "REINFORCE"
    """RLlib's policy gradient: REINFORCE (paper, section 4.1), PPO, APPO or IMPALA. `random` trains no Selector and
    scores pairs by chance, as a baseline."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of that algorithm, by RLlib's names, as `{num_epochs: 4, clip_param: 0.2}` for PPO."""
    learning_rate: float = 1e-4
    """Of Adam (ours, between DVRL's 1e-2 and ALBA's 1e-5; higher ones make the seeds less alike)."""
    discount: float = 0.0
    """0 makes each step's return its own reward, the paper's one-step episodes; above 0 is an ablation (ours)."""
    exploration: float = 0.0
    """Weight of the penalty on a state's mean omega outside [0.1, 0.9], per pair (DVRL's code: 1000; off unless asked
    for)."""
    steps: int = 4000
    """Environment steps of each runner (ours)."""
    steps_per_update: int = 16
    """Environment steps of each runner that one gradient step averages over (paper: 1; ours: RLlib's own work per
    update is then a small part of the time)."""
    steps_per_iteration: int = 80
    """Environment steps of each runner between two looks at the progress; checkpoints fall on such borders."""
    hidden: tuple[int, ...] = (2048, 1024, 512)
    """Sizes of the hidden layers (paper, section 3.1)."""
    labels: LabelEncoding = "name"
    """`name`: sentence embedding of the class name, which lets a Selector score other data sets' pairs; `one_hot`."""
    agreement: bool = True
    """Whether the Selector is also told how much nearer each clip's feature is to its own class than to any other.
    Ours, after DVRL's prediction difference; without it (paper) wrong labels take it many times more steps."""
    warm_start: Literal["random", "real"] = "random"
    """What the classifier whose features are used is trained on: real clips and composites of random pairs, or real
    clips alone (paper). Ours: features learned where scene and action go together cannot tell them apart."""
    env_runners: int = 0
    """Processes that run environments, each with its own replica of the classifier; 0: in the driver."""
    gpus_per_env_runner: float = 0
    """GPUs, or a share of one, that each such process reserves."""
    learners: int = 0
    """Processes that compute gradients: 1 of its own, on a GPU perhaps; 0: in the driver."""
    gpus_per_learner: float = 0
    """GPUs, or a share of one, that this process reserves."""
    max_failures: int = 3
    """How often training goes back to its last checkpoint because a learner, or all it stood on, has died."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""

    def __post_init__(self) -> None:
        if self.algorithm not in (*ALGORITHMS, RANDOM):
            reason = (
                f"must be one of {', '.join(ALGORITHMS)}, which can draw B independent choices at once, or {RANDOM}"
            )
            raise SettingError("selector.algorithm", self.algorithm, reason)
        if not self.learning_rate > 0:
            raise SettingError("selector.learning_rate", self.learning_rate, "must be positive")
        if not 0 <= self.discount <= 1:
            raise SettingError("selector.discount", self.discount, "must be in [0, 1]")
        for name in ("steps", "steps_per_update", "steps_per_iteration", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"selector.{name}", getattr(self, name), "must be at least 1")
        if self.steps_per_iteration % self.steps_per_update:
            reason = f"must divide selector.steps_per_iteration={self.steps_per_iteration}"
            raise SettingError("selector.steps_per_update", self.steps_per_update, reason)
        if self.steps % self.steps_per_iteration:
            reason = f"must be a multiple of selector.steps_per_iteration={self.steps_per_iteration}"
            raise SettingError("selector.steps", self.steps, reason)
        if not self.hidden or min(self.hidden) < 1:
            raise SettingError("selector.hidden", self.hidden, "must hold at least one layer size, each 1 or more")
        for name in ("exploration", "env_runners", "gpus_per_env_runner", "gpus_per_learner", "max_failures"):
            if getattr(self, name) < 0:
                raise SettingError(f"selector.{name}", getattr(self, name), "must not be negative")
        if self.gpus_per_env_runner and not self.env_runners:
            reason = "with selector.env_runners=0 the environment runs in the driver, which reserves no GPU: must be 0"
            raise SettingError("selector.gpus_per_env_runner", self.gpus_per_env_runner, reason)
        if self.learners not in (0, 1):
            raise SettingError("selector.learners", self.learners, "must be 0 or 1: a Selector is small")
        if self.gpus_per_learner and not self.learners:
            reason = "with selector.learners=0 the driver learns, which reserves no GPU: must be 0"
            raise SettingError("selector.gpus_per_learner", self.gpus_per_learner, reason)
        if self.algorithm in ("APPO", "IMPALA") and not self.env_runners:
            reason = f"{self.algorithm} learns while others sample: must be at least 1"
            raise SettingError("selector.env_runners", self.env_runners, reason)
