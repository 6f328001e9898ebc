"""Which segmenter ``kind=auto`` stands for: what is there decides, best first."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import Request, urlopen

from l2a_ray.prepare.segment.settings import DEFAULT_WEIGHTS, SegmentSettings
from l2a_ray.storage.files import AnyPath, as_path

# Torchvision's, which takes seconds to be imported: a run that is complete need not wait for it.
WEIGHTS_URL = "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
_MASKS = (".npz", ".npy", ".png")
_LOOKED_AT = 1000  # entries of a folder without a mask among them, after which it is taken for another one
_SECONDS = 5.0  # that a server may take to answer


def choose(settings: SegmentSettings, root: str) -> tuple[SegmentSettings, str]:
    """Return settings that name their segmenter, and the reason where it had to be chosen (else empty).

    Results depend on what is chosen: with ``auto``, they are those of the kind that it stands for.

    Args:
        settings: as the user gave them.
        root: folder of the data set; masks beside the videos lie in its folder `masks`.
    """
    beside = as_path(root) / "masks"
    if settings.kind == "auto":
        kind, reason = _kind(settings, beside)
        # The others run on CPUs, where a GPU that is reserved would lie idle.
        gpus = settings.gpus_per_worker if kind == "maskrcnn" else 0
        settings = replace(settings, kind=kind, gpus_per_worker=gpus)
    else:
        reason = ""
    if settings.kind == "precomputed" and settings.masks is None:
        settings = replace(settings, masks=str(beside))
    return settings, reason


def _kind(settings: SegmentSettings, beside: AnyPath) -> tuple[Literal["precomputed", "maskrcnn", "people"], str]:
    if settings.masks is not None:
        return "precomputed", f"segment.masks names {settings.masks}"
    if _holds_masks(beside):
        return "precomputed", f"there are masks in {beside}"
    if settings.weights != DEFAULT_WEIGHTS:
        return "maskrcnn", f"segment.weights names {settings.weights}"
    if (cached := _cache()).is_file():
        return "maskrcnn", f"its weights are there, {cached}"
    lacking = f"there is no mask in {beside}, no weight of Mask R-CNN in {cached.parent}"
    if not settings.gpus_per_worker:
        return "people", f"{lacking}, and no GPU is reserved (segment.gpus_per_worker) for which to fetch them"
    if _answers(WEIGHTS_URL):
        return "maskrcnn", "a GPU is reserved and its weights can be fetched"
    return "people", f"{lacking}, and {WEIGHTS_URL} does not answer"


def _holds_masks(folder: AnyPath) -> bool:
    """Return whether a folder, or one in it, holds a file of a kind that masks are read from."""
    if not folder.is_dir():
        return False
    return any(str(path).lower().endswith(_MASKS) for path in islice(folder.rglob("*"), _LOOKED_AT))


def _cache() -> Path:
    """Return where torch keeps a download: ``torch.hub.load_state_dict_from_url``."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints" / WEIGHTS_URL.rpartition("/")[2]


def _answers(url: str) -> bool:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=_SECONDS):
            return True
    except (URLError, OSError):
        return False
