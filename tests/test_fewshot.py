"""Few-shot: splits, episodes, learners with known answers, what composites add, and training that goes on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import CROP, NETWORK, SMALL_VIDEOS, name_selector, small_store
from numpy.typing import NDArray

from l2a_ray.classifier.network import Network
from l2a_ray.classifier.settings import Looks
from l2a_ray.composites.loader import ClipLoader, Sample
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.config import load
from l2a_ray.errors import DatasetError, LeakError, SettingError, StageError
from l2a_ray.fewshot import features as features_module
from l2a_ray.fewshot.backgrounds import choose_backgrounds, refuse_pairs, selector_scores
from l2a_ray.fewshot.episodes import Clips, Episodes, draw_episodes, half_width, read_episodes, write_episodes
from l2a_ray.fewshot.evaluation import Logits, accuracies, by_prototypes, by_trx
from l2a_ray.fewshot.features import read_features, write_features
from l2a_ray.fewshot.outcome import Measured, difference
from l2a_ray.fewshot.prototypes import prototype_logits
from l2a_ray.fewshot.settings import ClassSettings, TrxSettings
from l2a_ray.fewshot.splits import ClassSplit, published_roles, split_classes
from l2a_ray.fewshot.supports import NONE, Ranked, add_composites, add_copies, join
from l2a_ray.fewshot.training import CHECKPOINT, MODEL, train_head
from l2a_ray.fewshot.trx import TrxHead, TupleProjection
from l2a_ray.pairs import vectors as vectors_module
from l2a_ray.pairs.settings import EmbeddingSettings, MatchSettings
from l2a_ray.pairs.vectors import ClipVectors
from l2a_ray.pipeline.build import Pipeline
from l2a_ray.pipeline.commands import fewshot
from l2a_ray.pipeline.fewshot import FewshotPipeline
from l2a_ray.prepare.clip import ClipMaker
from l2a_ray.selector.describe import describe_for
from l2a_ray.selector.file import Selector, save_selector
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.scoring import score_pairs
from l2a_ray.videos.catalog import read_catalog
from l2a_ray.videos.generate import generate

JHMDB = [
    *("brush_hair", "catch", "clap", "climb_stairs", "golf", "jump", "kick_ball", "pick", "pour", "pullup", "push"),
    *("run", "shoot_ball", "shoot_bow", "shoot_gun", "sit", "stand", "swing_baseball", "throw", "walk", "wave"),
]


def some_clips(classes: int = 6, each: int = 10, sources: int = 5) -> Clips:
    names = np.repeat([f"c{number}" for number in range(classes)], each)
    groups = [f"{name}-{place % sources}" for place, name in enumerate(names)]
    return Clips(np.array([f"{place:04}" for place in range(len(names))]), names, np.array(groups))


def draw(clips: Clips, numbers: range, **changes: object) -> Episodes:
    about = {"way": 4, "shot": 3, "queries": 2, "seed": 0, "split": "s"} | changes
    return draw_episodes(clips, sorted(clips.of_class), numbers=numbers, **about)  # type: ignore[arg-type]


# Splits


@pytest.mark.parametrize(
    ("split", "novel"),
    [("hmdb51_s", "kick_ball pick pour run sit"), ("hmdb51_t", "jump pick sit stand wave")],
)
def test_published_classes_of_jhmdb(split: str, novel: str) -> None:
    found = split_classes(ClassSettings(split=split), JHMDB, 0)  # type: ignore[arg-type]
    assert (len(found.base), len(found.validation)) == (12, 4) and " ".join(found.novel) == novel


@pytest.mark.parametrize("data_set", ["hmdb51", "ucf101"])
def test_published_lists_have_their_sizes(data_set: str) -> None:
    sizes = (31, 10, 10) if data_set == "hmdb51" else (70, 10, 21)
    for which in "st":
        roles = [str(role) for role in published_roles(f"{data_set}_{which}").values()]
        assert tuple(map(roles.count, ("base", "validation", "novel"))) == sizes


def test_a_users_list_may_be_misspelt_as_the_published_ones_are(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    rows = "brush hairs,base\nswing baseketball,base\ngolf,validation\nRun,validation\nsit,novel\nwalk,novel\n"
    path.write_text(f"class,role\n{rows}")
    classes = ["brush_hair", "swing_baseball", "golf", "run", "sit", "walk"]
    found = split_classes(ClassSettings(split="file", file=str(path)), classes, 0)
    assert found.base == ("brush_hair", "swing_baseball") and found.novel == ("sit", "walk")
    path.write_text(f"class,role\n{rows}SIT,base\n")
    with pytest.raises(SettingError, match=r"'sit' two roles: base and novel"):
        split_classes(ClassSettings(split="file", file=str(path)), classes, 0)
    path.write_text(f"class,role\n{rows}")
    with pytest.raises(SettingError, match="no role: jump"):
        split_classes(ClassSettings(split="file", file=str(path)), [*classes, "jump"], 0)


def test_drawn_classes_are_of_one_role_each() -> None:
    found = split_classes(ClassSettings(novel=0.25, validation=0.1), JHMDB, 3)
    assert sorted([*found.base, *found.validation, *found.novel]) == sorted(JHMDB)
    assert (len(found.novel), len(found.validation)) == (5, 2)
    assert found == split_classes(ClassSettings(novel=0.25, validation=0.1), JHMDB[::-1], 3)
    assert found != split_classes(ClassSettings(novel=0.25, validation=0.1), JHMDB, 4)


# Episodes


def test_an_episode_is_a_function_of_its_number() -> None:
    clips = some_clips()
    whole = draw(clips, range(8))
    parts = [draw(clips, range(5, 8)), draw(clips, range(5))]
    for name in ("classes_EW", "supports_EWS", "queries_EWQ"):
        assert (getattr(whole, name) == np.concatenate([getattr(part, name) for part in parts[::-1]])).all()
    for changes in ({"seed": 1}, {"split": "t"}):
        assert (draw(clips, range(8), **changes).supports_EWS != whole.supports_EWS).any()


@pytest.mark.parametrize("disjoint", [False, True])
def test_an_episode_holds_no_clip_twice(disjoint: bool) -> None:
    clips = some_clips()
    found = draw(clips, range(60), source_disjoint=disjoint)
    shared = 0
    for names, supports, queries in zip(found.classes_EW, found.supports_EWS, found.queries_EWQ, strict=True):
        rows = np.concatenate([supports.ravel(), queries.ravel()])
        assert len(set(rows.tolist())) == rows.size and len(set(names.tolist())) == 4
        assert (clips.classes[supports] == names[:, None]).all() and (clips.classes[queries] == names[:, None]).all()
        shared += len({*clips.groups[supports].ravel()} & {*clips.groups[queries].ravel()})
    assert (shared == 0) == disjoint


def test_episodes_that_cannot_be_are_refused() -> None:
    clips = some_clips(sources=1)
    with pytest.raises(DatasetError, match="7 ways needs as many classes, and there are 6"):
        draw(clips, range(1), way=7)
    with pytest.raises(DatasetError, match="'c0' has 10 clips, and 9 shots and 2 queries need 11"):
        draw(clips, range(1), shot=9)
    with pytest.raises(DatasetError, match="too few source videos"):
        draw(clips, range(1), source_disjoint=True)


def test_a_list_of_episodes_comes_back_and_fits_its_clips_alone(tmp_path: Path) -> None:
    clips, path = some_clips(), tmp_path / "episodes.parquet"
    of_shots = {shot: draw(clips, range(6), shot=shot) for shot in (1, 3)}
    write_episodes(path, of_shots, clips)
    found = read_episodes(path, 3, clips, sorted(clips.of_class))
    assert (found.supports_EWS == of_shots[3].supports_EWS).all()
    assert (found.queries_EWQ == of_shots[3].queries_EWQ).all() and (found.classes_EW == of_shots[3].classes_EW).all()
    others = Clips(np.array([f"x{name}" for name in clips.ids]), clips.classes, clips.groups)
    with pytest.raises(StageError, match="of other clips"):
        read_episodes(path, 3, others, sorted(clips.of_class))
    with pytest.raises(StageError, match="no novel class here"):
        read_episodes(path, 3, clips, ["c0"])
    with pytest.raises(StageError, match="no list of episodes of 2 shots"):
        read_episodes(path, 2, clips, sorted(clips.of_class))
    found.queries_EWQ[0, 0, 0] = found.supports_EWS[0, 0, 0]
    write_episodes(path, {3: found}, clips)
    with pytest.raises(StageError, match="holds a clip twice"):
        read_episodes(path, 3, clips, sorted(clips.of_class))


def test_a_learner_that_is_right_six_times_in_ten() -> None:
    rng, clips = np.random.default_rng(0), some_clips()
    episodes = draw(clips, range(3000), queries=1)

    def logits(queries: torch.Tensor, supports: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        batch, asked = queries.shape
        right = rng.random((batch, asked)) < 0.6
        guess = (np.arange(asked) + np.where(right, 0, rng.integers(1, 4, (batch, asked)))) % 4
        return torch.eye(4)[guess]

    there = np.ones(episodes.supports_EWS.shape, np.bool_)
    found = accuracies(logits, episodes.queries_EWQ, episodes.supports_EWS, there, 1)
    width = half_width(found)
    assert width == pytest.approx(1.96 * found.std(ddof=1) / np.sqrt(3000)) and abs(found.mean() - 0.6) < width
    assert half_width(found[:1]) is None


def test_equal_logits_count_for_none() -> None:
    episodes = draw(some_clips(), range(5))
    there = np.ones(episodes.supports_EWS.shape, np.bool_)
    found = accuracies(
        lambda q, s, t: torch.zeros((*q.shape, 4)), episodes.queries_EWQ, episodes.supports_EWS, there, 1
    )
    assert (found == 0).all()


# Learners


def test_prototypes_by_hand() -> None:
    bank = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [1.0, 1.0], [9.0, 9.0]])
    queries, supports = torch.tensor([[3]]), torch.tensor([[[0, 1], [2, 4]]])
    there = torch.tensor([[[True, True], [True, False]]])
    found = prototype_logits(bank, queries, supports, there)
    assert found.tolist() == [[[-1.0, -10.0]]]  # to (1, 0) and to (0, 4)
    moved = prototype_logits(bank + torch.tensor([5.0, -3.0]), queries, supports, there)
    assert torch.allclose(moved, found)


def head_and_bank(cardinalities: tuple[int, ...] = (2, 3)) -> tuple[TrxHead, torch.Tensor]:
    torch.manual_seed(0)
    return TrxHead(5, 6, cardinalities, 4, 0.1).double().eval(), torch.randn(12, 5, 6, dtype=torch.float64)


def naive_trx(head: TrxHead, queries: torch.Tensor, supports: torch.Tensor) -> torch.Tensor:
    """TRX as its paper has it, a loop over tuples, shots and classes; frames of a tuple are concatenated."""
    total = torch.zeros(len(queries), len(supports), dtype=torch.float64)
    for layer in head.projections:
        assert isinstance(layer, TupleProjection)
        tuples = list(combinations(range(5), layer.places.shape[1]))
        for r, query in enumerate(queries + head.positions):
            for c, clips in enumerate(supports + head.positions):
                for p in tuples:
                    u = query[list(p)].flatten()
                    key, value = layer.norm(layer.key(u)), layer.value(u)
                    others = [clip[list(o)].flatten() for clip in clips for o in tuples]
                    scores = torch.stack([key @ layer.norm(layer.key(o)) for o in others]) / 4**0.5
                    weights = scores.exp() / scores.exp().sum()
                    answer = sum(w * layer.value(o) for w, o in zip(weights, others, strict=True))
                    total[r, c] -= ((value - answer) ** 2).sum() / len(tuples) / len(head.projections)
    return total


@torch.no_grad()
def test_trx_equals_a_naive_loop() -> None:
    head, bank = head_and_bank()
    queries, supports = bank[:2], bank[2:8].reshape(3, 2, 5, 6)
    found = head(queries, supports)
    assert torch.allclose(found, naive_trx(head, queries, supports), rtol=0, atol=1e-12)
    assert torch.allclose(head(queries, supports[[2, 0, 1]]), found[:, [2, 0, 1]])
    assert not torch.allclose(head(queries.flip(1), supports), found)
    assert [len(layer.places) for layer in TrxHead(8, 4, (2, 3), 4, 0.0).projections] == [28, 56]  # type: ignore[arg-type]


def learners() -> dict[str, Logits]:
    head, bank = head_and_bank()
    return {"prototypes": by_prototypes(bank.numpy()), "trx": by_trx(head, bank.numpy())}


@pytest.mark.parametrize("name", ["prototypes", "trx"])
def test_copies_and_absent_supports_change_nothing(name: str) -> None:
    logits = learners()[name]
    queries, supports = torch.tensor([[0, 1]]), torch.tensor([[[2, 3], [4, 5], [6, 7]]])
    found = logits(queries, supports, torch.ones(1, 3, 2, dtype=torch.bool))
    joined, there = join(supports.numpy(), add_copies(supports.numpy(), 4))
    again = logits(queries, torch.from_numpy(joined), torch.from_numpy(there))
    assert joined.shape == (1, 3, 6) and torch.allclose(again, found)
    more, there = join(supports.numpy(), np.array([[[8], [NONE], [NONE]]]))
    again = logits(queries, torch.from_numpy(more), torch.from_numpy(there))
    assert torch.allclose(again[..., 1:], found[..., 1:]) and not torch.allclose(again[..., 0], found[..., 0])


def test_a_tuple_of_more_frames_than_there_are_is_refused() -> None:
    with pytest.raises(SettingError, match="these have 1"):
        TrxHead(1, 6, (2, 3), 4, 0.1)


# What is added


def test_composites_take_turns_and_no_background_twice() -> None:
    ranked = Ranked(
        rows_ND=np.array([[10, 11, 12], [20, 21, 22], [NONE, NONE, NONE]]),
        backgrounds_ND=np.array([[5, 6, 7], [5, 7, 8], [NONE, NONE, NONE]]),
    )
    added = add_composites(np.array([[[0, 1, 2], [2, 2, 2]]]), ranked, 4)
    # 0 on 5; 1 not on 5 but on 7; 2 has none; 0 on 6; 1 on 8.
    assert added.tolist() == [[[10, 21, 11, 22], [NONE] * 4]]
    assert add_composites(np.array([[[0, 1, 2]]]), ranked, 2).tolist() == [[[10, 21]]]


def few_index() -> pd.DataFrame:
    classes = ["base0"] * 4 + ["base1"] * 4 + ["val0"] * 2 + ["new0"] * 3 + ["new1"] * 3
    about = {"remark": "", "foreground_ratio": 0.2, "foreground_frames": 1.0}
    index = pd.DataFrame({"id": [f"{n:02}" for n in range(len(classes))], "class_name": classes} | about)
    index.loc[index["id"] == "10", "foreground_ratio"] = 0.0
    return index


SPLIT = ClassSplit(name="s", base=("base0", "base1"), validation=("val0", "val1"), novel=("new0", "new1"))


def test_backgrounds_are_the_best_of_base_clips() -> None:
    index = few_index()
    pairs = choose_backgrounds(
        index, SPLIT, MatchSettings(kind="random"), "foreground", 1, 3, lambda _, ids: np.array([int(i) for i in ids])
    )
    assert pairs["foreground"].unique().tolist() == ["11", "12", "13", "14", "15"]  # 10 shows no actor
    assert (pairs.groupby("foreground")["background"].agg(list).map(tuple) == ("07", "06", "05")).all()
    assert pairs["rank"].tolist() == [0, 1, 2] * 5


@pytest.mark.parametrize("background", ["13", "08", "99"])
def test_a_query_or_a_foreign_clip_as_background_is_refused(background: str) -> None:
    pairs = pd.DataFrame({"foreground": ["11", "11"], "background": ["00", background]})
    with pytest.raises(LeakError, match=f"for example {background}, are of no base class"):
        refuse_pairs(pairs, few_index(), SPLIT)


def test_composites_help_where_the_background_is_the_confound() -> None:
    """Features are actor + scene; a class's supports show its own scene, its queries the scene of another class."""
    rng, way, each, depth = np.random.default_rng(0), 5, 6, 6
    actors, scenes = rng.normal(size=(way, 32)), 1.5 * rng.normal(size=(way + 20, 32))
    own = [actors[c] + scenes[c] + 0.1 * rng.normal(size=32) for c in range(way) for _ in range(each)]
    asked = [actors[c] + scenes[(c + 1) % way] + 0.1 * rng.normal(size=32) for c in range(way) for _ in range(each)]
    backgrounds = np.array([rng.permutation(20)[:depth] for _ in range(way * each)])
    made = [
        actors[i // each] + scenes[way + b] + 0.1 * rng.normal(size=32)
        for i, row in enumerate(backgrounds)
        for b in row
    ]
    bank = np.array([*own, *asked, *made], np.float32)[:, None]
    first = 2 * way * each
    ranked = Ranked(first + np.arange(way * each * depth).reshape(-1, depth), backgrounds)
    supports = np.stack([[c * each + rng.permutation(each)[:2] for c in range(way)] for _ in range(300)])
    queries = way * each + np.stack([[c * each + rng.permutation(each)[:1] for c in range(way)] for _ in range(300)])

    def accuracy(added: NDArray[np.int64]) -> Measured:
        joined, there = join(supports, added)
        return Measured({0: accuracies(by_prototypes(bank), queries, joined, there, 32)}, {})

    none, copies, composites = (
        accuracy(added)
        for added in (add_copies(supports, 0), add_copies(supports, 6), add_composites(supports, ranked, 6))
    )
    assert (none.by_episode == copies.by_episode).all()
    gain = difference(composites, none)
    assert gain["mean"] - gain["interval95"] > 0.2


# Training


def train(out: Path, episodes: int = 12, **options: int) -> bytes:
    clips = some_clips(8, 6)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 4, 6))
    features = np.concatenate([c + 0.5 * rng.normal(size=(6, 4, 6)) for c in centres]).astype(np.float32)
    split = ClassSplit(name="s", base=("c0", "c1", "c2", "c3"), validation=("c4", "c5"), novel=("c6", "c7"))
    settings = TrxSettings(
        width=8,
        episodes=episodes,
        queries=2,
        accumulate=2,
        learning_rate=0.01,
        validate_every=4,
        validation_episodes=20,
        checkpoint_every=2,
    )
    train_head(features, clips, split, settings, way=3, shot=2, seed=options.get("seed", 0), out=out)
    return (out / MODEL).read_bytes()


def test_a_training_that_was_stopped_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole")
    assert whole == train(tmp_path / "again") and whole != train(tmp_path / "other", seed=1)
    calls, real = [0], torch.optim.Adam.step

    def stop(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped")
    assert (tmp_path / "stopped" / CHECKPOINT).is_file() and not (tmp_path / "stopped" / MODEL).exists()
    assert train(tmp_path / "stopped") == whole
    assert not (tmp_path / "stopped" / CHECKPOINT).exists()


# The command


def test_features_of_an_interrupted_run_are_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = small_store(tmp_path / "store"), list[str]()
    samples = [Sample(clip) for clip in store.index["id"]]
    real = features_module._features

    def write(out: Path, last: int) -> None:
        def counted(model: Network, loader: ClipLoader, sample: Sample, crop: int, looks: Looks) -> NDArray[np.float32]:
            if len(made) == last:
                raise KeyboardInterrupt
            made.append(sample.foreground)
            return real(model, loader, sample, crop, looks)

        monkeypatch.setattr(features_module, "_features", counted)
        write_features(store, samples, NETWORK, CROP, 3, CompositeSettings(), out, "test")

    monkeypatch.setattr(features_module, "PART", 4)
    write(tmp_path / "whole", 99)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", 10)
    write(tmp_path / "stopped", 99)
    assert len(made) == 10 + len(samples) - 8  # the third part began anew
    whole = read_features(tmp_path / "whole")
    assert whole.shape == (18, 1, 32) and (read_features(tmp_path / "stopped") == whole).all()


def embed(names: Sequence[str], settings: EmbeddingSettings) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(len(names), 2)).astype(np.float32)


def small_selector(crop: int) -> Selector:
    """Return an untrained one that sees agreement, and name embeddings of two numbers."""
    return name_selector(lambda features: SelectorNetwork(features, 2, hidden=(16, 8)), crop)


def test_a_selector_is_told_nothing_of_other_novel_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "embed_names", embed)
    store, selector = small_store(tmp_path), small_selector(CROP)
    split = ClassSplit(name="s", base=("red", "green"), validation=(), novel=("blue",))
    score = selector_scores(selector, store, split)
    novel = store.index.loc[store.index["class_name"] == "blue", "id"].tolist()
    base = store.index.loc[store.index["class_name"] != "blue", "id"].tolist()
    found = score(novel[0], base)
    assert found.shape == (12,) and len(set(found.tolist())) > 6  # test clips of base classes among them
    rows = store.index[store.index["class_name"] == "blue"]
    alone = describe_for(selector, store, rows.head(1))  # alone in its class its agreement is 0
    both = describe_for(selector, store, store.index[store.index["class_name"] != "blue"])
    clips = ClipVectors(
        np.concatenate([alone.ids_N, both.ids_N]),
        np.concatenate([alone.features_NF, both.features_NF]),
        np.concatenate([alone.labels_NL, both.labels_NL]),
    )
    again = score_pairs(selector.network, clips, np.zeros(12, np.int64), 1 + np.arange(12))
    assert np.allclose(found, again[np.searchsorted(both.ids_N, np.array(base, np.bytes_))])


def test_the_selector_is_trained_on_base_classes_alone(tmp_path: Path) -> None:
    about = {"name": "a", "runs": str(tmp_path), "fewshot.classes.split": "hmdb51_s"}
    few = FewshotPipeline(Pipeline(load(**about)), tuple(JHMDB))
    assert few.base is not None and few.base.settings.folder == tmp_path / "a-base"
    assert few.base.settings.data.labels is not None
    assert Path(few.base.settings.data.labels).read_text().split() == list(few.split.base)
    assert FewshotPipeline(Pipeline(load(**about, **{"fewshot.arms": ["random"]})), tuple(JHMDB)).base is None
    with pytest.raises(SettingError, match=r"selector.labels='one_hot': must be `name`"):
        _ = FewshotPipeline(Pipeline(load(**about, **{"selector.labels": "one_hot"})), tuple(JHMDB)).base


RUN = """
data: {root: videos}
decode: {frames: 4, size: 32}
segment: {kind: motion}
match: {kind: random}
classifier: {crop: 28}
warm_start: {classifier: {crop: 28}}
fewshot:
  classes: {novel: 0.34}
  episodes: {way: 2, count: 30}
  shots: [1, 2]
  k: [2]
  arms: [none, copies, random, selected]
  selector: selector
  network: {weights: null}
  crop: 28
  trx: {width: 8, episodes: 4, queries: 1, accumulate: 2, validate_every: 2, validation_episodes: 10}
"""


def test_the_command_from_videos_to_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(tmp_path / "videos", SMALL_VIDEOS, 0)
    monkeypatch.setattr(vectors_module, "embed_names", embed)
    save_selector(tmp_path / "selector", small_selector(28))
    (tmp_path / "run.yaml").write_text(RUN)
    chosen = load("run.yaml")
    prepare = Pipeline(chosen).prepare  # its clips are made here, as Ray would take longer to start
    maker = ClipMaker.build(prepare.clips, chosen.store_folder / "clips" / prepare.clips.key, tmp_path / "notes")
    for video in read_catalog(prepare.data).videos:
        maker.row(video)
    out = fewshot(chosen)
    metrics = json.loads((tmp_path / "runs/videos/fewshot/metrics.json").read_text())
    rows = {(row["learner"], row["shot"], row["arm"]): row for row in metrics["rows"]}
    assert len(rows) == 16 and metrics["episodes"] == 30 and "random weights" in metrics["features"]
    for learner in ("prototypes", "trx"):
        for shot in (1, 2):
            none, copies, random, selected = (
                rows[learner, shot, arm] for arm in ("none", "copies", "random", "selected")
            )
            assert copies["accuracy"] == none["accuracy"] and copies["against"]["none"]["mean"] == 0
            for row in (random, selected):
                assert 0 < row["added"] <= 2 and row["without_composites"] < row["supports"] == 60 * shot
    page = (out / "index.html").read_text()
    assert "data:image/png" in page and "Pairs of an episode: selected" in page and "random, k = 2" in page
    # Again, and from the list of episodes that it saved: nothing but the tests is made, and the numbers are the same.
    again = replace(chosen, name="again")
    file = str(out / "episodes.parquet")
    listed = replace(again, fewshot=replace(again.fewshot, episodes=replace(again.fewshot.episodes, file=file)))
    caplog.set_level("INFO")
    fewshot(chosen)
    assert sum("complete, nothing to do" in line for line in caplog.messages) == 17
    made = json.loads((fewshot(listed) / "metrics.json").read_text())
    assert [row["accuracy"] for row in made["rows"]] == [row["accuracy"] for row in metrics["rows"]]
