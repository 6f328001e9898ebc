"""Processes that die while videos are prepared: no finished clip is made twice, and one bad video ends nothing."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from l2a_ray.prepare.job import prepare_clips
from l2a_ray.prepare.segment import SegmentSettings
from l2a_ray.prepare.settings import PrepareSettings
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.session import own_ray
from l2a_ray.videos.catalog import Catalog, DataSettings, read_catalog
from l2a_ray.videos.decode import DecodeSettings
from l2a_ray.videos.generate import GenerateSettings, generate

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")]
# Large enough that a process can be caught at its work.
SETTINGS = PrepareSettings(decode=DecodeSettings(frames=16, size=160), segment=SegmentSettings(kind="motion"))
GENERATE = GenerateSettings(train_per_class=5, test_per_class=1, wrong_label_share=0, lost_share=0)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """With a GPU by name only, so that segmenters may be actors that reserve a share of it."""
    with own_ray(num_cpus=2, num_gpus=1, include_dashboard=False):
        yield


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("data") / "videos"
    generate(root, GENERATE, 0)
    return read_catalog(DataSettings(root=str(root), val_fraction=0.3))


@pytest.fixture(scope="module")
def undisturbed(catalog: Catalog, session: None, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    root = tmp_path_factory.mktemp("undisturbed")
    return prepare_clips(catalog, SETTINGS, root / "clips", root)


@contextmanager
def watching(store: Path, act: Callable[[str, int], None]) -> Iterator[None]:
    """Tell of every video that is begun: its id and the process that does it, as its note says."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for note in notes():
                with suppress(FileNotFoundError):  # done in the meantime
                    act(note.stem, json.loads(note.read_bytes())["process"])
            time.sleep(0.001)

    def notes() -> list[Path]:
        try:
            return sorted((store / "attempts").glob("*.json"))
        except FileNotFoundError:  # the folder has gone while it was read
            return []

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def times(store: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (store / "clips").glob("*/*.safetensors")}


@pytest.mark.parametrize("gpus", [0, 0.5], ids=["cpu", "gpu"])
def test_what_a_killed_process_had_finished_stays(
    catalog: Catalog, undisturbed: ClipStore, tmp_path: Path, gpus: float
) -> None:
    finished = dict[str, int]()

    def kill_once(clip: str, process: int) -> None:
        if not finished and len(there := times(tmp_path)) > 5:
            finished.update(there)
            os.kill(process, signal.SIGKILL)

    settings = replace(SETTINGS, segment=replace(SETTINGS.segment, gpus_per_worker=gpus))
    with watching(tmp_path, kill_once):
        store = prepare_clips(catalog, settings, tmp_path / "clips", tmp_path)
    assert len(finished) > 5, "nothing was killed"
    assert finished.items() <= times(tmp_path).items(), "a finished clip was made again"
    pd.testing.assert_frame_equal(store.index, undisturbed.index)
    assert store.failed.empty and not (tmp_path / "attempts").exists()


def test_a_video_that_kills_every_process_is_given_up_and_the_others_are_prepared(
    catalog: Catalog, undisturbed: ClipStore, tmp_path: Path
) -> None:
    bad, killed = catalog.videos[7], set[int]()

    def kill(clip: str, process: int) -> None:
        if clip == bad.id and process not in killed:
            killed.add(process)
            os.kill(process, signal.SIGKILL)

    with watching(tmp_path, kill):
        store = prepare_clips(catalog, replace(SETTINGS, max_failures=1), tmp_path / "clips", tmp_path)
    assert len(killed) == 2
    assert store.failed["path"].tolist() == [bad.path]
    assert store.failed["cause"][0] == "the process that prepared it died, 2 times in a row"
    expected = undisturbed.index[undisturbed.index["id"] != bad.id].reset_index(drop=True)
    pd.testing.assert_frame_equal(store.index, expected)

    again = prepare_clips(
        catalog, SETTINGS, tmp_path / "clips", tmp_path
    )  # it is tried again when the user asks for it
    pd.testing.assert_frame_equal(again.index, undisturbed.index)
