"""The settings of the classifier: its network, its optimiser, its training. Imports neither torch nor Ray."""

import math
from dataclasses import dataclass, field, replace

from l2a_ray.errors import SettingError
from l2a_ray.storage.files import absolute_name

SMALL = "small3d"
# Listed here so that settings are checked without importing torchvision, which takes seconds.
NETWORKS = (
    SMALL,
    "mc3_18",
    "mvit_v1_b",
    "mvit_v2_s",
    "r2plus1d_18",
    "r3d_18",
    "s3d",
    "swin3d_b",
    "swin3d_s",
    "swin3d_t",
)
MMACTION = "mmaction2"


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which classifier, how wide, and from which weights it starts."""

    name: str = "r3d_18"
    """`small3d` (ours, for CPUs), any of torchvision.models.video, as r3d_18 and r2plus1d_18 (paper 5.1), or
    `mmaction2`: the recognizer that `config` describes (docs/openmmlab.md)."""
    config: str | None = None
    """Config of `mmaction2`: a path, or the part of it below mmaction2's own configs. It is a program and is run."""
    width: int = 16
    """Channels of the first layer of `small3d`; the other networks have their published widths. Ours."""
    weights: str | None = None
    """None: random. `DEFAULT` or another of torchvision's names: its Kinetics-400 weights (downloaded). Else a
    .safetensors, .pth or .pt file with a state dict of this network; a head of other classes is left out. Of
    `mmaction2`: one of its checkpoints, or our own file."""

    def __post_init__(self) -> None:
        names = (*NETWORKS, MMACTION)
        if self.name not in names:
            raise SettingError("classifier.network.name", self.name, f"must be one of {', '.join(names)}")
        if (self.config is None) == (self.name == MMACTION):
            reason = f"must name mmaction2's config if classifier.network.name is {MMACTION}, and nothing if it is not"
            raise SettingError("classifier.network.config", self.config, reason)
        if self.width < 1:
            raise SettingError("classifier.network.width", self.width, "must be at least 1 channel")

    def with_absolute_paths(self) -> "NetworkSettings":
        """Return the same for processes with another working directory: files that are there by their whole path."""
        return replace(self, config=absolute_name(self.config), weights=absolute_name(self.weights))


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """The classifier, its training and the machines it takes."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Which network, and from which weights it starts."""
    epochs: int = 100
    """Passes over as many samples as there are real training clips. Paper 5.1: 100 for UCF101 and HMDB51."""
    batch_size: int = 8
    """Samples a step, over all workers: more workers get smaller parts and the result stays. Paper 4.2."""
    learning_rate: float = 0.1
    """Of the first step; it falls to 0 along a cosine. Paper 4.2."""
    momentum: float = 0.9
    """Paper 4.2."""
    weight_decay: float = 0.001
    """Paper 4.2."""
    crop: int = 112
    """Side of the square that is cut out of each clip, pixels; at most decode.size. Paper 4.2."""
    composite_share: float = 0.5
    """Share of composites among the samples of an arm that has pairs. Ours."""
    workers: int = 1
    """Ray Train workers, each with an equal part of every batch. 0: train in the command's own process (Ray Train's
    local mode), which starts half a minute sooner."""
    gpus_per_worker: float = 0
    """GPUs of each worker; 0 trains on the CPU."""
    cpus_per_worker: float = 1
    """CPUs that Ray reserves for each worker. At least one more must be left for the tasks that make samples."""
    threads: int = 1
    """Torch's threads in each worker. Sums depend on their number, so it is fixed and not the machine's."""
    max_failures: int = 3
    """How often dead workers are started again before training gives up."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("epochs", "crop", "threads", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"classifier.{name}", getattr(self, name), "must be at least 1")
        for name in ("workers", "gpus_per_worker", "cpus_per_worker", "max_failures"):
            if getattr(self, name) < 0:
                raise SettingError(f"classifier.{name}", getattr(self, name), "must be 0 or more")
        parts = max(1, self.workers)
        if self.batch_size % parts or self.batch_size < 2 * parts:
            reason = f"must be a multiple of classifier.workers ({self.workers}) with at least 2 clips a worker"
            raise SettingError("classifier.batch_size", self.batch_size, reason)
        if not 0 < self.learning_rate < math.inf:
            raise SettingError("classifier.learning_rate", self.learning_rate, "must be positive")
        if not 0 <= self.momentum < 1:
            raise SettingError("classifier.momentum", self.momentum, "must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise SettingError("classifier.weight_decay", self.weight_decay, "must be 0 or more")
        if not 0 <= self.composite_share <= 1:
            raise SettingError("classifier.composite_share", self.composite_share, "must be in [0, 1]")
