"""meta.db: its tables, its format version, how it is opened.

docs/FORMAT.md describes every table and column; a test compares the two.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nasfs.volume.errors import CorruptionError, FormatError, MediaError
from nasfs.volume.types import FIRST_COOKIE, FIRST_INO, ROOT_INO

APPLICATION_ID = 0x6E617366
"""``nasf``, so that file(1) and we know a meta.db when we see one."""

FORMAT_VERSION = 2
"""PRAGMA user_version.  An older one is brought up by `upgrade`; any other is refused."""

NO_ROOM = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_CANTOPEN")
"""What SQLite says when the log or its index can't be made, for instance on a full disk."""


@dataclass(frozen=True, slots=True)
class TableSpec:
    """The columns of one versioned table, with their SQL types."""

    name: str
    key: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, str], ...]

    @property
    def key_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.key)

    @property
    def columns(self) -> tuple[str, ...]:
        """In the order of a row: key, born, values."""
        return (*self.key_names, "born", *(name for name, _ in self.values))


INODE = TableSpec(
    "inode",
    (("ino", "INTEGER NOT NULL"),),
    (
        ("generation", "INTEGER NOT NULL"),
        ("mode", "INTEGER NOT NULL"),
        ("uid", "INTEGER NOT NULL"),
        ("gid", "INTEGER NOT NULL"),
        ("nlink", "INTEGER NOT NULL"),
        ("rdev", "INTEGER NOT NULL"),
        ("size", "INTEGER NOT NULL"),
        ("atime_ns", "INTEGER NOT NULL"),
        ("mtime_ns", "INTEGER NOT NULL"),
        ("ctime_ns", "INTEGER NOT NULL"),
        ("btime_ns", "INTEGER NOT NULL"),
        ("parent", "INTEGER NOT NULL"),
        ("target", "BLOB"),
        ("layer", "INTEGER NOT NULL"),
        ("layer_end", "INTEGER NOT NULL"),
        ("leaves", "INTEGER NOT NULL"),
        ("blocks", "INTEGER NOT NULL"),
    ),
)
DIRENT = TableSpec(
    "dirent",
    (("parent", "INTEGER NOT NULL"), ("name", "BLOB NOT NULL")),
    (("cookie", "INTEGER NOT NULL"), ("ino", "INTEGER NOT NULL"), ("kind", "INTEGER NOT NULL")),
)
XATTR = TableSpec(
    "xattr",
    (("ino", "INTEGER NOT NULL"), ("name", "BLOB NOT NULL")),
    (("value", "BLOB NOT NULL"),),
)
LEAF = TableSpec(
    "leaf",
    (("ino", "INTEGER NOT NULL"), ("region", "INTEGER NOT NULL")),
    (("map", "ANY NOT NULL"),),
)
VERSIONED = (INODE, DIRENT, XATTR, LEAF)


def _versioned_ddl(spec: TableSpec) -> str:
    columns = ", ".join(f"{name} {kind}" for name, kind in spec.key)
    values = ", ".join(f"{name} {kind}" for name, kind in spec.values)
    key = ", ".join(spec.key_names)
    return f"""
    CREATE TABLE {spec.name} ({columns}, born INTEGER NOT NULL, {values},
        PRIMARY KEY ({key})) STRICT, WITHOUT ROWID;
    CREATE INDEX {spec.name}_born ON {spec.name} (born);
    CREATE TABLE {spec.name}_past ({columns}, born INTEGER NOT NULL, {values},
        died INTEGER NOT NULL, PRIMARY KEY ({key}, born)) STRICT, WITHOUT ROWID;
    CREATE INDEX {spec.name}_past_born ON {spec.name}_past (born);
    CREATE INDEX {spec.name}_past_died ON {spec.name}_past (died);
    """


DDL = (
    "".join(map(_versioned_ddl, VERSIONED))
    + """
    CREATE INDEX dirent_cookie ON dirent (parent, cookie);
    CREATE INDEX dirent_past_cookie ON dirent_past (parent, cookie);
    CREATE INDEX dirent_ino ON dirent (ino);
    CREATE INDEX dirent_past_ino ON dirent_past (ino);

    CREATE TABLE volume (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        uuid TEXT NOT NULL,
        size INTEGER NOT NULL,
        provision TEXT NOT NULL CHECK (provision IN ('thin', 'exact')),
        epoch INTEGER NOT NULL,
        next_ino INTEGER NOT NULL,
        reserved_ino INTEGER NOT NULL,
        next_cookie INTEGER NOT NULL,
        inodes INTEGER NOT NULL,
        live_blocks INTEGER NOT NULL,
        snapshot_blocks INTEGER NOT NULL,
        in_use INTEGER NOT NULL,
        kept_known INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE snapshot (
        epoch INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        guid TEXT NOT NULL UNIQUE,
        time_ns INTEGER NOT NULL,
        snap_group TEXT NOT NULL,
        state INTEGER NOT NULL,
        blocks INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX snapshot_name ON snapshot (name) WHERE state = 0;
    CREATE TABLE kept (
        seen INTEGER NOT NULL, layer INTEGER NOT NULL, blocks INTEGER NOT NULL,
        PRIMARY KEY (seen, layer)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE hold (
        epoch INTEGER NOT NULL REFERENCES snapshot (epoch) ON DELETE CASCADE,
        owner TEXT NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (epoch, owner)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE rollback (epoch INTEGER PRIMARY KEY, target INTEGER NOT NULL) STRICT;

    CREATE TABLE orphan (ino INTEGER PRIMARY KEY) STRICT;

    CREATE TABLE reclaim (
        ino INTEGER NOT NULL, layer INTEGER NOT NULL, PRIMARY KEY (ino, layer)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE sweep (epoch INTEGER PRIMARY KEY, next_dir INTEGER NOT NULL) STRICT;

    CREATE TABLE incoming (
        id INTEGER PRIMARY KEY CHECK (id = 1), progress BLOB NOT NULL
    ) STRICT;

    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    """
)


class OldFormatError(FormatError):
    """An older release wrote it: `upgrade` makes it ours."""


def connect(path: Path, *, query_only: bool) -> sqlite3.Connection:
    """An open meta.db of our format.

    Raises:
        OldFormatError: of an older format version.
        FormatError: not ours, or of a newer one.
        CorruptionError: SQLite can't make sense of the file.
    """
    # Never open the file otherwise while it may be in use: closing any descriptor of it drops
    # all of SQLite's locks that this process has on it (see "How To Corrupt An SQLite Database").
    if not path.is_file():
        raise CorruptionError(str(path), "the file is missing")
    try:
        # mode=rw for readers too: the first one after a crash has to recover the WAL.
        connection = sqlite3.connect(
            f"file:{_quoted(path)}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            timeout=30,
        )
    except sqlite3.Error as exc:
        raise CorruptionError(str(path), str(exc)) from exc
    try:
        _verify(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        # Commits reach stable storage by sync_log(), so that fsync can wait in a thread.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA temp_store = MEMORY")
        if query_only:
            connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error as exc:
        connection.close()
        if getattr(exc, "sqlite_errorname", "") in NO_ROOM and _is_full(path.parent):
            raise MediaError(
                errno.ENOSPC, str(path), hint="free some space on the pool's disk"
            ) from exc
        raise CorruptionError(str(path), str(exc)) from exc
    except BaseException:
        connection.close()
        raise
    return connection


def _is_full(directory: Path) -> bool:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize < 1 << 20


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise FormatError(str(path), "this is not the meta.db of a nasfs volume")
    if version != FORMAT_VERSION:
        raise (OldFormatError if version in _UPGRADES else FormatError)(
            str(path),
            f"format version {version}, this release reads version {FORMAT_VERSION}",
            hint="open the volume with the release that wrote it, or a newer one",
        )


_UPGRADES = {
    1: """
    CREATE TABLE kept (
        seen INTEGER NOT NULL, layer INTEGER NOT NULL, blocks INTEGER NOT NULL,
        PRIMARY KEY (seen, layer)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE volume ADD COLUMN kept_known INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE snapshot ADD COLUMN blocks INTEGER NOT NULL DEFAULT 0;
    UPDATE snapshot SET blocks = (
        SELECT ifnull(sum(blocks), 0) FROM (
            SELECT blocks FROM inode WHERE born <= snapshot.epoch UNION ALL
            SELECT blocks FROM inode_past
            WHERE born <= snapshot.epoch AND died > snapshot.epoch));
    UPDATE volume SET kept_known = NOT EXISTS (SELECT * FROM snapshot);
    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX dirent_ino ON dirent (ino);
    CREATE INDEX dirent_past_ino ON dirent_past (ino);
    PRAGMA user_version = 2;
    """,
}
"""For each older version what makes it the next one."""


def upgrade(path: Path) -> None:
    """Bring meta.db to our format, durably; the caller owns the volume.

    Raises:
        CorruptionError: SQLite could not.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA synchronous = FULL")
            while (version := db.execute("PRAGMA user_version").fetchone()[0]) in _UPGRADES:
                db.executescript(f"BEGIN IMMEDIATE; {_UPGRADES[version]} COMMIT;")
            # Into the tables: a log is of one release.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as exc:
            raise CorruptionError(str(path), f"upgrade of its format: {exc}") from exc


def create(path: Path, *, uuid: str, size: int, provision: str, mode: int, now_ns: int) -> None:
    """A new meta.db with an empty root directory, durable when the caller has synced it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.executescript("BEGIN;" + DDL + f"PRAGMA user_version = {FORMAT_VERSION};COMMIT;")
        connection.execute("BEGIN")
        connection.execute(
            "INSERT INTO volume VALUES (1, ?, ?, ?, 1, ?, ?, ?, 1, 0, 0, 0, 1)",
            (uuid, size, provision, FIRST_INO, FIRST_INO, FIRST_COOKIE),
        )
        root = (ROOT_INO, 1, 1, mode, 0, 0, 2, 0, 4096, *[now_ns] * 4, ROOT_INO, None, 0, 0, 0, 0)
        marks = ", ".join("?" * len(INODE.columns))
        connection.execute(f"INSERT INTO inode VALUES ({marks})", root)
        connection.execute("COMMIT")
    finally:
        connection.close()
