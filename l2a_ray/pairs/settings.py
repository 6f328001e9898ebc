"""Which pairs are candidates, and how many are kept; apart from the code, so that reading settings loads no tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from l2a_ray.errors import SettingError
from l2a_ray.fields import at_least, check, setting, within
from l2a_ray.storage.files import as_path

LabelEncoding = Literal["one_hot", "name"]
Within = Literal["all", "class", "foreground"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Which sentence embedding stands for a class name."""

    kind: Literal["minilm", "sent2vec"] = "minilm"
    """`minilm`: all-MiniLM-L6-v2, offline from an installed package (ours); `sent2vec`: as in the paper, 3.2."""

    model: str | None = setting(None, content=True, only_for={"kind": ["sent2vec"]})
    """The .bin file of a sent2vec model, in a folder and not in an object store, for kind sent2vec alone. Origin: the
    paper does not say which file."""

    def __post_init__(self) -> None:
        check(self)
        if self.kind == "sent2vec" and self.model is None:
            raise SettingError("model", None, "must name a sent2vec .bin file for kind sent2vec")
        if self.kind == "minilm" and self.model is not None:
            raise SettingError("model", self.model, "must be left out for kind minilm")
        if self.model is not None and not isinstance(as_path(self.model), Path):
            reason = "must lie in a folder: parts of it are read through a memory map. Copy it out of the object store"
            raise SettingError("model", self.model, reason)


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Which pairs are candidates."""

    kind: Literal["semantic", "random", "same_class"] = "semantic"
    """Which backgrounds a foreground is paired with. `semantic`: all of the class whose name is nearest. `random`:
    about as many, drawn evenly from all other classes; needs no sentence model. `same_class`: all others of its own
    class. Origin: the paper, 3.2."""

    embedding: EmbeddingSettings = setting(default_factory=EmbeddingSettings, only_for={"kind": ["semantic"]})
    """Embedding of the class names."""

    min_foreground: float = 0.005
    """Least share of a clip's pixels under its mask to serve as foreground; below it little is seen. Ours."""

    min_actor_frames: float = 0.5
    """Least share of a clip's frames in which its mask is not empty, to serve as foreground: in the others a composite
    shows a scene alone, under another's label. Ours."""

    max_foreground: float = 0.9
    """Largest share of a clip's pixels under its mask to serve as background; beyond it all is inpainted. Ours."""

    origins: Literal["any", "labelled_foreground", "labelled"] = "any"
    """Which roles clips with pseudo-labels have (`pseudo.rounds`): both; backgrounds alone; none. Origin of `any`: the
    paper's counts of pairs in Table 1 are of labelled and pseudo-labelled clips."""

    def __post_init__(self) -> None:
        share = within(0, 1)
        check(self, min_foreground=share, min_actor_frames=share, max_foreground=share)


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """How many of the candidate pairs are kept, whatever chooses them."""

    budget: float = 0.12
    """Share of the candidate pairs that is kept, in (0, 1]. The paper's Table 1 keeps 12K of 99K matched pairs."""

    within: Within = "all"
    """What keeps its share of its own pairs: `all` together; each foreground `class`, so that the classes stay as even
    as they were; or each `foreground` clip, which leaves the choice of its backgrounds alone. Origin: `all`, the paper,
    4.1, where easy classes can take all of a small budget; the others are ours."""

    most_per_clip: int | None = None
    """At most so many pairs share a foreground, and so many a background; none: any number (paper). Fewer pairs than
    the budget are kept where it allows no more. Ours."""

    def __post_init__(self) -> None:
        """Refuse shares that keep nothing or more than there is."""
        check(self, budget=_share, most_per_clip=_cap)


@dataclass(frozen=True, kw_only=True)
class SelectSettings(BudgetSettings):
    """Which of the candidate pairs are kept."""

    draw: Literal["top", "omega"] = "top"
    """How the pairs are kept. `top`: the highest scores (paper, 4.1). `omega`: drawn one after another, each with a
    chance in proportion to its score, so that low ones are there too, as in the masks that the Selector learned with
    (ours)."""

    without_signal: Literal["random", "score"] = "random"
    """What a Selector's pairs are where its reward carries no sure signal (`train-selector` says so): as many `random`
    ones, or those of its `score` all the same. Ours: scores learned from noise only make the pairs less varied."""

    worst: int = 12
    """How many of the lowest scored pairs are kept to be looked at (ours)."""

    gpus: float = setting(0.0, execution=True)
    """GPUs, or a share of one, that each process which scores pairs reserves; 0 scores on the CPU."""

    def __post_init__(self) -> None:
        """Refuse shares that keep nothing or more than there is."""
        super().__post_init__()
        check(self, worst=at_least(1), gpus=at_least(0))

    def how_many(self) -> BudgetSettings:
        """Return what pairs drawn at random depend on too."""
        return BudgetSettings(budget=self.budget, within=self.within, most_per_clip=self.most_per_clip)


def _cap(value: int | None) -> str | None:
    return None if value is None else at_least(1)(value)


def _share(value: float) -> str | None:
    return None if 0 < value <= 1 else "must be above 0 and at most 1, a share of the pairs"
