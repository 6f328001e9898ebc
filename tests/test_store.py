"""The clip store: what is written is read, and what is damaged is named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import CLASSES, noise_clip, small_store

from l2a_ray.errors import StageError, StorageError
from l2a_ray.prepare.store import PLANES, CachedClipStore, ClipStore, clip_path, pack, read_metadata, unpack, write_clip


@pytest.mark.parametrize("width", [1, 7, 8, 9, 17, 24])
def test_clips_are_read_as_they_were_written(tmp_path: Path, width: int) -> None:
    store = small_store(tmp_path, 3)
    clip = noise_clip(np.random.default_rng(width), 3, 5, width)
    write_clip(store.data, "ab" * 8, clip, {})
    read = store.read("ab" * 8)
    np.testing.assert_array_equal(read.frames_THWC, clip.frames_THWC)
    np.testing.assert_array_equal(read.background_THWC, clip.background_THWC)
    for name in PLANES:
        plane = getattr(read.planes, name)
        assert plane.dtype == np.bool_
        np.testing.assert_array_equal(plane, getattr(clip.planes, name))


def test_masks_take_a_bit_a_pixel() -> None:
    mask = np.random.default_rng(0).random((4, 6, 13)) < 0.5
    assert pack(mask).shape == (4, 6, 2)
    np.testing.assert_array_equal(unpack(pack(mask), 13), mask)


def test_index_classes_and_splits(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    assert store.classes == CLASSES and store.failed.empty
    assert store.index["id"].is_monotonic_increasing
    assert {split: len(store.rows(split)) for split in ("train", "val", "test")} == {"train": 9, "val": 6, "test": 3}
    again: ClipStore = pickle.loads(pickle.dumps(store))
    assert again.index.equals(store.index)


@pytest.mark.parametrize("lost", [1, 5000, "all"])
def test_damaged_clip_is_named(tmp_path: Path, lost: int | str) -> None:
    store = small_store(tmp_path, 3)
    path = clip_path(store.data, f"{1:016x}")
    content = path.read_bytes()
    path.write_bytes(b"" if lost == "all" else content[: -int(lost)])
    with pytest.raises(StorageError, match=f"{path}.*run `l2a prepare` again"):
        store.read(f"{1:016x}")
    assert read_metadata(store.data, f"{1:016x}") is None
    assert read_metadata(store.data, f"{0:016x}") == {"k": "v"}


def test_missing_clip_is_named(tmp_path: Path) -> None:
    store = small_store(tmp_path, 3)
    with pytest.raises(StorageError, match=r"0000000000000009\.safetensors"):
        store.read(f"{9:016x}")
    assert read_metadata(store.data, f"{9:016x}") is None


def test_folder_without_a_complete_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no clip store here. Run `l2a prepare` first"):
        ClipStore(tmp_path)
    store = small_store(tmp_path, 3)
    about = store.root / "store.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"version": 99}))
    with pytest.raises(StageError, match="version 99"):
        ClipStore(tmp_path)


def test_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "ab").write_text("a file where the clips' folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        write_clip(tmp_path, "ab" * 8, noise_clip(np.random.default_rng(0), 2, 4, 4), {})
    assert [path.name for path in tmp_path.rglob("*")] == ["ab"]


def test_clips_read_last_stay_in_memory(tmp_path: Path) -> None:
    small = small_store(tmp_path, 3)
    first, second, third = (f"{number:016x}" for number in range(3))
    store = CachedClipStore(small.root, memory=2 * small.read(first).nbytes)
    for clip_id in (first, second, first, third):  # the third pushes out the second, which was read longest ago
        np.testing.assert_array_equal(store.read(clip_id).frames_THWC, small.read(clip_id).frames_THWC)
    for clip_id in (first, second, third):
        clip_path(small.data, clip_id).unlink()
    assert store.read(first) is store.read(first) and store.read(third).nbytes == store.read(first).nbytes
    with pytest.raises(StorageError, match=second):
        store.read(second)


def test_a_clip_larger_than_the_memory_is_read_all_the_same(tmp_path: Path) -> None:
    store = CachedClipStore(small_store(tmp_path, 1).root, memory=1)
    assert store.read(f"{0:016x}") is not store.read(f"{0:016x}")
