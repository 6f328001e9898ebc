"""Scoring every candidate pair and keeping the best K, in memory that does not grow with the number of pairs.

Pure but for :func:`select`, which needs Ray. Axes: B pairs, K budget, N clips, V a clip's values, H first hidden layer.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from l2a_ray.errors import SelectorFileError, SettingError, StageError
from l2a_ray.files import write_bytes, write_json
from l2a_ray.selector.network import SelectorNetwork
from l2a_ray.selector.vectors import ClipVectors

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

BATCH = 1024
WORST = 12
BINS = 50
ENDS = ["foreground", "background"]
LABEL = "foreground_label"


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """How many of the candidate pairs are kept."""

    budget: float = 0.12
    """Share of the candidate pairs that is kept, in (0, 1]. The paper's Table 1 keeps 12K of 99K matched pairs."""

    per_class: bool = False
    """Whether the budget is a share of each foreground class's pairs, so that the classes stay as even as they were.
    Ours; without it (paper, 4.1) easy classes can take all of a small budget."""

    def __post_init__(self) -> None:
        """Refuse shares that keep nothing or more than there is."""
        if not 0 < self.budget <= 1:
            raise SettingError("select.budget", self.budget, "must be above 0 and at most 1, a share of the pairs")


class TopK:
    """The best ``k`` of a stream of scored rows; equal scores: the smaller row first.

    The result is what sorting everything would give, whatever the order and size of the updates, in memory of
    O(k + batch).
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._pending: list[tuple[Floats, Rows]] = []
        self._count = 0
        self._threshold = -np.inf

    def update(self, scores_B: Floats, rows_B: Rows) -> None:
        """Take in more rows with their scores."""
        good = scores_B >= self._threshold
        self._pending.append((scores_B[good], rows_B[good]))
        self._count += int(good.sum())
        if self._count >= 2 * self.k:
            self._cut()

    def result(self) -> tuple[Floats, Rows]:
        """Return scores and rows of the best ``k`` (or all, if there were fewer), best first."""
        self._cut()
        return self._pending[0]

    def _cut(self) -> None:
        scores = np.concatenate([np.empty(0, np.float32), *(scores for scores, _ in self._pending)])
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in self._pending)])
        order = best_first(scores, rows)[: self.k]
        self._pending, self._count = [(scores[order], rows[order])], len(order)
        if self._count == self.k:
            self._threshold = float(scores[order[-1]])


def best_first(scores_B: Floats, rows_B: Rows) -> NDArray[np.intp]:
    """Return the order of falling scores; equal scores: the smaller row first."""
    return np.lexsort((rows_B, -scores_B))


@dataclass(frozen=True)
class ClipHalves:
    """The first layer's two halves for every clip, each float32 of shape (N, H)."""

    foreground_NH: Floats
    background_NH: Floats


@torch.no_grad()
def clip_halves(network: SelectorNetwork, clip_vectors_NV: Floats) -> ClipHalves:
    """Compute the first layer once a clip.

    Raises:
        SelectorFileError: the clips' vectors are not of the size that the network was made for, or it gives NaN.
    """
    if clip_vectors_NV.shape[1] != network.clip_size:
        raise SelectorFileError(
            f"the Selector takes {network.feature_size} features and {network.label_size} label values a clip, "
            f"together {network.clip_size}, but these clips have {clip_vectors_NV.shape[1]}. "
            "Compute them with the Selector's own backbone and label encoding"
        )
    clips = torch.from_numpy(clip_vectors_NV)
    if not all(values.isfinite().all() for values in (clips, *network.state_dict().values())):
        raise SelectorFileError(
            "the Selector's weights or the clips' features hold NaN or infinity, so no pair can be scored. "
            "Train the Selector again with a smaller learning rate"
        )
    return ClipHalves(network.half_f(clips).numpy(), network.half_b(clips).numpy())


@torch.no_grad()
def score_halves(
    network: SelectorNetwork, halves: ClipHalves, foreground_B: Rows, background_B: Rows, batch: int = BATCH
) -> Floats:
    """Score pairs of rows of ``halves``; returns omega, float32 in [0, 1], of shape (B,)."""
    # Matrix products of different shapes may round differently. Padding gives all the same shape, so that a pair's
    # score does not depend on which pairs are scored along with it.
    padding = (0, -len(foreground_B) % batch)
    foreground, background = np.pad(foreground_B, padding), np.pad(background_B, padding)
    omega = np.empty(len(foreground), np.float32)
    for start in range(0, len(foreground), batch):
        part = slice(start, start + batch)
        sums_BH = halves.foreground_NH[foreground[part]]
        sums_BH += halves.background_NH[background[part]]
        omega[part] = network.head(torch.from_numpy(sums_BH)).sigmoid().numpy()
    return omega[: len(foreground_B)]


def score_pairs(
    network: SelectorNetwork, clip_vectors_NV: Floats, foreground_B: Rows, background_B: Rows, batch: int = BATCH
) -> Floats:
    """Score pairs of rows of ``clip_vectors_NV``; returns omega, float32 in [0, 1], of shape (B,).

    Raises:
        SelectorFileError: as :func:`clip_halves`.
    """
    return score_halves(network, clip_halves(network, clip_vectors_NV), foreground_B, background_B, batch)


class Tally:
    """What is kept of all scores: the best K, the worst few, the scores of K rows drawn at random, a histogram.

    Args:
        budgets: how many to keep of each group of pairs; K is their sum.
        drawn_K: the rows drawn at random, sorted.
        total: number of pairs.
    """

    def __init__(self, budgets: dict[int, int], drawn_K: Rows, total: int) -> None:
        self.best = {group: TopK(k) for group, k in budgets.items()}
        self.worst = TopK(min(WORST, total))
        self.drawn_K, self.drawn_scores_K = drawn_K, np.empty(len(drawn_K), np.float32)
        self.counts = np.zeros(BINS, np.int64)
        self.edges = np.linspace(0, 1, BINS + 1)

    def update(self, scores_B: Floats, rows_B: Rows, groups_B: Rows) -> None:
        """Take in more rows with their scores and groups, in any order."""
        for group in np.unique(groups_B):
            self.best[int(group)].update(scores_B[groups_B == group], rows_B[groups_B == group])
        self.worst.update(-scores_B, rows_B)
        self.counts += np.histogram(scores_B.astype(np.float64), bins=self.edges)[0]
        place = np.searchsorted(self.drawn_K, rows_B).clip(max=len(self.drawn_K) - 1)
        hit = self.drawn_K[place] == rows_B
        self.drawn_scores_K[place[hit]] = scores_B[hit]

    def write(self, pairs_path: Path, out: Path) -> None:
        """Write the files of ``select/``, the summary last."""
        results = [best.result() for best in self.best.values()]
        scores_K, rows_K = (np.concatenate(part) for part in zip(*results, strict=True))
        order = best_first(scores_K, rows_K)
        scores_K, rows_K = scores_K[order], rows_K[order]
        _write(out / "selected.parquet", _scored_pairs(pairs_path, rows_K, scores_K))
        # In the candidates' order: the random arm must owe nothing to the Selector, not even the order of its pairs.
        _write(out / "random.parquet", _scored_pairs(pairs_path, self.drawn_K, self.drawn_scores_K))
        negated, rows = self.worst.result()
        _write(out / "worst.parquet", _scored_pairs(pairs_path, rows, -negated))
        bins = {"left": self.edges[:-1], "right": self.edges[1:], "count": self.counts}
        _write(out / "histogram.parquet", pa.table(bins))
        summary = {"candidates": int(self.counts.sum()), "budget": len(rows_K), "threshold": float(scores_K[-1])}
        write_json(out / "summary.json", summary)


def select(
    pairs_path: Path,
    clips: ClipVectors,
    network: SelectorNetwork,
    settings: SelectSettings,
    seed: int,
    out: Path,
) -> None:
    """Score all candidate pairs, keep the best K (paper, 4.1, end) and K drawn at random, and write ``select/``.

    Pairs stream through Ray Data a row group at a time; 20 bytes a pair come back. The result does not depend on the
    order or the number of workers. Ray must be running.

    Args:
        pairs_path: ``match/pairs.parquet``, of which all columns but ``background_label`` are read.
        clips: raw features and label vector of every clip.
        network: the trained Selector's network.
        settings: the budget; K = max(1, round(budget * candidates)), of all pairs or of each foreground class.
        seed: of the K rows drawn at random.
        out: folder for selected, random, worst and histogram.parquet and summary.json.

    Raises:
        StageError: there are no candidate pairs, or they name clips that ``clips`` does not hold.
        SelectorFileError: as :func:`clip_halves`.
        StorageError: ``out`` cannot be written.
    """
    total = _open(pairs_path).metadata.num_rows
    if total == 0:
        raise StageError(f"{pairs_path}: holds no candidate pair, so none can be selected. Run `l2a match` again")
    _check_clips(pairs_path, clips)
    sizes = _group_sizes(pairs_path) if settings.per_class else {0: total}
    budgets = {group: max(1, round(settings.budget * size)) for group, size in sizes.items()}
    rng = np.random.default_rng(seed)
    drawn = {group: np.sort(rng.choice(sizes[group], k, replace=False)) for group, k in budgets.items()}
    drawn_K = _rows_of(pairs_path, drawn) if settings.per_class else drawn[0]
    tally = Tally(budgets, drawn_K, total)
    with tqdm(total=total, desc="select", unit="pair") as bar:
        for scores_B, rows_B, labels_B in _stream(pairs_path, clips, network):
            tally.update(scores_B, rows_B, labels_B if settings.per_class else np.zeros_like(rows_B))
            bar.update(len(rows_B))
    tally.write(pairs_path, out)


def _stream(pairs_path: Path, clips: ClipVectors, network: SelectorNetwork) -> Iterator[tuple[Floats, Rows, Rows]]:
    """Score the row groups in parallel; yields scores, row numbers and foreground labels, in no fixed order."""
    import ray.data  # here, because the rest of this module serves machines without Ray

    from l2a_ray.session import quieten

    quieten()
    shared = ray.put((network, clip_halves(network, clips.clips_NFL), clips))

    def work(batch: Any) -> Any:
        network, halves, clips = ray.get(shared)
        group, start = int(batch["group"][0]), int(batch["start"][0])
        pairs = _open(pairs_path).read_row_group(group, columns=[*ENDS, LABEL])
        foreground_B, background_B = (clips.rows(pairs[column].to_pylist()) for column in ENDS)
        omega_B = score_halves(network, halves, foreground_B, background_B)
        labels_B = pairs[LABEL].to_numpy().astype(np.int64)
        return {"score": omega_B, "row": np.arange(start, start + len(omega_B)), "label": labels_B}

    items = [{"group": group, "start": start} for group, (start, _) in enumerate(_spans(pairs_path))]
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(work, batch_size=1)
    for batch in scored.iter_batches(batch_size=None, batch_format="numpy"):
        yield np.asarray(batch["score"]), np.asarray(batch["row"]), np.asarray(batch["label"])


def _group_sizes(path: Path) -> dict[int, int]:
    """Count the pairs of every foreground class, a row group in memory at a time."""
    sizes: Counter[int] = Counter()
    pairs = _open(path)
    for group in range(pairs.num_row_groups):
        labels = pairs.read_row_group(group, columns=[LABEL])[LABEL]
        sizes.update(labels.to_numpy().tolist())
    return dict(sorted(sizes.items()))


def _rows_of(path: Path, places: dict[int, Rows]) -> Rows:
    """Turn places among the pairs of each foreground class (sorted) into row numbers of the table, sorted."""
    rows: list[Rows] = []
    before = dict.fromkeys(places, 0)
    for group, (start, _) in enumerate(_spans(path)):
        labels = _open(path).read_row_group(group, columns=[LABEL])[LABEL].to_numpy()
        for label, places_K in places.items():
            mine = np.flatnonzero(labels == label)
            first, last = np.searchsorted(places_K, [before[label], before[label] + len(mine)])
            rows.append(start + mine[places_K[first:last] - before[label]])
            before[label] += len(mine)
    return np.sort(np.concatenate(rows))


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise StageError(f"{path}: cannot be read ({error}). Run `l2a match` again") from error


def _check_clips(path: Path, clips: ClipVectors) -> None:
    """Refuse pairs of unknown clips here, before any work: Ray Data passes on a task's error as text only."""
    pairs = _open(path)
    for group in range(pairs.num_row_groups):
        for column in pairs.read_row_group(group, columns=ENDS).columns:
            clips.rows(column.unique().to_pylist())


def _spans(path: Path) -> list[tuple[int, int]]:
    """Return the first row of every row group, and the row after its last."""
    metadata = _open(path).metadata
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def _scored_pairs(path: Path, rows_K: Rows, scores_K: Floats) -> pa.Table:
    """Read the given rows of the pairs, in that order, a row group at a time, and add their scores."""
    order = np.argsort(rows_K)
    sorted_K, parts = rows_K[order], []
    for group, (start, end) in enumerate(_spans(path)):
        first, last = np.searchsorted(sorted_K, [start, end])
        if first < last:
            parts.append(_open(path).read_row_group(group).take(pa.array(sorted_K[first:last] - start)))
    pairs = pa.concat_tables(parts).take(pa.array(np.argsort(order)))
    return pairs.append_column("score", pa.array(scores_K, pa.float32()))


def _write(path: Path, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content)
    write_bytes(path, content.getvalue())
