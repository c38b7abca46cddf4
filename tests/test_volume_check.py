"""Each numbered invariant, broken on purpose by SQL or in a layer, is found by its number."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    CorruptionError,
    Pool,
    check_volume,
    create_volume,
    open_volume,
    volume_path,
)


@pytest.fixture
def sound(pool: Pool) -> Path:
    """A closed volume with files, directories, leaf rows, xattrs and two snapshots."""
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"dir", 0o755, uid=0, gid=0).ino
        file = volume.mknod(directory, b"file", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(file, 0, b"a" * 10 * BLOCK)
        volume.setxattr(file, b"user.k", b"v")
        volume.link(file, ROOT_INO, b"link")
        volume.seal("one")
        volume.write(file, 3 * BLOCK, b"b" * BLOCK)
        volume.mknod(ROOT_INO, b"later", stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("two")
        volume.unlink(ROOT_INO, b"later")
        volume.setattr(file, size=8 * BLOCK)
    assert check_volume(path) == []
    return path


DIR, FILE = 256, 257


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        db = sqlite3.connect(path / "meta.db")
        for statement in statements:
            assert db.execute(statement).rowcount != 0, statement
        db.commit()
        db.close()

    return damage


def cut_layer(path: Path) -> None:
    os.truncate(path / "layers" / f"{FILE % 256:02x}" / f"{FILE}.1", BLOCK)


def remove_layer(path: Path) -> None:
    (path / "layers" / f"{FILE % 256:02x}" / f"{FILE}.2").unlink()


@pytest.mark.parametrize(
    ("number", "damage"),
    [
        ("I2", sql("UPDATE dirent SET born = 99")),
        ("I2", sql("UPDATE inode_past SET died = born")),
        ("I2", sql(f"UPDATE inode SET born = 1 WHERE ino = {FILE}")),
        ("I2", sql(f"UPDATE inode_past SET died = 3 WHERE ino = {FILE} AND born = 1")),
        ("I3", sql("UPDATE dirent SET ino = 999 WHERE name = CAST('file' AS BLOB)")),
        ("I3", sql(f"UPDATE dirent SET kind = {stat.S_IFIFO} WHERE name = CAST('link' AS BLOB)")),
        ("I3", sql(f"UPDATE dirent SET parent = {FILE} WHERE name = CAST('link' AS BLOB)")),
        ("I4", sql(f"UPDATE inode SET nlink = 5 WHERE ino = {FILE}")),
        ("I4", sql(f"UPDATE inode SET nlink = 3 WHERE ino = {DIR}")),
        ("I4", sql(f"UPDATE inode SET parent = {FILE} WHERE ino = {DIR}")),
        ("I5", sql(f"UPDATE inode SET parent = {DIR} WHERE ino = {DIR}")),
        ("I6", sql("UPDATE xattr SET ino = 999")),
        ("I6", sql("UPDATE leaf SET ino = 999")),
        ("I7", sql(f"UPDATE inode SET leaves = 0 WHERE ino = {FILE}")),
        ("I7", sql(f"UPDATE inode SET blocks = 7 WHERE ino = {FILE}")),
        ("I7", sql(f"UPDATE inode SET size = {BLOCK} WHERE ino = {FILE}")),
        ("I7", sql("UPDATE leaf SET map = 9")),
        ("I7", sql("UPDATE leaf SET map = CAST('short' AS BLOB)")),
        ("I7", cut_layer),
        ("I7", remove_layer),
        ("I8", sql("UPDATE volume SET live_blocks = live_blocks + 1")),
        ("I8", sql("UPDATE volume SET snapshot_blocks = snapshot_blocks + 1")),
        ("I8", sql("UPDATE volume SET inodes = inodes + 1")),
        ("I8", sql(f"UPDATE volume SET next_ino = {FILE}")),
        ("I8", sql("UPDATE volume SET next_cookie = 1")),
        ("I9", sql("UPDATE snapshot SET epoch = 77 WHERE epoch = 2")),
        ("I9", sql("INSERT INTO hold VALUES (55, 'me', 'why')")),
        ("I10", sql("INSERT INTO orphan VALUES (257)")),
    ],
)
def test_a_broken_invariant_is_found(
    sound: Path, number: str, damage: Callable[[Path], None]
) -> None:
    damage(sound)
    found = {finding.invariant for finding in check_volume(sound)}
    assert number in found


def test_an_inode_without_a_name_is_found(sound: Path) -> None:
    sql(
        "UPDATE inode SET nlink = 0 WHERE ino = 257",
        "DELETE FROM dirent WHERE ino = 257",
    )(sound)
    assert "I10" in {finding.invariant for finding in check_volume(sound)}


def test_damage_below_the_tables_is_found(sound: Path) -> None:
    """I1: SQLite's own check; here an index that has lost an entry."""
    db = sqlite3.connect(sound / "meta.db")
    page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'inode_born'").fetchone()[0]
    size = db.execute("PRAGMA page_size").fetchone()[0]
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    with (sound / "meta.db").open("r+b") as file:
        file.seek((page - 1) * size + 3)
        cells = int.from_bytes(file.read(2), "big")
        file.seek((page - 1) * size + 3)
        file.write((cells - 1).to_bytes(2, "big"))
    try:
        found = {finding.invariant for finding in check_volume(sound)}
    except CorruptionError:
        return
    assert "I1" in found


def test_a_volume_is_checked_while_it_is_mounted(sound: Path) -> None:
    with open_volume(sound) as volume:
        ino = volume.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(ino, 0, b"not committed")
        assert check_volume(sound) == []
        volume.commit()
        assert check_volume(sound) == []
