"""The demo's data: short H.264 videos of a drawn actor, whose action shows in motion alone.

Every class shares one distribution of actors, paths and scenes. Each class has a scene of its own, which it is seen in
nearly always in training and no more than in any other at test: a classifier that looks at the background fails. The
actor crosses part of the picture in every clip, so that a temporal median shows the scene behind it.

Axes: T time, H height, W width, C channel, L chains of the body, J joints of a chain, P coordinates (x, y).
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from l2a_ray.errors import StageError, StorageError
from l2a_ray.runtime.progress import Bar
from l2a_ray.videos.settings import GenerateSettings as GenerateSettings

ACTIONS = ("wave_hand", "clap_hands", "jump", "squat", "walk", "kick")
SCENES = ("stripes", "checks", "bricks", "waves", "clouds", "dots")
"""Scene i is the own scene of action i."""

_Split = Literal["train", "test"]
_Fault = Literal["", "wrong_label", "lost"]
_Row = tuple[int, int, _Fault]  # true class, scene, fault

_PERIOD = 1.1  # seconds a cycle of every action: in a clip of 2 s, 8 frames see it 4.4 times each, clear of aliasing
_SCALE = 3  # the actor is drawn this many times larger and averaged down: smooth edges, positions finer than a pixel
_LOST_OPACITY = 0.1  # a lost actor differs from the scene by a tenth of what another does
# The bytes must depend on the frames alone: one thread, and neither macroblock tree nor B-frames, which together made
# files differ from run to run in a few bytes (x264 core 165); ultrafast uses neither.
_ENCODER = {"preset": "ultrafast", "crf": "18", "threads": "1"}

_BONES = np.array([[0.18, 0.19]] * 2 + [[0.24, 0.24]] * 2)  # lengths of arms and legs in body heights
_SPREAD = np.array([0.09, 0.09, 0.05, 0.05])  # of shoulders and hips from the middle
_ROOT_Y = np.array([-0.3, -0.3, 0.0, 0.0])  # of shoulders and hips
_HELD_ARMS = (((8, 0), (8, 15)), ((160, 0), (165, 0)), ((15, 5), (10, 150)))  # hanging, raised, folded


@dataclass(frozen=True)
class Plan:
    """What one video shows; a row of ``truth.parquet``. ``true_class`` is what its actor does."""

    path: str
    split: _Split
    class_name: str
    true_class: str
    scene: str
    bad: _Fault


def generate(root: Path, settings: GenerateSettings, seed: int) -> None:
    """Write ``{train,test}/<class>/clip_NNNN.mp4``, ``truth.parquet`` and ``settings.json`` under ``root``.

    Complete or absent: a folder that is there is whole, and is left as it is if made with the same settings and seed.

    Raises:
        StageError: ``root`` is there and was made otherwise.
        StorageError: ``root`` cannot be written.
    """
    record = json.dumps({**asdict(settings), "seed": seed})
    if root.exists():
        _check_same(root, record)
        return
    partial = root.with_name(root.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        plans = plan_videos(settings, seed)
        for number, plan in enumerate(Bar(plans, desc="generate", unit="video")):
            frames, _ = draw(plan, settings, np.random.default_rng([seed, 1, number]))
            _write_video(partial / plan.path, frames, settings.rate)
        pd.DataFrame([asdict(plan) for plan in plans]).to_parquet(partial / "truth.parquet", index=False)
        (partial / "settings.json").write_text(record)
        partial.rename(root)
    except OSError as error:
        raise StorageError(
            f"{root}: cannot write the generated videos ({error}). Free space or name another"
        ) from error


def _check_same(root: Path, record: str) -> None:
    path = root / "settings.json"
    found = path.read_text() if path.is_file() else "no settings.json"
    if found != record:
        raise StageError(
            f"{root}: was not made with these settings: it has {found}, asked for is {record}. "
            "Remove the folder, name another, or set generate.* and the seed as they were"
        )


def plan_videos(settings: GenerateSettings, seed: int) -> list[Plan]:
    """What each video shows, in the order of drawing. Shares are exact in each class's folder, up to rounding."""
    rng = np.random.default_rng([seed, 0])
    plans = []
    counts: dict[_Split, int] = {"train": settings.train_per_class, "test": settings.test_per_class}
    for split, count in counts.items():
        numbers = iter(rng.permutation(count * len(ACTIONS)))
        for label, class_name in enumerate(ACTIONS):
            rows = _train_rows(label, settings, rng) if split == "train" else _test_rows(label, count)
            for true, scene, bad in rows:
                path = f"{split}/{class_name}/clip_{next(numbers):04d}.mp4"
                plans.append(Plan(path, split, class_name, ACTIONS[true], SCENES[scene], bad))
    return plans


def _train_rows(label: int, settings: GenerateSettings, rng: Generator) -> list[_Row]:
    """True class, scene and fault of each video in a training folder; a scene goes with what the actor really does."""
    count = settings.train_per_class
    wrong = round(settings.wrong_label_share * count)
    bad = round((settings.wrong_label_share + settings.lost_share) * count)
    own = rng.permutation(count) < round(settings.correlation * count)
    rows: list[_Row] = []
    for place, is_own in zip(rng.permutation(count), own, strict=True):
        fault: _Fault = "wrong_label" if place < wrong else "lost" if place < bad else ""
        true = (label + 1) % len(ACTIONS) if fault == "wrong_label" else label
        rows.append((true, true if is_own else _another(true, rng), fault))
    return rows


def _test_rows(label: int, count: int) -> list[_Row]:
    """Every scene equally often; where the count does not divide, the classes take turns with the scenes left over."""
    return [(label, (label * count + i) % len(SCENES), "") for i in range(count)]


def _another(index: int, rng: Generator) -> int:
    return int(index + rng.integers(1, len(ACTIONS))) % len(ACTIONS)


def draw(plan: Plan, settings: GenerateSettings, rng: Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one video.

    Returns:
        RGB frames, uint8 (T, H, W, 3), and the actor's pixels, bool (T, H, W).
    """
    scene = _draw_scene(plan.scene, settings, rng)
    actor = _draw_actor(plan.true_class, settings, rng)
    color, cover = actor[..., :3], actor[..., 3:] / np.float32(255)
    opacity = _LOST_OPACITY if plan.bad == "lost" else 1
    frames = scene + opacity * (color - scene * cover)
    return np.rint(frames).clip(0, 255).astype(np.uint8), cover[..., 0] > 0.5


def _draw_scene(scene: str, settings: GenerateSettings, rng: Generator) -> NDArray[np.float32]:
    """A texture of two shades of the scene's hue under uneven light, (T, H, W, 3) in [0, 255]; some of them move."""
    hue = 180 * SCENES.index(scene) / len(SCENES) + rng.uniform(-7, 7)  # OpenCV's hues: [0, 180)
    value, contrast, saturation = rng.uniform(70, 110), rng.uniform(25, 40), rng.uniform(35, 65)
    shades = np.array([[[hue, saturation, value], [hue + rng.uniform(-8, 8), saturation, value + contrast]]])
    shades[..., 0] %= 180
    dark, bright = cv2.cvtColor(shades.astype(np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    y, x = np.mgrid[: settings.height, : settings.width].astype(np.float32) * (72 / settings.height)
    light = 1 + rng.uniform(-0.1, 0.1) * (x / 40 - 1) + rng.uniform(-0.1, 0.1) * (y / 36 - 1)
    travel = _scene_travel(scene, rng)
    texture_seed = int(rng.integers(2**32))
    frames = []
    for time in np.linspace(0, 1, settings.frames) if travel.any() else (0.0,):
        dx, dy = (travel * time).astype(np.float32)
        texture = _texture(scene, x + dx, y + dy, np.random.default_rng(texture_seed))[..., None]
        frames.append((dark + (bright - dark) * texture) * light[..., None])
    return np.broadcast_to(np.stack(frames), (settings.frames, *frames[0].shape))


def _scene_travel(scene: str, rng: Generator) -> NDArray[np.float64]:
    """How far the texture moves (x, y) over the video: a camera pan in some, waves and clouds that drift, mostly 0."""
    pan = rng.uniform(3, 7) * rng.choice([-1, 1]) * (rng.random() < 0.15)
    drift = rng.uniform(-3, 3, size=2) * (scene in ("waves", "clouds") and rng.random() < 0.5)
    return np.array([pan, 0.0]) + drift


def _texture(scene: str, x: NDArray[np.float32], y: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Brightness of a scene at the points (x, y), in [0, 1]; edges are a few pixels soft."""
    period, phase = float(rng.uniform(14, 22)), rng.uniform(0, 2 * np.pi, size=8).astype(np.float32)
    u, v = 2 * np.pi * x / period + phase[0], 2 * np.pi * y / period + phase[1]
    if scene == "stripes":
        turn = float(rng.uniform(-0.6, 0.6))
        wave = np.sin(u * np.cos(turn) + v * np.sin(turn))
    elif scene == "checks":
        wave = 2 * np.sin(u) * np.sin(v)
    elif scene == "bricks":
        shift = np.pi / 2 * (np.floor(v / np.pi) % 2)
        wave = 4 * np.minimum(np.abs(np.sin(v)), np.abs(np.sin(u / 2 + shift))) - 1
    elif scene == "waves":
        wave = np.sin(1.5 * v + 1.5 * np.sin(u / 2))
    elif scene == "clouds":
        turns = rng.uniform(0, 2 * np.pi, size=6).astype(np.float32)
        wave = np.mean(
            [np.sin((u * np.cos(t) + v * np.sin(t)) / 2 + p) for t, p in zip(turns, phase[2:], strict=True)], axis=0
        )
    else:
        wave = 3 * (np.cos(u) + np.cos(v)) - 3
    return np.asarray(0.5 + 0.5 * np.clip(2 * wave, -1, 1), dtype=np.float32)


def _draw_actor(action: str, settings: GenerateSettings, rng: Generator) -> NDArray[np.float32]:
    """The actor on black, premultiplied RGB and cover, (T, H, W, 4) in [0, 255]."""
    size = rng.uniform(0.74, 0.84) * settings.height * _SCALE
    points = _pose(action, settings, rng) * size + _path(size, settings, rng)[:, None, None]
    colors = _clothes(rng), _clothes(rng), rng.uniform(0.65, 1) * np.array([255, 215, 185])
    shape = settings.height * _SCALE, settings.width * _SCALE, 4
    frames = []
    for joints in points:
        canvas = np.zeros(shape, np.uint8)
        _draw_body(canvas, joints.astype(int), size, *colors)
        frames.append(cv2.resize(canvas, (settings.width, settings.height), interpolation=cv2.INTER_AREA))
    actor = np.stack(frames).astype(np.float32)
    return actor if rng.random() < 0.5 else actor[:, :, ::-1]


def _clothes(rng: Generator) -> NDArray[np.float64]:
    """A light color of any hue: every scene is darker, and no scene or action has colors of its own."""
    return rng.uniform(195, 255, size=3)


def _path(size: float, settings: GenerateSettings, rng: Generator) -> NDArray[np.float64]:
    """Where the feet are, (T, 2): to the right by three trunk widths or more, so that no place is covered for long."""
    reach, ground = size * rng.uniform(0.62, 0.7), settings.height * _SCALE * rng.uniform(0.91, 0.95)
    middle = settings.width * _SCALE * rng.uniform(0.47, 0.53)
    slope = settings.height * _SCALE * rng.uniform(-0.02, 0.02)
    return np.linspace((middle - reach / 2, ground - slope), (middle + reach / 2, ground + slope), settings.frames)


def _pose(action: str, settings: GenerateSettings, rng: Generator) -> NDArray[np.float64]:
    """Three joints of each chain over time, (T, 5, 3, 2), (x, y) in body heights, y down, the ground at 0.

    Chains: near and far arm, near and far leg, spine (hip, neck, head). The body is turned half to the right, towards
    or away from the viewer, so that limbs show wherever they swing.
    """
    period = _PERIOD * rng.uniform(0.83, 1.2)
    phase = 2 * np.pi * (rng.random() + np.arange(settings.frames) / settings.rate / period)
    angles, lift = _move(action, phase, rng)
    out, fore = np.moveaxis(np.radians(angles), -1, 0)
    turn = np.radians(rng.uniform(30, 52))
    across, ahead = np.cos(turn) * rng.choice([-1, 1]), np.sin(turn)
    side = np.array([-1, 1, -1, 1])
    x = side[:, None] * np.sin(out) * across + np.cos(out) * np.sin(fore) * ahead
    y = np.cos(out) * np.cos(fore)
    bones = np.stack([x, y], axis=-1) * _BONES[..., None]
    roots = np.stack([side * across * _SPREAD, _ROOT_Y], axis=-1)
    limbs = np.cumsum(np.concatenate([np.broadcast_to(roots, (len(phase), 4, 2))[:, :, None], bones], 2), 2)
    spine = np.broadcast_to(np.array([[[0, 0], [0, -0.31], [0, -0.42]]]), (len(phase), 1, 3, 2))
    points = np.concatenate([limbs, spine], axis=1)
    points[..., 1] -= (limbs[:, 2:, 2, 1].max(axis=1) + lift)[:, None, None]
    return points


def _move(action: str, phase: NDArray[np.float64], rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Degrees of each limb's two parts from hanging, outwards and forwards, (T, 4, 2, 2); height above ground, (T,).

    Limbs that an action leaves alone are held still in poses that moving ones pass through, so that a single frame
    tells little.
    """
    arms = [_HELD_ARMS[i] for i in rng.choice(len(_HELD_ARMS), size=2, p=(0.6, 0.2, 0.2))]
    legs = rng.uniform((2, -8), (8, 8), size=(2, 1, 2)).repeat(2, axis=1)
    angles = np.tile(np.concatenate([arms, legs]), (len(phase), 1, 1, 1))
    angles += rng.uniform(-6, 6, size=(4, 2, 2))
    lift = np.zeros(len(phase))
    side, swing = rng.integers(2), np.cos(phase)
    if action == "wave_hand":
        angles[:, side, :, 0] = np.stack([130 + 35 * swing, 140 + 65 * swing], 1)
        angles[:, side, :, 1] = 10
    elif action == "clap_hands":
        angles[:, :2, :, 0] = np.stack([40 + 50 * swing, 25 + 65 * swing], 1)[:, None]
        angles[:, :2, :, 1] = 85
    elif action == "jump":
        lift = 0.2 * np.maximum(np.sin(phase), 0)
        angles[:, 2:, :, 1] += (np.maximum(-np.sin(phase), 0)[:, None] * (35, -35))[:, None]
    elif action == "squat":
        angles[:, 2:, :, 1] += ((1 - swing)[:, None] * (35, -35))[:, None]
    elif action == "walk":
        # Arms and legs of one side swing against each other; a knee bends while its foot comes forward.
        swings = swing[:, None] * (-40, 40, 40, -40)
        knee = 20 * (1 + np.sin(phase)[:, None] * (0, 0, 1, -1)) * (0, 0, 1, 1)
        angles[..., 1] = np.stack([swings, swings - knee], 2)
        angles[:, :2, :, 0] = 8
    else:
        angles[:, 2 + side, :, 1] = np.stack([40 + 60 * swing, 25 + 70 * swing], 1)
    return angles, lift


def _draw_body(
    canvas_HWC: NDArray[np.uint8],
    points_LJP: NDArray[np.int64],
    size: float,
    shirt: NDArray[np.float64],
    trousers: NDArray[np.float64],
    skin: NDArray[np.float64],
) -> None:
    """Draw the chains from far to near; farther limbs are darker, so that they stand out from the trunk."""

    def part(start: NDArray[np.int64], end: NDArray[np.int64], width: float, color: NDArray[np.float64]) -> None:
        cv2.line(canvas_HWC, start.tolist(), end.tolist(), (*color.tolist(), 255), round(width * size))

    def limb(chain: int, shade: float) -> None:
        upper, lower, width = (shirt, skin, 0.11) if chain < 2 else (trousers, trousers, 0.13)
        root, joint, tip = points_LJP[chain]
        part(root, joint, width, upper * shade)
        part(joint, tip, width, lower * shade)

    hip, neck, head = points_LJP[4]
    limb(1, 0.75)
    limb(3, 0.75)
    part(hip, neck, 0.23, shirt)
    limb(2, 0.9)
    cv2.circle(canvas_HWC, head.tolist(), round(0.1 * size), (*skin.tolist(), 255), cv2.FILLED)
    limb(0, 0.9)


def _write_video(path: Path, frames_THWC: NDArray[np.uint8], rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=_ENCODER)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
