"""sent2vec's model files: made here with answers by hand, and small real ones with the published library's vectors."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from l2a_ray.errors import DatasetError, SettingError
from l2a_ray.fields import relevant
from l2a_ray.pairs.names import embed_names
from l2a_ray.pairs.sent2vec import embed_sentences
from l2a_ray.pairs.settings import EmbeddingSettings, MatchSettings

WORDS = ("<PLACEHOLDER>", "</s>", "playing", "guitar", "café")
DICTIONARY = 92  # bytes before it


def write_model(
    path: Path,
    matrix: NDArray[np.float32] | None = None,
    *,
    words: tuple[str, ...] = WORDS,
    labels: tuple[str, ...] = (),
    ngrams: int = 2,
    bucket: int = 7,
    magic: int = 793712314,
    version: int = 11,
    kind: int = 4,
    pruned: int = -1,
    quantised: bool = False,
) -> Path:
    """Write a model; by default row r of the matrix is (r, r * r), and the last of no use, as in real models."""
    if matrix is None:
        rows = np.arange(len(words) + bucket + 1)
        matrix = np.stack([rows, rows**2], axis=1).astype(np.float32)
    entries = [(word, 0) for word in words] + [(label, 1) for label in labels]
    parts = [
        struct.pack("<2i12id", magic, version, matrix.shape[1], 5, 5, 1, 10, ngrams, 2, kind, bucket, 0, 0, 100, 1e-4),
        struct.pack("<3i2q", len(entries), len(words), len(labels), 1000, pruned),
        *(word.encode() + struct.pack("<bqb", 0, 300, kind_of_entry) for word, kind_of_entry in entries),
        struct.pack("<b2q", quantised, *matrix.shape),
        matrix.tobytes(),
    ]
    path.write_bytes(b"".join(parts))
    return path


def embed(path: Path, *names: str) -> NDArray[np.float32]:
    return embed_names(names, EmbeddingSettings(kind="sent2vec", model=str(path)))


def test_words_and_their_bigram_by_hand(tmp_path: Path) -> None:
    # playing is 2, guitar 3; (2 * 116049371 + 3) % 7 is 4, (3 * 116049371 + 2) % 7 is 0; five words come before.
    vectors = embed_sentences(write_model(tmp_path / "m.bin"), ["playing guitar", "guitar playing", "café"])
    rows = ([2, 3, 5 + 4], [3, 2, 5 + 0], [4])
    expected = [[np.mean(used), np.mean(np.square(used))] for used in rows]
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)
    assert vectors.dtype == np.float32


def test_words_alone_where_the_model_has_no_ngrams(tmp_path: Path) -> None:
    # The file then says a bucket all the same, which may have no rows.
    model = write_model(tmp_path / "m.bin", np.eye(5, dtype=np.float32), ngrams=1, bucket=2000000)
    vectors = embed_sentences(model, ["playing playing guitar"])
    np.testing.assert_allclose(vectors, [[0, 0, 2 / 3, 1 / 3, 0]], rtol=1e-6)


def test_hashes_of_long_ngrams_wrap_at_64_bits(tmp_path: Path) -> None:
    matrix = np.zeros((5 + 1000, 1), np.float32)
    # With M = 116049371, ((2M + 3)M + 2)M + 3 is 3125779754196019091169290; of that the lowest 64 bits are
    # 15864394082988941322.
    matrix[5 + 322] = 10
    model = write_model(tmp_path / "m.bin", matrix, ngrams=4, bucket=1000)
    # 4 words, 3 pairs, 2 triples, 1 of four.
    np.testing.assert_allclose(embed_sentences(model, ["playing guitar playing guitar"]), [[10 / 10]])


@pytest.mark.parametrize(
    ("sentence", "same"),
    [
        ("playing zzyzx guitar", "playing guitar"),  # unknown words are left out before bigrams are made
        ("  playing \t\r\v guitar\f", "playing guitar"),
        ("playing guitar\ncafé", "playing guitar"),
        ("playing guitar </s> café", "playing guitar"),
        ("playing\xa0guitar", "zzyzx"),  # no separator of the library's
        ("Playing, guitar!", "zzyzx"),
        ("__label__a guitar", "guitar"),
    ],
)
def test_sentences_are_read_as_the_library_does(sentence: str, same: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.bin", labels=("__label__a",))
    first, second = embed_sentences(model, [sentence, same])
    np.testing.assert_array_equal(first, second)


def test_of_a_word_listed_twice_the_last_counts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.bin", words=(*WORDS, "guitar"))
    np.testing.assert_array_equal(embed_sentences(model, ["guitar", "zzyzx"]), [[5, 25], [0, 0]])


def test_a_model_is_not_loaded(tmp_path: Path) -> None:
    bucket = 2**27
    model = write_model(tmp_path / "m.bin", np.ones((5, 2), np.float32), bucket=bucket)
    with model.open("r+b") as file:  # 1 GiB that takes no space on disk
        file.seek(-8 * 5 - 16, 2)
        file.write(struct.pack("<q", 5 + bucket))
        file.truncate(file.seek(0, 2) + 8 * bucket)
    tracemalloc.start()
    try:
        vectors = embed_sentences(model, ["playing guitar"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(vectors, [[2 / 3, 2 / 3]], rtol=1e-6)
    assert peak < 2**20


def test_class_names_are_embedded(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.bin")
    rows = embed(model, "PlayingGuitar", "playing_(guitar)", "cafe (café)")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(rows[2], np.array([4, 16]) / np.sqrt(16 + 256), rtol=1e-6)
    with pytest.raises(DatasetError, match=r"'BrushHair'.*no word of 'brush hair'"):
        embed(model, "playing", "BrushHair")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"magic": 1}, "a .bin file of sent2vec, and is none"),
        ({"kind": 3, "version": 12}, "fastText file of kind supervised, version 12"),
        ({"kind": 5}, r"kind cbow-c\+w-ngrams"),
        ({"kind": 77}, "kind 77"),
        ({"pruned": 0}, "pruned"),
        ({"quantised": True}, "quantised"),
        ({"bucket": 0}, "header"),
        ({"matrix": np.ones((11, 2), np.float32)}, "11 vectors of 2 numbers do not fit 5 words"),
    ],
)
def test_other_models_are_refused(changes: dict[str, Any], cause: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.bin", **changes)
    with pytest.raises(SettingError, match=rf"^model='.*m\.bin': .*{cause}"):
        embed(model, "playing guitar")


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        (0, "and is none"),
        (DICTIONARY - 1, "and is none"),
        (DICTIONARY, "within the dictionary"),
        (DICTIONARY + len("<PLACEHOLDER>") + 9, "within the dictionary"),
        (-13 * 8 - 1, "after the dictionary"),
        (-1, "1 bytes of its vectors are missing"),
    ],
)
def test_a_file_that_is_cut_short_is_refused(size: int, cause: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.bin")
    model.write_bytes(model.read_bytes()[:size])
    with pytest.raises(SettingError, match=rf"^model='.*m\.bin': .*{cause}"):
        embed(model, "playing guitar")


def test_a_dictionary_with_a_byte_too_many_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.bin")
    content = bytearray(model.read_bytes())
    content.insert(DICTIONARY + len("<PLACEHOLDER>"), 0)
    model.write_bytes(content)
    with pytest.raises(SettingError, match="dictionary is wrong"):
        embed(model, "playing guitar")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^model='.*wiki\.bin': no such file"):
        embed(tmp_path / "wiki.bin", "run")
    with pytest.raises(SettingError, match=r"^model='.*': cannot be read"):
        embed(tmp_path, "run")
    with pytest.raises(SettingError, match=r"^model='memory://models/wiki\.bin': must lie in a folder"):
        EmbeddingSettings(kind="sent2vec", model="memory://models/wiki.bin")


def test_a_result_depends_on_the_model_and_not_on_its_path(tmp_path: Path) -> None:
    def key(path: Path) -> dict[str, Any]:
        return relevant(MatchSettings(embedding=EmbeddingSettings(kind="sent2vec", model=str(path))))

    first = write_model(tmp_path / "a.bin")
    assert key(first) == key(write_model(tmp_path / "b.bin")) != key(write_model(tmp_path / "c.bin", ngrams=1))


@pytest.mark.data
@pytest.mark.parametrize("kind", ["unigram", "bigram"])
def test_vectors_are_those_of_the_published_library(kind: str, sent2vec_models: Path) -> None:
    truth = np.load(sent2vec_models / f"truth_{kind}.npz")
    vectors = embed_sentences(sent2vec_models / f"tiny_{kind}.bin", truth["sentences"].tolist())
    np.testing.assert_allclose(vectors, truth["vectors"], rtol=0, atol=1e-6)
    assert len(np.unique(vectors, axis=0)) > 30
