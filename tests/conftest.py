"""Shared fixtures."""

import os
from pathlib import Path

import pytest

JHMDB = Path(os.environ.get("L2A_JHMDB", Path(__file__).parents[2] / "shared" / "data" / "jhmdb"))


@pytest.fixture
def jhmdb() -> Path:
    """The J-HMDB folder (videos/, masks/, splits/); the test is skipped where it is absent."""
    if not JHMDB.is_dir():
        pytest.skip("J-HMDB not found: set L2A_JHMDB to a folder holding videos/, masks/ and splits/")
    return JHMDB
