"""Sets of test clips: the same actors as they are, before other scenes, before stripes, and standing still."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from finished import finish, small_run
from helpers import NETWORK, small_network
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.pair_selection import EnvFiles, build_trial
from envs.settings import EnvSettings
from envs.trial import ClassifierTrial
from l2a_ray.classifier import evaluation
from l2a_ray.classifier.evaluation import BackboneFeatures, evaluate_model
from l2a_ray.classifier.features import read_samples
from l2a_ray.classifier.network import Network, save_network
from l2a_ray.classifier.settings import CENTRE, ClassifierSettings, EvaluateSettings, Looks, NetworkSettings
from l2a_ray.classifier.zoo import build_network
from l2a_ray.composites.scenes import LIMITS, SHOWN, clip_sets, other_scenes, still, stripes
from l2a_ray.composites.settings import CompositeSettings, FrameSampling
from l2a_ray.errors import StageError
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.gather import gather
from l2a_ray.pipeline.stages import Evaluate
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import (
    FAILED_COLUMNS,
    INDEX_DTYPES,
    NO_BACKGROUND,
    ClipStore,
    StoredClip,
    clip_path,
    write_clip,
    write_index,
)

Validation = Literal["real", "scenes", "both"]
CLASSES = ("red", "green", "blue")
FRAMES, HEIGHT, WIDTH = 4, 24, 32
ACTOR, SCENE = 240, 120
LARGE = 8  # side of the actors, in the middle of the frame


def make_store(
    root: Path, labels: list[int], groups: list[str] | None = None, seen: list[int] | None = None, split: str = "test"
) -> ClipStore:
    """Clips of two sizes, each an actor and a scene of its class's colour; the actor grows brighter, frame by frame.

    Args:
        root: of the store.
        labels: of the clips.
        groups: their source videos; None: each its own.
        seen: in how many frames the actor has a mask; None: in all.
        split: of the clips.
    """
    rows = []
    for n, label in enumerate(labels):
        clip_id = f"{(37 * n) % 101:04x}"
        width = WIDTH + 8 * (n % 2)
        scene = np.zeros((FRAMES, HEIGHT, width, 3), np.uint8)
        scene[..., label] = SCENE
        frames, mask = scene.copy(), np.zeros((FRAMES, HEIGHT, width), np.bool_)
        top, left = (HEIGHT - LARGE) // 2, (width - LARGE) // 2
        for t in range(FRAMES):
            frames[t, top : top + LARGE, left : left + LARGE] = 0
            frames[t, top : top + LARGE, left : left + LARGE, label] = ACTOR + t
            mask[t, top : top + LARGE, left : left + LARGE] = seen is None or t < seen[n]
        write_clip(clip_path(root / "clips", clip_id, "0"), StoredClip(frames, scene, Planes(*[mask] * 4)), {"k": "v"})
        row = {"id": clip_id, "path": f"{n}.mp4", "group": groups[n] if groups else str(n), "split": split}
        row |= {"class_name": CLASSES[label], "remark": ""}
        rows.append(dict.fromkeys(INDEX_DTYPES, 0) | row | {"label": label, "foreground_ratio": mask.mean()})
        rows[-1]["foreground_frames"] = mask.any(axis=(1, 2)).mean()
    index = pd.DataFrame(rows).astype(INDEX_DTYPES).sort_values("id")
    write_index(root, root / "clips", CLASSES, index, pd.DataFrame(columns=list(FAILED_COLUMNS)))
    return ClipStore(root)


class Looker(nn.Module):
    """Says the class whose colour is strongest: at the border of the frames, or in their middle."""

    def __init__(self, middle: bool) -> None:
        super().__init__()
        self.middle, self.weight = middle, nn.Parameter(torch.ones(1))

    def forward(self, clips: Tensor) -> Tensor:
        size = clips.shape[2]
        part = slice(size // 2 - 2, size // 2 + 2) if self.middle else slice(0, 2)
        return clips[:, :, part, part].float().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return make_store(tmp_path_factory.mktemp("store"), 4 * [0, 1, 2])


def test_who_looks_at_the_scene_is_told_from_who_looks_at_the_actor(
    store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, settings, seen = clip_sets(store, "test", 2, True), ClassifierSettings(crop=20), list[int]()
    right = {}
    for name, middle in (("actor", True), ("scene", False)):
        monkeypatch.setattr(evaluation, "load_network", lambda *_, middle=middle: Looker(middle))
        evaluate_model(tmp_path, store, settings, sets, tmp_path / name, seen=seen.append)
        metrics = pd.read_parquet(tmp_path / name / "metrics.parquet").set_index("set")
        assert metrics["clips"].to_dict() == {"real": 12, "scenes": 24, "stripes": 12, "still": 12}
        right[name] = metrics["top1"].to_dict()
    assert right["actor"] == {"real": 1.0, "scenes": 1.0, "stripes": 1.0, "still": 1.0}
    assert right["scene"]["real"] == 1.0 and right["scene"]["scenes"] == 0.0
    assert right["scene"]["stripes"] == right["scene"]["still"] < 0.75, "stripes tell nothing of the class"
    assert sum(seen) == 2 * 60
    predictions = pd.read_parquet(tmp_path / "scene" / "predictions.parquet")
    index = store.index.set_index("id")
    lent = predictions[predictions["set"] == "scenes"]
    assert (lent["predicted"].to_numpy() == index.loc[lent["background"], "label"].to_numpy()).all()
    assert (lent["label"].to_numpy() == index.loc[lent["id"], "label"].to_numpy()).all()
    assert (predictions.loc[predictions["set"] != "scenes", "background"] == "").all()


def test_a_scene_is_of_another_class_and_another_source(tmp_path: Path) -> None:
    """Two sources show all three classes."""
    labels, groups = 6 * [0, 1, 2], 3 * ["a", "a", "a", "b", "b", "b"]
    store = make_store(tmp_path, labels, groups)
    (_, scenes) = clip_sets(store, "test", 4)
    index = store.index.set_index("id")
    front, back = index.loc[scenes.clips["id"]], index.loc[scenes.clips["background"]]
    assert (front["label"].to_numpy() != back["label"].to_numpy()).all()
    assert (front["group"].to_numpy() != back["group"].to_numpy()).all()
    assert len(scenes.clips) == 18 * 4 and not scenes.clips.duplicated(["id", "background"]).any()
    # Each actor has six scenes to be set before: of two classes, three clips of the other source.
    assert len(clip_sets(store, "test", 99)[1].clips) == 18 * 6


def test_the_clips_alone_say_which_pairs_are_drawn(store: ClipStore) -> None:
    clips = store.index[["id", "label", "group"]].assign(actor=True, scene=True)
    first = other_scenes(clips, 2)
    pd.testing.assert_frame_equal(first, other_scenes(clips, 2))
    pd.testing.assert_frame_equal(first, other_scenes(clips.sample(frac=1, random_state=1), 2))
    assert first.groupby("id")["background"].agg(tuple).nunique() > 6, "it is a draw"
    # The first of two scenes need not be the one of one, but no clip takes part in another's draw.
    some = clips[clips["label"] != 2]
    assert set(other_scenes(some, 2)["id"]) == set(some["id"])
    for name in SHOWN:
        sample = next(one for one in clip_sets(store, "test", 1, True) if one.name == name).samples[3]
        np.testing.assert_array_equal(
            SHOWN[name](store, sample, None), SHOWN[name](ClipStore(store.root), sample, None)
        )


def test_clips_that_cannot_serve_are_left_out_and_counted(tmp_path: Path) -> None:
    """Clip 0 shows no actor, clip 1 one in too few frames, clip 2 one in just enough; clip 3 has no background."""
    seen = [0, 1, 2, 4, 4, 4]
    assert seen[2] / FRAMES == LIMITS.min_actor_frames
    store = make_store(tmp_path, [0, 1, 2, 0, 1, 2], seen=seen)
    ids = {path: clip_id for clip_id, path in store.index[["id", "path"]].itertuples(index=False)}
    index = store.index
    index.loc[index["path"] == "3.mp4", "remark"] = NO_BACKGROUND
    write_index(store.root, store.root / "clips", CLASSES, index, store.failed)
    real, scenes, moving, standing = clip_sets(ClipStore(store.root), "test", 9, True)
    assert [one.left_out for one in (real, scenes, moving, standing)] == [0, 2, 2, 2]
    actors = {ids[f"{n}.mp4"] for n in (2, 3, 4, 5)}
    assert set(scenes.clips["id"]) == set(moving.clips["id"]) == set(standing.clips["id"]) == actors
    assert set(scenes.clips["background"]) == {ids[f"{n}.mp4"] for n in (0, 1, 2, 4, 5)}


def test_clips_go_once_through_a_frozen_backbone_that_classifiers_share(
    store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, sets, calls = Looks(crops=3), clip_sets(store, "test", 1, True), list[int]()
    run = Network.run_backbone

    def counted(network: Network, clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return run(network, clips)

    monkeypatch.setattr(Network, "run_backbone", counted)
    settings = ClassifierSettings(network=NetworkSettings(name="small3d", width=4), crop=20, evaluation_batch=8)
    frozen, network = replace(settings, freeze=("backbone",)), build_network(settings.network, 3)
    kept, total = BackboneFeatures(), 3 * 4 * 12  # views of the clips of four sets

    def test(settings: ClassifierSettings, kept: BackboneFeatures | None) -> tuple[bytes, ...]:
        calls.clear()
        save_network(tmp_path / "model.safetensors", network)
        evaluate_model(tmp_path / "model.safetensors", store, settings, sets, tmp_path, looks, kept=kept)
        return tuple((tmp_path / name).read_bytes() for name in ("metrics.parquet", "predictions.parquet"))

    found = []
    for number, seen in enumerate((total, 0)):
        nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(number))
        expected = test(settings, kept)
        assert sum(calls) == total and len(kept) == 4 * 12 * number, "it was free to learn"
        found.append(test(frozen, kept))
        assert found[-1] == expected and sum(calls) == seen
    assert found[0] != found[1]
    next(network.backbone.parameters()).data.normal_()  # another backbone
    test(frozen, kept)
    assert sum(calls) == total
    test(frozen, BackboneFeatures(memory=100))
    assert sum(calls) == total


def test_one_class_has_no_other_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store", [0, 0])
    sets = clip_sets(store, "test", 2, True)
    assert [(one.name, len(one.clips), one.left_out) for one in sets[:2]] == [("real", 2, 0), ("scenes", 0, 2)]
    monkeypatch.setattr(evaluation, "load_network", lambda *_: Looker(True))
    evaluate_model(tmp_path, store, ClassifierSettings(crop=20), sets, tmp_path)
    metrics = pd.read_parquet(tmp_path / "metrics.parquet").set_index("set")
    assert metrics.loc["scenes", ["top1", "top5", "loss"]].isna().all() and metrics.loc["scenes", "clips"] == 0
    assert metrics["top1"].drop("scenes").eq(1).all()


def test_a_run_whose_clips_cannot_serve_ends_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The clips of this run have no mask that counts."""
    classifier = ClassifierSettings(network=NETWORK, crop=16)
    _, pipeline, store = small_run(tmp_path, classifier=classifier, arms=["real"], seeds=[0])
    train, evaluate = pipeline.train("real", 0), pipeline.evaluate("real", 0)
    save_network(finish(pipeline, train) / "model.safetensors", small_network())
    with caplog.at_level(logging.WARNING):
        pipeline.results.make([evaluate])
    (line,) = caplog.messages
    assert line.startswith("evaluate: of 3 clips left out") and line.endswith(": scenes 3, stripes 3, still 3")
    found = gather(pipeline)
    assert found.results is not None and found.results["clips"].tolist() == [3, 0, 0, 0]
    assert found.predictions is not None and found.predictions["id"].tolist() == store.rows("test")["id"].tolist()


def of(store: ClipStore, name: str, looks: Looks = CENTRE) -> NDArray[np.uint8]:
    """Views of the first clip of a set, as classifiers see them."""
    (one,) = (one for one in clip_sets(store, "test", 1, True) if one.name == name)
    sampling = FrameSampling(count=None if looks == CENTRE else 2)
    views = read_samples(store, one.samples[:1], 20, sampling, looks=looks, shown=one.name)
    found: NDArray[np.uint8] = next(views).numpy()
    return found


def test_still_clips_have_no_motion_and_the_stripes_of_the_moving_ones(store: ClipStore) -> None:
    moving, standing = of(store, "stripes"), of(store, "still")
    assert (np.ptp(standing, axis=1) == 0).all()
    actor = (slice(None), slice(None), slice(6, 14), slice(6, 14))
    changes = np.ptp(moving, axis=1)
    assert changes[actor[:1] + actor[2:]].max() == FRAMES - 1, "the actor moves"
    outside = np.ones(moving.shape[2:4], np.bool_)
    outside[6:14, 6:14] = False
    assert (moving[:, :, outside] == standing[:, :, outside]).all()
    assert len(np.unique(moving[0, 0][outside], axis=0)) == 2, "stripes have two colours"
    (label,) = store.rows("test").sort_values("id")["label"][:1]
    assert (moving[actor][..., label] >= ACTOR).all() and (standing[actor][..., label] >= ACTOR).all()


def test_more_looks_see_the_same_clip(store: ClipStore) -> None:
    views = of(store, "scenes", Looks(clips=2, crops=3))
    assert views.shape == (6, 2, 20, 20, 3)
    # The centre of each: an actor that grows brighter, frames 0, 2 and 1, 3, in the middle of one scene.
    assert views[[1, 4], :, 10, 10].max(axis=-1).tolist() == [[ACTOR, ACTOR + 2], [ACTOR + 1, ACTOR + 3]]
    assert (views[:, :, 0, 0].max(axis=-1) == SCENE).all()
    assert (np.ptp(of(store, "still", Looks(clips=2, crops=3))[[1, 4]], axis=(0, 1)) == 0).all()


def test_still_repeats_a_frame_with_an_actor() -> None:
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    masks = np.zeros((5, 2, 2), np.bool_)
    masks[3, 0, 1] = True
    for seed in range(9):
        stood, mask = still(frames, masks, np.random.default_rng(seed))
        assert (stood == 3).all() and (mask == masks[3]).all()
    assert (still(frames, np.zeros_like(masks), np.random.default_rng(0))[0] == 0).all()


def test_stripes_are_a_colour_and_its_complement_and_come_again() -> None:
    shares = []
    for seed in range(40):
        drawn = stripes(64, 96, np.random.default_rng(seed))
        colours, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
        assert drawn.shape == (64, 96, 3) and len(colours) == 2
        assert (colours.astype(int).sum(axis=0) == 255).all()
        colour = np.random.default_rng(seed).integers(256, size=3)
        shares.append(counts[(colours == colour).all(axis=1)][0] / counts.sum())
    # A stripe is 2 half widths of every 3 to 5: 2/5 to 2/3 of the frame, but for what its edges cut.
    assert 0.3 < min(shares) < 0.45 < 0.6 < max(shares) < 0.78


def trial(store: ClipStore, monkeypatch: pytest.MonkeyPatch, middle: bool, validation: Validation) -> ClassifierTrial:
    """What a Selector is judged by, around a classifier that looks at the scene or, in the middle, at the actor."""
    monkeypatch.setattr("envs.pair_selection.load_network", lambda *_: Looker(middle))
    settings = EnvSettings(tune="all", validation=validation)
    files = EnvFiles(
        store=str(store.root),
        pairs="",
        vectors="",
        warm_start="",
        network=NETWORK,
        composite=CompositeSettings(kind="mixup"),
        crop=20,
        settings=settings,
        seed=0,
    )
    return build_trial(files)


def test_a_selector_may_be_judged_by_the_actors_of_d_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine clips of D_val one has no actor, so eight actors are before another scene."""
    store = make_store(tmp_path, 3 * [0, 1, 2], seen=[0, *8 * [FRAMES]], split="val")
    right = {
        (look, validation): trial(store, monkeypatch, look == "actor", validation).reset().val_accuracy
        for look in ("actor", "scene")
        for validation in ("real", "scenes", "both")
    }
    assert {validation: right["scene", validation] for validation in ("real", "scenes", "both")} == pytest.approx(
        {"real": 1.0, "scenes": 0.0, "both": 9 / 17}
    )
    assert {right["actor", validation] for validation in ("real", "scenes", "both")} == {1.0}


def test_a_d_val_that_cannot_serve_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, [0, 0], split="val")
    assert trial(store, monkeypatch, True, "real").reset().val_accuracy == 1
    with pytest.raises(StageError, match=r"no clip of D_val has an actor .*env\.validation=real"):
        trial(store, monkeypatch, True, "both")


def test_validation_stays_as_cheap_and_its_key_as_it_was(tmp_path: Path) -> None:
    """The sets are of `evaluate` alone; its results of before are not taken for those with them."""
    settings, pipeline, store = small_run(tmp_path)
    other = Pipeline(replace(settings, evaluate=EvaluateSettings(scenes=0, stripes=False)))
    validate, evaluate = pipeline.validate("real", 0), pipeline.evaluate("real", 0)
    assert validate.key({}) == other.validate("real", 0).key({})
    assert evaluate.key({}) != other.evaluate("real", 0).key({})
    assert Evaluate.version > 1
    assert [one.name for one in validate.sets(store)] == ["real"]
    assert [one.name for one in evaluate.sets(store)] == ["real", "scenes", "stripes", "still"]
    assert [one.name for one in other.evaluate("real", 0).sets(store)] == ["real"]
