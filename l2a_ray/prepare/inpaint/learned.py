"""A learned inpainter for what the temporal fill leaves: a TorchScript file in LaMa's form.

The widespread `big-lama.pt` (Suvorov et al., WACV 2022) has this form: it takes an image, float32 (B, 3, H, W) in
[0, 1], and a mask of what to fill, float32 (B, 1, H, W) of zeros and ones, both with sides that 8 divides, and returns
the whole image. `torch.jit.load` builds a TorchScript program from the file; it does not unpickle arbitrary code. A
program it is all the same: take it from where you would take a program.

Axes: B batch, C channel, H height, W width.
"""

import io
import warnings

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.storage.files import as_path, read_bytes

_MULTIPLE = 8
_PROBE = 64  # side of the first image, by which a file of another kind is known


class LearnedFill:
    """Fills images by a TorchScript file, on the GPU if the process sees one.

    Args:
        model: path or URI of the file.

    Raises:
        SettingError: the file is missing, is no TorchScript, or takes or gives something else.
    """

    def __init__(self, model: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module = _load(model, self._device)
        probe = np.full((_PROBE, _PROBE, 3), 128, dtype=np.uint8)
        unknown = np.zeros((_PROBE, _PROBE), dtype=np.bool_)
        unknown[_PROBE // 4 : _PROBE // 2, _PROBE // 4 : _PROBE // 2] = True
        try:
            self(probe, unknown)
        except (RuntimeError, ValueError) as error:
            last = str(error).strip().splitlines()[-1]
            raise SettingError("model", model, f"must fill images as LaMa does, but: {last}") from error

    def __call__(self, image_HWC: NDArray[np.uint8], unknown_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the image with its unknown pixels filled; all others keep their values.

        Raises:
            ValueError: the module returns something other than an image of the size it was given.
        """
        height, width = unknown_HW.shape
        border = 0, -height % _MULTIPLE, 0, -width % _MULTIPLE
        padded = cv2.copyMakeBorder(
            np.where(unknown_HW[..., None], np.uint8(0), image_HWC), *border, borderType=cv2.BORDER_REFLECT
        )
        padded_mask = cv2.copyMakeBorder(unknown_HW.view(np.uint8), *border, borderType=cv2.BORDER_REFLECT)
        image = torch.from_numpy(padded).to(self._device).permute(2, 0, 1)[None].float() / 255
        mask = torch.from_numpy(padded_mask).to(self._device)[None, None].float()
        with torch.inference_mode():
            output = self._module(image, mask)
        if not isinstance(output, torch.Tensor) or output.shape != image.shape:
            got = tuple(getattr(output, "shape", ())) or type(output).__name__
            raise ValueError(f"it returns {got} for an image of {tuple(image.shape)}")
        pixels = (output[0].float().clamp(0, 1) * 255).round().to(torch.uint8)
        filled = pixels.permute(1, 2, 0).cpu().numpy()[:height, :width]
        return np.where(unknown_HW[..., None], filled, image_HWC)


def _load(model: str, device: torch.device) -> torch.jit.ScriptModule:
    try:
        content = io.BytesIO(read_bytes(as_path(model)))
    except OSError as error:
        reason = f"no such file ({error}): name a TorchScript file such as big-lama.pt"
        raise SettingError("model", model, reason) from error
    try:
        with warnings.catch_warnings():
            # PyTorch would rather see torch.export, but the published file is TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            module: torch.jit.ScriptModule = torch.jit.load(content, map_location=device)  # type: ignore[no-untyped-call]
            return module.eval()
    except (RuntimeError, ValueError) as error:
        reason = "must be a TorchScript file, saved by torch.jit.save; a plain checkpoint holds weights without program"
        raise SettingError("model", model, reason) from error
