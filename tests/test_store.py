"""The clip store: what is written is read, nothing else is, and what is damaged is named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from helpers import CLASSES, noise_clip, small_store
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.mixes import mix
from l2a_ray.errors import StageError, StorageError
from l2a_ray.prepare import store as store_module
from l2a_ray.prepare.store import (
    PARTS,
    PLANES,
    CachedClipStore,
    Choice,
    ClipStore,
    Part,
    clip_path,
    pack,
    read_metadata,
    unpack,
    write_clip,
    write_index,
)
from l2a_ray.storage.files import AnyPath, read_table

FIRST, SECOND, THIRD = (f"{number:016x}" for number in range(3))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 17, 24])
def test_clips_are_read_as_they_were_written(tmp_path: Path, width: int) -> None:
    store = small_store(tmp_path, 3)
    clip = noise_clip(np.random.default_rng(width), 3, 5, width)
    write_clip(store.path(SECOND), clip, {})
    read = store.read(SECOND)
    assert read.parts.keys() == clip.parts.keys() == set(PARTS)
    for name, array in clip.parts.items():
        assert read.parts[name].dtype == array.dtype
        np.testing.assert_array_equal(read.parts[name], array)
        (alone,) = store.read_parts(SECOND, (name,)).values()
        np.testing.assert_array_equal(alone, array)


def test_masks_take_a_bit_a_pixel() -> None:
    mask = np.random.default_rng(0).random((4, 6, 13)) < 0.5
    assert pack(mask).shape == (4, 6, 2)
    np.testing.assert_array_equal(unpack(pack(mask), 13), mask)


@pytest.mark.parametrize(
    ("settings", "front", "back"),
    [
        (CompositeSettings(), {"frames", "objects"}, {"background"}),
        (CompositeSettings(region="boxes", objects="people", inpaint=False), {"frames", "people_boxes"}, {"frames"}),
        (CompositeSettings(kind="videomix"), {"frames"}, {"frames"}),
    ],
)
def test_samples_read_what_they_show_and_no_more(
    settings: CompositeSettings, front: set[str], back: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small_store(tmp_path, 3)
    whole = mix(store.read(FIRST).parts, store.read(SECOND).parts, settings, np.random.default_rng(0))
    asked, unpacked = list[tuple[str, set[str]]](), list[int]()
    read_tensors = store_module._read_tensors

    def reading(path: AnyPath, names: tuple[Part, ...], choice: Choice | None) -> object:
        asked.append((path.name.partition("-")[0], set(names)))
        return read_tensors(path, names, choice)

    def unpacking(bits: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
        unpacked.append(width)
        return unpack(bits, width)

    monkeypatch.setattr(store_module, "_read_tensors", reading)
    monkeypatch.setattr(store_module, "unpack", unpacking)
    loader = SampleLoader(store, settings, 20)
    frames, _ = loader.blend(Sample(FIRST, SECOND), np.random.default_rng(0))
    np.testing.assert_array_equal(frames, whole.frames_THWC)
    assert asked == [(FIRST, front), (SECOND, back)] and len(unpacked) == len(front & set(PLANES))
    loader.blend(Sample(THIRD))
    assert asked[-1] == (THIRD, {"frames"}) and len(unpacked) == len(front & set(PLANES))


def test_index_classes_and_splits(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    assert store.classes == CLASSES and store.failed.empty
    assert store.index["id"].is_monotonic_increasing
    assert {split: len(store.rows(split)) for split in ("train", "val", "test")} == {"train": 9, "val": 6, "test": 3}
    again: ClipStore = pickle.loads(pickle.dumps(store))
    assert again.index.equals(store.index)


def test_columns_are_read_when_they_are_asked_for_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = ClipStore(small_store(tmp_path).root), list[str]()

    def reading(path: AnyPath, columns: list[str]) -> pd.DataFrame:
        read.extend(columns)
        return read_table(path, columns=columns)

    monkeypatch.setattr(store_module, "read_table", reading)
    SampleLoader(store, CompositeSettings(), 20)(Sample(FIRST, SECOND), None)
    assert sorted(read) == ["id", "label", "source_hash"]
    assert store.columns("label", "split").equals(store.index[["label", "split"]])
    assert len(read) == len(set(read)) == len(store.index.columns)


def test_content_stands_for_clips_labels_and_splits_and_not_for_places(tmp_path: Path) -> None:
    one, elsewhere = small_store(tmp_path / "one"), small_store(tmp_path / "two" / "three")
    index = one.index
    assert one.content == elsewhere.content == ClipStore(one.root).content
    paths = index.assign(path="/mnt/other", source_stamp="later")
    relabelled = index.assign(label=index["label"].to_numpy()[::-1])
    shown = index.assign(source_hash=["ff", *index["source_hash"][1:]])
    found = []
    for number, (folder, table) in enumerate(
        [("clips", paths), ("clips", relabelled), ("clips", shown), ("clips", index[1:]), ("made-otherwise", index)]
    ):
        write_index(tmp_path / str(number), tmp_path / folder, CLASSES, table, one.failed)
        found.append(ClipStore(tmp_path / str(number)).content)
    assert found[0] == one.content and len({*found}) == 5


def test_folders_that_move_together_stay_a_store(tmp_path: Path) -> None:
    old = small_store(tmp_path / "before")
    write_index(tmp_path / "before/runs/a", old.clips, CLASSES, old.index, old.failed)
    assert json.loads((tmp_path / "before/runs/a/store.json").read_text())["clips"] == "../../clips"
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "link").symlink_to(tmp_path / "after/runs/a")
    moved = ClipStore(tmp_path / "after/runs/a")
    assert moved.clips == tmp_path / "after/clips" and moved.read(FIRST).frames_THWC.shape[0] == 4


@pytest.mark.parametrize("lost", [1, 5000, "all"])
def test_damaged_clip_is_named(tmp_path: Path, lost: int | str) -> None:
    store = small_store(tmp_path, 3)
    path = store.path(SECOND)
    content = path.read_bytes()
    path.write_bytes(b"" if lost == "all" else content[: -int(lost)])
    with pytest.raises(StorageError, match=f"{path}: cannot be read .*`l2a prepare --refresh`"):
        store.read_parts(SECOND, ("frames",))
    assert read_metadata(path) is None
    assert read_metadata(store.path(FIRST)) == {"k": "v"}


def test_a_clip_without_a_part_is_named(tmp_path: Path) -> None:
    store = small_store(tmp_path, 3)
    path = store.path(SECOND)
    path.write_bytes(safetensors.numpy.save({"frames": store.read(SECOND).frames_THWC}))
    with pytest.raises(StorageError, match=f"{path}: cannot be read .*background"):
        store.read_parts(SECOND, ("background",))


def test_missing_clip_is_named(tmp_path: Path) -> None:
    store = small_store(tmp_path, 3)
    store.path(SECOND).unlink()
    with pytest.raises(StorageError, match=rf"{SECOND}-0\.safetensors: .*`l2a prepare --refresh`"):
        store.read(SECOND)
    assert read_metadata(store.path(SECOND)) is None
    for stranger in ("0" * 15, f"{9:016x}"):
        with pytest.raises(StorageError, match=rf"index\.parquet: it has no clip {stranger}"):
            store.read(stranger)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"version"'])
def test_a_damaged_description_is_told(tmp_path: Path, damage: bytes) -> None:
    store = small_store(tmp_path, 3)
    (store.root / "store.json").write_bytes(damage)
    with pytest.raises(StorageError, match=r"store\.json: damaged .*`l2a prepare --refresh`"):
        ClipStore(store.root)


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    store = ClipStore(small_store(tmp_path, 3).root)
    (store.root / "index.parquet").write_bytes(b"half of it")
    with pytest.raises(StorageError, match=r"index\.parquet: cannot be read .*`l2a prepare --refresh`"):
        store.read(FIRST)


@pytest.mark.parametrize("version", [1, 2, 99])
def test_a_store_of_another_version_is_refused_and_kept(tmp_path: Path, version: int) -> None:
    with pytest.raises(StageError, match=r"no clip store here. Run `l2a prepare` first"):
        ClipStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"version": version, "classes": CLASSES, "data": "data"}))
    with pytest.raises(StageError, match=rf"version {version}, this program reads 4\. Run `l2a prepare`.* is kept"):
        ClipStore(tmp_path)
    assert (tmp_path / "store.json").is_file()


def test_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "00").write_text("a file where the clips' folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        write_clip(clip_path(tmp_path, FIRST, "0"), noise_clip(np.random.default_rng(0), 2, 4, 4), {})
    assert [path.name for path in tmp_path.rglob("*")] == ["00"]


def test_parts_read_last_stay_in_memory(tmp_path: Path) -> None:
    small = small_store(tmp_path, 3)
    each = small.read(FIRST).frames_THWC.nbytes
    store = CachedClipStore(small.root, memory=2 * each)
    for clip_id in (FIRST, SECOND, FIRST, THIRD):  # the third pushes out the second, which was read longest ago
        (frames,) = store.read_parts(clip_id, ("frames",)).values()
        np.testing.assert_array_equal(frames, small.read(clip_id).frames_THWC)
    for clip_id in (FIRST, SECOND, THIRD):
        small.path(clip_id).unlink()
    for clip_id in (FIRST, THIRD):
        once, twice = (store.read_parts(clip_id, ("frames",))["frames"] for _ in range(2))
        assert once is twice
    for clip_id, part in ((SECOND, "frames"), (FIRST, "background")):
        with pytest.raises(StorageError, match=clip_id):
            store.read_parts(clip_id, (part,))  # type: ignore[arg-type]


def test_a_clip_larger_than_the_memory_is_read_all_the_same(tmp_path: Path) -> None:
    store = CachedClipStore(small_store(tmp_path, 1).root, memory=1)
    assert store.read(FIRST).frames_THWC is not store.read(FIRST).frames_THWC
