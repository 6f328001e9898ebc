"""The picture of a decoded frame: which way is up, which black borders it has, and how it is scaled (PyAV).

Axes: H height, W width, C channel.
"""

import struct
from collections.abc import Mapping
from math import ceil
from typing import NamedTuple, cast

import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

WIDEST = 0.4  # share of a side that a border may have; a phone's upright picture in a 16:9 frame has two of 0.34
SPECKS = 0.01  # share of a row or column that may be bright in a border: noise
STRAIGHT = (
    0.5  # share of the picture's edge that must be bright: a border ends in a straight line, a dark scene does not
)
EDGE = 0.04  # depth of that edge, a share of the picture: where scaling or compression blurs it


class Borders(NamedTuple):
    """Pixels of black on each side, as the frame is stored."""

    rows: int = 0
    """At the top, and as many at the bottom."""
    columns: int = 0
    """On the left, and as many on the right."""


NO_BORDERS = Borders()


class BorderFinder:
    """Finds the borders that are black in all frames of a clip.

    Args:
        level: up to which red, green and blue are black, 0 to 255.
    """

    def __init__(self, level: int) -> None:
        self._level, self._brightest = level, np.zeros((0, 0), np.uint8)

    def see(self, frame: VideoFrame) -> None:
        """Look at a frame; those of another size than the first are left out."""
        bright = cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24")).max(axis=2)
        if not self._brightest.size:
            self._brightest = bright
        elif bright.shape == self._brightest.shape:
            np.maximum(self._brightest, bright, out=self._brightest)

    def borders(self) -> Borders:
        """Return what is to be cut: of two opposite borders the narrower, on both sides, so that no picture is lost.

        There are none where only one side is dark, as under a night sky; where what is bright does not end in a
        straight line, as an actor in a spotlight; or where little would be left.
        """
        bright = self._brightest > self._level
        height, width = bright.shape
        rows = np.flatnonzero(bright.mean(axis=1) > SPECKS) if bright.size else np.zeros(0, int)
        columns = np.flatnonzero(bright.mean(axis=0) > SPECKS) if bright.size else rows
        if not len(rows) or not len(columns):
            return NO_BORDERS
        picture = bright[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return Borders(
            rows=_both(int(rows[0]), height - 1 - int(rows[-1]), height, picture),
            columns=_both(int(columns[0]), width - 1 - int(columns[-1]), width, picture.T),
        )


def _both(before: int, after: int, side: int, picture: NDArray[np.bool_]) -> int:
    """Return what is cut before and after a picture along its first axis."""
    depth = max(2, round(EDGE * len(picture)))
    straight = all(edge.any(axis=0).mean() >= STRAIGHT for edge in (picture[:depth], picture[-depth:]))
    narrower = min(before, after)
    return narrower if straight and narrower <= WIDEST * side else 0


class Turn(NamedTuple):
    """What makes a stored picture upright: rows and columns change places first, then either is reversed."""

    swap: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False


def turn_of(frame: VideoFrame) -> Turn:
    """Read how a frame is to be shown: phones store the picture as the sensor lies and note how to turn or mirror it.

    The note is FFmpeg's display matrix, nine 32-bit numbers of which a pixel at (x, y) is shown at
    (a x + c y, b x + d y), with a, b, c and d in places 0, 1, 3 and 4
    (https://ffmpeg.org/doxygen/trunk/group__lavu__video__display.html). Other angles are rounded to quarter turns.
    """
    matrix = cast("Mapping[Type, SideData]", frame.side_data).get(Type.DISPLAYMATRIX)  # its stub knows no matrix
    if matrix is None:
        return Turn()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(swap=True, reverse_rows=b < 0, reverse_columns=c < 0)
    return Turn(reverse_rows=d < 0, reverse_columns=a < 0)


class Scaler:
    """Cuts, scales and turns the frames of one file to upright RGB, one at a time.

    Args:
        size: short side in pixels.
        borders: what is cut, in pixels of the first frame.
        first: the file's first frame, whose shape all others take.
    """

    def __init__(self, size: int, borders: Borders, first: VideoFrame) -> None:
        inner_height, inner_width = first.height - 2 * borders.rows, first.width - 2 * borders.columns
        short, long = sorted((inner_width, inner_height))
        scaled = 2 * round(long * size / short / 2)
        portrait = inner_width < inner_height
        self._width, self._height = (size, scaled) if portrait else (max(size, scaled), size)
        # The whole frame is scaled, so that its inner part has the wanted size, which is then taken from the middle.
        # Half a pixel further in, bilinear scaling has mixed nothing of the borders into it.
        self._left = ceil(borders.columns * self._width / inner_width + 0.5) if borders.columns else 0
        self._top = ceil(borders.rows * self._height / inner_height + 0.5) if borders.rows else 0
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return RGB (H, W, C); scaling and conversion are one step."""
        width, height = self._width + 2 * self._left, self._height + 2 * self._top
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR, threads=1)
        inner = cast(NDArray[np.uint8], rgb.to_ndarray())[
            self._top : self._top + self._height, self._left : self._left + self._width
        ]
        turn = turn_of(frame)
        upright = inner.swapaxes(0, 1) if turn.swap else inner
        return upright[:: -1 if turn.reverse_rows else 1, :: -1 if turn.reverse_columns else 1]
