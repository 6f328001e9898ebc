"""The stages, in the data's direction: videos in, a better classifier out.

Each imports what it needs when it works: Ray, RLlib and PyTorch take seconds each, and to find out that a result is
there needs none of them.
"""

from l2a_ray.pipeline.stages.classifiers import Evaluate, Export, Recommend, Train, Validate
from l2a_ray.pipeline.stages.clips import Match, Prepare, Teach, open_store
from l2a_ray.pipeline.stages.fewshot import FewshotEvaluate, FewshotFeatures, FewshotPairs, FewshotTrain
from l2a_ray.pipeline.stages.pseudo import PseudoLabel
from l2a_ray.pipeline.stages.selection import (
    Describe,
    Draw,
    DrawSound,
    PairSource,
    Select,
    SelectByAgreement,
    SelectByOther,
    TrainSelector,
    WarmStart,
)

__all__ = [
    "Describe",
    "Draw",
    "DrawSound",
    "Evaluate",
    "Export",
    "FewshotEvaluate",
    "FewshotFeatures",
    "FewshotPairs",
    "FewshotTrain",
    "Match",
    "PairSource",
    "Prepare",
    "PseudoLabel",
    "Recommend",
    "Select",
    "SelectByAgreement",
    "SelectByOther",
    "Teach",
    "Train",
    "TrainSelector",
    "Validate",
    "WarmStart",
    "open_store",
]
