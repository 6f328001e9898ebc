"""Learn2Augment on Ray: learn which pairs of videos to composite, and train a better action classifier with them."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from l2a_ray.deploy.classifier import Classifier
    from l2a_ray.storage.files import AnyPath

# PyTorch's threads wait for each other by spinning. On few CPUs that steals the time of those who make samples beside
# them, and the step waits for a thread that cannot run. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_classifier(
    folder: "str | AnyPath", device: "str | torch.device | None" = None, trust_config: bool = False
) -> "Classifier":
    """Load the classifier of ``runs/NAME/model``: see :func:`l2a_ray.deploy.classifier.load_classifier`."""
    from l2a_ray.deploy.classifier import load_classifier  # here: PyTorch takes seconds

    return load_classifier(folder, device, trust_config)
