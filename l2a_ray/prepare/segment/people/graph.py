"""Networks that are stored as a list of steps, with their weights, in one safetensors file; ``convert.py`` writes it.

The header's metadata holds ``network``, JSON: ``input`` (channels, height and width), ``steps`` in order, ``outputs``
(the number of a value by name), and where the weights come from. A step has ``op``, ``inputs`` (numbers of values; 0 is
the network's input), ``output``, and its options. Weights are float16, or int8 with a scale for each output channel
(``weight7`` and ``weight7_scale`` are those of the step with output 7); all is computed in float32.

Axes: B batch, C channel, H height, W width.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from l2a_ray.errors import StorageError
from l2a_ray.storage.files import header_metadata

Options = Mapping[str, Any]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "relu6": lambda x: F.relu6(x, inplace=True),
}


class Graph(nn.Module):
    """A network of a file, on the CPU.

    Args:
        path: the file.
        digest: BLAKE2b of its content, 32 hex digits, that it must have; None: any.

    Raises:
        StorageError: the file is missing, damaged or another one.
    """

    def __init__(self, path: Path, digest: str | None = None) -> None:
        super().__init__()
        advice = "Install the package again"
        try:
            content = path.read_bytes()
            if digest is not None and digest_of(content) != digest:
                raise StorageError(f"{path}: these are other weights than the package was made with. {advice}")
            state = safetensors.torch.load(content)
            graph = json.loads(header_metadata(io.BytesIO(content))["network"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path}: cannot be read as weights of this package ({error}). {advice}") from error
        self.input_shape: tuple[int, int, int] = tuple(graph["input"])
        self._steps, self._outputs = graph["steps"], graph["outputs"]
        last = {value: index for index, step in enumerate(self._steps) for value in step["inputs"]}
        kept = set(self._outputs.values())
        self._done = [[v for v in set(step["inputs"]) - kept if last[v] == i] for i, step in enumerate(self._steps)]
        for name, tensor in state.items():
            if not name.endswith("_scale"):
                self.register_buffer(name, _dequantised(tensor, state.get(f"{name}_scale")))

    @torch.inference_mode()
    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Compute all outputs, each (B, C, H, W), by name."""
        values = {0: x_BCHW.contiguous(memory_format=torch.channels_last)}
        for step, done in zip(self._steps, self._done, strict=True):
            arguments = [values[number] for number in step["inputs"]]
            result = getattr(self, f"_{step['op']}")(arguments, step)
            values[step["output"]] = _ACTIVATIONS[step.get("activation", "none")](result)
            for number in done:
                del values[number]
        return {name: values[number] for name, number in self._outputs.items()}

    def _conv(self, inputs: list[Tensor], options: Options) -> Tensor:
        x, weight = _padded(inputs[0], options), getattr(self, f"weight{options['output']}")
        bias = getattr(self, f"bias{options['output']}", None)
        result: Tensor = F.conv2d(x, weight, bias, options["stride"], options["padding"], groups=options["groups"])
        return result

    def _add(self, inputs: list[Tensor], options: Options) -> Tensor:
        return inputs[0] + inputs[1]

    def _scale(self, inputs: list[Tensor], options: Options) -> Tensor:
        constant: Tensor = getattr(self, f"constant{options['output']}")
        return inputs[0] * constant

    def _sigmoid(self, inputs: list[Tensor], options: Options) -> Tensor:
        return torch.sigmoid(inputs[0])

    def _maxpool(self, inputs: list[Tensor], options: Options) -> Tensor:
        return F.max_pool2d(inputs[0], options["kernel"], options["stride"])

    def _pad(self, inputs: list[Tensor], options: Options) -> Tensor:
        return F.pad(inputs[0], options["around"])

    def _resize(self, inputs: list[Tensor], options: Options) -> Tensor:
        return F.interpolate(inputs[0], options["size"], mode="bilinear", align_corners=False)


def digest_of(content: bytes) -> str:
    """Return what stands for a file's content: BLAKE2b, 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _dequantised(tensor: Tensor, scale: Tensor | None) -> Tensor:
    value = tensor.float()
    if scale is not None:
        value = value * scale.reshape(-1, *[1] * (value.dim() - 1))
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _padded(x: Tensor, options: Options) -> Tensor:
    around = options.get("around")
    return x if around is None else F.pad(x, around)
