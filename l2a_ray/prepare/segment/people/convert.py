"""Makes the files of ``weights`` from the published TensorFlow Lite files.

    pip install tflite==2.18.0
    pip download --no-deps --only-binary=:all: mediapipe==0.10.21    (a wheel; unzip it)
    python -m l2a_ray.prepare.segment.people.convert FOLDER

FOLDER, searched with all that is below it, holds ``pose_landmark_full.tflite`` (of the wheel) and
``movenet_single_pose_lightning_ptq.tflite`` (of https://github.com/google-coral/test_data). Other files than those that
the digests below are of are refused. Parts of a network that nothing here asks for (the decoding of points, landmarks)
are left out. Whoever changes a file of ``weights`` changes its digest in ``segmenter.py`` and raises ``MAKER``.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from l2a_ray.prepare.segment.people.graph import digest_of

WEIGHTS = Path(__file__).with_name("weights")
_FUSED = {0: "none", 1: "relu", 3: "relu6"}  # ActivationFunctionType of the format's schema
_NUMBERS = {0: np.float32, 1: np.float16, 2: np.int32, 9: np.int8}  # TensorType of the schema


@dataclass(frozen=True)
class Source:
    """A published file, and what is taken of it.

    Args:
        file: its name.
        origin: where it was published.
        licence: of its weights.
        digest: of its content.
        start: the tensor that becomes the network's input, in NHWC.
        outputs: tensors that become its outputs, by the names that they get here.
    """

    file: str
    origin: str
    licence: str
    digest: str
    start: int
    outputs: dict[str, int]


SOURCES = {
    "movenet": Source(
        file="movenet_single_pose_lightning_ptq.tflite",
        origin="https://github.com/google-coral/test_data",
        licence="Apache-2.0",
        digest="226fbfb009520105e1c9d381bb2ea80f",
        start=178,
        outputs={"centre": 261, "points": 277, "regressed": 285, "offsets": 282},
    ),
    "blazepose": Source(
        file="pose_landmark_full.tflite",
        origin="PyPI mediapipe 0.10.21, mediapipe/modules/pose_landmark",
        licence="Apache-2.0",
        digest="35f4fb0241afbad6bcdbd5e9789f1553",
        start=0,
        outputs={"mask": 297, "person": 340},
    ),
}


class _Converter:
    """Reads one file, whose content is checked already."""

    def __init__(self, content: bytes, source: Source) -> None:
        import tflite

        self._tflite, self._source = tflite, source
        self._model = tflite.Model.GetRootAs(content, 0)
        self._graph = self._model.Subgraphs(0)
        self._names = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
        self._numbers = {source.start: 0}  # of values, by the number of their tensor
        self._unpacked: dict[int, int] = {}  # constants by the number of what they are dequantised to
        self._tensors: dict[str, NDArray[Any]] = {}

    def convert(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the tensors and the graph of the part that leads from the start to the outputs."""
        steps = [step for operator in self._needed() if (step := self._step(operator)) is not None]
        _, height, width, channels = self._shape(self._source.start)
        outputs = {name: self._numbers[tensor] for name, tensor in self._source.outputs.items()}
        return self._tensors, {"input": [channels, height, width], "steps": steps, "outputs": outputs}

    def _needed(self) -> list[Any]:
        """Return the operators that the outputs need, in order; not those before the start."""
        wanted, needed = set(self._source.outputs.values()), []
        for index in reversed(range(self._graph.OperatorsLength())):
            operator = self._graph.Operators(index)
            if operator.Outputs(0) in wanted - {self._source.start}:
                needed.append(operator)
                wanted |= set(operator.InputsAsNumpy().tolist())
        return needed[::-1]

    def _step(self, operator: Any) -> dict[str, Any] | None:
        """Return the step that an operator becomes; None if it only unpacks a constant."""
        name, inputs, target = self._name(operator), operator.InputsAsNumpy().tolist(), operator.Outputs(0)
        if name == "DEQUANTIZE" and inputs[0] not in self._numbers:
            self._unpacked[target] = inputs[0]
            return None
        output = self._numbers[target] = len(self._numbers)
        step: dict[str, Any] = {
            "inputs": [self._numbers[tensor] for tensor in inputs if tensor in self._numbers],
            "output": output,
        }
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return step | self._convolution(operator, name == "DEPTHWISE_CONV_2D", output)
        if name == "ADD" and len(step["inputs"]) == 2:
            options = self._options(operator, "AddOptions")
            return step | {"op": "add", "activation": _FUSED[options.FusedActivationFunction()]}
        if name == "MUL" and len(step["inputs"]) == 1:
            self._tensors[f"constant{output}"] = self._constant(inputs[1]).transpose(2, 0, 1).astype(np.float16)
            return step | {"op": "scale"}
        if name == "LOGISTIC":
            return step | {"op": "sigmoid"}
        if name == "MAX_POOL_2D":
            options = self._options(operator, "Pool2DOptions")
            kernel, stride = (options.FilterHeight(), options.FilterWidth()), (options.StrideH(), options.StrideW())
            return step | {"op": "maxpool", "kernel": kernel, "stride": stride}
        if name == "PAD":
            around = self._constant(inputs[1]).astype(int)[
                [2, 1, 3]
            ]  # NHWC's width, height, channels: NCHW's last first
            return step | {"op": "pad", "around": around.reshape(-1).tolist()}
        if name == "RESIZE_BILINEAR":
            options = self._options(operator, "ResizeBilinearOptions")
            if options.AlignCorners() or not options.HalfPixelCenters():
                raise NotImplementedError("RESIZE_BILINEAR without half-pixel centres")
            return step | {"op": "resize", "size": self._shape(target)[1:3]}
        raise NotImplementedError(name)

    def _convolution(self, operator: Any, depthwise: bool, output: int) -> dict[str, Any]:
        options = self._options(operator, "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions")
        if (options.DilationHFactor(), options.DilationWFactor()) != (1, 1):
            raise NotImplementedError("dilation")
        self._keep_weight(f"weight{output}", operator.Inputs(1), (3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        self._tensors[f"bias{output}"] = self._constant(operator.Inputs(2)).astype(np.float32)
        kernel, stride = self._shape(operator.Inputs(1))[1:3], (options.StrideH(), options.StrideW())
        return {
            "op": "conv",
            "stride": stride,
            "groups": self._shape(operator.Inputs(0))[3] if depthwise else 1,
            "activation": _FUSED[options.FusedActivationFunction()],
        } | self._padding(options.Padding(), self._shape(operator.Inputs(0))[1:3], kernel, stride)

    def _padding(self, kind: int, size: list[int], kernel: list[int], stride: tuple[int, int]) -> dict[str, Any]:
        """Return the zeros around a picture: TensorFlow's SAME puts the odd one last, where PyTorch knows none."""
        if kind == self._tflite.Padding.VALID:
            return {"padding": [0, 0]}
        every = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride, strict=True)]
        if all(zeros % 2 == 0 for zeros in every):
            return {"padding": [zeros // 2 for zeros in every]}
        (top, left), (high, wide) = [zeros // 2 for zeros in every], every
        return {"padding": [0, 0], "around": [left, wide - left, top, high - top]}

    def _keep_weight(self, name: str, tensor: int, order: tuple[int, ...]) -> None:
        """Keep a weight in PyTorch's order of axes, float16; int8 as it is, beside its scales."""
        raw, scale, _ = self._raw(tensor)
        if raw.dtype == np.int8:
            self._tensors[name] = np.ascontiguousarray(raw.transpose(order))
            self._tensors[f"{name}_scale"] = scale.astype(np.float32)
        else:
            self._tensors[name] = np.ascontiguousarray(raw.transpose(order).astype(np.float16))

    def _constant(self, tensor: int) -> NDArray[np.float32]:
        raw, scale, zero = self._raw(tensor)
        return (
            raw.astype(np.float32) if scale.size == 0 else ((raw.astype(np.float64) - zero) * scale).astype(np.float32)
        )

    def _raw(self, tensor: int) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.int64]]:
        """Return a constant as it is stored, its scales and its zero points (none if it is not quantised)."""
        tensor = self._unpacked.get(tensor, tensor)
        about = self._graph.Tensors(tensor)
        data = self._model.Buffers(about.Buffer()).DataAsNumpy().tobytes()
        values = np.frombuffer(data, _NUMBERS[about.Type()]).reshape(self._shape(tensor))
        quantised = about.Quantization()
        if quantised is None or not quantised.ScaleLength():
            return values, np.zeros(0, np.float32), np.zeros(0, np.int64)
        return values, quantised.ScaleAsNumpy(), quantised.ZeroPointAsNumpy()

    def _name(self, operator: Any) -> str:
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return str(self._names[number])

    def _options(self, operator: Any, kind: str) -> Any:
        table, options = operator.BuiltinOptions(), getattr(self._tflite, kind)()
        options.Init(table.Bytes, table.Pos)
        return options

    def _shape(self, tensor: int) -> list[int]:
        about = self._graph.Tensors(self._unpacked.get(tensor, tensor))
        return [about.Shape(axis) for axis in range(about.ShapeLength())]


def convert(name: str, content: bytes) -> bytes:
    """Return the content of our file of a network.

    Args:
        name: of ``SOURCES``.
        content: of the published file.

    Raises:
        ValueError: it is another file.
    """
    source = SOURCES[name]
    if (found := digest_of(content)) != source.digest:
        raise ValueError(f"{source.file}: its digest is {found}, not {source.digest}: this is another file")
    tensors, graph = _Converter(content, source).convert()
    about = {"source": source.file, "origin": source.origin, "licence": source.licence, "source_blake2b": source.digest}
    # One entry: several would be written in an order that changes from time to time.
    return safetensors.numpy.save(tensors, {"network": json.dumps(about | graph, separators=(",", ":"))})


def main() -> None:
    """Convert all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    for name, source in SOURCES.items():
        path = next(arguments.folder.rglob(source.file), None)
        if path is None:
            parser.error(f"there is no {source.file} in {arguments.folder}")
        content = convert(name, path.read_bytes())
        (arguments.out / f"{name}.safetensors").write_bytes(content)
        print(f"{name}: {len(content)} bytes, {digest_of(content)}")


if __name__ == "__main__":
    main()
