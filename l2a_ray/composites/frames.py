"""Which of a clip's stored frames a sample shows. Imports no Ray. Axes: V views, T frames of a sample."""

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from l2a_ray.composites.settings import FrameSampling
from l2a_ray.prepare.store import Choice
from l2a_ray.videos.decode import uniform_indices


def drawn_frames(stored: int, sampling: FrameSampling, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the frames of a training sample, as indices (T,) of the ``stored`` ones, in order.

    A clip with fewer frames than are taken repeats some.
    """
    count = stored if sampling.count is None else sampling.count
    if sampling.kind == "stretch":
        if count > stored:
            return uniform_indices(stored, count)
        return np.arange(count) + rng.integers(stored - count + 1)
    edges = np.arange(count + 1) * stored // count
    return rng.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))


def even_frames(stored: int, sampling: FrameSampling, views: int = 1) -> NDArray[np.int64]:
    """Return the frames of so many views that draw nothing, evenly spread over a clip: indices (V, T).

    Of segments, each view takes the middle of its own equal part of every segment, as :func:`uniform_indices` does for
    one view; stretches begin in the middles of equal parts of all places where one may begin.
    """
    count = stored if sampling.count is None else sampling.count
    if sampling.kind == "stretch" and count <= stored:
        return uniform_indices(stored - count + 1, views)[:, None] + np.arange(count)
    return uniform_indices(stored, count * views).reshape(count, views).T


def choice_of(sampling: FrameSampling, rng: np.random.Generator | None) -> Choice | None:
    """Return what chooses the frames of all clips of one sample, alike; None: all frames are taken, nothing is drawn.

    A foreground and its background keep step this way: each of their frames is at the same share of its own video.

    Args:
        sampling: how many frames, and how they are drawn.
        rng: draws them; None: the middle ones.
    """
    if sampling.count is None:
        return None
    if rng is None:
        return lambda stored: even_frames(stored, sampling)[0]
    return cache(partial(drawn_frames, sampling=sampling, rng=rng))
