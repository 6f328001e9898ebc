"""What mmdet and mmaction2 need before they are imported, and how their configs and checkpoints are read.

Neither is maintained any more, and mmcv has no wheels for current versions of torch. ``mmcv-lite`` is mmcv without its
compiled ops; two of them, all that most models run, are torchvision's as well, so that a stand-in for the missing
module calls those. Each process that builds a model goes through ``ready``, Ray's workers too.
"""

import functools
import importlib.util
import io
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from l2a_ray.errors import MissingPackageError, SettingError
from l2a_ray.storage.files import as_path, read_bytes

Package = Literal["mmdet", "mmaction"]

COMMANDS = (
    "Install them by `make openmmlab`, or by `uv pip install --no-deps --require-hashes --requirement "
    "requirements-openmmlab.lock`; docs/openmmlab.md tells more"
)

logger = logging.getLogger(__name__)


@functools.cache
def ready(package: Package) -> None:
    """Import a package of OpenMMLab, with what it lacks put in its place.

    Raises:
        MissingPackageError: it, or what it needs, is not installed, or in a version that does not fit.
    """
    try:
        # What they use was deprecated since they were last released: nothing that a user could mend.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if importlib.util.find_spec("mmcv._ext") is None:
                sys.modules["mmcv._ext"] = _Ops()
            if package == "mmaction":
                _mend_mmaction()
            importlib.import_module(f"{package}.models")
            importlib.import_module(f"{package}.datasets")
            from mmengine.logging import MMLogger

            MMLogger.get_current_instance().setLevel(logging.WARNING)  # else it lists the start of every weight
    except (ImportError, AssertionError) as error:
        raise MissingPackageError(f"mmdet and mmaction2 cannot be used here ({error}). {COMMANDS}") from error


@contextmanager
def scope(package: Package) -> Iterator[None]:
    """Let names in configs mean classes of ``package``, without the warnings of its age."""
    from mmengine.registry import DefaultScope

    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(package):
        warnings.simplefilter("ignore")
        yield


def read_config(package: Package, name: str, field: str) -> Any:
    """Read a config, a Python program that is run: mmengine's ``Config``, with all that it is based on.

    Args:
        package: whose packaged configs are looked through.
        name: a path, or one below the package's configs (``mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``).
        field: name of the setting, for messages; whoever owns the settings adds its path.

    Raises:
        MissingPackageError: the package is not installed.
        SettingError: there is no such file, or it is no config of a model.
    """
    ready(package)
    from mmengine.config import Config

    packaged = Path(str(sys.modules[package].__file__)).parent / ".mim" / "configs"
    path = next((path for path in (Path(name), packaged / name) if path.is_file()), None)
    if path is None:
        raise SettingError(field, name, f"no such file, nor is it one of {package}'s own configs in {packaged}")
    try:
        with scope(package):
            config = Config.fromfile(path)
            _forget_pretrained(config.model)
    except Exception as error:  # a config is a program: it may fail in any way
        _refuse(field, name, "cannot be read as a config of a model", error)
    return config


def build_model(package: Package, config: Any, name: str, field: str) -> nn.Module:
    """Build the model of a config, with random weights from torch's global generator.

    Raises:
        SettingError: the config names what is not installed, or what does not exist.
    """
    from mmengine.model.utils import revert_sync_batchnorm

    registry = importlib.import_module(f"{package}.registry").MODELS
    try:
        with scope(package):
            model = registry.build(config.model)
            with suppress(TypeError):  # a few of mmaction2's parts know only to load: PyTorch's first weights stay
                model.init_weights()
    except Exception as error:  # models raise whatever they like
        _refuse(field, name, "describes a model that cannot be built", error)
    single: nn.Module = revert_sync_batchnorm(model)
    return single


def read_checkpoint(path: str, field: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, or a plain state dict; return the state dict and what is noted beside it.

    Only tensors, plain values and numpy's arrays and scalars are unpickled, and mmengine's records of past losses.

    Raises:
        SettingError: the file cannot be read, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(io.BytesIO(read_bytes(as_path(path))), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        advice = "If you trust it, save its `state_dict` alone to another file and name that"
        _refuse(field, path, "holds more than weights and is not unpickled", error, advice)
    except (OSError, RuntimeError, EOFError) as error:
        _refuse(field, path, "cannot be read as a checkpoint", error, "Check the path, or fetch it again")
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SettingError(field, path, "must hold a state dict, alone or as `state_dict`")
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    return state, dict(content.get("meta") or {}) if state is not content else {}


def load_checkpoint(model: nn.Module, path: str, field: str) -> dict[str, Any]:
    """Load a checkpoint into a model; return what is noted beside its weights.

    Raises:
        SettingError: it cannot be read, or lacks weights of this model.
    """
    state, meta = read_checkpoint(path, field)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[min(1, len(str(error).splitlines()) - 1)].strip()
        raise SettingError(field, path, f"does not fit the config: {reason}. Name the one it was trained by") from error
    if missing:
        reason = f"lacks {len(missing)} tensors of the config's model, {missing[0]} say. Name the one it was trained by"
        raise SettingError(field, path, reason)
    if unexpected:
        logger.warning("%s: %d tensors, %s say, have no place in the model", path, len(unexpected), unexpected[0])
    return meta


def _refuse(field: str, value: str, reason: str, error: Exception, advice: str = "") -> NoReturn:
    if isinstance(error, MissingPackageError):
        raise error
    # Of torch's long texts on unpickling, the words that say what was found.
    text = re.sub(r"(?s).*WeightsUnpickler error: (.*?)(\. Please use.*|$)", r"\1", str(error))
    line = (text.strip().splitlines() or [""])[0][:300]
    raise SettingError(field, value, f"{reason} ({type(error).__name__}: {line}). {advice}".rstrip()) from error


def _forget_pretrained(node: Any) -> None:
    """Take out of a model's config the weights of its parts, which it would download: a checkpoint holds all."""
    if isinstance(node, list | tuple):
        for item in node:
            _forget_pretrained(item)
    if not isinstance(node, dict):
        return
    for key in ("pretrained", "pretrained2d"):
        if node.get(key):
            node[key] = None
    init = node.get("init_cfg")
    if isinstance(init, dict) and str(getattr(init["type"], "__name__", init["type"])).startswith("Pretrained"):
        node["init_cfg"] = None
    for value in node.values():
        _forget_pretrained(value)


def _harmless() -> list[Any]:
    """Return what mmengine's checkpoints hold beside tensors and plain values, under its old names too."""
    from mmengine.logging import HistoryBuffer

    core = importlib.import_module("numpy._core.multiarray")  # so named in numpy's pickles since 2.0
    functions = [core._reconstruct, core.scalar]
    named = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    kinds = [type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)]

    def statistic(owner: type, name: str) -> object:
        # A HistoryBuffer notes its ways of summing up by `getattr`, which itself would open far more than these.
        if owner is HistoryBuffer and name in ("min", "max", "mean", "current"):
            return getattr(HistoryBuffer, name)
        raise pickle.UnpicklingError(f"getattr({owner}, {name!r}) is not allowed")

    return [HistoryBuffer, np.ndarray, np.dtype, *functions, *named, *kinds, (statistic, "builtins.getattr")]


def _mend_mmaction() -> None:
    """Put in place what mmaction2 1.2.0 lacks (open-mmlab/mmaction2#2714), and leave out what would lack timm."""
    import mmaction.utils.dependency

    if not (Path(mmaction.__file__).parent / "models" / "localizers" / "drn").is_dir():
        name = "mmaction.models.localizers.drn.drn"
        module = ModuleType(name)
        module.DRN = type("DRN", (), {})  # type: ignore[attr-defined]
        sys.modules[name] = module
    # Its models of video and text want timm, and transformers of their time: they are no recognizers.
    mmaction.utils.dependency.WITH_MULTIMODAL = False


class _Ops(ModuleType):
    """Stands in for mmcv's compiled module, where ``mmcv-lite`` has none."""

    def __init__(self) -> None:
        super().__init__("mmcv._ext")
        self.__spec__ = ModuleSpec("mmcv._ext", None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise MissingPackageError(
                f"this model needs mmcv's op {name}, which mmcv-lite lacks and torchvision cannot stand in for. "
                "Compile mmcv in place of mmcv-lite (docs/openmmlab.md), or choose another config"
            )

        return missing

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Return the indices of the boxes that are kept; ``offset`` 1 counts the last pixel to a box's sides."""
        shifted = boxes + boxes.new_tensor([0, 0, offset, offset])
        kept: Tensor = torch.ops.torchvision.nms(shifted, scores, iou_threshold)
        return kept

    def roi_align_forward(
        self, features: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **how: Any
    ) -> None:
        """Write the pooled features to ``output``."""
        size = self._size(how)
        output.copy_(torch.ops.torchvision.roi_align(features, rois, *size, how["sampling_ratio"], how["aligned"]))

    def roi_align_backward(
        self, grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **how: Any
    ) -> None:
        """Write the gradient of the features to ``grad_input``."""
        size, shape = self._size(how), grad_input.shape
        backward = torch.ops.torchvision._roi_align_backward
        grad_input.copy_(backward(grad, rois, *size, *shape, how["sampling_ratio"], how["aligned"]))

    def _size(self, how: dict[str, Any]) -> tuple[float, int, int]:
        if how["pool_mode"] != 1:
            self.__getattr__("roi_align of the largest value")()
        return how["spatial_scale"], how["aligned_height"], how["aligned_width"]
