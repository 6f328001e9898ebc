"""Contact sheets: a row a pair, showing what it is made of and the composite."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from l2a_ray.clips.store import ClipStore
from l2a_ray.composite import CompositeSettings, place
from l2a_ray.mixes import mix, pasted
from l2a_ray.report.plots import Picture, save

ROWS = 8
TILE, GAP, CAPTION, HEADER = 1.38, 0.05, 0.27, 0.3  # inches
Tile = tuple[str, NDArray[np.uint8]]


def draw_sheets(
    selected: pd.DataFrame | None,
    worst: pd.DataFrame | None,
    store: ClipStore,
    settings: CompositeSettings,
    folder: Path,
) -> dict[str, Picture]:
    """Draw the best and the worst scored pairs; a sheet without pairs is left out."""
    legend = "Over each row: foreground's and background's class, score ω, and the label's share λ of the foreground."
    best = Picture(
        folder / "best.png", "Best scored pairs", f"{legend} Whole actors, cleanly cut out, are a good sign."
    )
    bad = Picture(folder / "worst.png", "Worst scored pairs", f"{legend} Empty or ragged masks are what belongs here.")
    drawn: dict[str, Picture] = {}
    for name, picture, pairs, ascending in (("best", best, selected, False), ("worst", bad, worst, True)):
        if pairs is None or pairs.empty:
            continue
        ordered = pairs.sort_values(["score", "foreground", "background"], ascending=[ascending, True, True])
        save(draw_sheet(ordered.head(ROWS), store, settings), picture.path)
        drawn[name] = picture
    return drawn


def draw_sheet(pairs: pd.DataFrame, store: ClipStore, settings: CompositeSettings) -> Figure:
    """Draw pairs (columns foreground, background, score) from top to bottom."""
    rows = [_row(pair, store, settings) for pair in pairs.itertuples()]
    # A tall video must not stretch the sheet without end.
    heights = [TILE * min(2.0, tiles[0][1].shape[0] / tiles[0][1].shape[1]) for _, tiles in rows]
    header = [name for name, _ in rows[0][1]]
    width = len(header) * (TILE + GAP) + GAP
    height = HEADER + sum(heights) + len(rows) * (CAPTION + GAP)
    # One pair of axes over the whole sheet, in inches from its lower left: many small ones take seconds to draw.
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    for column, name in enumerate(header):
        centre = GAP + column * (TILE + GAP) + TILE / 2
        ax.text(centre, height - HEADER / 2, name, ha="center", va="center", weight="bold", fontsize=9)
    top = height - HEADER
    for (caption, tiles), tile_height in zip(rows, heights, strict=True):
        ax.text(GAP, top - CAPTION / 2, caption, va="center", fontsize=9, parse_math=False)
        top -= CAPTION
        for column, (_, image) in enumerate(tiles):
            left = GAP + column * (TILE + GAP)
            extent = (left, left + TILE, top - tile_height, top)
            ax.imshow(image, extent=extent, aspect="auto", interpolation="lanczos")
        top -= tile_height + GAP
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return figure


def _row(pair: Any, store: ClipStore, settings: CompositeSettings) -> tuple[str, list[Tile]]:
    foreground, background = store.read(pair.foreground), store.read(pair.background)
    _, height, width, _ = background.background_THWC.shape
    frames_THWC, masks_THW = place(foreground.frames_THWC, pasted(foreground.planes, settings), height, width)
    mixed = mix(foreground, background, settings, np.random.default_rng(0))
    last = len(mixed.frames_THWC) - 1
    mask_HWC = np.repeat(masks_THW[last // 2, :, :, None].astype(np.uint8) * 255, 3, axis=2)
    tiles = [
        ("foreground", frames_THWC[last // 2]),
        ("mask", mask_HWC),
        ("clean background", background.background_THWC[last // 2]),
        *(
            (f"composite, {name}", mixed.frames_THWC[t])
            for name, t in (("first", 0), ("middle", last // 2), ("last", last))
        ),
    ]
    return _caption(pair, mixed.weight, store), tiles


def _caption(pair: Any, weight: float, store: ClipStore) -> str:
    index = store.index.set_index("id")["class_name"]
    names = [_short(index[clip]) for clip in (pair.foreground, pair.background)]
    return f"{names[0]}  on  {names[1]}      ω {pair.score:.3f}      λ {weight:.2f}"


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
