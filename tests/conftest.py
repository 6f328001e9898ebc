"""Shared fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

JHMDB = Path(os.environ.get("L2A_JHMDB", Path(__file__).parents[2] / "shared" / "data" / "jhmdb"))


@pytest.fixture
def jhmdb() -> Path:
    """The J-HMDB folder (videos/, masks/, splits/); the test is skipped where it is absent."""
    if not JHMDB.is_dir():
        pytest.skip("J-HMDB not found: set L2A_JHMDB to a folder holding videos/, masks/ and splits/")
    return JHMDB


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """A Ray of two CPUs on this machine, for all tests of a file."""
    pytest.importorskip("ray")
    from l2a_ray.runtime.session import own_ray

    with own_ray(num_cpus=2, include_dashboard=False):
        yield
