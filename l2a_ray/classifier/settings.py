"""The settings of the classifier: its network, its training, the machines it takes. Imports neither torch nor Ray."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from l2a_ray.errors import SettingError
from l2a_ray.fields import above, at_least, check, setting, within
from l2a_ray.storage.files import absolute_name

# Torchvision's are listed here so that settings are checked without importing it, which takes seconds.
Name = Literal[
    "small3d",
    "mc3_18",
    "mvit_v1_b",
    "mvit_v2_s",
    "r2plus1d_18",
    "r3d_18",
    "s3d",
    "swin3d_b",
    "swin3d_s",
    "swin3d_t",
    "mmaction2",
]
NETWORKS: tuple[Name, ...] = get_args(Name)
SMALL, MMACTION = NETWORKS[0], NETWORKS[-1]


MethodName = Literal["supervised"]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which network, how wide, and from which weights it starts."""

    name: Name = "r3d_18"
    """`small3d` (ours, for CPUs), any of torchvision.models.video, as r3d_18 and r2plus1d_18 (paper 5.1), or
    `mmaction2`: the recognizer that `config` describes (docs/openmmlab.md)."""
    config: str | None = setting(None, content=True)
    """Config of `mmaction2`: a path, or the part of it below mmaction2's own configs. It is a program and is run."""
    width: int = setting(16, only_for={"name": [SMALL]})
    """Channels of the first layer of `small3d`; the other networks have their published widths. Ours."""
    weights: str | None = setting(None, content=True)
    """None: random. `DEFAULT` or another of torchvision's names: its Kinetics-400 weights (downloaded). Else a
    .safetensors, .pth or .pt file with a state dict of this network; a head of other classes is left out. Of
    `mmaction2`: one of its checkpoints, or our own file."""
    precision: Literal["auto", "float32"] = "auto"
    """`auto`: on a GPU the backbone computes in bfloat16 by autocast, on a CPU in float32. `float32`: everywhere; on a
    GPU that is PyTorch's own, whose convolutions round to TF32. Ours."""

    def __post_init__(self) -> None:
        reason = f"must name mmaction2's config if name is {MMACTION}, and nothing if it is not"
        check(
            self,
            config=lambda config: reason if (config is None) == (self.name == MMACTION) else None,
            width=at_least(1),
        )

    def with_absolute_paths(self) -> "NetworkSettings":
        """Return the same for processes with another working directory: files that are there by their whole path."""
        return replace(self, config=absolute_name(self.config), weights=absolute_name(self.weights))


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """What a classifier is: its network and how it is trained."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Which network, and from which weights it starts."""
    method: MethodName = "supervised"
    """How it learns. `supervised`: cross-entropy on labelled clips and composites (paper, 4.2)."""
    train_on: Literal["train", "train+val"] = "train"
    """Real clips that are learned: those of the training part alone, or those of D_val too, once the Selector needs
    them no more. Published results are of all of them. Pairs are of the training part. Ours."""
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
    evaluation_batch: int = setting(32, execution=True)
    """Clips that the trained network sees at once when it is tested. Ours."""

    def __post_init__(self) -> None:
        check(
            self,
            epochs=at_least(1),
            batch_size=at_least(2),  # batch normalisation needs two
            learning_rate=above(0),
            momentum=lambda momentum: None if 0 <= momentum < 1 else "must be at least 0 and below 1",
            weight_decay=at_least(0),
            crop=at_least(1),
            composite_share=within(0, 1),
            evaluation_batch=at_least(1),
        )


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The machines that train classifiers. They are no part of what a classifier is."""

    count: int = setting(1, execution=True)
    """Ray Train workers, each with an equal part of every batch. 0: train in the command's own process (Ray Train's
    local mode), which starts half a minute sooner."""
    gpus: float = setting(0, execution=True)
    """GPUs of each worker; 0 trains on the CPU."""
    cpus: float = setting(1, execution=True)
    """CPUs that Ray reserves for each worker. At least one more must be left for the tasks that make samples."""
    threads: int = setting(1, execution=True)
    """Torch's threads in each worker. The last bits of sums depend on their number, so it is not the machine's."""
    max_failures: int = setting(3, execution=True)
    """How often dead workers are started again before training gives up."""
    checkpoint_every: int = setting(1, execution=True)
    """Epochs between two checkpoints."""

    def __post_init__(self) -> None:
        positive, natural = at_least(1), at_least(0)
        check(
            self,
            count=natural,
            gpus=natural,
            cpus=natural,
            threads=positive,
            max_failures=natural,
            checkpoint_every=positive,
        )


def check_workers(settings: ClassifierSettings, workers: WorkerSettings) -> None:
    """Refuse a batch that the workers cannot share equally.

    Raises:
        SettingError: of ``batch_size``.
    """
    parts = max(1, workers.count)
    if settings.batch_size % parts or settings.batch_size < 2 * parts:
        reason = f"must be a multiple of the number of workers ({workers.count}) with at least 2 clips a worker"
        raise SettingError("batch_size", settings.batch_size, reason)
