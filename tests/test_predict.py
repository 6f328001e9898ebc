"""The classifier that a run hands over: from files, asked about videos, exported; and everything that can be wrong."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_decode import write_video

from l2a_ray import load_classifier
from l2a_ray.classifier.evaluation import evaluate_model
from l2a_ray.classifier.network import Network, save_network
from l2a_ray.classifier.settings import ClassifierSettings, Looks, NetworkSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.cli import main
from l2a_ray.composites.scenes import clip_sets
from l2a_ray.deploy import convert
from l2a_ray.deploy.classifier import Classifier, save_classifier
from l2a_ray.deploy.convert import export_classifier
from l2a_ray.deploy.predict import find_videos, predict_videos, tell
from l2a_ray.errors import ClassifierFileError, DatasetError, MissingPackageError, SettingError, VideoError
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    ClipStore,
    StoredClip,
    clip_path,
    write_clip,
    write_index,
)
from l2a_ray.storage.files import as_path
from l2a_ray.videos.decode import decode
from l2a_ray.videos.settings import DecodeSettings

CLASSES = ("wave", "run, fast", "jump")
NETWORK = NetworkSettings(name="small3d", width=4)
DECODE, CROP = DecodeSettings(frames=4, size=32), 28


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    sizes = [(48, 64), (64, 48), (50, 70), (48, 64)]
    colours = 120 * np.eye(4, 3, dtype=np.uint8)
    return [
        write_video(
            folder / f"{n}.mp4", (colours[n] + rng.integers(0, 120, (*size, 3), dtype=np.uint8) for _ in range(6 + n))
        )
        for n, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it; the network's running statistics are not those that it starts with."""
    folder = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(1)
    network = build_network(NETWORK, len(CLASSES))
    network(torch.randint(0, 256, (8, 4, CROP, CROP, 3), dtype=torch.uint8))
    network.head.weight.data *= 20
    save_network(folder.parent / "trained.safetensors", network)
    save_classifier(folder, folder.parent / "trained.safetensors", NETWORK, CLASSES, DECODE, CROP, {"arm": "real"})
    return folder


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    shutil.copytree(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("looks", [Looks(), Looks(clips=2, crops=3)])
@pytest.mark.parametrize("count", [None, 2])
def test_a_test_video_gets_what_evaluate_gave_its_clip(
    videos: list[Path], model: Path, tmp_path: Path, count: int | None, looks: Looks
) -> None:
    rows = []
    for number, path in enumerate(videos):
        frames = decode(str(path), DECODE).frames_THWC
        nothing = np.zeros(frames.shape[:3], np.bool_)
        clip = StoredClip(frames, frames, Planes(nothing, nothing, nothing, nothing))
        write_clip(clip_path(tmp_path / "clips", f"{number:04x}", "0"), clip, {"k": "v"})
        row = {"id": f"{number:04x}", "path": str(path), "group": str(number), "class_name": "wave", "split": "test"}
        rows.append(dict.fromkeys(INDEX_DTYPES, 0) | row)
    index = pd.DataFrame(rows).astype(INDEX_DTYPES)
    write_index(tmp_path, tmp_path / "clips", CLASSES, index, pd.DataFrame(columns=list(FAILED_COLUMNS)))
    settings = ClassifierSettings(network=NETWORK, crop=CROP, frames=count)
    store = ClipStore(tmp_path)
    evaluate_model(model / "model.safetensors", store, settings, clip_sets(store, "test"), tmp_path / "out", looks)
    expected = pd.read_parquet(tmp_path / "out" / "predictions.parquet")

    weights, sampling = model / "model.safetensors", settings.frame_sampling
    save_classifier(tmp_path / "model", weights, NETWORK, CLASSES, DECODE, CROP, {}, sampling, looks)
    found = load_classifier(tmp_path / "model")(videos)
    assert found.argmax(axis=1).tolist() == expected["predicted"].tolist()
    np.testing.assert_allclose(found.max(axis=1), expected["probability"], rtol=0, atol=1e-6)
    assert expected["probability"].round(4).nunique() == 4, "the clips differ"


def test_one_or_several_videos_or_clips(videos: list[Path], model: Path) -> None:
    classifier = load_classifier(str(model), device="cpu")
    many = classifier(videos)
    assert many.shape == (4, 3) and many.dtype == np.float32
    np.testing.assert_allclose(many.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(classifier(str(videos[1])), many[1], atol=1e-6)
    np.testing.assert_allclose(classifier(videos[1]), many[1], atol=1e-6)
    clip = decode(str(videos[1]), DECODE).frames_THWC
    np.testing.assert_allclose(classifier(clip), many[1], atol=1e-6)
    np.testing.assert_allclose(classifier(np.stack([clip, clip])), many[[1, 1]], atol=1e-6)
    assert classifier([]).shape == (0, 3) == classifier(np.empty((0, 4, 32, 32, 3), np.uint8)).shape
    wrong: Any
    for wrong in (clip[:3], clip.astype(np.float32), clip[0], clip[..., :1]):
        with pytest.raises(ValueError, match="of 4 frames"):
            classifier(wrong)
    with pytest.raises(SettingError, match=r"^crop=28: must be at most"):
        classifier(clip[:, :20])


def test_what_is_not_in_the_file_is_not_needed(model: Path, videos: list[Path], tmp_path: Path) -> None:
    """Neither Ray nor the folder of the run, and to load PyTorch is left to who loads a classifier."""
    script = """
import sys
import l2a_ray
assert "torch" not in sys.modules
sys.modules["ray"] = None
print(l2a_ray.load_classifier(sys.argv[1])(sys.argv[2]).argmax())
"""
    shutil.copytree(model, tmp_path / "elsewhere")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, str(tmp_path / "elsewhere"), str(videos[0])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == load_classifier(model)(videos[0]).argmax()


def test_a_classifier_in_an_object_store(model: Path, videos: list[Path]) -> None:
    place = as_path("memory://runs/mine/model")
    for _ in range(2):  # the second time in place of the first
        save_classifier(place, model / "model.safetensors", NETWORK, CLASSES, DECODE, CROP, {})
    found = load_classifier("memory://runs/mine/model")
    np.testing.assert_array_equal(found(videos[0]), load_classifier(model)(videos[0]))
    (place / "0.mp4").write_bytes(videos[0].read_bytes())
    assert find_videos([str(place)]) == [str(place / "0.mp4")]
    np.testing.assert_array_equal(found(place / "0.mp4"), found(videos[0]))


# --- many videos, some of them bad


def with_bad(videos: list[Path], folder: Path) -> list[str]:
    """Two good videos with a cut, a missing, an empty and another kind of file between them."""
    content = videos[0].read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    return [str(videos[0]), *(str(folder / f"{name}.mp4") for name in ("cut", "none", "empty", "text")), str(videos[1])]


def test_a_bad_video_has_its_cause_and_stops_no_other(model: Path, videos: list[Path], tmp_path: Path) -> None:
    classifier = load_classifier(model)
    names = with_bad(videos, tmp_path)
    table = predict_videos(classifier, names, top=2)
    assert list(table) == ["video", "rank", "class", "probability", "cause"]
    assert table["video"].tolist() == [names[0], *names, names[-1]]  # two classes of the first and of the last
    good = table[table["cause"] == ""]
    assert good["rank"].tolist() == [1, 2, 1, 2] and (good["probability"].diff()[1::2] < 0).all()
    best = classifier(videos[0]).argmax()
    assert good["class"].iloc[0] == CLASSES[best]
    lines = tell(table)
    assert len(lines) == 6 and lines[0].startswith(names[0]) and " % " in lines[0]
    assert "not used: missing. Put the file there" in lines[2] and "not used: empty file" in lines[3]
    with pytest.raises(VideoError, match=r"cut\.mp4: cannot be opened"):
        classifier(names)


def test_more_videos_than_are_in_memory_at_once_come_in_order(
    model: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(model)
    names = [str(videos[n % 4]) for n in range(7)]
    whole = classifier(names)
    monkeypatch.setattr("l2a_ray.deploy.classifier._BATCH", 3)
    found = list(classifier.each(names))
    assert [name for name, _ in found] == names
    rows = [row for _, row in found if not isinstance(row, VideoError)]
    np.testing.assert_allclose(np.stack(rows), whole, atol=1e-6)


def test_a_folder_stands_for_the_videos_in_it(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/2.mp4", "a/b/1.AVI", "a/notes.txt", "a/10.mov"):
        (tmp_path / name).touch()
    found = [Path(name).name for name in find_videos([str(videos[0]), str(tmp_path / "a"), str(videos[0])])]
    assert found == ["0.mp4", "10.mov", "2.mp4", "1.AVI"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="none: no video in this folder"):
        find_videos([str(tmp_path / "none")])


def test_the_command_prints_lines_writes_a_table_and_its_status_tells(
    model: Path, videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shutil.copytree(model, tmp_path / "runs" / "mine" / "model")
    run = ["--run", "mine", "--runs", str(tmp_path / "runs")]
    main(["predict", *run, "--top", "1", str(videos[0].parent)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.count("%") == 1 for line in lines)

    out = tmp_path / "predictions.csv"
    with pytest.raises(SystemExit) as ended:
        main(["predict", *run, "--out", str(out), *with_bad(videos, tmp_path)])
    assert ended.value.code == 1
    table = pd.read_csv(out)
    assert len(table) == 2 * 3 + 4 and set(table["class"].dropna()) == set(CLASSES)
    assert table.loc[table["class"].isna(), "cause"].str.len().min() > 10

    for wrong, message in (
        ([*run, "--top", "0"], "top=0: must be at least 1"),
        ([], "run=None: name a run, or by --model"),
        (["--run", "other", "--runs", str(tmp_path / "runs")], "other/model/model.json: cannot be read"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["predict", *wrong, str(videos[0])])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


# --- folders that are not what they should be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is of format 99, this program reads 1"),
        ({"network": {"name": "magic"}}, "does not describe a classifier .*name='magic'"),
        ({"decode": {"frames": 1}}, "does not describe a classifier .*frames=1"),
        ({"digest": "blake2b:0"}, "is not the file that model.json describes"),
        ({"classes": None}, "does not describe a classifier"),
        ({"network": {"name": "mmaction2", "config": "evil.py"}}, "built by evil.py, a program .*trust_config=True"),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    path = copy / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ClassifierFileError, match=message):
        load_classifier(copy)


def test_missing_and_damaged_files_are_named(copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ClassifierFileError, match=r"model\.safetensors: is not the file"):
        load_classifier(copy)
    weights.unlink()
    with pytest.raises(ClassifierFileError, match=r"model\.safetensors: cannot be read"):
        load_classifier(copy)
    (copy / "model.json").write_text("{")
    with pytest.raises(ClassifierFileError, match="is not JSON"):
        load_classifier(copy)
    with pytest.raises(ClassifierFileError, match=r"nowhere.*`l2a run` and `l2a recommend` write"):
        load_classifier(tmp_path / "nowhere")


def test_what_is_written_says_what_the_network_takes(model: Path) -> None:
    about = json.loads((model / "model.json").read_text())
    network = build_network(NETWORK, 3)
    np.testing.assert_allclose(about["mean"], network.mean.flatten() / 255, rtol=1e-6)
    np.testing.assert_allclose(about["std"], 1 / (255 * network.scale.flatten()), rtol=1e-6)
    assert about["classes"] == list(CLASSES) and about["decode"] == asdict(DECODE)
    assert about["arm"] == "real" and about["network"]["weights"] is None


# --- files for other programs


def clips(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 4, CROP, CROP, 3), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_exported_program_gives_the_same_probabilities(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export-model", "--model", str(model)])
    program = torch.export.load(io.BytesIO((model / "model.pt2").read_bytes())).module()
    (model / "model.pt2").unlink()
    classifier = load_classifier(model, "cpu")
    for count in (1, 5):
        found = program(clips(count)).detach().numpy()
        np.testing.assert_allclose(found, classifier(clips(count).numpy()), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_gives_the_same_probabilities(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    out = tmp_path / "some.onnx"
    main(["export-model", "--model", str(model), "--format", "onnx", "--out", str(out)])
    onnx.checker.check_model(onnx.load(str(out)))
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    classifier = load_classifier(model, "cpu")
    for count in (1, 5):
        found = session.run(["probabilities"], {"clips": clips(count).numpy()})[0]
        np.testing.assert_allclose(found, classifier(clips(count).numpy()), rtol=0, atol=1e-5)


def test_without_its_packages_onnx_is_refused_with_advice(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(MissingPackageError, match=r"pip install 'l2a-ray\[onnx\]'"):
        export_classifier(load_classifier(model, "cpu"), "onnx")
    assert importlib.util.find_spec("no_such_package") is None


def test_a_file_that_gives_other_probabilities_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_torch", lambda model, example: b"")
    monkeypatch.setattr(convert, "_run_torch", lambda content: lambda clips: np.full((len(clips), 3), 1 / 3))
    with pytest.raises(ClassifierFileError, match="probabilities differ by"):
        export_classifier(load_classifier(model, "cpu"), "torch")


def test_a_network_that_cannot_be_exported_is_refused(model: Path) -> None:
    class Choosy(Network):
        def forward(self, clips_BTHWC: torch.Tensor) -> torch.Tensor:
            return super().forward(clips_BTHWC) if clips_BTHWC.sum() > 0 else torch.zeros(len(clips_BTHWC), 3)

    loaded = load_classifier(model, "cpu")
    choosy = Choosy(loaded.network.backbone, loaded.network.feature_size, 3).eval()
    with pytest.raises(ClassifierFileError, match="cannot be exported as torch"):
        export_classifier(Classifier(choosy, CLASSES, DECODE, CROP, {}), "torch")
