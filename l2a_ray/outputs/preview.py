"""Pairs to look at before training: contact sheets, short videos, and a page that shows both.

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
from l2a_ray.composites.loader import SampleLoader
from l2a_ray.errors import SettingError, StorageError
from l2a_ray.outputs.export import UNREADABLE
from l2a_ray.pairs.table import open_pairs, read_pairs
from l2a_ray.prepare.store import ClipStore
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import AnyPath, write_bytes
from l2a_ray.storage.run import RunFolder
from l2a_ray.videos.encode import encode_mp4, playing_rate

if TYPE_CHECKING:
    from l2a_ray.outputs.report.sheets import PairView

logger = logging.getLogger(__name__)
KINDS = {
    "selected": "The pairs that the Selector scored highest, best first.",
    "random": "Pairs drawn at random, scored by the Selector: what the arm `random` is trained with.",
    "worst": "The pairs that the Selector scored lowest, lowest first.",
    "candidates": "Pairs drawn at random from all candidates.",
}
SCORED = ("selected", "random", "worst")
TILE = 200  # pixels; smaller clips are shown in whole multiples of their size up to this
GAP, BAR, GREY = 4, 60, 128  # pixels between clips, and below them, where players lay their controls over the picture
Item = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Which pairs `l2a preview` shows, and how many."""

    pairs: int = 8
    """Pairs of each kind; of the worst, `select` keeps 12."""

    which: str = "auto"
    """Some of `selected` (best first), `random`, `worst` and `candidates` (drawn from all, no scores), separated by
    commas; auto: the first three once `select` is complete, candidates before."""

    seed: int = 0
    """Seed by which random pairs and candidates are drawn."""

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise SettingError("preview.pairs", self.pairs, "must be at least 1")
        if self.seed < 0:
            raise SettingError("preview.seed", self.seed, "must be at least 0")
        if self.which != "auto" and (not self.kinds or not set(self.kinds) <= KINDS.keys()):
            reason = f"must be auto, or some of {', '.join(KINDS)}, separated by commas"
            raise SettingError("preview.which", self.which, reason)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are asked for by name, without repetition."""
        return tuple(dict.fromkeys(kind.strip() for kind in self.which.split(",") if kind.strip()))


def choose(run: RunFolder, settings: PreviewSettings) -> dict[str, pd.DataFrame]:
    """Choose pairs of each kind that is asked for; columns as in the stage's table.

    Raises:
        StageError: the stage that makes them has not been run, or its table is damaged.
    """
    kinds = settings.kinds
    if settings.which == "auto":
        kinds = SCORED if run.has("select") else ("candidates",)
    chosen = {}
    for kind in kinds:
        path = run.folder("select") / f"{kind}.parquet" if kind in SCORED else run.folder("match") / "pairs.parquet"
        total = open_pairs(path).metadata.num_rows
        count = min(settings.pairs, total)
        rows = np.arange(count)  # `select` writes the best first, and the worst
        if kind in ("random", "candidates"):
            rows = np.sort(np.random.default_rng(settings.seed).choice(total, count, replace=False))
        chosen[kind] = read_pairs(path, rows).to_pandas()
    return chosen


def write_preview(
    name: str, chosen: Mapping[str, pd.DataFrame], store: ClipStore, composite: CompositeSettings, out: AnyPath
) -> list[str]:
    """Write ``index.html``, ``videos/<kind>-<n>.mp4`` and ``sheets/<kind>-<n>.png``, in place of older ones.

    Args:
        name: of the run.
        chosen: pairs by kind.
        store: the prepared clips.
        composite: how composites are made.
        out: folder to write into.

    Returns:
        What could not be shown, a sentence a pair.

    Raises:
        StorageError: ``out`` cannot be written.
    """
    from l2a_ray.outputs.report.page import (
        environment,  # here: matplotlib takes a second, which `--help` need not wait for
    )

    _clear(out)
    loader = SampleLoader(store, composite, crop=1)  # of no effect: whole frames are shown
    failed: list[str] = []
    with Bar(total=sum(map(len, chosen.values())), desc="preview", unit="pair") as bar:
        sections = [_section(kind, pairs, loader, out, failed, bar) for kind, pairs in chosen.items()]
    page = environment().get_template("preview.html.j2")
    content = page.render(name=name, sections=sections, failed=failed, composite=asdict(composite))
    write_bytes(out / "index.html", content.encode())
    for sentence in failed:
        logger.warning("preview: not shown: %s", sentence)
    return failed


def _clear(out: AnyPath) -> None:
    """Remove what an earlier call wrote, which may be of other pairs."""
    for old in (*out.glob("videos/*.mp4"), *out.glob("sheets/*.png")):
        try:
            old.unlink()
        except OSError as error:
            raise StorageError(f"{old}: cannot be removed ({error.strerror}). Make its folder writable") from error


def _section(kind: str, pairs: pd.DataFrame, loader: SampleLoader, out: AnyPath, failed: list[str], bar: Bar) -> Item:
    """Write the videos and sheets of one kind of pairs; add to ``failed`` what cannot be shown."""
    from l2a_ray.outputs.report.plots import save
    from l2a_ray.outputs.report.sheets import ROWS, draw_sheet, view_pair

    entries, shown, sheets = list[Item](), list[int](), list[str]()
    for position, pair in enumerate(pairs.itertuples()):
        bar.update()
        try:
            view = view_pair(loader, str(pair.foreground), str(pair.background))
        except UNREADABLE as error:
            failed.append(f"{kind} {pair.foreground} on {pair.background}: {error}")
            continue
        entries.append(_entry(pair, view, f"videos/{kind}-{position + 1:03}.mp4", loader.store, out))
        shown.append(position)
    for start in range(0, len(shown), ROWS):
        sheets.append(f"sheets/{kind}-{start // ROWS + 1:03}.png")
        save(draw_sheet(pairs.iloc[shown[start : start + ROWS]], loader.store, loader.settings), out / sheets[-1])
    return {"kind": kind, "meaning": KINDS[kind], "entries": entries, "sheets": sheets}


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
    large = (clip_THWC.repeat(scale, axis=1).repeat(scale, axis=2) for clip_THWC in tiles_THWC)
    around = ((0, 0), (0, BAR), (GAP // 2, GAP // 2), (0, 0))
    return np.concatenate([np.pad(clip_THWC, around, constant_values=GREY) for clip_THWC in large], axis=2)
