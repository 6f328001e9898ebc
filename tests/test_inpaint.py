"""Tests of l2a_ray.inpaint."""

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.inpaint import InpaintSettings, inpaint, temporal_median

EXACT = InpaintSettings(dilate=0)
Clips = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]


@pytest.fixture
def passing_square() -> Clips:
    """Frames of a square that crosses a still, textured scene, its masks, and the scene."""
    rng = np.random.default_rng(0)
    scene_HWC = rng.integers(40, 200, (32, 48, 3), dtype=np.uint8)
    frames_THWC, masks_THW = np.repeat(scene_HWC[None], 8, axis=0), np.zeros((8, 32, 48), dtype=np.bool_)
    for t in range(8):
        masks_THW[t, 10:20, 2 + 4 * t : 12 + 4 * t] = True
    frames_THWC[masks_THW] = (250, 10, 20)
    return frames_THWC, masks_THW, scene_HWC


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_median_is_that_of_the_known_values(frames: int) -> None:
    rng = np.random.default_rng(frames)
    values_THWC = rng.integers(0, 256, (frames, 9, 7, 3), dtype=np.uint8)
    known_THW = rng.random((frames, 9, 7)) < 0.7
    median_HWC, count_HW = temporal_median(values_THWC, known_THW)
    for y, x in np.ndindex(9, 7):
        known_TC = values_THWC[known_THW[:, y, x], y, x]
        assert count_HW[y, x] == len(known_TC)
        expected_C = np.floor(np.median(known_TC, axis=0) + 0.5) if len(known_TC) else 255
        assert (median_HWC[y, x] == expected_C).all()


def test_background_is_recovered_exactly_where_it_is_seen(passing_square: Clips) -> None:
    frames_THWC, masks_THW, scene_HWC = passing_square
    before_THWC = frames_THWC.copy()
    assert (inpaint(frames_THWC, masks_THW, EXACT) == scene_HWC).all()
    assert (frames_THWC == before_THWC).all()


def test_soft_borders_go_with_the_grown_mask(passing_square: Clips) -> None:
    frames_THWC, masks_THW, scene_HWC = passing_square
    core_THW = masks_THW.copy()
    for t in range(8):
        core_THW[t, [10, 19]] = False
        core_THW[t, :, [2 + 4 * t, 11 + 4 * t]] = False
    assert (inpaint(frames_THWC, core_THW, EXACT) != scene_HWC).any()
    assert (inpaint(frames_THWC, core_THW, InpaintSettings(dilate=2)) == scene_HWC).all()


@pytest.mark.parametrize("spatial", ["telea", "navier_stokes"])
def test_hole_seen_at_no_time_is_filled_without_flicker(spatial: Literal["telea", "navier_stokes"]) -> None:
    rng = np.random.default_rng(1)
    frames_THWC = np.full((8, 24, 24, 3), 90, dtype=np.uint8) + rng.integers(0, 9, (8, 24, 24, 3), dtype=np.uint8)
    masks_THW = np.zeros((8, 24, 24), dtype=np.bool_)
    masks_THW[:, 8:14, 8:14] = True
    frames_THWC[masks_THW] = 255
    background_THWC = inpaint(frames_THWC, masks_THW, InpaintSettings(dilate=0, spatial=spatial))
    hole_TNC = background_THWC[:, 8:14, 8:14]
    assert (hole_TNC == hole_TNC[0]).all()
    assert hole_TNC.min() >= 85
    assert hole_TNC.max() <= 103
    assert (background_THWC[~masks_THW] == frames_THWC[~masks_THW]).all()


def test_no_mask_changes_nothing(passing_square: Clips) -> None:
    frames_THWC, masks_THW, _ = passing_square
    background_THWC = inpaint(frames_THWC, np.zeros_like(masks_THW), EXACT)
    assert (background_THWC == frames_THWC).all()
    assert not np.shares_memory(background_THWC, frames_THWC)


def test_refuses_what_has_no_answer(passing_square: Clips) -> None:
    frames_THWC, masks_THW, _ = passing_square
    with pytest.raises(ValueError, match="no background is ever seen"):
        inpaint(frames_THWC, np.ones_like(masks_THW), EXACT)
    with pytest.raises(ValueError, match="do not fit"):
        inpaint(frames_THWC, masks_THW[:4], EXACT)


@pytest.mark.parametrize(("field", "value"), [("dilate", -1), ("radius", 0.0), ("spatial", "lama")])
def test_impossible_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"inpaint.{field}"):
        InpaintSettings(**{field: value})
