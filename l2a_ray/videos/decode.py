"""Reading a video file: frames at uniform times, upright, resized (PyAV)."""

import io
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from l2a_ray.errors import VideoError
from l2a_ray.storage.files import as_path, open_file, read_bytes
from l2a_ray.videos.picture import NO_BORDERS, BorderFinder, Borders, Scaler, turn_of
from l2a_ray.videos.settings import MIN_SIDE
from l2a_ray.videos.settings import DecodeSettings as DecodeSettings

MAX_ASPECT = 10  # long side over short side; a longer strip would fill the memory once its short side is resized
MIN_SHARE = 0.8  # a file that yields a smaller share of the frames it promises is refused as truncated
_REPLACE = "Replace the file by an intact copy, or remove it"
_FETCH = "Run the same command again: what is done is kept"
_NO_VIDEO = "Remove it: it is no video"


@dataclass(frozen=True)
class Clip:
    """A decoded video.

    Args:
        path: the file it came from.
        frames_THWC: RGB uint8 frames at uniform times.
        indices_T: which of the file's frames they are, int64.
        frame_count: number of frames the file holds (decoded, not what the header says).
        rate: frames per second.
        cut: shares of the upright picture's height and width that were cut from each of its sides, as black borders.
    """

    path: str
    frames_THWC: NDArray[np.uint8]
    indices_T: NDArray[np.int64]
    frame_count: int
    rate: float
    cut: tuple[float, float] = (0.0, 0.0)


def uniform_indices(count: int, frames: int) -> NDArray[np.int64]:
    """Give the middle frame of each of ``frames`` equal parts of a video; shorter videos repeat frames.

    The rule of Temporal Segment Networks at test time (Wang et al. 2016).
    """
    return (2 * np.arange(frames, dtype=np.int64) + 1) * count // (2 * frames)


def timed_indices(times_N: NDArray[np.int64], frames: int) -> NDArray[np.int64]:
    """Give the frame that is shown in the middle of each of ``frames`` equal parts of a video's playing time.

    Where all frames are shown equally long it is :func:`uniform_indices`, which also serves where times go back.

    Args:
        times_N: when each frame of the video begins to be shown, in ticks of any length. The last one is taken to be
            shown as long as the others are in the mean.
        frames: how many are wanted.
    """
    count = len(times_N)
    if count < 2 or (np.diff(times_N) < 0).any():
        return uniform_indices(count, frames)
    length = int(times_N[-1] - times_N[0]) * count // (count - 1)
    middles = times_N[0] + uniform_indices(length, frames)
    return np.asarray(np.searchsorted(times_N, middles, side="right"), np.int64) - 1


def decode(path: str, settings: DecodeSettings, source: BinaryIO | None = None) -> Clip:
    """Read one video on one thread.

    Frames are counted by decoding, never taken from a header. A file that breaks off is used up to there if this is
    at least 80 % of what it promises. Where the picture size changes inside a file, all frames are scaled to the size
    that the first one asks for. Pixels are taken as square.

    Args:
        path: the file, or the URI of the object.
        settings: what is taken from it.
        source: what :func:`fetch` returned, if that has been done already.

    Raises:
        VideoError: the file cannot be read as a video of two frames or more.
    """
    source = source or fetch(path)
    try:
        header = _probe(path, source)
        read = _read(path, source, _indices(header.times, settings), settings)
        count = len(read.times)
        promised = round((len(header.times) if read.broken else count) / header.share)
        if count < MIN_SHARE * promised:
            raise VideoError(path, f"truncated: {count} of {promised} frames could be decoded", _REPLACE)
        if count < 2:
            raise VideoError(path, f"it holds {count} frame, motion needs 2", _NO_VIDEO)
        indices, borders = _indices(read.times, settings), read.borders
        # A packet is not always a frame, and borders are known when all has been seen: then the file is read again.
        if borders != NO_BORDERS or not read.picked.keys() >= set(indices.tolist()):
            read = _read(path, source, indices, settings, borders)
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be decoded ({error.strerror})", _REPLACE) from error
    frames = np.stack([read.picked[index] for index in indices.tolist()])
    return Clip(path=path, frames_THWC=frames, indices_T=indices, frame_count=count, rate=header.rate, cut=read.cut)


def _indices(times: Sequence[int], settings: DecodeSettings) -> NDArray[np.int64]:
    if settings.spacing == "frames":
        return uniform_indices(len(times), settings.frames)
    return timed_indices(np.array(times, np.int64), settings.frames)


def fetch(path: str) -> io.BytesIO | None:
    """Return the content of a video in an object store, which is read more than once; None: it is a file.

    Raises:
        VideoError: it is missing, empty, no file, or cannot be read.
    """
    _check_file(path)
    file = as_path(path)
    try:
        return None if isinstance(file, Path) else io.BytesIO(read_bytes(file))
    except OSError as error:
        raise VideoError(path, f"cannot be fetched ({error})", _FETCH) from error


def _check_file(path: str) -> None:
    file = as_path(path)
    try:
        status = file.stat()
    except FileNotFoundError:
        linked = isinstance(file, Path) and file.is_symlink()
        cause = f"dangling link to {file.readlink()}" if linked else "missing"
        raise VideoError(path, cause, "Put the file there, or take it out of the data set") from None
    except OSError as error:
        raise VideoError(path, str(error.strerror or error), "Make the file readable") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise VideoError(path, f"{kind}, not a file", "Move or rename it")
    if status.st_size == 0:
        raise VideoError(path, "empty file", _REPLACE)


@dataclass(frozen=True)
class Header:
    """What a file says of its picture without being decoded; 0 where it does not say."""

    width: int
    height: int
    frames: int
    rate: float


def read_header(path: str) -> Header:
    """Open a file as ``decode`` would, and read no further than its header: what is broken later is not seen.

    Raises:
        VideoError: the file cannot be opened as a video, or says of itself that ``decode`` would refuse it.
    """
    _check_file(path)
    file = as_path(path)
    with nullcontext() if isinstance(file, Path) else open_file(file) as source, _open(path, source) as opened:
        container, stream = opened
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        frames = stream.frames or round((container.duration or 0) / av.time_base * rate)
        header = Header(stream.codec_context.width, stream.codec_context.height, frames, rate)
    _check_picture(path, header.width, header.height)
    if header.frames == 1:
        raise VideoError(path, "it holds 1 frame, motion needs 2", _NO_VIDEO)
    return header


@contextmanager
def _open(path: str, source: BinaryIO | None) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        # "file:" and the whitelist: a colon in a name, or a playlist in the file, must not lead to another protocol.
        options = {"protocol_whitelist": "file"}
        if source is not None:
            source.seek(0)
        container = av.open(source or f"file:{path}", "r", options=options, metadata_errors="ignore")
    except PermissionError as error:
        raise VideoError(path, "permission denied", "Make the file readable") from error
    except av.FFmpegError as error:
        cause = f"cannot be opened as a video, it is cut off or of another kind ({error.strerror})"
        raise VideoError(path, cause, _REPLACE) from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise VideoError(path, "no video stream in it", "Remove it: it has no picture")
        if stream.codec_context is None:
            raise VideoError(path, "no decoder for its codec", "Encode it again as H.264")
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


@dataclass(frozen=True)
class _Header:
    times: list[int]  # when the packets of the video stream are shown; in all but odd files each is a frame
    share: float  # of the promised playing time that the file holds, in (0, 1]
    rate: float


def _probe(path: str, source: BinaryIO | None) -> _Header:
    times, end = list[int](), 0.0
    with _open(path, source) as (container, stream):
        for packet in container.demux():
            start = packet.dts if packet.pts is None else packet.pts
            if not packet.size or start is None:
                continue
            if packet.stream is stream and not packet.is_discard:
                times.append(start)
            # Of all streams, because the sound may go on after the picture without a fault.
            end = max(end, float((start + (packet.duration or 0)) * packet.time_base))
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        promised = (container.duration or 0) / av.time_base
        if container.format.name == "avi" and rate:  # a cut AVI has its duration corrected when opened, not this number
            promised = max(promised, stream.frames / rate)
        share = min(1.0, end / promised) if promised > 0 and end > 0 else 1.0
        return _Header(times=sorted(times), share=share, rate=rate)


@dataclass
class _Read:
    """What decoding a whole file gave."""

    picked: dict[int, NDArray[np.uint8]]  # the wanted frames (H, W, C) by index
    times: list[int]  # when each frame is shown, in the stream's ticks
    broken: bool = False  # whether decoding broke off
    borders: Borders = NO_BORDERS
    cut: tuple[float, float] = (0.0, 0.0)


def _read(
    path: str,
    source: BinaryIO | None,
    wanted: NDArray[np.int64],
    settings: DecodeSettings,
    borders: Borders = NO_BORDERS,
) -> _Read:
    """Decode a file frame by frame; only the wanted ones are converted, and what is kept of them is small."""
    positions, read = set(wanted.tolist()), _Read({}, [], cut=(0.0, 0.0))
    finder = BorderFinder(settings.border_level) if settings.borders == "cut" and borders == NO_BORDERS else None
    with _open(path, source) as (container, stream):
        try:
            for count, frame in enumerate(container.decode(stream)):
                if count == 0:
                    width, height = frame.width - 2 * borders.columns, frame.height - 2 * borders.rows
                    _check_picture(path, width, height)
                    scale = Scaler(settings.size, borders, frame)
                    shares = borders.rows / frame.height, borders.columns / frame.width
                    read.cut = (shares[1], shares[0]) if turn_of(frame).swap else shares
                if count in positions:
                    read.picked[count] = scale(frame)
                    if finder:
                        finder.see(frame)
                read.times.append(read.times[-1] + 1 if frame.pts is None and read.times else frame.pts or 0)
        except av.FFmpegError:
            read.broken = True
    if finder:
        read.borders = finder.borders()
    return read


def _check_picture(path: str, width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        cause = f"the picture is {width} x {height} pixels"
        advice = f"Use sides of {MIN_SIDE} pixels or more, the long one at most {MAX_ASPECT} times the short one"
        raise VideoError(path, cause, advice)
