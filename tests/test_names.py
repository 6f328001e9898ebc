"""Class names as sentences and their embeddings."""

import numpy as np
import pytest

from l2a_ray.errors import DatasetError, SettingError
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


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^model=None"):
        EmbeddingSettings(kind="sent2vec")
    with pytest.raises(SettingError, match=r"^model='a\.bin'"):
        EmbeddingSettings(model="a.bin")
    with pytest.raises(SettingError, match=r"^kind='glove'"):
        EmbeddingSettings(kind="glove")  # type: ignore[arg-type]
