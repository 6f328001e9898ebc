"""The switches of Table 2 and the rivals' mixes, each against what it says it does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, composite, label_weight
from l2a_ray.composites.fame import moving
from l2a_ray.composites.mixes import Mixed, Parts, mix
from l2a_ray.errors import SettingError
from l2a_ray.prepare.segment.base import Planes
from l2a_ray.prepare.store import StoredClip

FRAMES, HEIGHT, WIDTH = 4, 16, 20
PASTE = CompositeSettings()
LIGHT, DARK = 200, 40  # all pixels of the foreground clip, and of the background clip
CLEAN = 90  # all pixels of the background clip without its actors


def plane(rows: slice, columns: slice) -> NDArray[np.bool_]:
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=np.bool_)
    masks[:, rows, columns] = True
    return masks


PLANES = Planes(
    objects=plane(slice(2, 8), slice(2, 8)) | plane(slice(10, 13), slice(12, 18)),
    people=plane(slice(2, 8), slice(2, 8)),
    boxes=plane(slice(1, 9), slice(1, 9)) | plane(slice(9, 14), slice(11, 19)),
    people_boxes=plane(slice(1, 9), slice(1, 9)),
)


def plain(value: int, clean: int, width: int = WIDTH) -> StoredClip:
    shape = (FRAMES, HEIGHT, width, 3)
    nothing = np.zeros(shape[:3], dtype=np.bool_)
    planes = PLANES if width == WIDTH else Planes(nothing, nothing, nothing, nothing)
    return StoredClip(np.full(shape, value, np.uint8), np.full(shape, clean, np.uint8), planes)


FRONT, BACK = plain(LIGHT, 0), plain(DARK, CLEAN)


def mixed(settings: CompositeSettings, seed: int = 0, back: StoredClip = BACK) -> Mixed:
    return mix(FRONT.parts, back.parts, settings, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("region", "objects", "expected"),
    [
        ("masks", "all", PLANES.objects),
        ("masks", "people", PLANES.people),
        ("boxes", "all", PLANES.boxes),
        ("boxes", "people", PLANES.people_boxes),
    ],
)
@pytest.mark.parametrize(("inpaint", "scene"), [(True, CLEAN), (False, DARK)])
def test_every_switch_of_table_2(
    region: str, objects: str, expected: NDArray[np.bool_], inpaint: bool, scene: int
) -> None:
    settings = CompositeSettings(region=region, objects=objects, inpaint=inpaint, alpha=3)  # type: ignore[arg-type]
    result = mixed(settings)
    np.testing.assert_array_equal(result.frames_THWC[..., 1], np.where(expected, LIGHT, scene))
    assert result.weight == label_weight(expected.mean(), 3)
    assert mixed(replace(settings, mix_labels=False)).weight == 1


def test_a_foreground_without_people_is_no_foreground_of_people() -> None:
    nobody = replace(FRONT, planes=replace(PLANES, people=np.zeros_like(PLANES.people)))
    result = mix(nobody.parts, BACK.parts, CompositeSettings(objects="people"), np.random.default_rng(0))
    assert result.weight == 0 and (result.frames_THWC == CLEAN).all()


def test_a_feathered_edge_is_soft_and_the_label_stays() -> None:
    soft, hard = mixed(replace(PASTE, feather=1.0)), mixed(PASTE)
    assert soft.weight == hard.weight
    step = np.abs(np.diff(soft.frames_THWC[0, 5, :, 0].astype(int))).max()
    assert 0 < step < (LIGHT - CLEAN) / 2 and np.abs(np.diff(hard.frames_THWC[0, 5, :, 0].astype(int))).max() == 110
    assert soft.frames_THWC[0, 5, 5, 0] > 195 and soft.frames_THWC[0, 5, 13, 0] == CLEAN
    # Along a straight edge the weight is the Gaussian's integral: one half on the edge, between two pixels.
    edge = np.zeros((1, 1, 41, 41), dtype=np.bool_)
    edge[..., 21:] = True
    white, black = np.full((1, 1, 41, 41, 3), 255, np.uint8), np.zeros((1, 1, 41, 41, 3), np.uint8)
    row = composite(white, edge, black, feather=3.0)[0, 0, 20, :, 0].astype(float)
    assert row[20] + row[21] == pytest.approx(255, abs=2) and row[20] == pytest.approx(255 * 0.434, abs=4)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutout", "videomix", "stillmix"])
def test_mixes_follow_their_generator_and_leave_torchs_alone(kind: str) -> None:
    settings = CompositeSettings(kind=kind)  # type: ignore[arg-type]
    torch.manual_seed(5)
    first = mixed(settings)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    again, others = mixed(settings), [mixed(settings, seed) for seed in range(1, 6)]
    np.testing.assert_array_equal(first.frames_THWC, again.frames_THWC)
    assert any((first.frames_THWC != other.frames_THWC).any() for other in others)
    assert first.frames_THWC.dtype == np.uint8 and (FRONT.frames_THWC == LIGHT).all()


def test_cutmix_shows_one_box_of_the_other_clip_and_weighs_by_area() -> None:
    for seed in range(5):
        result = mixed(CompositeSettings(kind="cutmix"), seed)
        other = result.frames_THWC[..., 0] == DARK
        assert (result.frames_THWC[~other] == LIGHT).all() and (other == other[0]).all(), "alike at all times"
        rows, columns = other[0].any(axis=1).sum(), other[0].any(axis=0).sum()
        assert other[0].sum() == rows * columns and result.weight == pytest.approx(1 - other.mean(), abs=1e-6)


def test_mixup_is_a_weighted_mean() -> None:
    for seed in range(5):
        result = mixed(CompositeSettings(kind="mixup"), seed)
        expected = result.weight * LIGHT + (1 - result.weight) * DARK
        assert np.abs(result.frames_THWC - expected).max() <= 0.501


def test_cutout_blackens_a_quarter_and_keeps_the_label() -> None:
    result = mixed(CompositeSettings(kind="cutout"))
    black = result.frames_THWC[..., 0] == 0
    assert result.weight == 1 and (black == black[0]).all() and (result.frames_THWC[~black] == LIGHT).all()
    assert black[0].any(axis=1).sum() == black[0].any(axis=0).sum() == round((HEIGHT * WIDTH / 4) ** 0.5)


def test_videomix_shows_a_cuboid_of_the_other_clip_and_weighs_by_volume() -> None:
    shares = []
    for seed in range(20):
        result = mixed(CompositeSettings(kind="videomix"), seed)
        other = result.frames_THWC[..., 0] == DARK
        sides = [other.any(axis=axes).sum() for axes in ((1, 2), (0, 2), (0, 1))]
        assert other.sum() == np.prod(sides) and result.weight == pytest.approx(1 - other.mean())
        shares.append((sides[0] < FRAMES, sides[1] < HEIGHT, sides[2] < WIDTH))
    assert np.any(shares, axis=0).all(), "cut in time, height and width"


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "videomix"])
def test_a_large_alpha_mixes_by_halves_and_a_small_one_takes_one_clip(kind: str) -> None:
    def weights(alpha: float) -> list[float]:
        settings = CompositeSettings(kind=kind, **{f"{kind}_alpha": alpha})  # type: ignore[arg-type]
        return [mixed(settings, seed).weight for seed in range(8)]

    assert all(0.3 < weight < 0.8 for weight in weights(1000)), "more where CutMix's box leaves the frame"
    if kind != "cutmix":  # whose box leaves the frame, whatever its size
        assert sum(min(weight, 1 - weight) < 0.1 for weight in weights(0.01)) >= 7


def test_cutout_blackens_as_much_as_it_is_told() -> None:
    black = mixed(CompositeSettings(kind="cutout", cutout_area=0.1)).frames_THWC[0, ..., 0] == 0
    assert black.sum() == round((0.1 * HEIGHT * WIDTH) ** 0.5) ** 2


@pytest.mark.parametrize("kind", ["paste", "cutmix", "mixup", "cutout", "videomix"])
def test_clips_of_other_sizes_mix_on_the_backgrounds_canvas(kind: str) -> None:
    narrow = plain(DARK, CLEAN, width=12)
    result = mixed(CompositeSettings(kind=kind), back=narrow)  # type: ignore[arg-type]
    assert result.frames_THWC.shape == (FRAMES, HEIGHT, 12, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "glue"), ("region", "circles"), ("objects", "dogs"), ("feather", -1), ("cutout_area", 1)],
)
def test_impossible_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"^{name}="):
        CompositeSettings(**{name: value})  # type: ignore[arg-type]


def test_stillmix_adds_one_frame_of_the_other_clip_to_all_frames_and_keeps_the_label() -> None:
    # Each frame of the other clip has a value of its own, so that the mean tells which was taken.
    values = np.array([0, 40, 80, 120])
    back = replace(
        BACK, frames_THWC=np.broadcast_to(values[:, None, None, None], BACK.frames_THWC.shape).astype(np.uint8)
    )
    taken = set()
    for seed in range(20):
        result = mixed(CompositeSettings(kind="stillmix", stillmix_alpha=1e6), seed, back)
        assert result.weight == 1 and (result.frames_THWC == result.frames_THWC[0, 0, 0, 0]).all()
        still = 2.0 * result.frames_THWC[0, 0, 0, 0] - LIGHT  # weights of 1/2, to a thousandth
        taken.add(int(np.abs(values - still).argmin()))
        assert np.abs(values - still).min() <= 2
    assert taken == {0, 1, 2, 3}


def test_fame_finds_what_moves_by_its_colour_and_pastes_it_on_the_clip_as_it_is() -> None:
    frames = np.full((FRAMES, 40, 40, 3), (20, 60, 160), np.uint8)
    for time in range(FRAMES):  # a red square of 10 x 10 that goes right
        frames[time, 10:20, 4 + 3 * time : 14 + 3 * time] = (220, 30, 30)
    mask = moving(frames, 0.15)
    assert mask.sum() == 0.15 * 40 * 40
    path = np.zeros((40, 40), np.bool_)
    path[10:20, 4:23] = True
    assert mask[path].mean() == 1.0 and not mask[:6].any() and not mask[24:].any()
    front: Parts = {"frames": frames}
    back: Parts = {"frames": np.full_like(frames, 7)}
    result = mix(front, back, CompositeSettings(kind="fame", fame_share=0.15), np.random.default_rng(0))
    assert result.weight == 1
    np.testing.assert_array_equal(result.frames_THWC, np.where(mask[..., None], frames, 7))
    still = np.broadcast_to(frames[0], frames.shape)
    assert moving(still, 0.5).sum() == 800, "as many where nothing moves"
