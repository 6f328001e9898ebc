"""The selection problem: which of these pairs of clips are worth compositing (paper, section 4.1).

Axes: B pairs in a state, F features of a clip, L length of a label vector.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from gymnasium import spaces
from numpy.typing import NDArray

from envs.held_out import OBJECTIVE, Judged, Signal, agreement, hold_out
from envs.settings import EnvSettings
from envs.trial import ALL, WEIGHTED, ClassifierTrial, Outcome
from l2a_ray.classifier.settings import NetworkSettings
from l2a_ray.classifier.zoo import load_network
from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import Sample, SampleLoader
from l2a_ray.composites.scenes import clip_sets
from l2a_ray.composites.settings import ALL_FRAMES, FrameSampling
from l2a_ray.errors import StageError
from l2a_ray.pairs.draw import draw_candidates
from l2a_ray.pairs.table import ENDS, clip_rows
from l2a_ray.pairs.vectors import ClipVectors, pair_observation
from l2a_ray.prepare.store import CachedClipStore, ClipStore
from l2a_ray.storage.files import as_path
from l2a_ray.videos.splits import may, refuse_others


class PairSelectionEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.int8]]):
    """Choose which pairs of clips to composite, so that training on them lowers a classifier's validation loss.

    ## Description
    Each state is a batch of B candidate pairs (a clip that gives the foreground, a clip that gives the background). The
    agent says which of them to composite; the classifier takes one SGD step on the composites and is validated.

    ## Action Space
    `MultiBinary(B)`: 1 composites the pair, 0 leaves it out. All zeros is an honest action: no SGD step is taken.

    ## Observation Space
    `Box(-inf, inf, (B, 2F + 2L), float32)`, a row a pair:

    | columns           | content                                                       |
    |-------------------|---------------------------------------------------------------|
    | 0 to F            | feature of the foreground clip (backbone, before its head)    |
    | F to F + L        | label vector of the foreground clip (one-hot or name embedding) |
    | F + L to 2F + L   | feature of the background clip                                |
    | 2F + L to 2F + 2L | label vector of the background clip                           |

    Unless `selector.agreement` is false, a feature's last value is how well the others agree with the clip's label.

    ## Rewards
    R = delta - L, in nats: L is the mean cross-entropy over D_val after the step, delta its moving average before the
    step, delta_t = (S-1)/S delta_(t-1) + 1/S L_t with S = 5. Lower loss is better. (The paper prints Eq. 2 with the
    opposite sign and Eq. 6 without the second 1/S; both are slips.)

    ## Starting State
    `reset` draws B pairs and restores the classifier's start: the warm start with a new head (`tune="head"`), or the
    warm start itself (`tune="all"`). With `restart="step"` it is restored before every step too, and delta begins
    with the loss after a step on all the first pairs; with `restart="episode"`, with the loss of the start.

    ## Episode End
    Truncated after `steps` steps; never terminated.

    ## Information
    `val_loss`, `val_accuracy`, `baseline` (delta as it entered R), `num_selected`, and `seconds`, the
    time that compositing, training, validating and the rest of the step, or of `reset`, took (`Seconds` of
    envs/trial.py). With `credit`, also what choosing each pair was worth, all other choices as they were (`credit`,
    float32 (B,), in nats): the validation loss without it less the loss with it.

    Where part of D_val is held out (`env.held_out`), neither `val_loss` nor the reward knows of it; told are its mean
    loss after the step (`held_out_loss`), at the classifier's start (`held_out_none`) and, with `tune="head"`, had the
    step been taken on all B pairs alike (`held_out_all`) or on all weighted by `scores` (`held_out_weighted`); the same
    of the rest (`val_none`, `val_all`, `val_weighted`); and `held_out_objective`, float32 (G,), a number for each of
    its G source videos, whose mean is `held_out_weighted` less `held_out_all`: what the scores are good for, with the
    luck of the state (a control variate) and of the mask taken out; or `held_out_loss`, where these are not told.
    `scores`, float32 (B,), are the probabilities that the next action is drawn with, if whoever draws it sets them.

    ## Arguments
    - `trial`: the classifier on trial (envs/trial.py).
    - `vectors`: feature and label vector of each clip.
    - `foreground`, `background`: candidate pairs, as rows of `vectors`, of any integer type.
    - `settings`: EnvSettings.
    - `credit`: whether `info` tells each pair's: exact with `tune="head"`, of first order with `tune="all"`.

    `gymnasium.make(..., run=FOLDER)` builds all four from a run. All randomness comes from `reset(seed=...)`.

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        *,
        trial: ClassifierTrial,
        vectors: ClipVectors,
        foreground: NDArray[np.integer[Any]],
        background: NDArray[np.integer[Any]],
        settings: EnvSettings,
        credit: bool = False,
    ) -> None:
        self._credit = credit
        self.scores: NDArray[np.float32] | None = None
        self._trial, self._vectors, self._settings = trial, vectors, settings
        self._foreground, self._background = foreground, background
        shape = (settings.pairs, 2 * vectors.clip_size)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = spaces.MultiBinary(settings.pairs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Restore the classifier's start and draw the first pairs."""
        start = time.perf_counter()
        super().reset(seed=seed)
        observation, outcome, chosen = self._draw(), self._trial.reset(), 0
        if self._settings.restart == "step":
            outcome, chosen = self._trial.step(self._pairs(self._state), self.np_random), len(self._state)
        self._step, self._baseline = 0, outcome.val_loss
        info = self._info(outcome, chosen)
        info["seconds"] = outcome.seconds.of(time.perf_counter() - start)
        return observation, info

    def step(self, action: NDArray[np.int8]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Composite the chosen pairs, train and validate the classifier, and draw the next pairs."""
        start = time.perf_counter()
        chosen = np.asarray(action, dtype=np.bool_)
        credit: dict[str, NDArray[np.float32]] = {}
        if self._settings.restart == "step":
            self._trial.reset()
        pairs = self._pairs(self._state)
        if self._credit:
            outcome, credit["credit"] = self._trial.credited_step(pairs, chosen, self.np_random, self.scores)
        else:
            outcome = self._trial.compared_step(pairs, chosen, self.np_random, self.scores)
        self.scores = None
        reward, info = self._baseline - outcome.val_loss, self._info(outcome, int(chosen.sum())) | credit
        self._baseline = moving_average(self._baseline, outcome.val_loss, self._settings.window)
        self._step += 1
        observation = self._draw()
        info["seconds"] = outcome.seconds.of(time.perf_counter() - start)
        return observation, reward, False, self._step >= self._settings.steps, info

    def _pairs(self, rows: NDArray[np.int64]) -> list[Sample]:
        ids = self._vectors.ids_N
        return [Sample(ids[self._foreground[i]].decode(), ids[self._background[i]].decode()) for i in rows]

    def _draw(self) -> NDArray[np.float32]:
        self._state = self.np_random.integers(len(self._foreground), size=self._settings.pairs)
        return pair_observation(self._vectors, self._foreground[self._state], self._background[self._state])

    def _info(self, outcome: Outcome, num_selected: int) -> dict[str, Any]:
        return {
            "val_loss": outcome.val_loss,
            "val_accuracy": outcome.val_accuracy,
            "baseline": self._baseline,
            "num_selected": num_selected,
            **self._held_out(outcome),
        }

    def _held_out(self, outcome: Outcome) -> dict[str, Any]:
        """Return what is told of the held-out part of D_val."""
        at_start = self._trial.at_start
        if outcome.held_out is None or at_start.held_out is None:
            return {}
        told: dict[str, Any] = {"held_out_loss": outcome.held_out.mean().item()}
        told |= {"val_none": at_start.val_loss, "held_out_none": at_start.held_out.mean().item()}
        objective_N = outcome.held_out
        for name, (val, held_out) in outcome.instead.items():
            told |= {f"val_{name}": val.mean().item(), f"held_out_{name}": held_out.mean().item()}
        if outcome.instead:
            objective_N = outcome.instead.get(WEIGHTED, (None, objective_N))[1] - outcome.instead[ALL][1]
        names, place_N = np.unique(self._trial.sources[1], return_inverse=True)
        sums_G = np.bincount(place_N, weights=objective_N.numpy())
        # Scaled so that the mean over sources is the one over clips, of which a source may have several.
        told[OBJECTIVE] = (sums_G * (len(names) / len(objective_N))).astype(np.float32)
        return told

    def signal(self, states: int, seed: int) -> Signal | None:
        """Return how well two parts of D_val agree on which pairs help: what gives the reward and what is held out.

        Where nothing is held out, two halves of the clips that give the reward, by source video. Seen are the first
        states of an episode begun with a seed, half of whose pairs are chosen, at random. Nothing is trained; the next
        `reset` must be given a seed. None where only steps could tell, or D_val cannot be cut in two.
        """
        if not self._trial.of_head:
            return None
        rng, found = np.random.default_rng(seed), []
        super().reset(seed=seed)
        self._trial.reset()
        for _ in range(states):
            self._draw()
            chosen = rng.random(self._settings.pairs) < 1 / 2
            found.append(self._trial.credits_by_clip(self._pairs(self._state), chosen))
        parts = [
            Judged(np.hstack([credit - credit.mean(axis=1, keepdims=True) for credit in part]), sources, labels)
            for part, sources, labels in zip(
                zip(*found, strict=True), self._trial.sources, self._trial.labels, strict=True
            )
        ]
        one, other = parts if self._trial.holds_out else parts[0].halves()
        return agreement(one, other, rng)

    @classmethod
    def from_files(cls, config: dict[str, Any]) -> "PairSelectionEnv":
        """Build the environment in whatever process it is to run, from an ``EnvFiles`` in ``config["files"]``."""
        files: EnvFiles = config["files"]
        store, vectors = ClipStore(files.store), ClipVectors.load(as_path(files.vectors))
        foreground, background = read_candidates(files, store, vectors)
        return cls(
            trial=build_trial(files),
            vectors=vectors,
            foreground=foreground,
            background=background,
            settings=files.settings,
            credit=files.credit,
        )


@dataclass(frozen=True, kw_only=True)
class EnvFiles:
    """All that is needed to build the environment in another process: paths and settings, nothing heavy."""

    store: str
    """Folder of the clip store."""
    pairs: str
    """Parquet file of the candidate pairs."""
    vectors: str
    """Safetensors file of the clip vectors."""
    warm_start: str
    """Safetensors file of the classifier's weights at the warm start."""
    network: NetworkSettings
    """Network of the classifier."""
    composite: CompositeSettings
    """How pairs are composited and labelled."""
    crop: int
    """Side of the classifier's square input in pixels."""
    sampling: FrameSampling = ALL_FRAMES
    """Which of the stored frames the classifier sees."""
    settings: EnvSettings
    """Settings of the environment itself."""
    credit: bool = False
    """Whether it tells what choosing each pair was worth."""
    seed: int
    """Seed of what is drawn once: candidates and validation clips, when there are more than fit."""


def build_trial(files: EnvFiles) -> ClassifierTrial:
    """Build the classifier on trial.

    Raises:
        LeakError: D_val holds a clip that may not be validated on, as a test clip.
        StageError: there is no validation clip, or none that can serve.
    """
    store = CachedClipStore(files.store, files.settings.clip_memory)
    rewarding, held_out = parts_of(files, store)
    refuse_others([*rewarding, *held_out], store.columns("id", "split"), "validate", "D_val")
    scenes, held_out_scenes = [], []
    if files.settings.validation != "real":
        # A part's actors are set before that part's scenes, so that the parts share no source.
        scenes = validation_scenes(store, rewarding, alone=bool(held_out))
        held_out_scenes = validation_scenes(store, held_out, alone=True) if held_out else []
    if files.settings.validation == "scenes":
        rewarding = held_out = []
    return ClassifierTrial(
        network=load_network(as_path(files.warm_start), files.network, len(store.classes)),
        num_classes=len(store.classes),
        loader=SampleLoader(store, files.composite, files.crop, sampling=files.sampling),
        validation=rewarding,
        scenes=scenes,
        held_out=[*map(Sample, held_out), *held_out_scenes],
        settings=files.settings,
    )


def parts_of(files: EnvFiles, store: ClipStore) -> tuple[list[str], list[str]]:
    """Return ids of the clips of D_val that give the reward, and of those held out of it, if any can be.

    Raises:
        StageError: there is no validation clip.
    """
    index = store.columns("id", "class_name", "group", "split")
    chosen = set(validation_clips(index, files.settings.validation_clips, files.seed))
    clips = index[index["id"].isin(chosen)]
    held_out = hold_out(clips, files.settings.held_out)
    return sorted(chosen.difference(held_out)), held_out


def moving_average(delta: float, loss: float, window: int) -> float:
    """Return delta_t = (S-1)/S delta_(t-1) + 1/S L_t (paper, Eq. 6, with the 1/S that it lacks)."""
    return (window - 1) / window * delta + loss / window


def read_candidates(
    files: EnvFiles, store: ClipStore, vectors: ClipVectors
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Read the candidate pairs, at most ``env.candidates``, as rows of ``vectors``: foregrounds (P,), backgrounds (P,).

    Raises:
        LeakError: a test clip is in a pair.
        StageError: there is no candidate pair, or a clip has no vector.
    """
    pairs = draw_candidates(as_path(files.pairs), files.settings.candidates, files.seed)
    parts = store.columns("id", "split")
    for end in ENDS:
        refuse_others(pairs[end].unique().to_pylist(), parts, "pair", files.pairs)
    foreground, background = clip_rows(vectors, pairs)
    return foreground.astype(np.int32), background.astype(np.int32)


def validation_clips(index: pd.DataFrame, most: int, seed: int) -> list[str]:
    """Return ids of at most ``most`` clips of D_val, drawn so that the classes are as even as they can be.

    Raises:
        StageError: there is no validation clip.
    """
    rows = index[may(index["split"], "validate")].sample(frac=1.0, random_state=seed)
    if rows.empty:
        raise StageError("no validation clip could be prepared. See failed.parquet, or raise data.val_fraction")
    turn = rows.groupby("class_name").cumcount()
    chosen: list[str] = rows["id"][turn.sort_values(kind="stable").index[:most]].tolist()
    return sorted(chosen)


def validation_scenes(store: ClipStore, validation: Sequence[str], alone: bool = False) -> list[Sample]:
    """Set the actor of each of these clips of D_val before a scene of another class of D_val, where that can be done.

    Args:
        store: the clips.
        validation: ids of the clips.
        alone: whether the scenes are of these clips too, not of any other clip of D_val.

    Raises:
        StageError: it can be done with none.
    """
    chosen = set(validation)
    _, placed = clip_sets(store, "validate", scenes=1, among=chosen if alone else None)
    if scenes := [sample for sample in placed.samples if sample.foreground in chosen]:
        return scenes
    what = f"{len(chosen)} clips of D_val" if alone else "D_val"
    raise StageError(
        f"{store.root}: no clip of {what} has an actor and, of another class and source among them, a clip to lend a "
        f"scene. Validate on D_val as it is (env.validation=real){', or hold no part of it out' * alone}"
    )
