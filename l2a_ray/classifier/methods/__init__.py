"""The ways to train a classifier, one a file; ``classifier.method`` chooses one of them."""

from collections.abc import Callable, Mapping

from l2a_ray.classifier.methods.base import Method
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import ClassifierSettings

METHODS: Mapping[str, Callable[[ClassifierSettings, Network], Method]] = {"supervised": Supervised}
"""Makes a method for a network with its first weights, by name."""
