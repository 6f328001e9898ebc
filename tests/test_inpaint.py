"""Tests of l2a_ray.prepare.inpaint.fill, of what it fills by, and of how the benchmark judges it."""

import runpy
import warnings
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from l2a_ray.errors import SettingError
from l2a_ray.prepare.inpaint.camera import IDENTITY, alignments
from l2a_ray.prepare.inpaint.fill import InpaintSettings, build_inpainter, inpaint, temporal_median

EXACT = InpaintSettings(dilate=0)
UNCOMPENSATED = InpaintSettings(dilate=0, compensate=False)
BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "inpaint.py"))
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


@pytest.mark.parametrize(("field", "value"), [("dilate", -1), ("radius", 0.0), ("spatial", "lama"), ("kind", "lama")])
def test_impossible_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{field}="):
        InpaintSettings(**{field: value})


# --- a camera that moves


def view(scene_HWC: NDArray[np.uint8], left: float, top: float, zoom: float = 1.0) -> NDArray[np.uint8]:
    """What a camera of 64 x 48 pixels sees of a scene."""
    map_ = np.array([[zoom, 0, left], [0, zoom, top]])
    seen_HWC = cv2.warpAffine(scene_HWC, map_, (64, 48), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return seen_HWC.astype(np.uint8)


@pytest.fixture
def scene_HWC() -> NDArray[np.uint8]:
    """A scene of soft blots, 120 x 80 pixels."""
    noise_HWC = np.random.default_rng(2).normal(0, 1, (80, 120, 3)).astype(np.float32)
    blots_HWC = cv2.GaussianBlur(noise_HWC, (0, 0), 2)
    scene: NDArray[np.uint8] = np.clip(128 + 45 * blots_HWC / blots_HWC.std(), 0, 255).astype(np.uint8)
    return scene


def pan(scene_HWC: NDArray[np.uint8], step: float) -> Clips:
    """Frames of a pan whose actor, a square, walks ahead of the camera; its masks, and the frames without it."""
    truth_THWC = np.stack([view(scene_HWC, 4 + step * t, 6 + 0.3 * step * t) for t in range(8)])
    masks_THW = np.zeros(truth_THWC.shape[:3], dtype=np.bool_)
    for t in range(8):
        masks_THW[t, 12:34, 4 + 4 * t : 18 + 4 * t] = True
    frames_THWC = truth_THWC.copy()
    frames_THWC[masks_THW] = (250, 10, 20)
    return frames_THWC, masks_THW, truth_THWC


@pytest.mark.parametrize("step", [0.6, 2.0, 4.7])
def test_what_a_pan_hides_comes_back_from_other_times(scene_HWC: NDArray[np.uint8], step: float) -> None:
    frames_THWC, masks_THW, truth_THWC = pan(scene_HWC, step)
    errors = {}
    for settings in (EXACT, UNCOMPENSATED):
        background_THWC = inpaint(frames_THWC, masks_THW, settings)
        assert (background_THWC[~masks_THW] == frames_THWC[~masks_THW]).all()
        errors[settings] = np.abs(background_THWC[masks_THW].astype(int) - truth_THWC[masks_THW]).mean()
    assert errors[EXACT] < 5
    assert errors[UNCOMPENSATED] > 2 * errors[EXACT]


def test_what_is_seen_at_no_time_moves_with_the_scene(scene_HWC: NDArray[np.uint8]) -> None:
    truth_THWC = np.stack([view(scene_HWC, 4 + 3 * t, 6) for t in range(8)])
    masks_THW = np.zeros(truth_THWC.shape[:3], dtype=np.bool_)
    for t in range(8):
        masks_THW[t, 16:28, 40 - 3 * t : 52 - 3 * t] = True  # over one place of the scene
    background_THWC = inpaint(np.where(masks_THW[..., None], np.uint8(255), truth_THWC), masks_THW, EXACT)
    filled_TNC = np.stack([frame[16:28, 40 - 3 * t : 52 - 3 * t] for t, frame in enumerate(background_THWC)])
    assert np.abs(np.diff(filled_TNC.astype(int), axis=0)).mean() < 1.5
    assert filled_TNC[0].std() > 5  # not one flat colour, which would be at rest too


def test_compensation_changes_nothing_on_a_still_camera(passing_square: Clips) -> None:
    frames_THWC, masks_THW, _ = passing_square
    noisy_THWC = frames_THWC + np.random.default_rng(0).integers(0, 6, frames_THWC.shape, dtype=np.uint8)
    expected_THWC = inpaint(noisy_THWC, masks_THW, UNCOMPENSATED)
    assert (inpaint(noisy_THWC, masks_THW, EXACT) == expected_THWC).all()
    assert all(map_ is IDENTITY for map_ in alignments(noisy_THWC, masks_THW))


def test_masked_pixels_do_not_lead_the_alignment(scene_HWC: NDArray[np.uint8]) -> None:
    frames_THWC = np.stack([view(scene_HWC, 4 + 2 * t, 6) for t in range(8)])
    masks_THW = np.zeros(frames_THWC.shape[:3], dtype=np.bool_)
    masks_THW[:, 6:42, 12:48] = True
    frames_THWC[masks_THW] = np.tile(frames_THWC[0][masks_THW[0]], (8, 1))  # an actor that the camera follows
    for t, map_ in enumerate(alignments(frames_THWC, masks_THW)):
        assert map_ == pytest.approx(np.array([[1, 0, 2 * (t - 4)], [0, 1, 0]]), abs=1)
    assert all(map_ is IDENTITY for map_ in alignments(frames_THWC))


def test_frames_beyond_the_middle_ones_view_are_reached_by_their_neighbours(scene_HWC: NDArray[np.uint8]) -> None:
    # Frames 0 and 4 share a quarter of their width, and the pan is faster than the flow can follow at once.
    frames_THWC = np.stack([view(scene_HWC, 2 + 12 * t, 6) for t in range(5)])
    maps = alignments(np.concatenate([frames_THWC, frames_THWC[3::-1]])[:9])  # there and back: the middle is frame 4
    for t, map_ in enumerate(maps):
        assert map_[:, 2] == pytest.approx([12 * (min(t, 8 - t) - 4), 0], abs=2)


# --- learned inpainters


class GreyFill(torch.nn.Module):
    """Paints what is masked in one grey, and refuses sides that 8 does not divide, as LaMa does."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert image.dim() == 4 and image.size(1) == 3 and mask.size(1) == 1
        assert image.size(2) % 8 == 0 and image.size(3) % 8 == 0
        assert bool((mask * (1 - mask) == 0).all()) and float(image.max()) <= 1.0
        return image * (1 - mask) + 0.2 * mask


class HalfSize(torch.nn.Module):
    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return image[:, :, ::2]


def saved(module: torch.nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        torch.jit.save(torch.jit.script(module), str(path))
    return str(path)


@pytest.mark.parametrize("shape", [(24, 32), (21, 45)])
def test_torchscript_fills_only_what_is_seen_at_no_time(shape: tuple[int, int], tmp_path: Path) -> None:
    inpainter = build_inpainter(
        InpaintSettings(kind="torchscript", model=saved(GreyFill(), tmp_path / "a.pt"), dilate=0)
    )
    frames_THWC = np.random.default_rng(0).integers(100, 110, (4, *shape, 3), dtype=np.uint8)
    masks_THW = np.zeros((4, *shape), dtype=np.bool_)
    masks_THW[:, 5:9, 7:12] = masks_THW[0, 12:16] = True
    background_THWC = inpainter(frames_THWC, masks_THW)
    assert (background_THWC[:, 5:9, 7:12] == 51).all()
    assert (background_THWC[0, 12:16] == np.median(frames_THWC[1:, 12:16], axis=0)).all()
    assert (background_THWC[~masks_THW] == frames_THWC[~masks_THW]).all()


def test_learned_inpainter_that_cannot_work_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a model")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    saved(HalfSize(), tmp_path / "half.pt")
    reasons = {"gone": "no such file", "text": "must be a TorchScript file", "weights": "must be a TorchScript file"}
    for name, reason in (reasons | {"half": r"returns \(1, 3, 32, 64\)"}).items():
        with pytest.raises(SettingError, match=rf"^model=.*{name}\.pt.*{reason}"):
            build_inpainter(InpaintSettings(kind="torchscript", model=str(tmp_path / f"{name}.pt")))
    with pytest.raises(SettingError, match=r"^model=None: must name"):
        InpaintSettings(kind="torchscript")


# --- the benchmark's measures


def test_flicker_is_what_changes_beyond_the_truth_once_the_camera_is_taken_out() -> None:
    scene_HWC = np.random.default_rng(0).integers(0, 200, (48, 80, 3), dtype=np.uint8)
    truth_THWC = np.stack([scene_HWC[:, 3 * t : 3 * t + 64] for t in range(3)])
    masks_THW = np.zeros(truth_THWC.shape[:3], dtype=np.bool_)
    masks_THW[:, 10:20, 30:40] = True
    maps = [np.array([[1.0, 0, 3 * t], [0, 1, 0]]) for t in range(3)]
    case = BENCHMARK["Case"]("made pan", truth_THWC, masks_THW, np.ones_like(masks_THW), maps)
    wrong_THWC = truth_THWC.copy()
    wrong_THWC[1][masks_THW[1]] += 13  # 100 of the 130 pixels that are masked in one of two frames
    assert BENCHMARK["flicker"](truth_THWC, case) == 0
    assert BENCHMARK["flicker"](wrong_THWC, case) == pytest.approx(13 * 100 / 130)


def test_similarity_follows_its_formula() -> None:
    hole_THW = np.zeros((1, 32, 32), dtype=np.bool_)
    hole_THW[:, 8:20, 8:20] = True
    flat = [np.full((1, 32, 32, 3), value, dtype=np.uint8) for value in (100, 150)]
    expected = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)  # without contrast only luminance remains
    assert BENCHMARK["ssim"](*flat, hole_THW) == pytest.approx(expected)
    assert BENCHMARK["psnr"](*flat, hole_THW) == pytest.approx(20 * np.log10(255 / 50))
    noise_THWC = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert BENCHMARK["ssim"](noise_THWC, noise_THWC, hole_THW) == pytest.approx(1)
    assert BENCHMARK["ssim"](noise_THWC, 255 - noise_THWC, hole_THW) < -0.5
