"""Tests of l2a_ray.prepare.segment.people.

Answers of the original runtime are kept in `people_reference.json`; `python tests/test_people.py FOLDER` writes them
anew from the published files in FOLDER, and L2A_TFLITE=FOLDER compares whole outputs (pip install ai-edge-litert).
"""

import json
import os
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from l2a_ray.errors import SettingError, StorageError
from l2a_ray.prepare.segment import SegmentSettings, build_segmenter
from l2a_ray.prepare.segment.people import segmenter as module
from l2a_ray.prepare.segment.people.convert import SOURCES, convert
from l2a_ray.prepare.segment.people.graph import Graph, digest_of
from l2a_ray.prepare.segment.people.points import crops, decode, find_points
from l2a_ray.prepare.segment.people.segmenter import DIGESTS, WEIGHTS, PeopleSegmenter, _agreed
from l2a_ray.prepare.segment.settings import PeopleSettings
from l2a_ray.videos.decode import Clip

REFERENCE = Path(__file__).with_name("people_reference.json")
PEOPLE = PeopleSettings()


def portrait(side: int = 256) -> NDArray[np.uint8]:
    """Rear Admiral Grace Hopper before a flag, a photograph in the public domain that comes with matplotlib."""
    content = files("matplotlib").joinpath("mpl-data/sample_data/grace_hopper.jpg").read_bytes()
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    image = image[:512]
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def make_clip(frames: list[NDArray[np.uint8]]) -> Clip:
    return Clip("videos/a.mp4", np.stack(frames), np.arange(len(frames)), len(frames), 12.0)


@pytest.fixture(scope="module")
def segment() -> PeopleSegmenter:
    return PeopleSegmenter(PEOPLE)


def graph(name: str) -> Graph:
    return Graph(WEIGHTS / f"{name}.safetensors", DIGESTS[name])


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_person_is_found_and_the_background_is_not(stride: int) -> None:
    frames = [np.roll(portrait(128), 3 * t, axis=1) for t in range(4)]
    instances = PeopleSegmenter(replace(PEOPLE, stride=stride))(make_clip(frames))
    assert instances.frame_N.tolist() == [0, 1, 2, 3] and set(instances.class_N) == {"person"}
    assert instances.score_N.max() > 0.9
    planes = instances.planes()
    assert (planes.people == planes.objects).all()
    for t, mask in enumerate(instances.mask_NHW):
        assert mask[60, 60 + 3 * t] and mask[120, 64 + 3 * t], "face and chest"
        assert not mask[5:30, 3 * t + 4].any(), "the flag"
        assert 0.25 < mask.mean() < 0.75


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 16, 160), (2, 128, 170), (1, 40, 30)])
def test_nobody_is_found_where_nobody_is(shape: tuple[int, int, int], segment: PeopleSegmenter) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for frames in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        instances = segment(make_clip(list(frames)))
        assert instances.mask_NHW.shape == (0, *shape[1:]) and instances.planes().people.shape == shape


@pytest.mark.parametrize("side", [16, 24])
def test_a_person_of_a_few_pixels_costs_no_error(side: int, segment: PeopleSegmenter) -> None:
    assert segment(make_clip([portrait(side)] * 2)).planes().people.shape == (2, side, side)


def test_the_networks_give_what_the_original_runtime_gave() -> None:
    reference = json.loads(REFERENCE.read_text())
    body = outputs_of(graph("blazepose"), "blazepose")
    np.testing.assert_allclose(body["mask"][0, 16::32, 16::32].ravel(), reference["mask"], atol=0.05)
    np.testing.assert_allclose(body["person"].ravel(), reference["person"], atol=0.01)
    points_K3 = find_points(graph("movenet"), portrait(192))
    expected_K3 = np.array(reference["points"])
    sure = expected_K3[:, 2] > 0.4
    assert sure.sum() == 5, "face"
    # The runtime rounds every value to 8 bits, we only the weights.
    assert np.abs(points_K3[sure, :2] - expected_K3[sure, :2]).max() < 3
    assert np.abs(points_K3[sure, 2] - expected_K3[sure, 2]).max() < 0.2


def inputs_of(name: str) -> NDArray[np.uint8]:
    return portrait({"blazepose": 256, "movenet": 192}[name])


def outputs_of(network: Graph, name: str) -> dict[str, NDArray[np.float32]]:
    image = torch.from_numpy(inputs_of(name)).permute(2, 0, 1)[None]
    scaled = image / 127.5 - 1 if name == "movenet" else image / 255
    return {key: value[0].numpy() for key, value in network(scaled).items()}


def originals(name: str, folder: Path) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Return what the original runtime gives: our outputs' tensors, (C, H, W), and its own first output."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    path = next(folder.rglob(SOURCES[name].file))
    with pytest.warns(UserWarning, match="preserve_all_tensors"):
        runtime = interpreter.Interpreter(str(path), num_threads=1, experimental_preserve_all_tensors=True)
    runtime.allocate_tensors()
    image = inputs_of(name)[None]
    target = runtime.get_input_details()[0]
    runtime.set_tensor(target["index"], image if name == "movenet" else image.astype(np.float32) / 255)
    runtime.invoke()
    details = {entry["index"]: entry["quantization"] for entry in runtime.get_tensor_details()}

    def value(tensor: int) -> NDArray[np.float32]:
        raw, (scale, zero) = runtime.get_tensor(tensor), details[tensor]
        real = (raw.astype(np.float32) - zero) * scale if raw.dtype == np.int8 else raw
        return np.asarray(real[0], dtype=np.float32).transpose(2, 0, 1)

    found = {key: value(tensor) for key, tensor in SOURCES[name].outputs.items()}
    return found, runtime.get_tensor(runtime.get_output_details()[0]["index"])


@pytest.fixture
def published() -> Path:
    """The folder of the published files; the test is skipped where it is not named."""
    if "L2A_TFLITE" not in os.environ:
        pytest.skip("set L2A_TFLITE to a folder with the published files (convert.py says which)")
    return Path(os.environ["L2A_TFLITE"])


@pytest.mark.parametrize(("name", "least"), [("blazepose", 0.999999), ("movenet", 0.85)])
def test_whole_outputs_equal_the_original_runtimes(name: str, least: float, published: Path) -> None:
    ours, (theirs, _) = outputs_of(graph(name), name), originals(name, published)
    for key, expected in theirs.items():
        if name == "blazepose":
            our_share, expected_share = (torch.from_numpy(value).sigmoid() for value in (ours[key], expected))
            torch.testing.assert_close(our_share, expected_share, atol=0.01, rtol=0)
        if expected.size > 1:
            assert np.corrcoef(ours[key].ravel(), expected.ravel())[0, 1] > least, key


@pytest.mark.parametrize("name", list(SOURCES))
def test_converting_again_gives_the_files_of_the_package(name: str, published: Path) -> None:
    pytest.importorskip("tflite")
    content = convert(name, next(published.rglob(SOURCES[name].file)).read_bytes())
    assert content == (WEIGHTS / f"{name}.safetensors").read_bytes()


def test_another_file_is_not_converted() -> None:
    with pytest.raises(ValueError, match=r"pose_landmark_full\.tflite: its digest is .* another file"):
        convert("blazepose", b"TFL3")


@pytest.mark.parametrize("fault", ["missing", "damaged", "another", "cut off"])
def test_weights_that_are_not_the_packages_are_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "movenet.safetensors"
    content = (WEIGHTS / "movenet.safetensors").read_bytes()
    if fault == "damaged":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "another":
        path.write_bytes(safetensors.numpy.save({"weight1": np.zeros(3, np.float32)}))
    elif fault == "cut off":
        path.write_bytes(content[:1000])
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(StorageError, match=r"movenet\.safetensors: .*Install the package again"):
        build_segmenter(SegmentSettings(kind="people"))


@pytest.mark.parametrize("content", [b"", b"no safetensors", safetensors.numpy.save({"a": np.zeros(1)})])
def test_a_file_without_a_network_is_no_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read as weights"):
        Graph(tmp_path / "a.safetensors")


def test_steps_are_computed_as_written(tmp_path: Path) -> None:
    """Zeros are put right of the picture alone, as the format's SAME does: a case that PyTorch's own padding lacks."""
    steps: list[dict[str, Any]] = [
        {"op": "conv", "inputs": [0], "output": 1, "stride": [2, 2], "padding": [0, 0], "around": [0, 1, 0, 0]}
        | {"groups": 1, "activation": "relu6"},
        {"op": "resize", "inputs": [1], "output": 2, "size": [1, 4]},
        {"op": "add", "inputs": [0, 2], "output": 3, "activation": "none"},
        {"op": "sigmoid", "inputs": [1], "output": 4},
    ]
    network = {"input": [1, 1, 4], "steps": steps, "outputs": {"sum": 3, "kept": 1, "share": 4}}
    tensors: dict[str, NDArray[Any]] = {
        "weight1": np.array([[[[2, 4, 6]]]], np.int8),
        "weight1_scale": np.array([0.5], np.float32),
        "bias1": np.array([-1], np.float32),
    }
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(tensors, {"network": json.dumps(network)}))
    outputs = Graph(tmp_path / "a.safetensors")(torch.tensor([[[[1.0, 1.0, 0.0, -1.0]]]]))
    # Windows (1, 1, 0) and (0, -1, 0) with weights 1, 2, 3 and bias -1: 2 and -3.
    assert outputs["kept"].flatten().tolist() == [2, 0]
    assert outputs["sum"].flatten().tolist() == [3, 2.5, 0.5, -1]
    assert outputs["share"].flatten().tolist() == pytest.approx([0.880797, 0.5])


def test_points_are_decoded_as_movenet_means_them() -> None:
    heat = np.zeros((17, 8, 8), np.float32)
    heat[:, 2, 3] = 0.6
    heat[0, 7, 7] = 0.9  # surer, but far from where the body's centre expects it
    centre = np.zeros((1, 8, 8), np.float32)
    centre[0, 4, 4] = 1
    regressed, offsets = np.zeros((34, 8, 8), np.float32), np.zeros((34, 8, 8), np.float32)
    regressed[0::2, 4, 4], regressed[1::2, 4, 4] = -2, -1
    offsets[0::2, 2, 3], offsets[1::2, 2, 3] = 0.25, 0.5
    cells, confidence = decode({"centre": centre, "points": heat, "regressed": regressed, "offsets": offsets})
    np.testing.assert_allclose(cells, np.tile([3.5, 2.25], (17, 1)))
    np.testing.assert_allclose(confidence, 0.6, rtol=1e-6)


def body(x: float, y: float, confidence: float = 0.9) -> NDArray[np.float64]:
    """17 points of an upright body, 40 pixels high and 20 wide, around (x, y)."""
    points = np.zeros((17, 3))
    points[:, 0], points[:, 1], points[:, 2] = x, y, confidence
    points[0, 1], points[15:, 1] = y - 20, y + 20
    points[5:7, 1], points[11:13, 1] = y - 10, y + 5
    points[[5, 6], 0] = x - 10, x + 10
    return points


def test_neighbours_put_right_what_one_frame_gets_wrong() -> None:
    seen = [body(50 + 2 * t, 60) for t in range(5)]
    seen[2] = body(150, 20, confidence=0.3)
    alone, together = (crops(np.stack(seen), replace(PEOPLE, neighbours=n)) for n in (0, 2))
    assert alone is not None and together is not None
    assert alone[2, :2].tolist() == [150, 20]
    assert 50 <= together[2, 0] <= 58 and together[2, 1] == 60
    assert (together[:, 2] == 40).all() and np.abs(together[:, 3]).max() < 1e-6


def test_a_frame_without_a_body_is_looked_at_where_its_neighbours_have_one() -> None:
    seen = [body(50, 60), np.zeros((17, 3)), body(50, 60)]
    found = crops(np.stack(seen), PEOPLE)
    assert found is not None and found[1].tolist() == pytest.approx([50, 60, 40, 0])
    assert crops(np.zeros((3, 17, 3)), PEOPLE) is None


@pytest.mark.parametrize("degrees", [-90, 30, 90, 179])
def test_a_body_that_leans_is_turned_upright(degrees: float) -> None:
    angle = np.radians(degrees)
    clockwise = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # in pictures y goes down
    points = body(0, 0)
    points[:, :2] = points[:, :2] @ clockwise.T + 80
    found = crops(points[None], PEOPLE)
    assert found is not None and found[0, 3] == pytest.approx(angle)


def test_what_is_turned_upright_is_turned_back(segment: PeopleSegmenter) -> None:
    image = portrait(128)
    upright, person = segment._look(image, 64, 70, 50, 0)
    lying, same = segment._look(np.ascontiguousarray(np.rot90(image)), 70, 127 - 64, 50, -np.pi / 2)
    assert person == pytest.approx(same, abs=0.01)
    assert np.abs(np.rot90(lying, -1) - upright).mean() < 0.01 and 0.2 < upright.mean() < 0.8


def test_neighbours_probabilities_move_along_with_the_picture() -> None:
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (96, 160), dtype=np.uint8), (0, 0), 2)
    scene = cv2.normalize(texture, np.zeros_like(texture), 0, 255, cv2.NORM_MINMAX)
    frames: NDArray[np.uint8] = np.stack(
        [np.repeat(scene.astype(np.uint8)[:64, 4 * t : 4 * t + 96, None], 3, axis=2) for t in range(3)]
    )
    found = [np.zeros((64, 96), np.float32) for _ in range(3)]
    for t in (0, 2):
        found[t][20:40, 40 - 4 * t : 60 - 4 * t] = 1  # what the middle frame misses
    agreed = _agreed(found, frames, 1.0)
    np.testing.assert_allclose(agreed[1][24:36, 40:52], 2 / 3, atol=0.02)
    assert agreed[1][:12].max() < 0.01
    assert all(same is value for same, value in zip(_agreed(found, frames, 0.0), found, strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [("score", 1.1), ("points", 0), ("stride", 0), ("neighbours", -1), ("grow", 0.5), ("smooth", -1.0)],
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=rf"^{name}="):
        PeopleSettings(**{name: value})  # type: ignore[arg-type]


def test_the_files_are_those_that_the_notice_names() -> None:
    notice = (WEIGHTS / "NOTICE").read_text()
    for name in DIGESTS:
        content = (WEIGHTS / f"{name}.safetensors").read_bytes()
        assert f"{name}.safetensors ({len(content):,} bytes" in notice and SOURCES[name].file in notice
        assert digest_of(content) == DIGESTS[name]


def main() -> None:
    folder = Path(sys.argv[1])
    body_outputs, _ = originals("blazepose", folder)
    _, points = originals("movenet", folder)
    reference = {
        "mask": body_outputs["mask"][0, 16::32, 16::32].ravel().tolist(),
        "person": body_outputs["person"].ravel().tolist(),
        "points": [[192 * x, 192 * y, score] for y, x, score in points.reshape(17, 3).tolist()],
    }
    REFERENCE.write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
