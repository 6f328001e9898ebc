"""Videos as cameras, phones and broadcasters leave them: turned, bordered, uneven in time, of any pixel format."""

import struct
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from numpy.typing import NDArray
from test_decode import gray, shown, write_video

from l2a_ray.errors import SettingError, VideoError
from l2a_ray.prepare.segment.precomputed import PrecomputedSegmenter
from l2a_ray.videos.decode import DecodeSettings, decode, timed_indices, uniform_indices
from l2a_ray.videos.picture import BorderFinder, Borders

CUT = DecodeSettings(frames=4, size=32, borders="cut")
MILLISECOND = Fraction(1, 1000)
Image = NDArray[np.uint8]


def write_as(
    path: Path, images: Sequence[Image], shape: str, codec: str, pixels: str, times: Sequence[int] = ()
) -> Path:
    """Write images given in the pixel format ``shape`` as ``pixels``, shown at ``times``, thousandths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = MILLISECOND
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format=shape)
            if times:
                frame.pts, frame.time_base = times[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "shape", "codec", "pixels"),
    [
        ("gray.mkv", "gray", "ffv1", "gray"),
        ("gray10.mkv", "gray", "ffv1", "gray10le"),
        ("alpha.mkv", "rgba", "ffv1", "yuva420p"),
        ("alpha.mov", "rgba", "png", "rgba"),
        ("alpha10.mov", "rgba", "prores_ks", "yuva444p10le"),
        ("ten.mp4", "rgb24", "libx264", "yuv420p10le"),
        ("twelve.mkv", "rgb24", "ffv1", "gbrp12le"),
        ("palette.gif", "rgb24", "gif", "rgb8"),
    ],
)
def test_pixel_formats(tmp_path: Path, name: str, shape: str, codec: str, pixels: str) -> None:
    """Transparent pixels show their own colour, as players without a background show them."""
    channels = {"gray": (), "rgb24": (3,), "rgba": (4,)}[shape]
    levels = np.arange(100, 180, 10, dtype=np.uint8)
    images = [np.full((48, 64, *channels), level, np.uint8) for level in levels]
    for image in images:
        if shape == "rgba":
            image[..., 3] = 128
    clip = decode(str(write_as(tmp_path / name, images, shape, codec, pixels)), DecodeSettings(size=32))
    assert clip.frames_THWC.shape[1:] == (32, 42, 3)
    np.testing.assert_allclose(clip.frames_THWC.mean(axis=(1, 2)), np.stack([levels] * 3, axis=1), atol=3)


MATRICES = {
    "as it is": (1, 0, 0, 1),
    "90 clockwise": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "90 counter-clockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down in a mirror": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed over the other corner": (0, -1, -1, 0),
}


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into an MP4 file, where it stands in 16.16 fixed point."""
    a, b, c, d = (part << 16 for part in matrix)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_turned_and_mirrored_videos_stand_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:], image[32:, :48] = 60, 140, 220  # corners of 60, 140, 220 and 0
    path = write_video(tmp_path / "a.mp4", [image] * 3, crf="5")
    turn(path, matrix)
    frames = decode(str(path), DecodeSettings(frames=2, size=64)).frames_THWC
    a, b, c, d = matrix
    assert frames.shape[1:3] == ((64, 96) if a else (96, 64))
    for x, y, level in ((-1, -1, 60), (1, -1, 140), (-1, 1, 220), (1, 1, 0)):
        row, column = (0.25 + 0.5 * (to > 0) for to in (b * x + d * y, a * x + c * y))
        found = frames[:, round(row * frames.shape[1]), round(column * frames.shape[2])]
        np.testing.assert_allclose(found, level, atol=12)


def test_time_counts_frames_by_how_long_they_are_shown() -> None:
    assert timed_indices(np.array([0, 1, 2, 3, 10, 20, 30, 40]), 4).tolist() == [3, 4, 5, 6]
    for count in range(2, 60):
        even = 7 + 512 * np.arange(count)
        for frames in (1, 2, 8, 16):
            np.testing.assert_array_equal(timed_indices(even, frames), uniform_indices(count, frames))
    assert timed_indices(np.array([0, 5, 10, 0, 5, 10]), 3).tolist() == uniform_indices(6, 3).tolist()
    assert timed_indices(np.array([4, 4, 4]), 2).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_varying_frame_rate(tmp_path: Path, name: str) -> None:
    """Six frames in the first quarter second, four in the four seconds after it."""
    times = [0, 40, 80, 120, 160, 200, 1000, 2000, 3000, 4000]
    path = write_as(tmp_path / name, gray(10), "rgb24", "libx264", "yuv420p", times)
    by_frame, by_time = (
        decode(str(path), DecodeSettings(frames=4, size=32, spacing=spacing)) for spacing in ("frames", "time")
    )
    assert shown(by_frame) == by_frame.indices_T.tolist() == [1, 3, 6, 8]
    # 4 s and a mean frame of 0.44 s: middles at 0.56, 1.67, 2.78 and 3.89 s
    assert shown(by_time) == by_time.indices_T.tolist() == [5, 6, 7, 8]


def test_time_of_an_even_video_changes_nothing_whatever_the_container(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.h264", "libx264")):
        path = write_video(tmp_path / name, gray(30), codec=codec)
        clip = decode(str(path), DecodeSettings(frames=8, size=32, spacing="time"))
        assert clip.indices_T.tolist() == shown(clip) == uniform_indices(30, 8).tolist(), name


def test_large_pictures_are_never_held_together(tmp_path: Path) -> None:
    height, width, count = 2160, 3840, 5
    ramp = np.broadcast_to(np.linspace(30, 220, width, dtype=np.uint8)[:, None], (height, width, 3))
    path = write_video(tmp_path / "a.avi", [ramp] * count, codec="mpeg4", b="50M")
    tracemalloc.start()
    try:
        clip = decode(str(path), DecodeSettings(frames=count, size=128, borders="cut"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert clip.frames_THWC.shape == (count, 128, 228, 3)
    assert peak < 2 * height * width * 3  # NumPy's; all frames would be five of these


def test_pictures_smaller_than_a_network_takes_are_enlarged(tmp_path: Path) -> None:
    clip = decode(str(write_video(tmp_path / "a.mp4", gray(3, 16, 16))), DecodeSettings(frames=8, size=112))
    assert clip.frames_THWC.shape == (8, 112, 112, 3) and shown(clip) == [0, 0, 0, 1, 1, 2, 2, 2]


def scene(height: int, width: int, seed: int = 0) -> Image:
    """Return a picture that is bright enough everywhere."""
    return np.random.default_rng(seed).integers(90, 230, (height // 8, width // 8, 3), dtype=np.uint8).repeat(
        8, axis=0
    ).repeat(8, axis=1)  # fmt: skip


def bordered(picture: Image, rows: int, columns: int) -> Image:
    return np.pad(picture, ((rows, rows), (columns, columns), (0, 0)))


def found(*images: Image, level: int = 24) -> Borders:
    finder = BorderFinder(level)
    for image in images:
        finder.see(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
    return finder.borders()


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (18, 0), (0, 60), (10, 20), (1, 0)])
def test_borders_are_found_to_the_pixel(rows: int, columns: int) -> None:
    assert found(bordered(scene(96, 120), rows, columns)) == (rows, columns)


def test_noise_in_the_borders_is_no_picture() -> None:
    rng = np.random.default_rng(0)
    images = [bordered(scene(96, 120, seed), 18, 0) for seed in range(8)]
    noisy = [np.clip(image + rng.integers(0, 16, image.shape), 0, 255).astype(np.uint8) for image in images]
    noisy[3][4, 7] = 255
    assert found(*noisy) == (18, 0) and found(*noisy, level=5) == (0, 0)


def test_a_border_must_be_dark_in_all_frames() -> None:
    bars, whole = bordered(scene(96, 120), 18, 0), scene(136, 120)[:132]
    assert found(bars, whole) == (0, 0)
    assert found(np.zeros_like(bars), bars) == (18, 0)  # a clip that fades in
    title = bars.copy()
    title[120:128, 40:80] = 200  # subtitles lie in the lower border
    assert found(bars, title) == (0, 0)


def test_a_dark_scene_is_left_alone() -> None:
    night = scene(120, 160)
    night[:70] = 5
    assert found(night) == (0, 0)  # a sky, nothing below
    stage = np.zeros((120, 160, 3), np.uint8)
    y, x = np.mgrid[:120, :160]
    stage[(y - 60) ** 2 + (x - 80) ** 2 < 40**2] = 180
    assert found(stage) == (0, 0)  # round: no straight edge
    assert found(np.zeros_like(stage)) == (0, 0)
    assert found(bordered(scene(16, 160), 52, 0)) == (0, 0)  # hardly anything would be left


def test_uneven_borders_are_cut_by_the_narrower_one() -> None:
    assert found(np.pad(scene(96, 120), ((12, 20), (0, 0), (0, 0)))) == (12, 0)


@pytest.mark.parametrize("matrix", ["as it is", "90 clockwise"])
def test_borders_are_cut_from_frames_and_masks(tmp_path: Path, matrix: str) -> None:
    """A letterbox of 24 rows; the actor is the left half of what is left."""
    picture = np.full((96, 160, 3), 200, np.uint8)
    picture[:, :80] = (200, 60, 60)
    path = write_video(tmp_path / "a.mp4", [bordered(picture, 24, 0)] * 6, crf="10")
    turn(path, MATRICES[matrix])
    masks = np.zeros((6, 144, 160), np.bool_)
    masks[:, 24:120, :80] = True
    upright = masks if matrix == "as it is" else np.rot90(masks, -1, axes=(1, 2))
    np.save(tmp_path / "masks.npy", upright)
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", upright)
    kept, cut = decode(str(path), DecodeSettings(frames=4, size=32)), decode(str(path), CUT)
    assert kept.cut == (0, 0) and kept.frames_THWC.min() < 10
    size = (32, 54) if matrix == "as it is" else (54, 32)
    assert cut.cut == ((1 / 6, 0) if matrix == "as it is" else (0, 1 / 6))
    assert cut.frames_THWC.shape == (4, *size, 3)
    assert cut.frames_THWC[..., 0].min() > 140  # nothing black is left at the edges; colours blend at the seam
    planes = PrecomputedSegmenter(str(tmp_path / "masks"))(cut).planes()
    actor = cut.frames_THWC[..., 1] < 130
    assert planes.objects.shape == (4, *size) and (planes.objects != actor).mean() < 0.03
    assert 0.45 < planes.objects.mean() < 0.55


def test_a_video_without_borders_is_the_same_with_and_without_cutting(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", [scene(96, 120, seed) for seed in range(5)]))
    np.testing.assert_array_equal(
        decode(path, CUT).frames_THWC, decode(path, DecodeSettings(frames=4, size=32)).frames_THWC
    )


def test_what_is_left_must_be_a_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [bordered(np.full((12, 64, 3), 200, np.uint8), 8, 0)] * 3, crf="5")
    with pytest.raises(VideoError, match="the picture is 64 x 1"):
        decode(str(path), CUT)


def test_impossible_levels() -> None:
    with pytest.raises(SettingError, match=r"^border_level=256: must be between 0 and 255"):
        DecodeSettings(border_level=256)
