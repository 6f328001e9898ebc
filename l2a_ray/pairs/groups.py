"""Groups of candidate pairs, each of which gives its share of a selection, and caps on how often a clip is used.

Axes: B pairs.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from l2a_ray.pairs.settings import Within
from l2a_ray.pairs.table import ENDS, LABEL, count_pairs, open_pairs, read_pairs, spans
from l2a_ray.pairs.vectors import Rows
from l2a_ray.storage.files import AnyPath, read_group

COLUMNS: Mapping[Within, str] = {"class": LABEL, "foreground": "foreground"}


@dataclass(frozen=True)
class Groups:
    """The groups of one table of pairs, numbered; :meth:`of` makes them.

    Args:
        within: what is a group: all pairs, those of a foreground class or of a foreground clip.
        foregrounds: ids, sorted; the place of one is the number of its group. None unless they are the groups.
    """

    within: Within
    foregrounds: pa.Array | None = None

    @classmethod
    def of(cls, path: AnyPath, within: Within) -> "Groups":
        """Return the groups of a table.

        Raises:
            StageError: it cannot be read.
        """
        if within != "foreground":
            return cls(within)
        pairs, found = open_pairs(path), set[str]()
        for group in range(pairs.num_row_groups):
            found.update(read_group(pairs, group, ["foreground"])["foreground"].unique().to_pylist())
        return cls(within, pa.array(sorted(found), pa.string()))

    def numbers(self, pairs: pa.Table) -> Rows:
        """Return the number of each pair's group, (B,)."""
        if self.within == "all":
            return np.zeros(len(pairs), np.int64)
        column = pairs[COLUMNS[self.within]]
        if self.foregrounds is not None:
            column = pc.index_in(column, value_set=self.foregrounds)
        return np.asarray(column.to_numpy(), np.int64)

    def sizes(self, path: AnyPath) -> dict[int, int]:
        """Count the pairs of every group, by rising number.

        Raises:
            StageError: the table cannot be read, or there is no pair.
        """
        if self.within == "all":
            return {0: count_pairs(path)}
        count_pairs(path)
        sizes: Counter[int] = Counter()
        for _, numbers_B in self._stream(path):
            sizes.update({number: len(places) for number, places in split(numbers_B)})
        return dict(sorted(sizes.items()))

    def rows(self, path: AnyPath, places: Mapping[int, Rows]) -> Rows:
        """Turn places among the pairs of each group (sorted) into row numbers of the table, sorted."""
        if self.within == "all":
            return places[0]
        found, before = [np.empty(0, np.int64)], dict.fromkeys(places, 0)
        for start, numbers_B in self._stream(path):
            for number, mine in split(numbers_B):
                wanted = places[number]
                first, last = np.searchsorted(wanted, [before[number], before[number] + len(mine)])
                found.append(start + mine[wanted[first:last] - before[number]])
                before[number] += len(mine)
        return np.sort(np.concatenate(found))

    def all_numbers(self, path: AnyPath) -> Rows:
        """Return the number of every pair's group, in the order of the table: 8 bytes a pair."""
        return np.concatenate([np.empty(0, np.int64), *(numbers_B for _, numbers_B in self._stream(path))])

    def _stream(self, path: AnyPath) -> Iterator[tuple[int, Rows]]:
        """Yield the first row of each row group, and the numbers of its pairs."""
        pairs = open_pairs(path)
        for group, (start, _) in enumerate(spans(path)):
            yield start, self.numbers(read_group(pairs, group, [COLUMNS.get(self.within, LABEL)]))


def split(numbers_B: Rows) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each number that is there, and its places in rising order."""
    order = np.argsort(numbers_B, kind="stable")
    found, starts = np.unique(numbers_B[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=False)


def take_capped(path: AnyPath, rows_B: Rows, numbers_B: Rows, budgets: Mapping[int, int], most: int) -> Rows:
    """Take pairs one after another, but no more of a group than its budget and of a clip, in either role, than a cap.

    Args:
        path: the table of pairs; the ids of all its pairs are held, as 8 bytes a pair.
        rows_B: row numbers, those to be taken first before the others.
        numbers_B: their groups.
        budgets: of each group.
        most: pairs with the same foreground, and with the same background.

    Returns:
        Row numbers in the order in which they were taken; fewer than the budgets' sum where the cap allows no more.
    """
    table, left, uses = read_pairs(path, columns=ENDS), dict(budgets), (Counter[int](), Counter[int]())
    front_B, back_B = (table[end].combine_chunks().indices.to_numpy()[rows_B] for end in ENDS)
    taken, wanted = list[int](), sum(left.values())
    for pair in zip(rows_B.tolist(), numbers_B.tolist(), front_B.tolist(), back_B.tolist(), strict=True):
        row, number, *ends = pair
        if left[number] and all(used[clip] < most for used, clip in zip(uses, ends, strict=True)):
            taken.append(row)
            left[number] -= 1
            for used, clip in zip(uses, ends, strict=True):
                used[clip] += 1
            if len(taken) == wanted:
                break
    return np.array(taken, np.int64)
