"""Settings of the Selector's training; apart from the code so that reading them loads no RLlib."""

from dataclasses import dataclass, field
from typing import Any, Literal

from l2a_ray.errors import SettingError
from l2a_ray.fields import above, at_least, check, setting, within
from l2a_ray.pairs.settings import EmbeddingSettings, LabelEncoding


@dataclass(frozen=True, kw_only=True)
class SelectorSettings:
    """The Selector and how it is trained."""

    algorithm: Literal["REINFORCE", "PPO", "APPO", "IMPALA"] = "REINFORCE"
    """RLlib's policy gradient that can draw B independent choices at once: REINFORCE (paper, section 4.1), PPO, APPO or
    IMPALA."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of that algorithm, by RLlib's names, as `{num_epochs: 4, clip_param: 0.2}` for PPO."""
    credit: Literal["shared", "pair"] = "shared"
    """What each choice of a step learns from. `shared`: the step's reward (paper). `pair`: what the loss would have
    been with that choice turned and all others as they were, exactly with `env.tune=head`, to first order with `all`
    (difference rewards, after COMA, https://arxiv.org/abs/1705.08926). Ours."""
    learning_rate: float = 1e-4
    """Of Adam (ours, between DVRL's 1e-2 and ALBA's 1e-5; higher ones make the seeds less alike)."""
    discount: float = 0.0
    """0 makes each step's return its own reward, the paper's one-step episodes; above 0 is an ablation (ours)."""
    exploration: float = 0.0
    """Weight of the penalty on a state's mean omega outside [exploration_low, exploration_high], per pair (DVRL's code:
    1000; off unless asked for)."""
    exploration_low: float = 0.1
    """Mean omega below which that penalty acts (DVRL)."""
    exploration_high: float = 0.9
    """Mean omega above which that penalty acts (DVRL)."""
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
    embedding: EmbeddingSettings = setting(default_factory=EmbeddingSettings, only_for={"labels": ["name"]})
    """That sentence embedding."""
    agreement: bool = True
    """Whether the Selector also sees how much nearer each clip's feature is to its own class than to any other.
    Ours, after DVRL's prediction difference; without it (paper) wrong labels take it many times more steps."""
    env_runners: int = 0
    """Processes that run environments, each with its own replica of the classifier; 0: in the driver."""
    gpus_per_env_runner: float = setting(0.0, execution=True)
    """GPUs, or a share of one, that each such process reserves."""
    learners: int = setting(0, execution=True)
    """Processes that compute gradients: 1 of its own, on a GPU perhaps; 0: in the driver."""
    gpus_per_learner: float = setting(0.0, execution=True)
    """GPUs, or a share of one, that this process reserves."""
    max_failures: int = setting(3, execution=True)
    """How often training goes back to its last checkpoint because a learner, or all it stood on, has died."""
    checkpoint_every: int = setting(10, execution=True)
    """Iterations between checkpoints."""
    patience: float = setting(300.0, execution=True)
    """Seconds without any step from any env runner after which training gives up."""

    def __post_init__(self) -> None:
        one, none = at_least(1), at_least(0)
        check(self, steps=one, steps_per_update=one, steps_per_iteration=one, checkpoint_every=one)
        check(self, exploration=none, env_runners=none, max_failures=none, patience=none)
        check(self, gpus_per_env_runner=none, gpus_per_learner=none, learners=within(0, 1))
        check(self, learning_rate=above(0), discount=within(0, 1), hidden=_layers)
        check(self, exploration_low=within(0, self.exploration_high), exploration_high=within(0, 1))
        if self.steps_per_iteration % self.steps_per_update:
            reason = f"must divide steps_per_iteration={self.steps_per_iteration}"
            raise SettingError("steps_per_update", self.steps_per_update, reason)
        if self.steps % self.steps_per_iteration:
            reason = f"must be a multiple of steps_per_iteration={self.steps_per_iteration}"
            raise SettingError("steps", self.steps, reason)
        if self.gpus_per_env_runner and not self.env_runners:
            reason = "with env_runners=0 the environment runs in the driver, which reserves no GPU: must be 0"
            raise SettingError("gpus_per_env_runner", self.gpus_per_env_runner, reason)
        if self.gpus_per_learner and not self.learners:
            reason = "with learners=0 the driver learns, which reserves no GPU: must be 0"
            raise SettingError("gpus_per_learner", self.gpus_per_learner, reason)
        if self.algorithm in ("APPO", "IMPALA") and not self.env_runners:
            reason = f"{self.algorithm} learns while others sample: must be at least 1"
            raise SettingError("env_runners", self.env_runners, reason)
        if self.credit == "pair" and self.discount > 0:
            reason = "says what a choice was worth in its own step: discount must be 0"
            raise SettingError("credit", self.credit, reason)


def _layers(sizes: tuple[int, ...]) -> str | None:
    return None if sizes and min(sizes) >= 1 else "must hold at least one layer size, each 1 or more"
