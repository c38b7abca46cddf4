"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import Pool, Volume, create_pool, create_volume, open_volume, volume_path


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return create_pool(tmp_path / "pool")


@pytest.fixture
def volume(pool: Pool) -> Iterator[Volume]:
    """An empty volume, open read-write."""
    create_volume(pool, "home", size=1 << 40)
    with open_volume(volume_path(pool, "home")) as opened:
        yield opened
