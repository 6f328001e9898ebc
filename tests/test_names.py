"""Class names as sentences and their embeddings; the sent2vec library itself is not installable from PyPI."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from l2a_ray.errors import DatasetError, MissingPackageError, SettingError
from l2a_ray.pairs.names import embed_names, readable, unit_rows
from l2a_ray.pairs.settings import EmbeddingSettings


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("brush_hair", "brush hair"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("TaiChi", "tai chi"),
        ("PlayingDJSet", "playing dj set"),
        ("high-jump", "high jump"),
        ("passing American football (in game)", "passing american football (in game)"),
        ("__shoot__ball ", "shoot ball"),
    ],
)
def test_names_become_sentences(name: str, sentence: str) -> None:
    assert readable(name) == sentence


def test_minilm_embeds_offline_and_writes_of_a_name_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("minilm must not open a connection")

    monkeypatch.setattr("socket.socket.connect", no_network)
    embeddings = embed_names(["clap_hands", "ClapHands", "wave_hand", "climb_stairs"], EmbeddingSettings())
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] == pytest.approx(1, abs=1e-6)
    assert similarity[0, 2] > similarity[0, 3] + 0.1


def test_unit_rows_by_hand() -> None:
    rows = unit_rows(["a", "b"], np.array([[3, 4], [0, -2]], dtype=np.float32))
    np.testing.assert_allclose(rows, np.array([[0.6, 0.8], [0, -1]]), rtol=1e-6)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_name_of_unknown_words_is_refused(bad: float) -> None:
    embeddings = np.array([[1, 0], [bad, bad]], dtype=np.float32)
    with pytest.raises(DatasetError, match=r"'xqz_zzv'.*'xqz zzv'"):
        unit_rows(["run", "xqz_zzv"], embeddings)


def test_sent2vec_says_that_the_model_file_is_missing(tmp_path: Path) -> None:
    settings = EmbeddingSettings(kind="sent2vec", model=str(tmp_path / "wiki.bin"))
    with pytest.raises(SettingError, match=r"^model=.*wiki\.bin"):
        embed_names(["run"], settings)


@pytest.mark.parametrize("installed", [None, ModuleType("sent2vec")], ids=["no library", "the wrong library"])
def test_sent2vec_says_how_to_get_the_right_library(
    installed: ModuleType | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "wiki.bin"
    model.write_bytes(b"a model")
    monkeypatch.setitem(sys.modules, "sent2vec", installed)
    with pytest.raises(MissingPackageError, match=r"git clone https://github\.com/epfml/sent2vec.*PyPI's"):
        embed_names(["run"], EmbeddingSettings(kind="sent2vec", model=str(model)))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^model=None"):
        EmbeddingSettings(kind="sent2vec")
    with pytest.raises(SettingError, match=r"^model='a\.bin'"):
        EmbeddingSettings(model="a.bin")
    with pytest.raises(SettingError, match=r"^kind='glove'"):
        EmbeddingSettings(kind="glove")  # type: ignore[arg-type]
