"""Masks and pairs to look at before training: contact sheets, short videos, and a page that shows both.

Axes: T time, H height, W width, C channel.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2a_ray.composites.composite import CompositeSettings
from l2a_ray.composites.loader import ClipLoader
from l2a_ray.composites.mixes import pasted
from l2a_ray.errors import StorageError
from l2a_ray.outputs.export import UNREADABLE
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, write_bytes
from l2a_ray.videos.encode import encode_mp4, playing_rate

if TYPE_CHECKING:
    from l2a_ray.outputs.report.sheets import PairView

logger = logging.getLogger(__name__)
TILE = 200  # pixels; smaller clips are shown in whole multiples of their size up to this
GAP, BAR, GREY = 4, 60, 128  # pixels between clips, and below them, where players lay their controls over the picture
Item = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Pairs of one kind.

    Args:
        pairs: columns foreground, background and, if they were scored, score; as they are shown.
        meaning: what they are, in a sentence.
        composite: how they are composited.
    """

    pairs: pd.DataFrame
    meaning: str
    composite: CompositeSettings


def write_preview(
    name: str, chosen: Mapping[str, Shown], store: ClipStore, composite: CompositeSettings, out: AnyPath
) -> list[str]:
    """Write ``index.html``, ``videos/<kind>-<n>.mp4``, ``sheets/`` and ``plots/``, in place of older ones.

    Args:
        name: of the run.
        chosen: pairs by kind.
        store: the prepared clips.
        composite: it says which masks are looked at.
        out: folder to write into.

    Returns:
        What could not be shown, a sentence a pair.

    Raises:
        StorageError: ``out`` cannot be written.
    """
    # Here, because matplotlib takes a second, which `--help` need not wait for.
    from l2a_ray.outputs.report.mask_pictures import draw_masks
    from l2a_ray.outputs.report.masks import look_at_masks, summarise_masks
    from l2a_ray.outputs.report.page import environment

    _clear(out)
    plane = pasted(composite)
    looked = look_at_masks(store, plane)
    masks = summarise_masks(looked, store.classes)
    pictures = draw_masks(looked, masks, store, plane, out)
    failed: list[str] = []
    with Bar(total=sum(len(shown.pairs) for shown in chosen.values()), desc="preview", unit="pair") as bar:
        sections = [_section(kind, shown, store, out, failed, bar) for kind, shown in chosen.items()]
    content = (
        environment()
        .get_template("preview.html.j2")
        .render(name=name, masks=masks, pictures=pictures, sections=sections, failed=failed)
    )
    write_bytes(out / "index.html", content.encode())
    for sentence in failed:
        logger.warning("preview: not shown: %s", sentence)
    return failed


def _clear(out: AnyPath) -> None:
    """Remove what an earlier call wrote, which may be of other pairs."""
    for old in (*out.glob("videos/*.mp4"), *out.glob("sheets/*.png"), *out.glob("plots/*.png")):
        try:
            old.unlink()
        except OSError as error:
            raise StorageError(f"{old}: cannot be removed ({error.strerror}). Make its folder writable") from error


def _section(kind: str, shown: Shown, store: ClipStore, out: AnyPath, failed: list[str], bar: Bar) -> Item:
    """Write the videos and sheets of one kind of pairs; add to ``failed`` what cannot be shown."""
    from l2a_ray.outputs.report.figures import save
    from l2a_ray.outputs.report.sheets import ROWS, draw_sheet, view_pair

    loader = ClipLoader(store, shown.composite)
    entries, readable, sheets = list[Item](), list[int](), list[str]()
    for position, pair in enumerate(shown.pairs.itertuples()):
        bar.update()
        try:
            view = view_pair(loader, str(pair.foreground), str(pair.background))
        except UNREADABLE as error:
            failed.append(f"{kind} {pair.foreground} on {pair.background}: {error}")
            continue
        entries.append(_entry(pair, view, f"videos/{kind}-{position + 1:03}.mp4", store, out))
        readable.append(position)
    for start in range(0, len(readable), ROWS):
        sheets.append(f"sheets/{kind}-{start // ROWS + 1:03}.png")
        save(draw_sheet(shown.pairs.iloc[readable[start : start + ROWS]], store, shown.composite), out / sheets[-1])
    return {
        "kind": kind,
        "meaning": shown.meaning,
        "composite": asdict(shown.composite),
        "entries": entries,
        "sheets": sheets,
    }


def _entry(pair: Any, view: "PairView", video: str, store: ClipStore, out: AnyPath) -> Item:
    """Write a pair's video; return what the page says of it."""
    front, back = store.index.set_index("id").loc[[pair.foreground, pair.background]].to_dict("records")
    rate = playing_rate(len(view.composite_THWC), front["frame_count"], front["rate"])
    write_bytes(out / video, encode_mp4(side_by_side(list(view.tiles.values())), rate))
    return {
        "video": video,
        "parts": list(view.tiles),
        "classes": (front["class_name"], back["class_name"]),
        "files": tuple(Path(clip["path"]).name for clip in (front, back)),
        "score": getattr(pair, "score", None),
        "weight": view.weight,
    }


def side_by_side(tiles_THWC: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put clips of one size in a row, half a gap around each; small ones are enlarged by whole pixels, undistorted."""
    scale = max(1, TILE // max(tiles_THWC[0].shape[1:3]))
    large = (clip.repeat(scale, axis=1).repeat(scale, axis=2) for clip in tiles_THWC)
    around = ((0, 0), (0, BAR), (GAP // 2, GAP // 2), (0, 0))
    return np.concatenate([np.pad(clip, around, constant_values=GREY) for clip in large], axis=2)
