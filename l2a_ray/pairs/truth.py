"""What is wrong with which clip, where that is known: in data made by `l2a generate`.

Only the report, benchmarks and the oracle's arm read it; another stage that did would cheat.
"""

from collections.abc import Sequence

import pandas as pd
import pyarrow

from l2a_ray.storage.files import as_path, read_table


def read_truth(root: str) -> pd.DataFrame | None:
    """Read what training videos show from ``truth.parquet`` in a data set's folder; None if it has none.

    Returns:
        Columns path (absolute), true_class, what the actor does, and bad ("", "wrong_label" or "lost"). Without those
        of the test split.
    """
    folder = as_path(root).absolute()
    try:
        found = read_table(folder / "truth.parquet", columns=["path", "true_class", "bad", "split"])
    except (OSError, ValueError, KeyError, pyarrow.ArrowException):
        return None  # most data sets have no such file, and one by that name may be the user's own
    found = found[found["split"] == "train"].drop(columns="split")
    return found.assign(path=[str(folder / path) for path in found["path"]]).drop_duplicates("path")


def mark_wrong(pairs: pd.DataFrame, truth: pd.DataFrame, index: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Add the column ``wrong`` to pairs: whether the foreground does not show what its label says.

    The label is ``foreground_label``, which may be a pseudo-label; the clip's own in pairs without that column, as a
    user's file may have them. Where the truth does not know a clip, nothing is wrong.
    """
    clips = index.set_index("id")
    shown = pairs["foreground"].map(clips["path"].map(truth.set_index("path")["true_class"]))
    own = pairs.get("foreground_label")
    labels = pairs["foreground"].map(clips["label"]) if own is None else own
    called = labels.map(dict(enumerate(classes)))
    return pairs.assign(wrong=shown.notna() & (shown != called))


def sound_clips(truth: pd.DataFrame, index: pd.DataFrame) -> frozenset[str]:
    """Return the ids of the clips that show what their label says, actor and all, of those that the truth knows."""
    known = index[["id", "path", "class_name"]].merge(truth, on="path")
    return frozenset(known["id"][(known["class_name"] == known["true_class"]) & (known["bad"] != "lost")])
