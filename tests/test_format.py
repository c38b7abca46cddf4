"""docs/FORMAT.md and the code tell the same."""

from __future__ import annotations

import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Access,
    CorruptionError,
    FormatError,
    NoSuchVolume,
    Pool,
    check_volume,
    create_volume,
    open_pool,
    open_volume,
    volume_path,
)
from nasfs.volume.check import CHECKS
from nasfs.volume.lock import VolumeLock
from nasfs.volume.schema import APPLICATION_ID, DDL, FORMAT_VERSION, VERSIONED

DOCUMENT = (Path(__file__).parents[1] / "docs" / "FORMAT.md").read_text()


@pytest.fixture
def meta(pool: Pool) -> Path:
    create_volume(pool, "v", size=1 << 30)
    return volume_path(pool, "v") / "meta.db"


def documented(table: str) -> set[str]:
    """Column names in the row of a table on the page."""
    line = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{table}`"))
    return set(re.findall(r"`([a-z_]+)`", line)) - {table}


def test_the_page_names_every_table_and_column(meta: Path) -> None:
    db = sqlite3.connect(meta)
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    for table in tables:
        name = table.removesuffix("_past")
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")} - {"died"}
        assert columns <= documented(name), table
    db.close()


def test_the_page_names_every_invariant_that_is_checked() -> None:
    assert re.findall(r"^- \*\*(I\d+)\*\*", DOCUMENT, re.M) == [check.number for check in CHECKS]


def test_the_page_tells_the_version_and_the_application_id() -> None:
    assert f"version {FORMAT_VERSION}\n" in DOCUMENT
    assert f"0x{APPLICATION_ID:X}" in DOCUMENT
    assert [spec.name for spec in VERSIONED] == ["inode", "dirent", "xattr", "leaf"]


def test_another_format_version_is_refused(meta: Path) -> None:
    db = sqlite3.connect(meta)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FormatError, match="format version 99, this release reads version 2"):
        open_volume(meta.parent)


VERSION_1 = """
    CREATE TABLE old_snapshot (
        epoch INTEGER PRIMARY KEY, name TEXT NOT NULL, guid TEXT NOT NULL UNIQUE,
        time_ns INTEGER NOT NULL, snap_group TEXT NOT NULL, state INTEGER NOT NULL) STRICT;
    INSERT INTO old_snapshot SELECT epoch, name, guid, time_ns, snap_group, state FROM snapshot;
    PRAGMA foreign_keys = OFF;
    DROP TABLE snapshot;
    ALTER TABLE old_snapshot RENAME TO snapshot;
    CREATE UNIQUE INDEX snapshot_name ON snapshot (name) WHERE state = 0;
    DROP TABLE kept;
    DROP TABLE setting;
    DROP INDEX dirent_ino;
    DROP INDEX dirent_past_ino;
    ALTER TABLE volume DROP COLUMN kept_known;
    PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("aged", [False, True])
def test_version_1_is_brought_up_when_it_is_opened(
    pool: Pool, access: Access, *, aged: bool
) -> None:
    create_volume(pool, "old", size=1 << 30)
    path = volume_path(pool, "old")
    with open_volume(path) as volume:
        file = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.write(file.ino, 0, b"x" * 5 * BLOCK)
        if aged:
            volume.seal("one")
            volume.write(file.ino, 0, b"y" * 2 * BLOCK)
            volume.seal("two")
            volume.write(file.ino, 0, b"z" * BLOCK)
        before = volume.own_blocks()
    with closing(sqlite3.connect(path / "meta.db", isolation_level=None)) as db:
        db.executescript(VERSION_1)
    with open_volume(path, access) as volume:
        assert [(s.name, s.blocks) for s in volume.snapshots()] == (
            [("one", 5), ("two", 5)] if aged else []
        )
        assert volume.own_blocks() == before
    with closing(sqlite3.connect(path / "meta.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (FORMAT_VERSION,)
        assert db.execute("SELECT kept_known FROM volume").fetchone() == (int(not aged),)
        fresh = sqlite3.connect(":memory:")
        fresh.executescript(DDL)
        schema = "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"
        assert db.execute(schema).fetchall() == fresh.execute(schema).fetchall()
        fresh.close()
    assert check_volume(path) == []


def test_version_1_under_an_older_owner_is_left_alone(pool: Pool) -> None:
    create_volume(pool, "old", size=1 << 30)
    path = volume_path(pool, "old")
    with closing(sqlite3.connect(path / "meta.db", isolation_level=None)) as db:
        db.executescript(VERSION_1)
    lock = VolumeLock(path / "lock")
    with pytest.raises(FormatError, match="an older release serves this volume"):
        open_volume(path, Access.READ_ONLY)
    lock.release()


def test_a_database_that_is_not_ours_is_refused(meta: Path) -> None:
    meta.unlink()
    db = sqlite3.connect(meta)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(FormatError, match="this is not the meta"):
        open_volume(meta.parent)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing"])
def test_a_corrupt_database_is_told_and_left_as_it_is(meta: Path, damage: str) -> None:
    if damage == "garbage":
        meta.write_bytes(b"\xa5" * 100_000)
    elif damage == "truncated":
        meta.write_bytes(meta.read_bytes()[:6000])
    else:
        meta.unlink()
    before = meta.read_bytes() if meta.exists() else None
    with pytest.raises((CorruptionError, FormatError)) as caught:
        open_volume(meta.parent)
    assert str(meta) in str(caught.value)
    assert (meta.read_bytes() if meta.exists() else None) == before


def test_a_pool_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="this is not a pool"):
        open_pool(tmp_path)


def test_a_volume_that_is_not_there_is_told(pool: Pool) -> None:
    with pytest.raises(NoSuchVolume, match="there is no volume nothing"):
        open_volume(volume_path(pool, "nothing"))
