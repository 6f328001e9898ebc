"""Decoding of real files made here: exact frames, sizes, and every kind of bad file."""

import os
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from numpy.typing import NDArray

from l2a_ray.errors import SettingError, VideoError
from l2a_ray.videos.decode import Clip, DecodeSettings, decode, uniform_indices

STEP = 6  # gray levels between frames: more than an encoder's error


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    **encoder: str,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=encoder)
        assert isinstance(stream, VideoStream)
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def gray(count: int, width: int = 64, height: int = 48) -> list[NDArray[np.uint8]]:
    return [np.full((height, width, 3), STEP * i, dtype=np.uint8) for i in range(count)]


def noise(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(count)]


def shown(clip: Clip) -> list[int]:
    """Read the frame numbers off the gray levels."""
    return [round(float(frame.mean()) / STEP) for frame in clip.frames_THWC]


def cause(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        decode(str(path), DecodeSettings())
    assert caught.value.path == str(path) and caught.value.advice
    assert pickle.loads(pickle.dumps(caught.value)).cause == caught.value.cause
    return caught.value.cause


def test_indices_are_the_middles_of_equal_parts() -> None:
    assert uniform_indices(40, 8).tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    assert uniform_indices(8, 8).tolist() == list(range(8))
    assert uniform_indices(3, 6).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.mpg", "mpeg2video")],
)
def test_frames_are_exactly_those_of_the_indices(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, gray(40), codec=codec, g="12", b="4M")
    clip = decode(str(path), DecodeSettings(frames=8, size=32))
    assert clip.frame_count == 40 and clip.rate == 25
    assert clip.indices_T.tolist() == shown(clip) == [2, 7, 12, 17, 22, 27, 32, 37]


def test_short_video_repeats_frames(tmp_path: Path) -> None:
    clip = decode(str(write_video(tmp_path / "a.mp4", gray(3))), DecodeSettings(frames=6))
    assert clip.frame_count == 3 and shown(clip) == [0, 0, 1, 1, 2, 2]


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    """The container holds 40 packets, of which a player shows the last 25: the first guess of the count is wrong."""
    whole = write_video(tmp_path / "whole.mp4", gray(40))
    with (
        av.open(str(whole)) as source,
        av.open(str(tmp_path / "cut.mp4"), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = source.streams.video[0]
        assert stream.time_base is not None
        copy, shift = target.add_stream_from_template(stream), int(15 / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    clip = decode(str(tmp_path / "cut.mp4"), DecodeSettings(frames=5, size=32))
    assert clip.frame_count == 25 and shown(clip) == [17, 22, 27, 32, 37]


@pytest.mark.parametrize(
    ("width", "height", "shape"), [(320, 240, (128, 170)), (240, 320, (170, 128)), (96, 96, (128, 128))]
)
def test_short_side_is_resized_and_aspect_kept(tmp_path: Path, width: int, height: int, shape: tuple[int, int]) -> None:
    left_red = np.zeros((height, width, 3), dtype=np.uint8)
    left_red[:, : width // 2, 0] = 255
    clip = decode(str(write_video(tmp_path / "a.mp4", [left_red] * 4)), DecodeSettings())
    assert clip.frames_THWC.shape == (8, *shape, 3)
    red, black = clip.frames_THWC[:, :, 10].mean(axis=(0, 1)), clip.frames_THWC[:, :, -10].mean(axis=(0, 1))
    assert red[0] > 230 and red[1:].max() < 25 and black.max() < 25


def test_turned_phone_video_stands_upright(tmp_path: Path) -> None:
    left_white = np.zeros((48, 64, 3), dtype=np.uint8)
    left_white[:, :32] = 255
    path = write_video(tmp_path / "a.mp4", [left_white] * 4)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(
        ">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30
    )  # 90° clockwise
    path.write_bytes(data)
    clip = decode(str(path), DecodeSettings(size=48))
    assert clip.frames_THWC.shape == (8, 64, 48, 3)
    assert clip.frames_THWC[:, :20].min() > 200 and clip.frames_THWC[:, -20:].max() < 50


def test_picture_size_changing_inside_a_file(tmp_path: Path) -> None:
    small, large = (write_video(tmp_path / f"{w}.ts", gray(20, w, w)) for w in (48, 96))
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    clip = decode(str(path), DecodeSettings(frames=4, size=32))
    assert clip.frames_THWC.shape == (4, 32, 32, 3) and shown(clip) == [5, 15, 5, 15]


@pytest.mark.parametrize("name", ['it\'s a "wäve" 100%d.mp4', "a:b?c#d.mp4", "波.mp4"])
def test_odd_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / name, gray(4))
    monkeypatch.chdir(tmp_path)
    assert decode(name, DecodeSettings()).frame_count == decode(str(tmp_path / name), DecodeSettings()).frame_count == 4


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to("gone.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert cause(tmp_path / "empty.mp4") == "empty file"
    assert "of another kind" in cause(tmp_path / "text.mp4")
    assert "cannot be opened" in cause(tmp_path / "list.mp4")
    assert cause(tmp_path / "folder.mp4") == "a directory, not a file"
    assert cause(tmp_path / "link.mp4") == "dangling link to gone.mp4"
    assert cause(tmp_path / "pipe.mp4") == "a device or pipe, not a file"
    assert cause(tmp_path / "none.mp4") == "missing"


def test_audio_only_one_frame_and_strips(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert cause(tmp_path / "audio.mp4") == "no video stream in it"
    assert cause(write_video(tmp_path / "one.mp4", gray(1))) == "it holds 1 frame, motion needs 2"
    assert "4000 x 2 pixels" in cause(write_video(tmp_path / "a.avi", gray(3, 4000, 2), codec="mjpeg"))
    assert "14 x 40 pixels" in cause(write_video(tmp_path / "b.avi", gray(3, 14, 40), codec="mjpeg"))


@pytest.mark.parametrize(
    ("name", "codec", "options", "expected"),
    [
        ("tail.mp4", "libx264", {}, "cannot be opened as a video, it is cut off"),  # its index is at the end
        ("front.mp4", "libx264", {"movflags": "faststart"}, " of 40 frames could be decoded"),
        ("a.mkv", "libx264", {}, " of 40 frames could be decoded"),
        ("a.avi", "mpeg4", {}, " of 40 frames could be decoded"),
    ],
)
def test_truncated_files(tmp_path: Path, name: str, codec: str, options: dict[str, str], expected: str) -> None:
    data = write_video(tmp_path / name, noise(40), codec=codec, options=options).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert expected in cause(tmp_path / name)


def test_file_that_lost_little_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(40), options={"movflags": "faststart"}, g="5")
    path.write_bytes(path.read_bytes()[: int(0.95 * path.stat().st_size)])
    clip = decode(str(path), DecodeSettings())
    assert 32 <= clip.frame_count < 40
    assert clip.indices_T.tolist() == uniform_indices(clip.frame_count, 8).tolist()


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(40))
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    path.write_bytes(data)
    assert " of 40 frames could be decoded" in cause(path)


def test_unknown_codec(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gray(4))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert cause(path) == "no decoder for its codec"


def test_unreadable_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gray(4))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read any file")
    assert cause(path) == "permission denied"


def test_impossible_settings() -> None:
    with pytest.raises(SettingError, match=r"^frames=1: must be at least 2 frames"):
        DecodeSettings(frames=1)
    with pytest.raises(SettingError, match=r"^size=8: must be at least 16 pixels"):
        DecodeSettings(size=8)
