"""Which frames of a clip are seen, how often, and how they are changed: in training, in tests, by the environment."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import NETWORK, small_network, small_store
from numpy.typing import NDArray
from test_samples import make_store

from l2a_ray.classifier import evaluation
from l2a_ray.classifier.data import TrainingData
from l2a_ray.classifier.evaluation import average, evaluate_model, score
from l2a_ray.classifier.features import extract_features, read_clips
from l2a_ray.classifier.methods.supervised import Supervised
from l2a_ray.classifier.network import save_network
from l2a_ray.classifier.settings import ClassifierSettings, Looks
from l2a_ray.classifier.step import predict
from l2a_ray.composites.composite import foreground_ratio, label_weight
from l2a_ray.composites.frames import drawn_frames, even_frames
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.scenes import clip_sets
from l2a_ray.composites.schedule import COMPOSITES, REAL, Schedule, Stacked, Stream, stack
from l2a_ray.composites.settings import AugmentSettings, CompositeSettings, FrameSampling, Sampling
from l2a_ray.composites.views import even_crops
from l2a_ray.config.building import build
from l2a_ray.config.settings import Settings
from l2a_ray.errors import SettingError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import CachedClipStore, ClipStore, StoredClip, clip_path, write_clip
from l2a_ray.videos.decode import uniform_indices

STORED = 12
FIRST, SECOND = "0000", "0001"


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """Pixels of frame t have value t in the first clip and 100 + t in the second; the actor is t rows high."""
    store = make_store(tmp_path_factory.mktemp("numbered"), 2)
    masks = np.zeros((STORED, 32, 32), np.bool_)
    for t in range(STORED):
        masks[t, 8 : 8 + t] = True
    times = np.arange(STORED, dtype=np.uint8)[:, None, None, None]
    for clip_id, first in ((FIRST, 0), (SECOND, 100)):
        frames = np.broadcast_to(times + np.uint8(first), (STORED, 32, 32, 3))
        clip = StoredClip(
            np.ascontiguousarray(frames), np.ascontiguousarray(frames), Planes(masks, masks, masks, masks)
        )
        write_clip(clip_path(store.clips, clip_id, "0"), clip, {"k": "v"})
    return store


def test_segments_give_one_frame_of_each_equal_part_and_in_time_all_of_them() -> None:
    rng, sampling = np.random.default_rng(0), FrameSampling(count=4)
    drawn = np.stack([drawn_frames(STORED, sampling, rng) for _ in range(200)])
    for segment in range(4):
        assert set(drawn[:, segment]) == {3 * segment, 3 * segment + 1, 3 * segment + 2}
    uneven = np.stack([drawn_frames(10, sampling, rng) for _ in range(200)])
    assert [sorted(set(column)) for column in uneven.T] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]


def test_a_stretch_is_consecutive_and_begins_everywhere() -> None:
    rng, sampling = np.random.default_rng(0), FrameSampling(count=4, kind="stretch")
    drawn = np.stack([drawn_frames(STORED, sampling, rng) for _ in range(200)])
    assert (np.diff(drawn, axis=1) == 1).all() and set(drawn[:, 0]) == set(range(9))


@pytest.mark.parametrize("kind", ["segments", "stretch"])
def test_all_frames_are_all_frames_and_a_short_clip_repeats_some(kind: Sampling) -> None:
    rng = np.random.default_rng(0)
    for count in (None, 5):
        np.testing.assert_array_equal(drawn_frames(5, FrameSampling(count=count, kind=kind), rng), np.arange(5))
        np.testing.assert_array_equal(even_frames(5, FrameSampling(count=count, kind=kind)), [np.arange(5)])
    long = FrameSampling(count=6, kind=kind)
    assert drawn_frames(3, long, rng).tolist() == even_frames(3, long)[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_even_frames_by_hand() -> None:
    assert even_frames(16, FrameSampling(count=8)).tolist() == [uniform_indices(16, 8).tolist()]
    assert even_frames(12, FrameSampling(count=3), 2).tolist() == [[1, 5, 9], [3, 7, 11]]
    assert even_frames(16, FrameSampling(count=8, kind="stretch")).tolist() == [list(range(4, 12))]
    assert even_frames(12, FrameSampling(count=4, kind="stretch"), 3)[:, 0].tolist() == [1, 4, 7]


@pytest.mark.parametrize("kind", ["segments", "stretch"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_composite_shows_the_same_frames_of_both_clips_with_their_own_masks(
    numbered: ClipStore, kind: Sampling, cached: bool
) -> None:
    store = CachedClipStore(numbered.root, 2**20) if cached else numbered
    loader = SampleLoader(store, CompositeSettings(), 32, sampling=FrameSampling(count=4, kind=kind))
    for seed in range(10):
        frames, label = loader.blend(Sample(FIRST, SECOND), np.random.default_rng(seed))
        expected = drawn_frames(STORED, loader.sampling, np.random.default_rng(seed))
        scene = frames[:, 0, 0, 0].astype(int) - 100
        assert scene.tolist() == expected.tolist()
        actor = frames[:, :, 0, 0] < 100
        assert actor.sum(axis=1).tolist() == expected.tolist()  # as many rows as the mask of that frame has
        assert all(set(frames[t, actor[t], 0, 0]) <= {expected[t]} for t in range(4))
        masks = store.read(FIRST).planes.objects[expected]
        weight = label_weight(foreground_ratio(masks), 4.0)
        np.testing.assert_allclose(label, [weight, 1 - weight, 0], rtol=1e-6)


def test_only_the_shown_frames_are_read_and_are_those_of_the_whole_clip(tmp_path: Path) -> None:
    store = small_store(tmp_path, 1)
    clip_id, chosen = store.index["id"][0], np.array([0, 1, 3, 3])
    for part, array in store.read(clip_id).parts.items():
        found = store.read_parts(clip_id, (part,), lambda stored: chosen)[part]
        np.testing.assert_array_equal(found, array[chosen])


def stacked(store: ClipStore, sampling: FrameSampling, step: int, views: tuple[str, ...] = ("weak",)) -> Stacked:
    ids = np.array([FIRST, SECOND], np.bytes_)
    pairs = Stream(COMPOSITES, np.array([[0, 1], [1, 0]], np.int32), 0.5, views=views)
    real = Stream(REAL, np.arange(2, dtype=np.int32), views=views)
    loader = SampleLoader(store, CompositeSettings(), 24, sampling=sampling)
    augment = AugmentSettings(kind="randaugment")
    plan = Schedule(ids, (pairs, real), 4, 0)
    return stack(loader, plan, plan.batch(step), augment)


def test_every_pass_draws_frames_anew_and_a_restart_the_same(numbered: ClipStore) -> None:
    sampling = FrameSampling(count=4)
    passes = [stacked(numbered, sampling, step).clips for step in range(20)]
    assert len({clips[:, :, 0, 0, 0].tobytes() for clips in passes}) > 15
    np.testing.assert_array_equal(stacked(numbered, sampling, 7).clips, passes[7])


def test_samples_of_all_frames_are_those_of_earlier_releases(tmp_path: Path) -> None:
    """The digests were written before frames could be chosen."""
    store, digests = make_store(tmp_path, 8), {}
    ids = store.index["id"].to_numpy().astype(np.bytes_)
    pairs = Stream(COMPOSITES, np.array([[0, 1], [2, 4], [5, 6]], np.int32), 0.5)
    plan = Schedule(ids, (pairs, Stream(REAL, np.array([0, 1, 2, 4, 5, 6], np.int32))), 4, 7)
    for kind in ("paste", "videomix"):
        digest = hashlib.blake2b(digest_size=8)
        for step in range(4):
            made = stack(SampleLoader(store, CompositeSettings(kind=kind), 24), plan, plan.batch(step))
            digest.update(made.clips.tobytes() + made.labels.tobytes())
        digests[kind] = digest.hexdigest()
    assert digests == {"paste": "86086f4fa9428769", "videomix": "369a33764da9441e"}


def settings(tmp_path: Path, classifier: dict[str, Any], **sections: dict[str, Any]) -> Settings:
    plain = {"name": "a", "data": {"root": str(tmp_path)}, "classifier": classifier, **sections}
    return build(Settings, plain)


def test_defaults_change_no_key_and_looks_train_nothing_again(tmp_path: Path) -> None:
    def keys(classifier: dict[str, Any], **sections: dict[str, Any]) -> dict[str, str]:
        pipeline = Pipeline(settings(tmp_path, classifier, decode={"frames": 16}, **sections))
        return {stage.name: stage.key({}) for stage in (pipeline.train("real", 0), pipeline.evaluate("real", 0))}

    plain, eight, looks = keys({}), keys({"frames": 8}), keys({"frames": 8}, evaluate={"clips": 2})
    assert looks["train"] == eight["train"] != plain["train"] and looks["evaluate"] != eight["evaluate"]
    assert keys({"augment": {"kind": "randaugment"}})["train"] != plain["train"]
    assert keys({"augment": {"magnitude": 5}}) == keys({"frames": None}, evaluate={"crops": 1}) == plain


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"classifier": {"frames": 9}}, r"^classifier\.frames=9: must be at most .* decode\.frames=8"),
        ({"warm_start": {"classifier": {"frames": 9}}}, r"^warm_start\.classifier\.frames=9"),
        ({"classifier": {"frames": 0}}, r"^classifier\.frames=0: must be at least 1"),
        ({"evaluate": {"clips": 2}}, r"^evaluate\.clips=2: must be 1 unless"),
        ({"evaluate": {"crops": 2}}, r"^evaluate\.crops=2: must be one of 1, 3"),
        ({"classifier": {"augment": {"magnitude": 31}}}, r"^classifier\.augment\.magnitude=31"),
    ],
)
def test_impossible_settings(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build(Settings, {"name": "a"} | sections)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24)])
def test_three_crops_touch_both_ends_of_the_longer_side(height: int, width: int) -> None:
    frames = np.arange(2 * height * width * 3, dtype=np.uint32).reshape(2, height, width, 3)
    crops = even_crops(frames, 20, 3)  # type: ignore[arg-type]
    places = [(2, 0), (2, 10), (2, 20)] if width > height else [(0, 2), (10, 2), (20, 2)]
    for crop, (top, left) in zip(crops, places, strict=True):
        np.testing.assert_array_equal(crop, frames[:, top : top + 20, left : left + 20])
    np.testing.assert_array_equal(even_crops(frames, 20, 1)[0], crops[1])  # type: ignore[arg-type]


def test_views_of_a_test_clip_lie_side_by_side(numbered: ClipStore) -> None:
    looks, sampling = Looks(clips=2, crops=3), FrameSampling(count=3)
    (views,) = read_clips(numbered, [FIRST, SECOND], 24, sampling, 12, looks)
    assert views.shape == (12, 3, 24, 24, 3)
    times = views[:, :, 0, 0, 0].tolist()
    assert times[:6] == 3 * [[1, 5, 9]] + 3 * [[3, 7, 11]] and times[6] == [101, 105, 109]
    assert [len(part) for part in read_clips(numbered, [FIRST, SECOND], 24, sampling, 11, looks)] == [6, 6]


def test_probabilities_of_views_are_averaged() -> None:
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.7, 0.3]]])
    logits = average(np.log(probabilities) + np.array([3.0, -700.0])[:, None, None])
    np.testing.assert_allclose(np.exp(logits), [[0.55, 0.45], [0.6, 0.4]])
    assert score(logits, np.array([1, 0]))["loss"] == pytest.approx(-np.log([0.45, 0.6]).mean())
    raw = np.random.default_rng(0).normal(size=(5, 1, 3))
    np.testing.assert_array_equal(average(raw), raw[:, 0])


def test_more_looks_are_the_mean_over_them_and_one_is_the_centre(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, network = small_store(tmp_path / "store"), small_network().eval()
    save_network(tmp_path / "model.safetensors", network)
    small = ClassifierSettings(network=NETWORK, crop=16, frames=2)
    test = store.rows("test")["id"].tolist()
    seen = list[NDArray[np.float64]]()

    def scoring(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
        seen.append(logits)
        return score(logits, labels)

    monkeypatch.setattr(evaluation, "score", scoring)
    for name, looks in (("one", Looks()), ("six", Looks(clips=2, crops=3))):
        evaluate_model(tmp_path / "model.safetensors", store, small, clip_sets(store, "test"), tmp_path / name, looks)
    frames = [store.read(clip_id).frames_THWC for clip_id in test]
    centre = torch.from_numpy(np.stack([clip[[1, 3], 2:18, 4:20] for clip in frames]))
    np.testing.assert_array_equal(seen[0], predict(network, centre, 32).double().numpy())
    chances = np.zeros((len(test), 3))
    for times in ([0, 2], [1, 3]):
        for left in (0, 4, 8):
            view = torch.from_numpy(np.stack([clip[times, 2:18, left : left + 16] for clip in frames]))
            chances += predict(network, view, 32).double().softmax(dim=1).numpy() / 6
    np.testing.assert_allclose(np.exp(seen[1]), chances, rtol=1e-4)
    table = pd.read_parquet(tmp_path / "six" / "predictions.parquet")
    np.testing.assert_allclose(table["probability"], chances.max(axis=1), rtol=1e-4)


def test_features_are_of_the_middle_frames(tmp_path: Path) -> None:
    store, network = small_store(tmp_path, 4), small_network()
    ids = store.index["id"].tolist()
    found = extract_features(network, store, ids, 20, FrameSampling(count=2))
    clips = np.stack([store.read(clip_id).frames_THWC[[1, 3], :, 2:22] for clip_id in ids])
    with torch.inference_mode():
        np.testing.assert_array_equal(found, network.eval().features(torch.from_numpy(clips)).numpy())


def test_randaugment_is_drawn_once_a_clip_and_is_a_function_of_seed_step_and_place(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    still = store.read(FIRST).frames_THWC[:1].repeat(4, axis=0)
    write_clip(clip_path(store.clips, FIRST, "0"), StoredClip(still, still, store.read(FIRST).planes), {"k": "v"})
    plan = Schedule(
        np.array([FIRST], np.bytes_), (Stream(REAL, np.zeros(1, np.int32), views=("weak", "strong")),), 2, 0
    )
    loader, augment = SampleLoader(store, CompositeSettings(), 24), AugmentSettings(kind="randaugment", magnitude=20)
    torch.manual_seed(3)
    untouched = torch.random.get_rng_state()
    made = [stack(loader, plan, plan.batch(step), augment) for step in range(10)]
    assert torch.equal(torch.random.get_rng_state(), untouched)
    torch.manual_seed(4)
    again = [stack(loader, plan, plan.batch(step), augment) for step in reversed(range(10))][::-1]
    changed = 0
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.clips, other.clips)
        assert one.views.tolist() == ["weak", "strong"] * 2
        assert (one.clips == one.clips[:, :1]).all()  # a still clip stays one
        strong, mirrored = one.clips[1::2], one.clips[1::2, :, :, ::-1]
        windows = np.lib.stride_tricks.sliding_window_view(still[0], (24, 24, 3)).reshape(-1, 24, 24, 3)
        for clip, flipped in zip(strong, mirrored, strict=True):
            changed += not ((windows == clip[0]).all((1, 2, 3)) | (windows == flipped[0]).all((1, 2, 3))).any()
    assert changed >= 10  # of 20; an operation may be the identity, or one that changes little


def test_the_setting_chooses_the_view_of_all_streams() -> None:
    data = TrainingData(np.array([b"a", b"b"]), np.arange(2, dtype=np.int32), np.array([[0, 1]], np.int32))
    for kind, view in (("none", "weak"), ("randaugment", "strong")):
        chosen = ClassifierSettings(augment=AugmentSettings(kind=kind))  # type: ignore[arg-type]
        assert [stream.views for stream in Supervised(chosen, small_network()).streams(data)] == [(view,)] * 2
