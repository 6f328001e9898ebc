"""Sets of clips to test on: as they are, and their actors where the scene says nothing of the action.

A test set that shares its scenes with the training set cannot tell who looks at the actor from who looks at the scene.
So each clip's actor is also shown before another class's scene, before stripes and, standing still, before stripes:
the last two after SCUBA and SCUFO of Li, Liu, Zhang and Li, "Mitigating and Evaluating Static Bias of Action
Representations in the Background and the Foreground", ICCV 2023 (https://arxiv.org/abs/2211.12883). All that is drawn
depends on the clips alone, so every classifier sees the same. Imports no Ray.

Axes: T time, H height, W width, C channel (RGB).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.composites.composite import Mask, composite, place
from l2a_ray.composites.loader import Sample
from l2a_ray.composites.settings import CompositeSettings
from l2a_ray.errors import StageError
from l2a_ray.pairs.match import has_actor, has_scene
from l2a_ray.pairs.settings import MatchSettings
from l2a_ray.prepare.store import Choice, ClipStore
from l2a_ray.videos.splits import Role, may

Frames = NDArray[np.uint8]
Show = Callable[[ClipStore, Sample, Choice | None], Frames]
"""Makes a clip, uint8 (T, H, W, C), of the chosen frames; None: of all."""
SetName = Literal["real", "scenes", "stripes", "still"]
REAL: SetName = "real"
ACTORS = CompositeSettings(mix_labels=False)
"""How a composite to test on is made: all that was found in the clip, on a cleaned scene, with the actor's label."""
LIMITS = MatchSettings()
"""Which actors and scenes serve: by `match`'s defaults, whatever a run's are, for runs are compared on the same."""
_SIDE = 256  # pixels: of the frames that the numbers of SCUBA's stripes are for


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips to test on.

    Args:
        name: of the set.
        clips: a row a clip: ``id`` of the clip whose actor is seen, its ``label``, and ``background``, id of the clip
            whose scene is seen, empty where that is none or its own.
        left_out: clips of the role that are not in it: without an actor or, of `scenes`, without another scene.
    """

    name: SetName
    clips: pd.DataFrame
    left_out: int = 0

    @property
    def samples(self) -> list[Sample]:
        """What ``SHOWN[name]`` makes the clips of."""
        return [
            Sample(front, back or None) for front, back in zip(self.clips["id"], self.clips["background"], strict=True)
        ]


def clip_sets(
    store: ClipStore, role: Role, scenes: int = 0, stripes: bool = False, among: Collection[str] | None = None
) -> list[ClipSet]:
    """Return the clips of a role as they are and, where asked for, what their actors are shown before.

    Args:
        store: the prepared clips.
        role: of the clips.
        scenes: other scenes an actor is set before, at most; 0: the set is not made.
        stripes: whether the sets with stripes are made, moving and still.
        among: ids of the clips that actors and scenes are taken of; None: all.

    Raises:
        StageError: the store has no clip of that role.
    """
    index = store.columns("id", "label", "group", "split", "foreground_ratio", "foreground_frames", "remark")
    clips = index[may(index["split"], role)]
    if among is not None:
        clips = clips[clips["id"].isin(among)]
    if clips.empty:
        raise StageError(f"{store.root}: no clip for the role {role!r} was prepared; its failed.parquet says why")
    plain = clips[["id", "label"]].assign(background="")
    sets = [ClipSet(REAL, plain)]
    if scenes or stripes:
        clips = clips.assign(actor=has_actor(clips, LIMITS), scene=has_scene(clips, LIMITS))
    if scenes:
        placed = other_scenes(clips, scenes)
        sets.append(ClipSet("scenes", placed, len(clips) - placed["id"].nunique()))
    if stripes:
        actors = plain[clips["actor"]]
        sets += [ClipSet(name, actors, len(clips) - len(actors)) for name in ("stripes", "still")]
    return sets


def other_scenes(clips: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw for each actor scenes of other classes and other source videos; the order of the clips does not matter.

    Args:
        clips: columns id, label, group (the source video), and whether it has an actor and a scene: actor, scene.
        count: scenes of each actor; fewer where there are not so many.

    Returns:
        A row a composite, by id of the actor's clip: id, label, background.
    """
    clips = clips.sort_values("id", ignore_index=True)
    ids, labels = clips["id"].to_numpy(), clips["label"].to_numpy()
    groups, scenes = pd.factorize(clips["group"])[0], clips["scene"].to_numpy()
    fronts, backs = [], []
    for row in np.flatnonzero(clips["actor"]):
        others = np.flatnonzero(scenes & (labels != labels[row]) & (groups != groups[row]))
        if len(others):
            backs.append(_rng("scenes", ids[row]).choice(others, min(count, len(others)), replace=False))
            fronts.append(np.full(len(backs[-1]), row))
    front, back = (np.concatenate([np.empty(0, np.int64), *rows]) for rows in (fronts, backs))
    return pd.DataFrame({"id": ids[front], "label": labels[front], "background": ids[back]})


def stripes(height: int, width: int, rng: np.random.Generator) -> Frames:
    """Draw wavy stripes, (H, W, C): a random colour and its complement, at a random angle.

    As SCUBA's published code draws them (https://github.com/lihaoxin05/StillMix, benchmark_synthesis), in shares of the
    short side in place of its 256 pixels: a stripe lies 5 to 20 pixels to either side of a sine of amplitude 10 to 110
    and wavelength 4 to 1,004, and comes again after 3 to 5 times that half width.
    """
    colour = rng.integers(256, size=3)
    half = rng.uniform(5, 20)
    period, amplitude, wavelength = half * rng.uniform(3, 5), rng.uniform(10, 110), rng.uniform(4, 1004)
    phase, angle = rng.uniform(0, 2 * np.pi, size=2)
    y, x = np.mgrid[:height, :width] * (_SIDE / min(height, width))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = across - amplitude * np.sin(2 * np.pi * along / wavelength + phase)
    inside = wave % period < 2 * half
    drawn: Frames = np.where(inside[..., None], colour, 255 - colour).astype(np.uint8)
    return drawn


def still(
    frames_THWC: Frames, masks_THW: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Frames, NDArray[np.bool_]]:
    """Repeat one frame and its mask over all frames; it is drawn from those with an actor, if there is one."""
    times = np.flatnonzero(masks_THW.any(axis=(1, 2)))
    time = int(rng.choice(times)) if len(times) else 0
    frame, mask = frames_THWC[time], masks_THW[time]
    return np.broadcast_to(frame, frames_THWC.shape).copy(), np.broadcast_to(mask, masks_THW.shape).copy()


def _as_it_is(store: ClipStore, sample: Sample, choice: Choice | None) -> Frames:
    frames: Frames = store.read_parts(sample.foreground, ("frames",), choice)["frames"]
    return frames


def _before_scene(store: ClipStore, sample: Sample, choice: Choice | None) -> Frames:
    """Show the actor before the cleaned background of another clip, which keeps its own frames in their order."""
    assert sample.background is not None
    scene: Frames = store.read_parts(sample.background, ("background",), choice)["background"]
    return _paste(*_actor(store, sample, choice), scene)


def _before_stripes(store: ClipStore, sample: Sample, choice: Choice | None) -> Frames:
    """Show the moving actor before stripes that stand still (SCUBA)."""
    frames, masks = _actor(store, sample, choice)
    return _paste(frames, masks, _striped(frames, sample))


def _still_before_stripes(store: ClipStore, sample: Sample, choice: Choice | None) -> Frames:
    """Show one frame of the actor before the same stripes (SCUFO)."""
    frames, masks = still(*_actor(store, sample, choice), _rng("still", sample.foreground))
    return _paste(frames, masks, _striped(frames, sample))


SHOWN: Mapping[SetName, Show] = {
    "real": _as_it_is,
    "scenes": _before_scene,
    "stripes": _before_stripes,
    "still": _still_before_stripes,
}
"""How the clips of each set are made."""


def _actor(store: ClipStore, sample: Sample, choice: Choice | None) -> tuple[Frames, NDArray[np.bool_]]:
    """Return a clip's frames and the masks of all that was found in it."""
    parts = store.read_parts(sample.foreground, ("frames", "objects"), choice)
    return parts["frames"], parts["objects"]


def _striped(frames_THWC: Frames, sample: Sample) -> Frames:
    """Return a clip of stripes of that shape."""
    _, height, width, _ = frames_THWC.shape
    drawn = stripes(height, width, _rng("stripes", sample.foreground))
    scene: Frames = np.repeat(drawn[None], len(frames_THWC), axis=0)
    return scene


def _paste(frames_THWC: Frames, masks_THW: Mask, scene_THWC: Frames) -> Frames:
    _, height, width, _ = scene_THWC.shape
    frames, masks = place(frames_THWC, masks_THW, height, width)
    pasted: Frames = composite(frames[None], masks[None], scene_THWC[None])[0]
    return pasted


def _rng(what: str, clip_id: str) -> np.random.Generator:
    """Return the generator of what is drawn for a clip."""
    return np.random.default_rng(list(f"{what} {clip_id}".encode()))
