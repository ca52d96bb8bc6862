"""One planted pool, and one run over it through Beam, for all tests of the pipelines."""

from __future__ import annotations

from pathlib import Path

import pools
import pytest


@pytest.fixture(scope="session")
def roles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a planted pool, its seeds and its references."""
    return pools.write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def run(roles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    """A run over the planted pool through Beam with two workers and many small units."""
    out = tmp_path_factory.mktemp("runs") / "beam"
    return pools.curate(roles, out, "--workers", "2", *pools.SMALL_UNITS, *pools.THRESHOLDS, beam=True)
