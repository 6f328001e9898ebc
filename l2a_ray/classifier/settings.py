"""The settings of the classifier: its network, its training, the machines it takes. Imports neither torch nor Ray."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from l2a_ray.classifier.semi import NUMBERS, SEMI, MethodName, Numbers, SemiSettings
from l2a_ray.composites.settings import AugmentSettings, FrameSampling, Sampling
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
    "timm",
]
NETWORKS: tuple[Name, ...] = get_args(Name)
SMALL, MMACTION, TIMM = NETWORKS[0], *NETWORKS[-2:]
IMAGENET = "imagenet"

Temporal = Literal["shift", "mean_std", "mean"]
CompositeMode = Literal["replace", "add"]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which network, how wide, and from which weights it starts."""

    name: Name = "r3d_18"
    """`small3d` (ours, for CPUs), any of torchvision.models.video, as r3d_18 and r2plus1d_18 (paper 5.1),
    `mmaction2`: the recognizer that `config` describes (docs/openmmlab.md), or `timm`: the 2D network `backbone` over
    each frame."""
    config: str | None = setting(None, content=True)
    """Config of `mmaction2`: a path, or the part of it below mmaction2's own configs. It is a program and is run."""
    backbone: str = setting("tf_efficientnet_lite0", only_for={"name": [TIMM]})
    """Any network of images of timm (`timm.list_models()`), for `timm`."""
    temporal: Temporal = setting("mean_std", only_for={"name": [TIMM]})
    """How `timm` mixes time. `mean_std`: the head sees each feature's mean and standard deviation over the frames.
    `mean`: the mean alone. `shift`: the mean, and in each residual block an eighth of the channels comes from the next
    frame and an eighth from the one before (TSM, https://arxiv.org/abs/1811.08383, 4.1). None has weights."""
    width: int = setting(16, only_for={"name": [SMALL]})
    """Channels of the first layer of `small3d`; the other networks have their published widths. Ours."""
    weights: str | None = setting(None, content=True)
    """None: random. `DEFAULT` or another of torchvision's names: its Kinetics-400 weights (downloaded). Else a
    .safetensors, .pth or .pt file with a state dict of this network; a head of other classes is left out. Of
    `mmaction2`: one of its checkpoints, or our own file. Of `timm`: `imagenet`, which is installed and of
    tf_efficientnet_lite0 alone, `DEFAULT`, timm's own (downloaded), or a file."""
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
    """How it learns. `supervised`: cross-entropy on labelled clips and composites (paper, 4.2). The others add a loss
    on clips without labels (docs/methods.md): they are the paper's rivals in Table 3."""
    semi: SemiSettings = setting(default_factory=SemiSettings, only_for={"method": list(SEMI)})
    """How it learns from clips without labels, where the method does."""
    distill: float | None = None
    """Weight of the distillation of an ImageNet teacher's probabilities (docs/teach.md) on real clips, by a second
    head; 0: none. None: 1 for `videossl`, as a plain sum (ActorCutMix's code), else 0."""
    train_on: Literal["train", "train+val"] = "train"
    """Real clips that are learned: those of the training part alone, or those of D_val too, once the Selector needs
    them no more. Published results are of all of them. Pairs are of the training part. Ours."""
    pseudo_labels: bool = True
    """Whether clips that got a pseudo-label (`pseudo.rounds`) are learned as real clips too; else they are in pairs
    alone. Origin: VideoSSL, as it is told; the paper is silent."""
    epochs: int = setting(100, only_for={"steps": [None]})
    """Passes over as many samples as there are real training clips. Paper 5.1: 100 for UCF101 and HMDB51."""
    steps: int | None = None
    """In place of `epochs`, steps, rounded up to whole epochs: so arms that have fewer real clips than others, as those
    without pseudo-labels, are trained as long. Ours."""
    batch_size: int = 8
    """Samples a step, over all workers: more workers get smaller parts and the result stays. Paper 4.2."""
    learning_rate: float = 0.1
    """Of the first step; it falls to 0 along a cosine. Paper 4.2."""
    momentum: float = 0.9
    """Paper 4.2."""
    weight_decay: float = 0.001
    """Paper 4.2."""
    gradient_clip: float | None = None
    """Largest norm of a step's gradient, to which larger ones are shortened: 40 for ActorCutMix, 20 for TCL, in their
    code. None: they stay as they are; the paper says nothing of it."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that stay as they are, batch statistics included, by PyTorch's names of them: `[backbone]`
    leaves the head alone to learn, `[backbone.stem, backbone.layer1]` all but the first stages of r3d_18. Ours."""
    crop: int = 112
    """Side of the square that is cut out of each clip, pixels; at most decode.size. Paper 4.2."""
    frames: int | None = None
    """Frames a sample, at most decode.frames; training draws them anew in every pass, and nothing else does. None: all
    that are stored (paper 5.1)."""
    sampling: Sampling = "segments"
    """Which frames, if not all: `segments`: one from each of equal parts of the video, as Temporal Segment Networks do
    (Wang et al. 2016); `stretch`: consecutive stored frames. Where nothing is drawn, the middle ones. Ours."""
    looks: int | None = None
    """Passes after which a clip's or pair's frames, crop and flip come back, as 4. Then, where `freeze` holds the whole
    backbone, each look is computed once, and further passes cost next to nothing. None: each pass has its own. Ours."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """What training does to a sample beside cropping and flipping it."""
    composite_mode: CompositeMode = "replace"
    """Whether an arm's composites take the place of real clips in each batch, at equal cost, or are added to a full
    batch of them, as in the paper (4.2), where they make each step longer."""
    composite_share: float = 0.5
    """Composites of an arm that has pairs, as a share of `batch_size`; where they are added to it, rounded to whole
    samples a step. Ours."""
    composite_weight: float = 1.0
    """What a composite weighs in the loss, the mean over all samples, where a real clip weighs 1. Ours."""
    evaluation_batch: int = setting(32, execution=True)
    """Clips that the trained network sees at once when it is tested. Ours."""

    def __post_init__(self) -> None:
        check(
            self,
            epochs=at_least(1),
            steps=lambda steps: None if steps is None else at_least(1)(steps),
            batch_size=at_least(2),  # batch normalisation needs two
            learning_rate=above(0),
            momentum=lambda momentum: None if 0 <= momentum < 1 else "must be at least 0 and below 1",
            weight_decay=at_least(0),
            distill=lambda weight: None if weight is None else at_least(0)(weight),
            gradient_clip=lambda norm: None if norm is None else above(0)(norm),
            crop=at_least(1),
            frames=lambda frames: None if frames is None else at_least(1)(frames),
            looks=lambda looks: None if looks is None else at_least(1)(looks),
            composite_share=within(0, 1),
            composite_weight=at_least(0),
            evaluation_batch=at_least(1),
        )
        if self.composite_weight == 0 and self.composite_mode == "replace" and self.composite_share == 1:
            raise SettingError("composite_weight", 0, "must be above 0 where composites replace all real clips")

    @property
    def added_composites(self) -> int:
        """Composites beside each batch, over all workers, of an arm that has pairs."""
        if self.composite_mode == "replace" or self.composite_share == 0:
            return 0
        return max(1, round(self.composite_share * self.batch_size))

    def passes(self, steps_per_epoch: int) -> int:
        """Return over how many epochs of that many steps a classifier is trained."""
        return self.epochs if self.steps is None else -(-self.steps // steps_per_epoch)

    @property
    def numbers(self) -> Numbers:
        """What the method's own authors chose, but for what is given."""
        own, semi = NUMBERS[self.method], self.semi
        if semi.targets == "soft":
            own = own._replace(threshold=0.8)
        given = {name: getattr(semi, name) for name in Numbers._fields if name != "distill"} | {"distill": self.distill}
        return own._replace(**{name: value for name, value in given.items() if value is not None})

    @property
    def averages(self) -> bool:
        """Whether the result is an average of the weights that are trained."""
        return self.method in SEMI and self.numbers.ema > 0

    @property
    def unlabelled(self) -> int:
        """Clips without labels a step, over all workers."""
        return max(1, round(self.numbers.mu * self.batch_size)) if self.method in SEMI else 0

    @property
    def frame_sampling(self) -> FrameSampling:
        """Which of the stored frames a sample shows."""
        return FrameSampling(count=self.frames, kind=self.sampling)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How many looks at each clip a classifier gets; the probabilities of a clip are their mean."""

    clips: int = 1
    """Samples of `classifier.frames` frames, evenly spread over the video; more than 1 need more stored frames than one
    sample shows. Published results are often of 10. Ours."""
    crops: Literal[1, 3] = 1
    """Squares of each: the centre, or three along the longer side (Feichtenhofer et al. 2019). Ours."""

    def __post_init__(self) -> None:
        check(self, clips=at_least(1))

    @property
    def views(self) -> int:
        """Looks at a clip."""
        return self.clips * self.crops


CENTRE = Looks()


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Looks):
    """What classifiers are tested on beside the test clips as they are, and how many looks at each clip they get."""

    scenes: int = 2
    """Scenes of other classes that each test clip's actor is set before; 0: not tested. Ours: one costs as much as the
    test split itself, two halve the luck of the draw."""
    stripes: bool = True
    """Whether test clips' actors are set before stripes, moving (SCUBA) and still (SCUFO); costs as much as the test
    split twice. Origin: Li et al., ICCV 2023."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, scenes=at_least(0))

    @property
    def looks(self) -> Looks:
        """The looks alone."""
        return Looks(clips=self.clips, crops=self.crops)

    @property
    def sets(self) -> int:
        """How many times the test split's clips are tested, in all."""
        return 1 + self.scenes + 2 * self.stripes


@dataclass(frozen=True, kw_only=True)
class PseudoSettings(Looks):
    """Which clips without labels get a classifier's guess for one, and how many looks at each clip it gets."""

    rounds: int = 0
    """How many times, each by a warm start that has learned what was kept before; 0: pseudo-labels are not made, and
    clips without labels are neither paired nor learned by methods that need labels. The paper makes them once."""
    threshold: float = setting(0.95, only_for={"keep_share": [None]})
    """Least probability of a guess that is kept; above 1, none is. Origin: FixMatch; the paper is silent. By its counts
    of pairs in Table 1 it kept 17 or 35 % of UCF101's clips."""
    keep_share: float | None = None
    """In place of a threshold, the share of the clips that is kept, the surest first; goes with a classifier that is
    surer, or less sure, than it should be. Ours."""
    per_class: bool = False
    """Whether `keep_share` is of the clips guessed to be of each class, at least one clip of each. Ours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share = within(0, 1)
        check(
            self,
            rounds=at_least(0),
            threshold=at_least(0),
            keep_share=lambda kept: None if kept is None else share(kept),
        )
        if self.per_class and self.keep_share is None:
            raise SettingError("per_class", self.per_class, "goes with keep_share alone")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The network of images whose opinion of each frame is kept, to be distilled from."""

    backbone: str = "tf_efficientnet_lite0"
    """Any network of images of timm."""
    weights: str = setting(IMAGENET, content=True)
    """`imagenet`, which is installed and of tf_efficientnet_lite0 alone, `DEFAULT`, timm's own (downloaded), or a file;
    with the head, whose classes are the teacher's."""
    crop: int | None = None
    """Side of the square in the middle of each frame that it sees, pixels. None: as large as the frame. Ours."""

    def __post_init__(self) -> None:
        check(self, crop=lambda crop: None if crop is None else at_least(1)(crop))

    @property
    def network(self) -> NetworkSettings:
        """The same as the network of a classifier."""
        return NetworkSettings(name=TIMM, backbone=self.backbone, temporal="mean", weights=self.weights)


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
    """Refuse a batch, or composites or unlabelled clips beside it, that the workers cannot share equally.

    Raises:
        SettingError: of ``batch_size``, ``composite_share`` or ``semi.mu``.
    """
    parts = max(1, workers.count)
    if settings.batch_size % parts or settings.batch_size < 2 * parts:
        reason = f"must be a multiple of the number of workers ({workers.count}) with at least 2 clips a worker"
        raise SettingError("batch_size", settings.batch_size, reason)
    if settings.added_composites % parts:
        reason = f"adds {settings.added_composites} composites a step: must be a multiple of the workers ({parts})"
        raise SettingError("composite_share", settings.composite_share, reason)
    if settings.unlabelled % parts:
        reason = f"makes {settings.unlabelled} unlabelled clips a step: must be a multiple of the workers ({parts})"
        raise SettingError("semi.mu", settings.numbers.mu, reason)
