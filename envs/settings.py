"""Settings of the environment; apart from the code so that reading them loads no PyTorch."""

from dataclasses import dataclass
from typing import Literal

from l2a_ray.errors import SettingError
from l2a_ray.fields import above, at_least, check, setting


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """Settings of the environment."""

    pairs: int = 64
    """Pairs B in a state (ours; DVRL 2000, opendataval 32)."""
    steps: int = 20
    """Steps N of an episode (ours; the paper's have one, which costs RLlib twice the forward passes)."""
    restart: Literal["step", "episode"] = "step"
    """When the classifier is put back to its start. `step`: before every step, so that a reward is owed to that step's
    pairs alone (as in DVRL); `episode`: when an episode begins, and it goes on learning to its end (an ablation)."""
    window: int = 5
    """Window S of the moving baseline, in steps (paper, section 4.1)."""
    tune: Literal["head", "all"] = "head"
    """What the classifier's SGD step changes. `head`: a new linear head on the warm start's frozen features; `all`: all
    weights, from the warm start (paper). Ours: one step of all weights drowns what a pair is worth in the directions
    that the loss is steepest in, see docs/train-selector.md."""
    learning_rate: float = 4.0
    """Of the classifier's SGD step; features of a `head` have mean square length 1 (ours; for `all`, 0.01 to 0.1)."""
    momentum: float = 0.0
    """Of the classifier's SGD step (ours: without it a step's reward is owed to that step's pairs alone)."""
    weight_decay: float = 0.0
    """Of the classifier's SGD step (ours: a single step needs none)."""
    balance: bool = True
    """Whether every class has the same share in the SGD step's loss (ours: else a reward says more of which classes the
    mask happened to hold than of which pairs)."""
    validation: Literal["real", "scenes", "both"] = "real"
    """What a better classifier is better at: the clips of D_val as they are (`real`), their actors before a scene of
    another class of D_val (`scenes`, as `evaluate.scenes`), or all of these clips together (`both`). Paper: `real`."""
    validation_clips: int = 512
    """At most this many clips of D_val, classes evenly drawn, are validated on at each step (ours)."""
    held_out: float = 0.0
    """Share of D_val's clips, of source videos of their own, that give no reward, as 0.25: by them the weights that are
    kept are chosen, and whether anything was learned is told. 0: none, and the last weights are kept (paper). Ours: on
    the demo a quarter cost accuracy (docs/benchmarks.md)."""
    candidates: int = 100_000
    """At most this many candidate pairs, drawn evenly, are held in memory to draw states from (ours)."""

    clip_memory: int = setting(2**29, execution=True)
    """Bytes of clips that an environment keeps in memory: 512 MiB are some 1,900 of the demo's, 200 of 16 frames at 112
    pixels."""

    def __post_init__(self) -> None:
        one = at_least(1)
        check(self, pairs=one, steps=one, window=one, validation_clips=one, candidates=one, clip_memory=one)
        check(self, learning_rate=above(0), weight_decay=at_least(0))
        if not 0 <= self.momentum < 1:
            raise SettingError("momentum", self.momentum, "must be in [0, 1)")
        if not 0 <= self.held_out < 1:
            raise SettingError("held_out", self.held_out, "must be in [0, 1)")
