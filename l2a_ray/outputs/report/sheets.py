"""What a pair is made of, and contact sheets of it: a row a pair. Axes: T time, H height, W width, C channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings, place
from l2a_ray.composites.loader import ClipLoader, Sample
from l2a_ray.composites.mixes import pasted
from l2a_ray.outputs.report.figures import Picture, save, short
from l2a_ray.prepare.store import ClipStore
from l2a_ray.storage.files import AnyPath

ROWS = 8
TILE, GAP, CAPTION, HEADER = 1.38, 0.05, 0.27, 0.3  # inches
Tile = tuple[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class PairView:
    """What a composite is made of, all of the background's size.

    Args:
        foreground_THWC: the foreground clip as it is placed on the background.
        mask_THW: its mask, bool.
        background_THWC: the background clip as it was.
        clean_THWC: the background without actors.
        composite_THWC: what is trained on, before cropping.
        weight: lambda, the share of the foreground's class in the label.
    """

    foreground_THWC: NDArray[np.uint8]
    mask_THW: NDArray[np.bool_]
    background_THWC: NDArray[np.uint8]
    clean_THWC: NDArray[np.uint8]
    composite_THWC: NDArray[np.uint8]
    weight: float

    @property
    def tiles(self) -> dict[str, NDArray[np.uint8]]:
        """The five clips by name, uint8 (T, H, W, 3) each."""
        white = np.repeat(self.mask_THW[..., None].astype(np.uint8) * 255, 3, axis=3)
        parts = (self.foreground_THWC, white, self.background_THWC, self.clean_THWC, self.composite_THWC)
        return dict(zip(("foreground", "mask", "background", "clean background", "composite"), parts, strict=True))


def view_pair(loader: ClipLoader, foreground: str, background: str) -> PairView:
    """Read a pair's clips and blend them.

    Raises:
        StorageError: a clip's file is missing or damaged.
    """
    blended, label = loader.blend(Sample(foreground, background))
    front, back = loader.store.read(foreground), loader.store.read(background)
    _, height, width, _ = back.frames_THWC.shape
    frames, mask = place(front.frames_THWC, front.parts[pasted(loader.settings)], height, width)
    weight = float(label[loader.label(foreground)])
    return PairView(frames, mask, back.frames_THWC, back.background_THWC, blended, weight)


def draw_sheets(
    selected: pd.DataFrame | None,
    worst: pd.DataFrame | None,
    store: ClipStore,
    settings: CompositeSettings,
    folder: AnyPath,
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
    """Draw pairs (columns foreground, background and, if they are scored, score) from top to bottom."""
    loader = ClipLoader(store, settings)
    return draw_rows([_row(pair, loader) for pair in pairs.itertuples()])


def draw_rows(rows: Sequence[tuple[str, Sequence[Tile]]]) -> Figure:
    """Draw rows of named tiles, each under its caption; at least one, and the same names in every row."""
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


def _row(pair: Any, loader: ClipLoader) -> tuple[str, list[Tile]]:
    view = view_pair(loader, pair.foreground, pair.background)
    last = len(view.composite_THWC) - 1
    tiles = [(name, clip[last // 2]) for name, clip in view.tiles.items() if name != "composite"]
    moments = (("first", 0), ("middle", last // 2), ("last", last))
    tiles += [(f"composite, {name}", view.composite_THWC[t]) for name, t in moments]
    return _caption(pair, view.weight, loader.store), tiles


def _caption(pair: Any, weight: float, store: ClipStore) -> str:
    index = store.index.set_index("id")["class_name"]
    names = [short(index[clip]) for clip in (pair.foreground, pair.background)]
    score = f"      ω {pair.score:.3f}" if hasattr(pair, "score") else ""
    return f"{names[0]}  on  {names[1]}{score}      λ {weight:.2f}"
