"""The ways to train a classifier, one a file; ``classifier.method`` chooses one of them."""

from collections.abc import Callable, Mapping

from l2a_ray.classifier.methods.actorcut import ActorCut
from l2a_ray.classifier.methods.base import Method
from l2a_ray.classifier.methods.fixmatch import FixMatch
from l2a_ray.classifier.methods.mean_teacher import MeanTeacher
from l2a_ray.classifier.methods.pseudo_label import PseudoLabel
from l2a_ray.classifier.methods.s4l import S4L
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.methods.tcl import TCL
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.semi import MethodName
from l2a_ray.classifier.settings import ClassifierSettings

METHODS: Mapping[MethodName, Callable[[ClassifierSettings, Network], Method]] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "mean_teacher": MeanTeacher,
    "s4l": S4L,
    "videossl": PseudoLabel,
    "fixmatch": FixMatch,
    "actorcut": ActorCut,
    "tcl": TCL,
}
"""Makes a method for a network with its first weights, by name."""
