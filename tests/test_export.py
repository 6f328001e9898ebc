"""Exported composites are the composites, and other libraries' readers find them with their labels."""

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from finished import all_pairs, finish, place, small_run, without_scores
from helpers import CLASSES, FRAMES, HEIGHT, WIDTH, small_store
from numpy.typing import NDArray
from torchvision.datasets import DatasetFolder

from l2a_ray.composites.composite import CompositeSettings, composite, foreground_ratio, label_weight
from l2a_ray.composites.loader import ClipLoader, Sample
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError, StageError, StorageError
from l2a_ray.outputs.export import class_folders, write_annotations, write_pair
from l2a_ray.outputs.settings import ExportSettings
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.commands import export
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import ClipStore, StoredClip, write_clip
from l2a_ray.videos.encode import encode_mp4, playing_rate

# Ray Data warns of its own use of its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
Frames = NDArray[np.uint8]


def read_video(path: str | Path) -> Frames:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def smooth(seed: int, height: int, width: int) -> Frames:
    """Slow gradients that move: what a codec keeps, where it would lose noise."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(FRAMES), np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    planes = [80 + 60 * np.sin(phase + 3 * x + 2 * y + t / 4) for phase in rng.uniform(0, 6, 3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def close(found: Frames, expected: Frames) -> bool:
    """Whether frames are equal up to the codec's loss, and no neighbour in time is; colour has half the resolution."""
    brightness = np.array([0.299, 0.587, 0.114])
    now, late = (
        np.abs((found - other.astype(int)) @ brightness).mean() for other in (expected, np.roll(expected, 1, 0))
    )
    return bool(now < 3 and late > 2 * now and np.abs(found - expected.astype(int)).mean() < 6)


def make_run(root: Path, **changes: Any) -> tuple[Settings, ClipStore, pd.DataFrame]:
    """A run whose `select` and `draw` are complete: smooth clips, pairs of all training clips of different classes."""
    settings, pipeline, store = small_run(root, **changes)
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=np.bool_)
    mask[:, 4:16, 6:16] = True
    for number, clip_id in enumerate(store.index["id"]):
        clip = StoredClip(smooth(number, HEIGHT, WIDTH), smooth(number + 99, HEIGHT, WIDTH), Planes(*[mask] * 4))
        write_clip(store.path(clip_id), clip, {"k": "v"})
    few = set(store.rows("train")["id"].head(5))
    table = all_pairs(store)
    table = table[table["foreground"].isin(few) & table["background"].isin(few)].reset_index(drop=True)
    finish(pipeline, pipeline.match(0), pairs=without_scores(table))
    finish(pipeline, pipeline.select(0), selected=table)
    finish(pipeline, pipeline.draw(0), random=without_scores(table.tail(3)))
    return settings, store, table


def exported(settings: Settings, refresh: bool = False) -> Path:
    return Path(str(export(settings, refresh)))


def load_data_list(ann_file: Path, prefix: str, delimiter: str = " ") -> list[dict[str, object]]:
    """What `load_data_list` of mmaction2 1.2's VideoDataset does with an annotation file of one label a video."""
    data_list: list[dict[str, object]] = []
    for line in ann_file.read_text(encoding="utf-8").splitlines():
        filename, label = line.strip().split(delimiter)
        data_list.append({"filename": f"{prefix}/{filename}", "label": int(label)})
    return data_list


# --- encoding


@pytest.mark.parametrize(
    ("frames", "frame_count", "rate", "expected"),
    [
        (8, 24, 12.0, Fraction(4)),  # 2 s of video are 2 s of clip
        (8, 40, 30000 / 1001, Fraction(6000, 1001)),
        (8, 4, 25.0, Fraction(50)),  # a short video repeats frames
        (8, 100_000, 25.0, Fraction(1)),
        (8, 0, 0.0, Fraction(25)),
    ],
)
def test_clip_plays_as_long_as_its_video(frames: int, frame_count: int, rate: float, expected: Fraction) -> None:
    assert float(playing_rate(frames, frame_count, rate)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("height", "width"), [(20, 24), (21, 24), (20, 25), (17, 31)])
def test_file_holds_the_frames_in_order_at_the_rate_asked_for(tmp_path: Path, height: int, width: int) -> None:
    frames_THWC = smooth(0, height, width)
    (tmp_path / "a.mp4").write_bytes(encode_mp4(frames_THWC, Fraction(5, 2)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(5, 2)
        assert container.duration == FRAMES * 400_000
        assert [frame.time for frame in container.decode(stream)] == pytest.approx([0.4 * t for t in range(FRAMES)])
    found = read_video(tmp_path / "a.mp4")
    assert found.shape == (FRAMES, height + height % 2, width + width % 2, 3)
    assert close(found[:, :height, :width], frames_THWC)
    assert encode_mp4(frames_THWC, Fraction(5, 2)) == (tmp_path / "a.mp4").read_bytes()


@pytest.mark.parametrize(("field", "value"), [("crf", -1), ("crf", 52)])
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"^{field}={value!r}: must be"):
        ExportSettings(**{field: value})  # type: ignore[arg-type]


# --- annotations


def test_class_folders_have_no_blanks_and_are_told_apart() -> None:
    names = ["brush hair", "brush_hair", "Run", "run", "wave\thand", "波 -f"]
    assert class_folders(names) == ["brush_hair-0", "brush_hair-1", "Run-2", "run-3", "wave_hand", "波_-f"]


@pytest.mark.parametrize("scored", [True, False])
def test_class_with_blanks_is_read_back(tmp_path: Path, scored: bool) -> None:
    row = {"foreground": "a", "background": "b", "foreground_label": 1, "background_label": 0}
    row |= {"score": 0.5} if scored else {}
    table = pd.DataFrame([row | {"file": f"{class_folders(['x', 'brush hair'])[1]}/a-b.mp4", "lambda": 0.25}])
    write_annotations(table, ["x", "brush hair"], tmp_path)
    assert load_data_list(tmp_path / "mmaction2.txt", "v") == [{"filename": "v/brush_hair/a-b.mp4", "label": 1}]
    assert (tmp_path / "classes.txt").read_text().splitlines() == ["x", "brush hair"]
    about = pd.read_parquet(tmp_path / "pairs.parquet").iloc[0]
    assert (about["foreground_class"], about["background_class"], about["lambda"]) == ("brush hair", "x", 0.25)
    assert ("score" in about) == scored


# --- one pair


def test_one_clip_that_cannot_be_read_is_its_own_failure(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    first, second, third = store.index["id"][:3]
    loader = ClipLoader(store, CompositeSettings())
    store.path(second).write_bytes(b"half of a clip")
    clip = store.read(third)
    planes = Planes(*(plane[:2] for plane in vars(clip.planes).values()))
    write_clip(store.path(third), StoredClip(clip.frames_THWC[:2], clip.background_THWC[:2], planes), {})
    for other, words in ((second, f"{second}-0.safetensors"), (third, "ValueError"), ("gone", "no clip gone")):
        row = {"file": "a.mp4", "foreground": first, "background": other, "frame_count": 24, "rate": 12.0}
        made = write_pair(row, loader, 18, tmp_path / "videos")
        assert words in made["cause"] and made["fatal"] is None and made["lambda"] is None
    assert not (tmp_path / "videos").exists()


# --- the stage


@pytest.mark.ray
def test_other_readers_load_the_composites_with_their_labels(tmp_path: Path, session: None) -> None:
    settings, store, table = make_run(tmp_path)
    out = exported(settings)
    assert (tmp_path / "run" / "results" / "export" / "selected").resolve() == out.resolve()
    loader = ClipLoader(store, settings.composite)

    listed = load_data_list(out / "mmaction2.txt", str(out / "videos"))
    assert [entry["label"] for entry in listed] == table["foreground_label"].tolist()
    for entry, pair in zip(listed, table.itertuples(), strict=True):
        expected, _ = loader.blend(Sample(str(pair.foreground), str(pair.background)))
        assert expected.shape == (FRAMES, HEIGHT, WIDTH, 3), "the whole frame"
        found = read_video(str(entry["filename"]))
        assert found.shape == expected.shape
        assert close(found, expected)

    folder = DatasetFolder(str(out / "videos"), loader=read_video, extensions=("mp4",))
    assert tuple(folder.classes) == tuple(sorted(CLASSES)) and len(folder) == len(table)
    by_file = {str(entry["filename"]): entry["label"] for entry in listed}
    for position, (path, target) in enumerate(folder.samples):
        assert CLASSES[int(str(by_file[path]))] == folder.classes[target]
        assert folder[position][0].shape == (FRAMES, HEIGHT, WIDTH, 3)

    about = pd.read_parquet(out / "pairs.parquet")
    assert about[["foreground", "background", "score"]].equals(table[["foreground", "background", "score"]])
    assert about["file"].tolist() == [str(Path(path).relative_to(out / "videos")) for path in by_file]
    weight = label_weight(12 * 10 / (HEIGHT * WIDTH), settings.composite.alpha)
    np.testing.assert_allclose(about["lambda"], weight, rtol=1e-6)
    assert about["background_class"].tolist() == [CLASSES[label] for label in table["background_label"]]
    assert pd.read_parquet(out / "failed.parquet").empty


@pytest.mark.ray
def test_what_is_there_is_not_written_again(tmp_path: Path, session: None, caplog: pytest.LogCaptureFixture) -> None:
    settings, _, table = make_run(tmp_path)
    out = exported(settings)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    lists = {name: (out / name).read_bytes() for name in ("mmaction2.txt", "pairs.parquet")}
    lost = sorted(written)[3]
    content = lost.read_bytes()
    lost.unlink()
    with caplog.at_level(logging.INFO):
        assert exported(settings) == out and "export/selected: complete, nothing to do" in caplog.messages
    assert exported(settings, refresh=True) == out
    again = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert len(written) == len(table)
    assert again.keys() == written.keys() and {path for path in again if again[path] != written[path]} == {lost}
    assert lost.read_bytes() == content and all((out / name).read_bytes() == lists[name] for name in lists)


@pytest.mark.ray
def test_other_settings_and_arms_have_a_folder_of_their_own(tmp_path: Path, session: None) -> None:
    arms = {"random": None, "plain": {"pairs": "random", "composite": {"mix_labels": False}}}
    settings, _, table = make_run(tmp_path, arms=arms, export=ExportSettings(arm="random"))
    mixed = exported(settings)
    plain = exported(replace(settings, export=ExportSettings(arm="plain")))
    assert mixed != plain and len(list(mixed.rglob("*.mp4"))) == len(list(plain.rglob("*.mp4"))) == 3
    first, second = (pd.read_parquet(out / "pairs.parquet") for out in (mixed, plain))
    assert (first["lambda"] < 1).all() and (second["lambda"] == 1).all() and "score" not in first
    assert first["foreground"].tolist() == table["foreground"].tail(3).tolist()
    changed = {"plain": {"pairs": "random", "composite": {"alpha": 2.0}}}
    other = exported(replace(settings, arms=changed, export=ExportSettings(arm="plain")))
    assert other not in (mixed, plain) and len(list(plain.rglob("*.mp4"))) == 3


@pytest.mark.ray
def test_damaged_clip_is_told_and_counted(tmp_path: Path, session: None, caplog: pytest.LogCaptureFixture) -> None:
    settings, store, table = make_run(tmp_path)
    bad = table["background"][0]
    intact = store.path(bad).read_bytes()
    store.path(bad).write_bytes(intact[:1000])
    hit = (table["foreground"] == bad) | (table["background"] == bad)
    with caplog.at_level(logging.INFO):
        out = exported(settings)
    failed = pd.read_parquet(out / "failed.parquet")
    assert failed[["foreground", "background"]].equals(table[hit][["foreground", "background"]].reset_index(drop=True))
    assert f"{hit.sum()} pairs could not be written" in caplog.text and f"{bad}-0.safetensors" in caplog.text
    assert "`l2a export --refresh` tries them again" in caplog.text
    assert len(load_data_list(out / "mmaction2.txt", "")) == len(list(out.rglob("*.mp4"))) == (~hit).sum()

    store.path(bad).write_bytes(intact)
    exported(settings, refresh=True)
    assert len(load_data_list(out / "mmaction2.txt", "")) == len(table)
    assert pd.read_parquet(out / "failed.parquet").empty

    for clip_id in store.index["id"]:
        store.path(clip_id).unlink()
    with pytest.raises(StorageError, match=f"not one of {len(table)} pairs could be read: .*safetensors"):
        exported(settings, refresh=True)


@pytest.mark.ray
def test_folder_that_cannot_be_written_ends_the_export(tmp_path: Path, session: None) -> None:
    settings, _, _ = make_run(tmp_path)
    pipeline = Pipeline(settings)
    blocked = place(pipeline, pipeline.export) / "videos"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"\.mp4: cannot be written \(Not a directory\)"):
        exported(settings)
    assert not Pipeline(settings).results.is_complete(pipeline.export)


@pytest.mark.parametrize("arm", ["real", "mine", "best"])
def test_an_arm_without_chosen_pairs_is_refused_by_name(tmp_path: Path, arm: str) -> None:
    arms = {"real": None, "selected": None, "mine": {"pairs": "file", "file": "pairs.parquet"}}
    settings = Settings(name="run", runs=str(tmp_path), arms=arms, export=ExportSettings(arm=arm))
    with pytest.raises(
        SettingError, match=f"^export.arm='{arm}': must be an arm whose pairs this run chooses: selected$"
    ):
        exported(settings)
    assert not (tmp_path / "run").exists()


def test_damaged_pairs_are_named(tmp_path: Path) -> None:
    settings, _, _ = make_run(tmp_path)
    pipeline = Pipeline(settings)
    path = pipeline.results.folder(pipeline.select(0)) / "selected.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(StageError, match=r"selected\.parquet is missing or not as it was written\. Delete this folder"):
        exported(settings)


def test_composite_of_a_pair_is_the_one_of_eq_1(tmp_path: Path) -> None:
    _, store, table = make_run(tmp_path)
    front, back = (store.read(table[role][0]) for role in ("foreground", "background"))
    frames, label = ClipLoader(store, CompositeSettings()).blend(Sample(table["foreground"][0], table["background"][0]))
    expected = composite(front.frames_THWC[None], front.planes.objects[None], back.background_THWC[None])[0]
    np.testing.assert_array_equal(frames, expected)
    weight = label_weight(foreground_ratio(front.planes.objects), 4.0)
    assert label[table["foreground_label"][0]] == pytest.approx(weight)
