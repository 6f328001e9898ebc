"""Compositing against the plain float32 form of Eq. 1 and against a copy of the output, on one thread, in one run.

    python benchmarks/composite.py

Times are the thread's own (other load counts little), the best of three seconds a row in which the three take turns.
"actor" is an ellipse over 15 % of each frame that walks from left to right; "noise" sets half of all pixels at random,
the worst a mask can be. Expect single clips with actors, which is how samples are made, well above 40 times the plain
form. One clip stays inside the processor's caches; a batch streams through memory, where compositing costs about 1.6
bare copies of the clips, so that little is left to gain: expect 35 to 75 times. Measured on two shared Xeon cores:

         clip batch  mask   clips/s  x plain  x copy
    8x128x170     1 actor     36101    150.7    1.89
    8x128x170     1 noise     22093     96.2    2.86
    8x128x170     8 actor     15632     62.6    1.48
    8x128x170     8 noise     10126     40.8    2.27
    8x128x170    64 actor      7618     41.1    1.67
    8x128x170    64 noise      7424     32.2    2.20
    8x112x112     1 actor     57964     73.1    1.93
    8x112x112     1 noise     35084     45.6    3.11
    8x112x112     8 actor     26416     38.2    1.58
    8x112x112     8 noise     18613     26.0    2.23
    8x112x112    64 actor     24094     61.1    1.60
    8x112x112    64 noise     16397     45.5    2.32
"""

import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.composite import composite

SHAPES = ((8, 128, 170), (8, 112, 112))
BATCHES = (1, 8, 64)
SECONDS = 3.0
REPEATS = 5


def plain_form(
    frames_BTHWC: NDArray[np.uint8], masks_BTHW: NDArray[np.bool_], backgrounds_BTHWC: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    weight = masks_BTHW.astype(np.float32)[..., None]
    mixed = frames_BTHWC.astype(np.float32) * weight + backgrounds_BTHWC.astype(np.float32) * (1 - weight)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def actor_masks(batch: int, frames: int, height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    radius_y = 0.25 * height
    radius_x = 0.15 * height * width / (np.pi * radius_y)
    centres = np.linspace(0.35, 0.65, frames) * width
    clip = [((x - centre) / radius_x) ** 2 + ((y - height / 2) / radius_y) ** 2 < 1 for centre in centres]
    return np.repeat(np.stack(clip)[None], batch, axis=0)


def best_seconds(*works: Callable[[], object]) -> list[float]:
    best = [float("inf")] * len(works)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for number, work in enumerate(works):
            for _ in range(REPEATS):
                start = time.thread_time()
                work()
                best[number] = min(best[number], time.thread_time() - start)
    return best


def measure(shape: tuple[int, int, int], batch: int, kind: str) -> str:
    rng = np.random.default_rng(0)
    frames, backgrounds = (rng.integers(0, 256, (batch, *shape, 3), dtype=np.uint8) for _ in range(2))
    masks = actor_masks(batch, *shape) if kind == "actor" else rng.random((batch, *shape)) < 0.5
    np.testing.assert_array_equal(composite(frames, masks, backgrounds), plain_form(frames, masks, backgrounds))
    copied = np.empty_like(frames)
    plain, ours, copy = best_seconds(
        lambda: plain_form(frames, masks, backgrounds),
        lambda: composite(frames, masks, backgrounds),
        lambda: np.copyto(copied, backgrounds),
    )
    size = "x".join(map(str, shape))
    return f"{size:>9} {batch:5d} {kind:>5} {batch / ours:9.0f} {plain / ours:8.1f} {ours / copy:7.2f}"


def main() -> None:
    cv2.setNumThreads(1)
    print(f"{'clip':>9} {'batch':>5} {'mask':>5} {'clips/s':>9} {'x plain':>8} {'x copy':>7}")
    for shape in SHAPES:
        for batch in BATCHES:
            for kind in ("actor", "noise"):
                print(measure(shape, batch, kind))


if __name__ == "__main__":
    main()
