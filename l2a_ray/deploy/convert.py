"""A classifier as one file for programs without this project: torch.export's, or ONNX. Imports no Ray.

Axes: N clips, T time, H height, W width, C channel, L classes.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2a_ray.deploy.classifier import Classifier
from l2a_ray.errors import ClassifierFileError, MissingPackageError

Form = Literal["torch", "onnx"]
SUFFIXES: dict[Form, str] = {"torch": ".pt2", "onnx": ".onnx"}
NEEDED = ("onnx", "onnxscript")
TOLERANCE = 1e-4  # of a probability
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

logger = logging.getLogger(__name__)


class Probabilities(nn.Module):
    """What is exported: clips as a network takes them, uint8 (N, T, crop, crop, 3), to probabilities (N, L)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        """Return the probabilities."""
        return torch.softmax(self.network(clips), dim=1)


def export_classifier(classifier: Classifier, form: Form) -> bytes:
    """Return a classifier as a file of any number of clips, checked for equal outputs where it can be run.

    Args:
        classifier: on the CPU.
        form: `torch`, for ``torch.export.load``; `onnx`, checked by onnxruntime if that is installed.

    Raises:
        ClassifierFileError: the network cannot be exported, or the file gives other probabilities.
        MissingPackageError: `onnx` needs packages that are not installed.
    """
    if form == "onnx" and not all(map(importlib.util.find_spec, NEEDED)):
        raise MissingPackageError(f"ONNX needs {' and '.join(NEEDED)}: pip install 'l2a-ray[onnx]'")
    model, side = Probabilities(classifier.network).eval(), classifier.crop
    shape = (classifier.frames, side, side, 3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn of their own insides
            content = (_torch if form == "torch" else _onnx)(model, torch.zeros((2, *shape), dtype=torch.uint8))
            run = _run_torch(content) if form == "torch" else _run_onnx(content)
    except Exception as error:  # the exporters have many of their own
        first = str(error).strip().partition("\n")[0]
        reason = f"the network cannot be exported as {form} ({type(error).__name__}: {first})"
        raise ClassifierFileError(f"{reason}. l2a_ray.load_classifier runs it as it is") from error
    if run is None:
        logger.info("export-model: not checked for equal outputs, for onnxruntime is not installed")
    else:
        _check(model, run, shape)
    return content


def _check(model: nn.Module, run: Run, shape: tuple[int, ...]) -> None:
    """Refuse a file that gives other probabilities, of one clip or of several."""
    rng = np.random.default_rng(0)
    for count in (1, 3):
        clips = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        with torch.inference_mode():
            expected = model(torch.from_numpy(clips)).numpy()
        difference = float(np.abs(run(clips) - expected).max())
        if not difference <= TOLERANCE:
            reason = f"the exported file's probabilities differ by {difference:.2g}, {TOLERANCE:g} at most is rounding"
            raise ClassifierFileError(f"{reason}. l2a_ray.load_classifier runs the classifier as it is")


def _torch(model: nn.Module, example: Tensor) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(model, example), file)
    return file.getvalue()


def _program(model: nn.Module, example: Tensor) -> Any:
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("clips")},))


def _onnx(model: nn.Module, example: Tensor) -> bytes:
    names: Any = {"input_names": ["clips"], "output_names": ["probabilities"], "verbose": False}
    program = torch.onnx.export(_program(model, example), (example,), dynamo=True, **names)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _run_torch(content: bytes) -> Run:
    model = torch.export.load(io.BytesIO(content)).module()
    return lambda clips: model(torch.from_numpy(clips)).detach().numpy()


def _run_onnx(content: bytes) -> Run | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"clips": clips})[0]
        return found

    return run
