"""Shared fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
JHMDB = Path(os.environ.get("L2A_JHMDB", DATA / "jhmdb"))
SENT2VEC = Path(os.environ.get("L2A_SENT2VEC", DATA / "sent2vec"))


@pytest.fixture
def jhmdb() -> Path:
    """The J-HMDB folder (videos/, masks/, splits/); the test is skipped where it is absent."""
    if not JHMDB.is_dir():
        pytest.skip("J-HMDB not found: set L2A_JHMDB to a folder holding videos/, masks/ and splits/")
    return JHMDB


@pytest.fixture
def sent2vec_models() -> Path:
    """A folder of small sent2vec models (tiny_*.bin) and the library's own vectors (truth_*.npz); skipped if absent."""
    if not SENT2VEC.is_dir():
        pytest.skip("sent2vec models not found: set L2A_SENT2VEC to a folder holding tiny_*.bin and truth_*.npz")
    return SENT2VEC


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """A Ray of two CPUs on this machine, for all tests of a file."""
    pytest.importorskip("ray")
    from l2a_ray.runtime.session import own_ray

    with own_ray(num_cpus=2, include_dashboard=False):
        yield
