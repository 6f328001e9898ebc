"""Torchvision's transforms of clips, as pure functions of our generators. Imports no Ray.

PyTorch is imported where it is needed: processes that only paste start sooner and take less memory without it.
Axes: T time, H height, W width, C channel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw(transform: Any, rng: np.random.Generator, *inputs: Any) -> Any:
    """Call a transform; it draws from torch's global generator, which is left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return transform(*inputs)


def as_video(frames: NDArray[Any]) -> Any:
    """Return frames (..., H, W, C) as a video (..., C, H, W) of their type, all of which a transform changes alike."""
    import torch
    from torchvision import tv_tensors

    return tv_tensors.Video(torch.from_numpy(frames.copy()).movedim(-1, -3))


def as_frames(video: Any) -> NDArray[np.uint8]:
    """Undo ``as_video``; what is no uint8 is rounded."""
    return np.ascontiguousarray(video.round().byte().movedim(-3, -1).numpy())
