"""State dicts from files that a user names, or from torchvision's download; never unpickled."""

import io
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from l2a_ray.storage.files import as_path, read_bytes


class WeightsError(Exception):
    """Weights cannot be had; the message says why, and ends without a full stop."""


def read_weights(name: str, choices: Any) -> dict[str, Tensor]:
    """Read a state dict from a file, or from torchvision's download.

    Args:
        name: path or URI of a ``.safetensors``, ``.pth`` or ``.pt`` file, or the name of one of the choices.
        choices: torchvision's enumeration of weights for this network, or None.

    Raises:
        WeightsError: the file is missing, damaged, or no plain state dict; the download fails; no such name.
    """
    suffix = Path(name).suffix
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(read_bytes(as_path(name)))
        if suffix in {".pth", ".pt"}:
            return _plain(torch.load(io.BytesIO(read_bytes(as_path(name))), map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = f"cannot be read as weights ({str(error).splitlines()[0]}). Check the path, or fetch it again"
        raise WeightsError(reason) from error
    return _download(name, choices)


def _plain(state: Any) -> dict[str, Tensor]:
    if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()):
        return state
    raise WeightsError("must hold a plain state dict: names and tensors, nothing around them")


def _download(name: str, choices: Any) -> dict[str, Tensor]:
    """Fetch torchvision's weights through its own loader, which keeps them in torch's cache and checks their hash."""
    members = {} if choices is None else choices.__members__
    if name not in members:
        names = ", ".join(members) or "none for this network"
        raise WeightsError(f"must be a .safetensors, .pth or .pt file, or torchvision's name of weights ({names})")
    try:
        return dict(members[name].get_state_dict(progress=False, check_hash=True))
    except (OSError, URLError, RuntimeError) as error:
        url = members[name].url
        raise WeightsError(f"cannot be downloaded ({error}). Fetch {url} by hand and name the file here") from error
