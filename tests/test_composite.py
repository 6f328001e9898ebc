"""Compositing against the plain float form of Eq. 1, and hand values of Eq. 7 and 8."""

import numpy as np
import pytest
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, composite, foreground_ratio, label_weight, mix_labels, place
from l2a_ray.errors import SettingError


def random_clips(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain_form(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_] | NDArray[np.uint8], backgrounds: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    weight = masks.astype(np.float32)[..., None]
    return (frames.astype(np.float32) * weight + backgrounds.astype(np.float32) * (1 - weight)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 8, 12, 17), (5, 3, 7, 4), (0, 8, 12, 17)])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_equals_the_float_form_bit_for_bit(shape: tuple[int, ...], dtype: type) -> None:
    frames, backgrounds = random_clips((*shape, 3), 0), random_clips((*shape, 3), 1)
    masks: NDArray[np.bool_] | NDArray[np.uint8] = (random_clips(shape, 2) > 127).astype(dtype)
    before = backgrounds.copy()
    result = composite(frames, masks, backgrounds)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, plain_form(frames, masks, backgrounds))
    np.testing.assert_array_equal(backgrounds, before)


def test_views_that_are_not_contiguous_give_the_same() -> None:
    frames, backgrounds = random_clips((2, 4, 10, 12, 3), 0), random_clips((2, 4, 10, 12, 3), 1)
    masks = random_clips((2, 4, 10, 12), 2) > 127
    turned = composite(frames[:, ::2, 1:, ::-1], masks[:, ::2, 1:, ::-1], backgrounds[:, ::2, 1:, ::-1])
    np.testing.assert_array_equal(turned, plain_form(frames, masks, backgrounds)[:, ::2, 1:, ::-1])


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    clips, masks = random_clips((1, 2, 4, 6, 3), 0), np.ones((1, 2, 4, 6), dtype=np.bool_)
    with pytest.raises(ValueError, match="BTHW3"):
        composite(clips, masks, clips[:, :1])
    with pytest.raises(ValueError, match="BTHW3"):
        composite(clips, masks[..., :-1], clips)
    with pytest.raises(ValueError, match="uint8"):
        composite(clips.astype(np.float32), masks, clips)
    with pytest.raises(ValueError, match="uint8"):
        composite(clips, masks.astype(np.float32), clips)  # type: ignore[arg-type]


def test_foreground_ratio_counts_all_frames() -> None:
    masks = np.zeros((2, 4, 5), dtype=np.bool_)
    masks[1, 1:3, :3] = True
    assert foreground_ratio(masks) == 6 / 40


@pytest.mark.parametrize(
    ("gamma", "alpha", "weight"),
    [(0, 4, 0), (1, 4, 1), (0.25, 4, 0.68359375), (0.5, 4, 0.9375), (0.5, 1, 0.5), (0.1, 4, 0.3439)],
)
def test_label_weight_by_hand(gamma: float, alpha: float, weight: float) -> None:
    assert label_weight(gamma, alpha) == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.68359375, 1.0])
def test_mixed_labels(weight: float) -> None:
    foreground, background = np.eye(4, dtype=np.float32)[[2, 0]]
    mixed = mix_labels(foreground, background, weight)
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed, np.array([1 - weight, 0, weight, 0], dtype=np.float32))
    assert mix_labels(foreground, foreground, weight).sum() == pytest.approx(1)


def test_place_pads_a_narrow_foreground_in_the_centre() -> None:
    frames = random_clips((2, 4, 3, 3), 0)
    masks = random_clips((2, 4, 3), 1) > 127
    placed, placed_masks = place(frames, masks, 6, 8)
    # (6 - 4) // 2 = 1 row above, (8 - 3) // 2 = 2 columns to the left.
    np.testing.assert_array_equal(placed, np.pad(frames, ((0, 0), (1, 1), (2, 3), (0, 0))))
    np.testing.assert_array_equal(placed_masks, np.pad(masks, ((0, 0), (1, 1), (2, 3))))


def test_place_crops_a_wide_foreground_to_its_centre() -> None:
    frames = random_clips((2, 6, 9, 3), 0)
    masks = random_clips((2, 6, 9), 1) > 127
    placed, placed_masks = place(frames, masks, 4, 5)
    np.testing.assert_array_equal(placed, frames[:, 1:5, 2:7])
    np.testing.assert_array_equal(placed_masks, masks[:, 1:5, 2:7])


def test_place_crops_one_axis_and_pads_the_other() -> None:
    frames = random_clips((1, 2, 6, 3), 0)
    masks = np.ones((1, 2, 6), dtype=np.uint8)
    placed, placed_masks = place(frames, masks, 4, 4)
    np.testing.assert_array_equal(placed, np.pad(frames[:, :, 1:5], ((0, 0), (1, 1), (0, 0), (0, 0))))
    assert placed_masks.dtype == np.bool_
    np.testing.assert_array_equal(placed_masks[0], [[False] * 4, [True] * 4, [True] * 4, [False] * 4])


def test_place_keeps_a_foreground_of_the_right_size() -> None:
    frames, masks = random_clips((2, 4, 6, 3), 0), np.ones((2, 4, 6), dtype=np.bool_)
    placed, placed_masks = place(frames, masks, 4, 6)
    assert placed is frames
    assert placed_masks is masks


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(SettingError, match=r"^alpha="):
        CompositeSettings(alpha=alpha)
