"""Sentence vectors from a model file of sent2vec, read by NumPy (Pagliardini et al. 2018, https://arxiv.org/abs/1703.02507).

A sentence's vector is the mean of those of its words and of its n-grams of words. Published models have gigabytes, most
of it vectors of n-grams: so the file is mapped into memory, its dictionary is gone through once for the words that are
asked for, and of the matrix only their rows are read.

The file (https://github.com/epfml/sent2vec, ``args.cc``, ``dictionary.cc``, ``matrix.cc``) is little-endian, unpadded::

    int32 magic, version
    int32 dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; float64 t
    int32 entries, words, labels; int64 tokens, pruned            pruned is -1 unless the model was cut down
    an entry: UTF-8, NUL, int64 count, int8 type                  words (type 0) come first, then labels (1)
    int8 quantised; int64 rows, dim; float32 (rows, dim)          rows of the words, then ``bucket`` of n-grams

What follows is used in training alone.
"""

import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2a_ray.errors import SettingError

_HEADER = struct.Struct("<2i12id3i2q")
_MATRIX = struct.Struct("<b2q")
_MAGIC, _VERSION, _SENT2VEC = 793712314, 11, 4
_KINDS = {1: "cbow", 2: "skipgram", 3: "supervised", 5: "cbow-c+w-ngrams"}
_AFTER_WORD = 10  # bytes from a word's end to the next: NUL, count, type
_SEPARATORS = re.compile(rb"[ \t\r\v\f\0]+")  # fewer than str.split has
_HASH = 116049371


@dataclass(frozen=True)
class _Model:
    """What the header says."""

    dim: int
    ngrams: int
    """Words of the longest n-gram that has a vector; 1 for words alone."""
    bucket: int
    """Rows that all n-grams share, by their hash."""
    words: int
    entries: int
    """Words and labels."""


def embed_sentences(path: Path, sentences: Sequence[str]) -> NDArray[np.float32]:
    """Embed sentences, to within rounding as the published library does.

    Words are matched as they are written: lower case and set apart by spaces, punctuation too, if the model's training
    text was. Unknown ones are left out, and their neighbours then make an n-gram.

    Args:
        path: the ``.bin`` file of a sent2vec model.
        sentences: as many as there are; each call goes through the dictionary, about a second for a million words.

    Returns:
        float32 (sentences, dim), not normalised; a row of zeros where not one word is known.

    Raises:
        SettingError: of the field ``model``: there is no such file; it is another kind of model, or one that was cut
            down (quantised, pruned); it is damaged or cut short.
    """
    texts = [list(_tokens(sentence)) for sentence in sentences]
    try:
        with path.open("rb") as file:
            model = _read_header(path, file.read(_HEADER.size))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                rows, end = _find_words(path, data, model, {token for text in texts for token in text})
                matrix = _map_matrix(path, data, model, end)
    except FileNotFoundError as error:
        raise SettingError("model", str(path), "no such file: must name a sent2vec .bin file") from error
    except OSError as error:
        raise SettingError("model", str(path), f"cannot be read ({error.strerror})") from error
    vectors = np.zeros((len(texts), model.dim), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        if used := list(_rows(model, [rows[token] for token in text if token in rows])):
            # The library's own arithmetic: a sum in this order, then a product with the reciprocal.
            vector[:] = np.add.reduce(matrix[used], axis=0) * np.float32(1 / len(used))
    return vectors


def _tokens(sentence: str) -> Iterator[bytes]:
    """Yield the words up to the end of the sentence, a newline or ``</s>``."""
    for token in _SEPARATORS.split(sentence.encode("utf-8", "ignore").partition(b"\n")[0]):
        if token == b"</s>":
            return
        yield token


def _rows(model: _Model, words: Sequence[int]) -> Iterator[int]:
    """Yield the matrix's rows of words and of their n-grams, given the words' own rows."""
    yield from words
    for first, hashed in enumerate(words):
        for word in words[first + 1 : first + model.ngrams]:
            hashed = (hashed * _HASH + word) % 2**64
            yield model.words + hashed % model.bucket


def _read_header(path: Path, header: bytes) -> _Model:
    if len(header) < _HEADER.size or header[:4] != struct.pack("<i", _MAGIC):
        raise SettingError("model", str(path), "must be a .bin file of sent2vec, and is none")
    _, version, dim, _, _, _, _, ngrams, _, kind, bucket, _, _, _, _, entries, words, labels, _, pruned = (
        _HEADER.unpack(header)
    )
    if (version, kind) != (_VERSION, _SENT2VEC):
        reason = (
            f"a fastText file of kind {_KINDS.get(kind, kind)}, version {version}: must be of kind sent2vec, {_VERSION}"
        )
        raise SettingError("model", str(path), reason)
    if pruned != -1:
        raise SettingError("model", str(path), "a pruned model: must be as it was trained")
    if min(dim, words) < 1 or min(ngrams, labels) < 0 or entries != words + labels or (ngrams > 1 and bucket < 1):
        raise _damaged(path, "its header is wrong")
    return _Model(dim=dim, ngrams=ngrams, bucket=bucket, words=words, entries=entries)


def _find_words(path: Path, data: mmap.mmap, model: _Model, wanted: Set[bytes]) -> tuple[Mapping[bytes, int], int]:
    """Return the rows of those wanted words that the model knows, and where the dictionary ends."""
    rows, start, size = {}, _HEADER.size, len(data)
    for row in range(model.entries):
        end = data.find(b"\0", start)
        if end < 0 or end + _AFTER_WORD > size:
            raise _damaged(path, "it ends within the dictionary")
        if data[end + _AFTER_WORD - 1] != (row >= model.words):
            raise _damaged(path, "its dictionary is wrong")
        if row < model.words and (word := data[start:end]) in wanted:
            rows[word] = row  # of one that is there twice the last counts
        start = end + _AFTER_WORD
    return rows, start


def _map_matrix(path: Path, data: mmap.mmap, model: _Model, start: int) -> NDArray[np.float32]:
    """Return the vectors of words and n-grams, unread."""
    begin = start + _MATRIX.size
    if begin > len(data):
        raise _damaged(path, "it ends after the dictionary")
    quantised, rows, dim = _MATRIX.unpack_from(data, start)
    if quantised:
        raise SettingError("model", str(path), "a quantised model: must be as it was trained")
    if dim != model.dim or rows < model.words + (model.bucket if model.ngrams > 1 else 0):
        raise _damaged(path, f"{rows} vectors of {dim} numbers do not fit {model.words} words, {model.dim} numbers")
    if (missing := begin + 4 * rows * dim - len(data)) > 0:
        raise _damaged(path, f"{missing} bytes of its vectors are missing")
    return np.memmap(path, "<f4", "r", begin, (rows, dim))


def _damaged(path: Path, cause: str) -> SettingError:
    return SettingError("model", str(path), f"damaged or cut short: {cause}. Fetch it again")
