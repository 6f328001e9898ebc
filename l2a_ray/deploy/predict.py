"""What a classifier says of many videos, as a table."""

import json
from collections.abc import Sequence

import pandas as pd

from l2a_ray.deploy.classifier import Classifier
from l2a_ray.errors import DatasetError, VideoError
from l2a_ray.runtime.progress import Bar
from l2a_ray.storage.files import as_path
from l2a_ray.videos.layouts import EXTENSIONS

COLUMNS = ("video", "rank", "class", "probability", "cause")


def find_videos(names: Sequence[str]) -> list[str]:
    """Return files as they are named and, of a folder, all videos in it and below by their names; each once.

    Raises:
        DatasetError: a folder holds none.
    """
    found: list[str] = []
    for name in names:
        place = as_path(name)
        if place.is_dir():
            inside = [path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()]
            if not inside:
                raise DatasetError(f"{name}: no video in this folder ({', '.join(sorted(EXTENSIONS))})")
            found += [str(path) for path in sorted(inside, key=str)]
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def predict_videos(classifier: Classifier, videos: Sequence[str], top: int) -> pd.DataFrame:
    """Return the ``top`` classes of each video, the best first.

    A row a video and class: ``video``, ``rank`` (from 1), ``class``, ``probability`` in [0, 1]; or a row a video that
    cannot be used, with the ``cause`` and what to do, and no class.
    """
    rows: list[tuple[str, int | None, str | None, float | None, str]] = []
    for name, found in Bar(classifier.each(videos), total=len(videos), desc="predict", unit="video"):
        if isinstance(found, VideoError):
            rows.append((name, None, None, None, f"{found.cause}. {found.advice}"))
            continue
        for rank, label in enumerate((-found).argsort(kind="stable")[:top], start=1):
            rows.append((name, rank, classifier.classes[label], float(found[label]), ""))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"rank": "Int64"})


def tell(table: pd.DataFrame) -> list[str]:
    """Return a line a video: its classes with their probabilities in per cent, or why there are none."""
    rows = table.drop_duplicates("video")["video"].map(_quoted)
    width = max(map(len, rows), default=0)
    lines = []
    for name, of_video in table.groupby("video", sort=False):
        if (cause := of_video["cause"].iloc[0]) != "":
            said = f"not used: {cause}"
        else:
            said = "  ".join(
                f"{100 * chance:5.1f} % {label}"
                for label, chance in zip(of_video["class"], of_video["probability"], strict=True)
            )
        lines.append(f"{_quoted(str(name)):<{width}}  {said}")
    return lines


def _quoted(name: str) -> str:
    """Return a name as one line shows it: file names may hold line breaks."""
    return name if name.isprintable() else json.dumps(name)
