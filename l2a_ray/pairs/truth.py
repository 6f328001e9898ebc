"""What is wrong with which clip, where that is known: in data made by `l2a generate`.

Only the report, benchmarks and the oracle's arm read it; another stage that did would cheat.
"""

import pandas as pd
import pyarrow

from l2a_ray.storage.files import as_path, read_table


def read_truth(root: str) -> pd.DataFrame | None:
    """Read which training videos are bad from ``truth.parquet`` in a data set's folder; None if it has none.

    Returns:
        Columns path (absolute) and bad ("", "wrong_label" or "lost"). Without those of the test split.
    """
    folder = as_path(root).absolute()
    try:
        found = read_table(folder / "truth.parquet", columns=["path", "bad", "split"])
    except (OSError, ValueError, KeyError, pyarrow.ArrowException):
        return None  # most data sets have no such file, and one by that name may be the user's own
    found = found[found["split"] == "train"].drop(columns="split")
    return found.assign(path=[str(folder / path) for path in found["path"]])


def mark_wrong(pairs: pd.DataFrame, truth: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``wrong`` to pairs: whether the foreground, whose label the composite gets, has a wrong one."""
    paths = truth["path"][truth["bad"] == "wrong_label"]
    return pairs.assign(wrong=pairs["foreground"].isin(index["id"][index["path"].isin(paths)]))


def sound_clips(truth: pd.DataFrame, index: pd.DataFrame) -> frozenset[str]:
    """Return the ids of the clips whose videos are not bad, of those that the truth knows."""
    return frozenset(index["id"][index["path"].isin(truth["path"][truth["bad"] == ""])])
