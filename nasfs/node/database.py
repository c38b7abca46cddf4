"""node.db: opening it, its format version, transactions.  What it means stands in ``state``."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasfs.errors import Failed

APPLICATION_ID = 0x6E6F6465  # "node"
BUSY_S = 20.0

_SCHEMA = """
CREATE TABLE node (one INTEGER PRIMARY KEY CHECK (one = 1), uuid TEXT NOT NULL) STRICT;
CREATE TABLE pool (
    uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, path TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE consistency_group (
    uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('active', 'passive', 'failed-over', 'stale')),
    term INTEGER NOT NULL CHECK (term >= 1)) STRICT;
CREATE TABLE volume (
    uuid TEXT PRIMARY KEY, pool TEXT NOT NULL REFERENCES pool, name TEXT NOT NULL,
    mountpoint TEXT NOT NULL, wanted INTEGER NOT NULL CHECK (wanted IN (0, 1)),
    grp TEXT REFERENCES consistency_group, UNIQUE (pool, name)) STRICT;
CREATE TABLE peer (
    one INTEGER PRIMARY KEY CHECK (one = 1), uuid TEXT NOT NULL, name TEXT NOT NULL,
    address TEXT NOT NULL, certificate TEXT NOT NULL) STRICT;
CREATE TABLE invitation (
    one INTEGER PRIMARY KEY CHECK (one = 1), digest BLOB NOT NULL,
    expires_ns INTEGER NOT NULL) STRICT;
CREATE TABLE replication (
    grp TEXT PRIMARY KEY REFERENCES consistency_group, to_pool TEXT NOT NULL,
    provision TEXT NOT NULL CHECK (provision IN ('thin', 'exact')),
    max_snapshots INTEGER NOT NULL, compression TEXT NOT NULL,
    paused INTEGER NOT NULL CHECK (paused IN (0, 1))) STRICT;
CREATE TABLE reception (
    grp TEXT PRIMARY KEY REFERENCES consistency_group ON DELETE CASCADE,
    max_snapshots INTEGER NOT NULL) STRICT;
CREATE TABLE remote_name (
    volume TEXT PRIMARY KEY REFERENCES volume ON DELETE CASCADE, name TEXT NOT NULL) STRICT;
CREATE TABLE transfer (
    grp TEXT PRIMARY KEY REFERENCES replication ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state IN ('idle', 'running', 'waiting', 'stopped')),
    reason TEXT NOT NULL, hint TEXT NOT NULL, exit_code INTEGER NOT NULL,
    attempts INTEGER NOT NULL, changed_ns INTEGER NOT NULL, done_ns INTEGER NOT NULL,
    "rows" INTEGER NOT NULL, bytes INTEGER NOT NULL, wire_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL) STRICT;
CREATE TABLE journal (
    grp TEXT PRIMARY KEY REFERENCES consistency_group, kind TEXT NOT NULL, body BLOB NOT NULL,
    next_step INTEGER NOT NULL) STRICT;
CREATE TABLE event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, actor TEXT NOT NULL,
    kind TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
"""


_UPGRADES = (
    # 1 to 2: snapshot policies; snap groups that are decided and not settled everywhere
    """
CREATE TABLE snap_group (
    uuid TEXT PRIMARY KEY,
    grp TEXT NOT NULL REFERENCES consistency_group ON DELETE CASCADE) STRICT;
CREATE TABLE policy (
    uuid TEXT PRIMARY KEY, name TEXT NOT NULL,
    volume TEXT REFERENCES volume ON DELETE CASCADE,
    grp TEXT REFERENCES consistency_group ON DELETE CASCADE,
    spec TEXT NOT NULL, paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
    last_ns INTEGER NOT NULL,
    result TEXT NOT NULL CHECK (result IN ('none', 'done', 'failed', 'skipped', 'missed')),
    detail TEXT NOT NULL, result_ns INTEGER NOT NULL, done_ns INTEGER NOT NULL,
    failures INTEGER NOT NULL, CHECK ((volume IS NULL) <> (grp IS NULL)),
    UNIQUE (volume, name), UNIQUE (grp, name)) STRICT;
CREATE TABLE policy_run (
    policy TEXT PRIMARY KEY REFERENCES policy ON DELETE CASCADE,
    occurrence_ns INTEGER NOT NULL, began_ns INTEGER NOT NULL, snapshot TEXT NOT NULL) STRICT;
CREATE TABLE claim (
    policy TEXT NOT NULL REFERENCES policy ON DELETE CASCADE, name TEXT NOT NULL,
    since_ns INTEGER NOT NULL, volumes TEXT NOT NULL, run INTEGER NOT NULL,
    PRIMARY KEY (policy, name)) STRICT;
CREATE TABLE made (
    guid TEXT PRIMARY KEY, policy TEXT NOT NULL REFERENCES policy ON DELETE CASCADE,
    volume TEXT NOT NULL REFERENCES volume ON DELETE CASCADE, run INTEGER NOT NULL) STRICT;
CREATE INDEX made_policy ON made (policy, run);
CREATE INDEX made_volume ON made (volume);
CREATE INDEX made_run ON made (run);
""",
    # 2 to 3: the link's windows, rates and shares; what both sides have; what was sent when
    """
ALTER TABLE replication ADD COLUMN priority INTEGER NOT NULL DEFAULT 100;
ALTER TABLE replication ADD COLUMN rate INTEGER NOT NULL DEFAULT 0;
ALTER TABLE replication ADD COLUMN windows TEXT NOT NULL DEFAULT '';
ALTER TABLE replication ADD COLUMN max_lag_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE replication ADD COLUMN rpo_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE replication ADD COLUMN split INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reception ADD COLUMN keep_least INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reception ADD COLUMN keep_most INTEGER NOT NULL DEFAULT 0;
CREATE TABLE link (
    one INTEGER PRIMARY KEY CHECK (one = 1), rate INTEGER NOT NULL,
    transfers INTEGER NOT NULL) STRICT;
CREATE TABLE common (
    grp TEXT PRIMARY KEY REFERENCES replication ON DELETE CASCADE, snap_group TEXT NOT NULL,
    name TEXT NOT NULL, time_ns INTEGER NOT NULL, skew_ns INTEGER NOT NULL) STRICT;
CREATE TABLE transfer_history (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    grp TEXT NOT NULL REFERENCES replication ON DELETE CASCADE,
    began_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL, result TEXT NOT NULL,
    detail TEXT NOT NULL, snapshot TEXT NOT NULL, snapshots INTEGER NOT NULL,
    "rows" INTEGER NOT NULL, bytes INTEGER NOT NULL, wire_bytes INTEGER NOT NULL) STRICT;
CREATE INDEX transfer_history_grp ON transfer_history (grp, number);
""",
    # 3 to 4: shares
    """
CREATE TABLE share (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
""",
    # 4 to 5: shares on their way to the partner, merges in force, who owns a snapshot's files
    """
CREATE TABLE share_travel (
    grp TEXT PRIMARY KEY REFERENCES consistency_group ON DELETE CASCADE,
    digest TEXT NOT NULL, time_ns INTEGER NOT NULL, problem TEXT NOT NULL) STRICT;
CREATE TABLE merge (
    grp TEXT PRIMARY KEY REFERENCES consistency_group ON DELETE CASCADE,
    body TEXT NOT NULL) STRICT;
CREATE TABLE identity_count (
    volume TEXT PRIMARY KEY REFERENCES volume ON DELETE CASCADE, guid TEXT NOT NULL,
    body TEXT NOT NULL) STRICT;
""",
    # 5 to 6: test failovers
    """
CREATE TABLE drill (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE drill_report (
    number INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, body TEXT NOT NULL) STRICT;
CREATE INDEX drill_report_grp ON drill_report (grp, number);
""",
    # 6 to 7: which of the two nodes is a group's original primary
    """
ALTER TABLE consistency_group ADD COLUMN home INTEGER NOT NULL DEFAULT 1 CHECK (home IN (0, 1));
UPDATE consistency_group SET home = 0 WHERE role IN ('passive', 'failed-over');
""",
    # 7 to 8: what the active node said last of what is not replicated
    """
CREATE TABLE partner_word (
    grp TEXT PRIMARY KEY REFERENCES consistency_group ON DELETE CASCADE,
    body TEXT NOT NULL) STRICT;
""",
    # 8 to 9: primaries that have come back, and wait for a word from their partner
    """
CREATE TABLE waiting (
    grp TEXT PRIMARY KEY REFERENCES consistency_group ON DELETE CASCADE,
    term INTEGER NOT NULL, since_ns INTEGER NOT NULL) STRICT;
CREATE TABLE followed (
    grp TEXT PRIMARY KEY REFERENCES consistency_group ON DELETE CASCADE,
    term INTEGER NOT NULL) STRICT;
CREATE TABLE looked_back (
    one INTEGER PRIMARY KEY CHECK (one = 1), daemon TEXT NOT NULL) STRICT;
""",
    # 9 to 10: lanes of replications
    """
ALTER TABLE replication ADD COLUMN lanes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE replication ADD COLUMN encryption TEXT NOT NULL DEFAULT 'on'
    CHECK (encryption IN ('on', 'off'));
""",
)
"""From each format version to the next.  A new file is made as version 1 and upgraded."""

VERSION = 1 + len(_UPGRADES)


class Database:
    """One connection to node.db, shared by the threads of a process one at a time.

    Every change is durable when its transaction has ended (``synchronous=FULL``), so a process
    may be killed at any point.
    """

    def __init__(self, path: Path) -> None:
        """Open, and create if need be.  Raises Failed if it is damaged or of another version."""
        self._path = path
        self._lock = threading.RLock()
        try:
            self._sql = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as exc:
            raise Failed(f"cannot open {path}: {exc}") from exc
        try:
            self._prepare()
        except BaseException:
            self._sql.close()
            raise

    def _prepare(self) -> None:
        with self._translated():
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute("PRAGMA synchronous = FULL")
            self._sql.execute("PRAGMA foreign_keys = ON")
        with self.change():
            (version,) = self.row("PRAGMA user_version") or (0,)
            (tables,) = self.row("SELECT count(*) FROM sqlite_schema") or (0,)
            if version == 0 and tables == 0:
                self._run(_SCHEMA)
                self._sql.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                version = 1
            elif self.row("PRAGMA application_id") != (APPLICATION_ID,) or not (
                1 <= version <= VERSION
            ):
                raise Failed(
                    f"{self._path} has format version {version}, this release knows {VERSION}",
                    hint="install the release that wrote it",
                )
            if version < VERSION:  # all steps or, if the process is killed, none
                for script in _UPGRADES[version - 1 :]:
                    self._run(script)
                self._sql.execute(f"PRAGMA user_version = {VERSION}")

    def _run(self, script: str) -> None:
        for statement in filter(str.strip, script.split(";")):
            self._sql.execute(statement)

    def close(self) -> None:
        with self._lock:
            self._sql.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise Failed(f"{self._path}: {exc}", hint="is the disk full or damaged?") from exc

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction: durable as a whole when the context ends well, else nothing of it."""
        with self._lock, self._translated():
            if self._sql.in_transaction:  # nested: belongs to the outer one
                yield
                return
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    @property
    def is_changing(self) -> bool:
        """Whether a transaction is open: then what fails makes the whole of it fail."""
        with self._lock:
            return self._sql.in_transaction

    def do(self, sql: str, *values: Any) -> int:
        """One statement; how many rows it changed."""
        with self._lock, self._translated():
            return self._sql.execute(sql, values).rowcount

    def do_soon(self, sql: str, *values: Any) -> None:
        """One statement that waits for no disk: it is durable together with the next change.

        For what can be found out again.
        """
        with self._lock, self._translated():
            if self._sql.in_transaction:
                self._sql.execute(sql, values)
                return
            self._sql.execute("PRAGMA synchronous = NORMAL")  # with WAL: no sync at a commit
            try:
                self._sql.execute(sql, values)
            finally:
                self._sql.execute("PRAGMA synchronous = FULL")

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock, self._translated():
            found: tuple[Any, ...] | None = self._sql.execute(sql, values).fetchone()
            return found

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._sql.execute(sql, values).fetchall()
