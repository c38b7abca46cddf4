"""SQLite's locks on a volume's database: nothing that a process does beside it may drop them."""

from __future__ import annotations

import os
from pathlib import Path

from nasfs.volume import Access, create_pool, create_volume, open_volume, volume_path


def locks_on(path: Path) -> list[str]:
    """What this process holds there (its kind and place), by fcntl(2)."""
    wanted, pid = str(path.stat().st_ino), str(os.getpid())
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return sorted(
        " ".join(words[-2:])
        for words in lines
        if pid in words and any(word.endswith(f":{wanted}") for word in words)
    )


def test_opening_a_volume_once_more_drops_no_lock(tmp_path: Path) -> None:
    pool = create_pool(tmp_path / "pool")
    create_volume(pool, "v", size=1 << 30)
    path = volume_path(pool, "v")
    with open_volume(path, Access.READ_ONLY) as first:
        first.snapshots()
        before = {name: locks_on(path / name) for name in ("meta.db", "meta.db-shm")}
        assert all(before.values())
        for access in (Access.READ_ONLY, Access.READ_WRITE):
            with open_volume(path, access):
                pass
            after = {name: locks_on(path / name) for name in before}
            assert after == before
