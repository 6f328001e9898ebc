"""The settings of the inpainters; apart from the code, so that reading them loads no OpenCV."""

from dataclasses import dataclass
from typing import Literal

from l2a_ray.errors import SettingError
from l2a_ray.fields import check, setting, within


@dataclass(frozen=True, kw_only=True)
class InpaintSettings:
    """How objects are removed from their own scene."""

    kind: Literal["temporal", "torchscript"] = "temporal"
    """Colours of other times first, always; what is masked at every time is filled by OpenCV (``temporal``) or by the
    learned inpainter of `model` (``torchscript``)."""
    model: str | None = setting(None, content=True, only_for={"kind": ["torchscript"]})
    """TorchScript file of ``torchscript``, in the form of `big-lama.pt`; ``inpaint/learned.py`` describes it."""
    compensate: bool = True
    """Whether frames are aligned before they lend each other colours. It changes nothing on a still camera. Ours."""
    dilate: int = 2
    """Pixels by which masks grow first, in [0, 64]: their soft borders carry the object's colour. Ours."""
    spatial: Literal["telea", "navier_stokes"] = setting("telea", only_for={"kind": ["temporal"]})
    """OpenCV's method for pixels that are masked at every time, for ``temporal``. Ours."""
    radius: float = setting(3.0, only_for={"kind": ["temporal"]})
    """Neighbourhood of the spatial method in pixels, in [1, 100]. OpenCV's examples."""

    def __post_init__(self) -> None:
        check(self, dilate=within(0, 64, "pixels"), radius=within(1, 100, "pixels"))
        if self.kind == "torchscript" and self.model is None:
            raise SettingError("model", None, "must name a TorchScript file such as big-lama.pt for kind=torchscript")
