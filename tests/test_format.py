"""docs/FORMAT.md and the code tell the same."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from nasfs.volume import (
    Access,
    CorruptionError,
    FormatError,
    NoSuchVolume,
    Pool,
    create_volume,
    open_pool,
    open_volume,
    volume_path,
)
from nasfs.volume.check import CHECKS
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
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(FormatError, match="format version 2, this release reads version 1"):
        open_volume(meta.parent)


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


def test_a_volume_without_what_was_added_later_gets_it_when_it_is_written(meta: Path) -> None:
    db = sqlite3.connect(meta)
    for statement in ("DROP INDEX dirent_ino", "DROP INDEX dirent_past_ino", "DROP TABLE setting"):
        db.execute(statement)
    db.commit()
    db.close()
    with open_volume(meta.parent, Access.READ_ONLY) as volume:
        assert not volume.lists_snapshots
    with open_volume(meta.parent) as volume:
        volume.list_snapshots_nowait(True)
        volume.commit()
        assert volume.lists_snapshots
    with open_volume(meta.parent, Access.READ_ONLY) as volume:
        assert volume.lists_snapshots
    fresh, old = sqlite3.connect(":memory:"), sqlite3.connect(meta)
    fresh.executescript(DDL)
    schema = "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"
    assert old.execute(schema).fetchall() == fresh.execute(schema).fetchall()
    fresh.close()
    old.close()
