from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule, Stacked, Stream, stack
from l2a_ray.composites.views import crop_and_flip
from l2a_ray.errors import SettingError, StageError
from l2a_ray.pairs.labels import NONE, Labels
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

CLASSES = ("red", "green", "blue")
FRAMES, SIZE = 4, 32


def make_store(root: Path, count: int) -> ClipStore:
    """Noise whose channel number `label` is bright; an 8x8 actor of value 200; every fourth clip is a test clip."""
    rng, rows = np.random.default_rng(0), []
    masks = np.zeros((FRAMES, SIZE, SIZE), dtype=np.bool_)
    masks[:, 12:20, 8:16] = True
    for i in range(count):
        label = i % 3
        background = rng.integers(0, 60, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        background[..., label] += 100
        frames = np.where(masks[..., None], np.uint8(200), background)
        clip = StoredClip(frames, background, Planes(masks, masks, masks, masks))
        write_clip(clip_path(root / "clips", f"{i:04x}", "0"), clip, {"k": "v"})
        split = "test" if i % 4 == 3 else "train"
        row = {"id": f"{i:04x}", "class_name": CLASSES[label], "label": label, "split": split, "height": SIZE}
        rows.append(dict.fromkeys(INDEX_DTYPES, 0) | row | {"path": f"{i}.mp4", "group": str(i), "width": SIZE})
    index = pd.DataFrame(rows).astype(INDEX_DTYPES)
    write_index(root, root / "clips", CLASSES, index, pd.DataFrame(columns=list(FAILED_COLUMNS)))
    return ClipStore(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 8)


NAMES = [*(f"r{i}" for i in range(10)), *(f"f{i}" for i in range(7)), *(f"b{i}" for i in range(7))]
PAIRS = np.stack([np.arange(10, 17), np.arange(17, 24)], axis=1).astype(np.int32)


def rows(count: int, first: int = 0) -> NDArray[np.int32]:
    return np.arange(first, first + count, dtype=np.int32)


def make_schedule(*streams: Stream, batch: int = 4, seed: int = 0) -> Schedule:
    return Schedule(np.array(NAMES, np.bytes_), streams, batch, seed)


def make(loader: SampleLoader, plan: Schedule, step: int) -> Stacked:
    return stack(loader, plan, plan.batch(step))


def make_plan(share: float = 0.5, with_pairs: bool = True, seed: int = 0) -> Schedule:
    composites = [Stream(COMPOSITES, PAIRS, share)] if with_pairs else []
    return make_schedule(*composites, Stream(REAL, rows(10)), seed=seed)


def row_of(plan: Schedule, steps: int) -> list[Sample]:
    return [drawn.sample for step in range(steps) for drawn in plan.batch(step)]


def test_two_streams_give_the_samples_that_they_always_gave() -> None:
    """Trainings that were made before go on with the same samples; the text was written by the first version."""
    row = row_of(make_plan(share=0.3, seed=5), 6)
    assert " ".join(sample.foreground + (sample.background or "") for sample in row) == (
        "r7 r6 r1 f4b4 r3 r2 f2b2 r4 r0 f0b0 r9 r5 r8 f6b6 r5 r8 f5b5 r9 r4 f3b3 r0 r3 r6 f1b1"
    )
    plan = make_plan(seed=5)
    assert round(plan.rng(plan.batch(3)[1]).random(), 6) == 0.634499


def test_three_streams_share_the_batch_in_their_shares() -> None:
    thirds = Stream("a", rows(7, 10), 1 / 4), Stream("b", rows(5), 1 / 3), Stream("c", rows(7, 17))
    drawn = [one for step in range(60) for one in make_schedule(*thirds).batch(step)]
    assert Counter(one.stream.name for one in drawn) == {"a": 60, "b": 60, "c": 120}
    for start in range(0, 240, 12):
        counts = Counter(one.stream.name for one in drawn[start : start + 12])
        assert abs(counts["a"] - 3) <= 1 and abs(counts["b"] - 3) <= 1
    for stream in thirds:
        seen = Counter(one.sample.foreground for one in drawn if one.stream == stream)
        assert len(seen) == len(stream.items) and max(seen.values()) - min(seen.values()) <= 1


def test_a_stream_with_a_number_of_its_own_stands_beside_the_batch() -> None:
    unlabelled = Stream("unlabelled", rows(7, 10), per_step=6, views=("weak", "weak"))
    alone, both = make_plan(share=0.25), make_plan(share=0.25)
    both = Schedule(both.ids, (*both.streams, unlabelled), both.batch_size, both.seed)
    assert both.steps_per_epoch == alone.steps_per_epoch
    assert [one.sample for step in range(20) for one in both.batch(step)[:4]] == row_of(alone, 20)
    for step in range(20):
        assert [one.stream.name for one in both.batch(step)[4:]] == ["unlabelled"] * 6
    seen = Counter(one.sample.foreground for step in range(7) for one in both.batch(step)[4:])
    assert set(seen.values()) == {6}  # six passes over seven clips
    assert both.part(0, 2) == [0, 1, 4, 5, 6] and both.part(1, 2) == [2, 3, 7, 8, 9]


def test_views_show_one_sample_with_random_numbers_of_their_own(store: ClipStore) -> None:
    ids = store.index["id"].to_numpy().astype(np.bytes_)
    loader = SampleLoader(store, CompositeSettings(), 24)
    once, thrice = (
        make(loader, Schedule(ids, (Stream(REAL, rows(8), views=("weak",) * count),), 4, 0), 3) for count in (1, 3)
    )
    assert thrice.clips.shape == (12, FRAMES, 24, 24, 3)
    np.testing.assert_array_equal(thrice.clips[::3], once.clips)
    np.testing.assert_array_equal(thrice.labels, once.labels.repeat(3, axis=0))
    assert all((thrice.clips[i] != thrice.clips[i + 1]).any() for i in range(11))
    assert thrice.streams.tolist() == [REAL] * 12 and thrice.views.tolist() == ["weak"] * 12


def test_a_clip_without_a_label_is_named(store: ClipStore) -> None:
    given = Labels.given(store.index)
    assert given.of(["0002", "0001", "ffff"]).tolist() == [2, 1, NONE] and given.source == "given"
    none = Labels(given.ids, np.where(given.ids == b"0002", NONE, given.label).astype(np.int32), "given")
    loader = SampleLoader(store, CompositeSettings(), 24, none)
    assert loader(Sample("0001"), None)[1].tolist() == [0, 1, 0]
    with pytest.raises(StageError, match=r"clip 0002 of .* has no label"):
        loader(Sample("0001", "0002"), None)


def test_every_arm_takes_the_same_steps_in_full_batches() -> None:
    arms = [make_plan(with_pairs=False), make_plan(), make_plan(share=0.25)]
    assert {plan.steps_per_epoch for plan in arms} == {3}  # 10 clips in batches of 4
    assert {len(plan.batch(step)) for plan in arms for step in range(20)} == {4}


def test_each_pass_shows_every_real_clip_once() -> None:
    row = row_of(make_plan(with_pairs=False), 10)
    assert all(sample.background is None for sample in row)
    passes = [[sample.foreground for sample in row[start : start + 10]] for start in range(0, 40, 10)]
    assert all(sorted(seen) == [f"r{i}" for i in range(10)] for seen in passes)
    assert len({tuple(seen) for seen in passes}) == 4  # each pass has its own order


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.3, 1.0])
def test_share_of_composites_holds_and_no_pair_is_favoured(share: float) -> None:
    plan = make_plan(share=share)
    row = row_of(plan, 70)
    pairs = [sample for sample in row if sample.background is not None]
    assert len(pairs) == round(280 * share)
    for start in range(0, 280, 40):
        assert abs(sum(s.background is not None for s in row[start : start + 40]) - 40 * share) <= 1
    counts = Counter(sample.foreground for sample in pairs).values()
    assert not pairs or (max(counts) - min(counts) <= 1 and len(counts) == 7)
    assert all(sample.foreground[1:] == str(sample.background)[1:] for sample in pairs)


def test_plan_is_a_function_of_seed_and_step_alone() -> None:
    plan = make_plan()
    forwards = [plan.batch(step) for step in range(30)]
    backwards = [plan.batch(step) for step in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert row_of(plan, 30) == row_of(make_plan(), 30) != row_of(make_plan(seed=1), 30)
    first, again, other = (plan.rng(plan.batch(3)[position]).random() for position in (1, 1, 2))
    assert first == again != other


def test_parts_of_a_batch_are_the_batch(store: ClipStore) -> None:
    ids = store.rows("train")["id"].to_numpy(dtype=np.str_)
    pairs = np.stack([rows(len(ids)), rows(len(ids))[::-1]], axis=1)
    streams = Stream(COMPOSITES, pairs, 0.5), Stream(REAL, rows(len(ids)))
    plan = Schedule(ids.astype(np.bytes_), streams, 4, 0)
    loader = SampleLoader(store, CompositeSettings(), 24)
    frames, labels, *_ = make(loader, plan, 5)
    first, second = stack(loader, plan, plan.batch(5)[:2]), stack(loader, plan, plan.batch(5)[2:])
    assert frames.shape == (4, FRAMES, 24, 24, 3) and labels.shape == (4, 3)
    np.testing.assert_array_equal(frames, np.concatenate([first[0], second[0]]))
    np.testing.assert_array_equal(labels, np.concatenate([first[1], second[1]]))


def test_real_clip_is_cropped_at_its_centre_with_its_own_label(store: ClipStore) -> None:
    frames, label = SampleLoader(store, CompositeSettings(), 24)(Sample("0001"), None)
    np.testing.assert_array_equal(frames, store.read("0001").frames_THWC[:, 4:28, 4:28])
    assert label.tolist() == [0, 1, 0] and label.dtype == np.float32


def test_pair_is_the_actor_on_the_other_background_with_the_label_of_eq_8(store: ClipStore) -> None:
    frames, label = SampleLoader(store, CompositeSettings(alpha=4.0), SIZE)(Sample("0000", "0002"), None)
    expected = store.read("0002").background_THWC.copy()
    expected[:, 12:20, 8:16] = 200
    np.testing.assert_array_equal(frames, expected)
    weight = 1 - (1 - 64 / 1024) ** 4
    np.testing.assert_allclose(label, [weight, 0, 1 - weight], rtol=1e-6)


def test_foreground_label_alone_where_labels_are_not_mixed(store: ClipStore) -> None:
    _, label = SampleLoader(store, CompositeSettings(mix_labels=False), SIZE)(Sample("0000", "0002"), None)
    assert label.tolist() == [1, 0, 0]


def test_all_frames_are_cropped_and_flipped_alike() -> None:
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    frames = np.broadcast_to(image, (5, 10, 12, 3))
    seen: set[tuple[int, int, bool]] = set()
    for seed in range(400):
        cut = crop_and_flip(frames, 8, np.random.default_rng(seed))
        assert all((cut[0] == frame).all() for frame in cut)
        seen |= {
            (top, left, flip)
            for top in range(3)
            for left in range(5)
            for flip in (False, True)
            if (window(image, top, left, flip) == cut[0]).all()
        }
    assert len(seen) == 3 * 5 * 2  # every place, either way round


def window(image: NDArray[np.uint8], top: int, left: int, flip: bool) -> NDArray[np.uint8]:
    cut = image[top : top + 8, left : left + 8]
    return cut[:, ::-1] if flip else cut


def test_too_large_a_crop_is_refused_by_name(store: ClipStore) -> None:
    with pytest.raises(SettingError, match=r"^crop=33: .* 32 pixels"):
        SampleLoader(store, CompositeSettings(), 33)(Sample("0000"), None)
