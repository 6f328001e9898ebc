"""Contact sheets of single clips: their middle frames side by side, with some words under each.

Axes: H height, W width, C channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from l2a_ray.outputs.export import UNREADABLE
from l2a_ray.outputs.report.figures import DPI, WIDTH
from l2a_ray.prepare.store import ClipStore, Part

COLUMNS = 4
GAP, TEXT, SMALL = 0.08, 0.155, 7.5  # inches between tiles, inches a line of words, points of its letters
TILE = (WIDTH - GAP * (COLUMNS + 1)) / COLUMNS  # inches
TALLEST = 1.3  # times its width is a tile at most high: a tall video must not stretch the sheet without end
INK, SOFT, WRONG = "#1d2733", "#5b6875", "#a33b00"  # of words
BRIGHT, DARK = (240, 228, 66), (0, 0, 0)  # of outlines


@dataclass(frozen=True)
class ClipTile:
    """A frame and the lines of words under it, each with its colour."""

    image_HWC: NDArray[np.uint8]
    lines: Sequence[tuple[str, str]]


def middle_frame(store: ClipStore, clip_id: str, plane: Part | None = None) -> NDArray[np.uint8] | None:
    """Return a clip's middle frame, RGB uint8 (H, W, C), as large as a tile; None if its file cannot be read.

    Args:
        store: the prepared clips.
        clip_id: which one.
        plane: the mask whose outline is drawn, if any; the frame is then the middle one of those that have a mask.
    """
    try:
        parts = store.read_parts(clip_id, ["frames"] if plane is None else ["frames", plane])
    except UNREADABLE:
        return None
    times = np.arange(len(parts["frames"]))
    if plane is not None and parts[plane].any():
        times = np.flatnonzero(parts[plane].any(axis=(1, 2)))
    middle = times[(len(times) - 1) // 2]
    frame_HWC = parts["frames"][middle]
    height, width = frame_HWC.shape[:2]
    scale = DPI * TILE * min(1.0, TALLEST * width / height) / width
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image_HWC = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    large_HWC = image_HWC.astype(np.uint8, copy=False)
    return large_HWC if plane is None else outline(large_HWC, parts[plane][middle])


def outline(frame_HWC: NDArray[np.uint8], mask_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the edge of a mask of any size on a frame: bright on dark, to be seen on every picture."""
    height, width = frame_HWC.shape[:2]
    soft = cv2.resize(mask_HW.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    edges, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = np.array(frame_HWC)
    for colour, thickness in ((DARK, 4), (BRIGHT, 2)):
        cv2.drawContours(drawn, edges, -1, colour, thickness, cv2.LINE_AA)
    return drawn


def draw_clips(tiles: Sequence[ClipTile]) -> Figure:
    """Draw tiles row by row; at least one."""
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    words = TEXT * max(len(tile.lines) for tile in tiles)
    heights = [max(tile.image_HWC.shape[0] for tile in row) / DPI for row in rows]
    height = GAP + sum(heights) + len(rows) * (words + 2 * GAP)
    figure = Figure(figsize=(WIDTH, height))
    # One pair of axes over the whole sheet, in inches from its lower left.
    ax = figure.add_axes((0, 0, 1, 1))
    top = height - GAP
    for row, tall in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = GAP + column * (TILE + GAP)
            high, wide = (side / DPI for side in tile.image_HWC.shape[:2])
            corner = left + (TILE - wide) / 2
            ax.imshow(tile.image_HWC, extent=(corner, corner + wide, top - tall, top - tall + high), aspect="auto")
            for line, (text, colour) in enumerate(tile.lines):
                y = top - tall - TEXT * (line + 0.6)
                weight = "bold" if line == 0 else "normal"
                ax.text(left, y, text, va="center", fontsize=SMALL, color=colour, weight=weight, parse_math=False)
        top -= tall + words + 2 * GAP
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.set_axis_off()
    return figure
