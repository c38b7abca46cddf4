"""The metadata of an open volume: tables, counters, snapshots, transactions.

One SQLite connection holds one long transaction between two commits.  `Store` begins it with the
first change, keeps rows in write-back caches, and writes the counters with the
commit.  It knows nothing of files' data.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec

from nasfs.volume import schema
from nasfs.volume.blockmap import LeafValue
from nasfs.volume.errors import CorruptionError, MediaError
from nasfs.volume.kept import Kept
from nasfs.volume.media import HostMedia, Media
from nasfs.volume.names import Names
from nasfs.volume.table import Epochs, Key, KeyBuffer, VersionedTable, WriteBack
from nasfs.volume.types import Access, Epoch, Inode, Snapshot, SnapshotState
from nasfs.volume.xattrs import Xattrs

INO_RESERVE = 65_536
"""Inode numbers are reserved durably in such pieces, so that none is given twice, crash or not."""

REWRITE_BYTES = 1024 * 1024
"""The log is rewritten in pieces of this size."""

PAGE_BYTES = 4096 + 24
"""A page of meta.db in the log."""

CHECKPOINT_BYTES = 32 * 1024 * 1024
"""From this size of the WAL on a commit is followed by a checkpoint."""


class Buffer(Protocol):
    """A cache whose changes are written later."""

    @property
    def dirty_count(self) -> int: ...

    def flush(self) -> None: ...

    def forget(self) -> None: ...


INODES = 100_000
LEAVES = 2_000
"""Rows that the caches keep: about 70 MB when all are full (see docs/concurrency.md)."""


class Leaf(msgspec.Struct, frozen=True, gc=False):
    """One row of the table ``leaf``, in the order of its columns."""

    ino: int
    region: int
    born: int
    map: LeafValue


class Counters(msgspec.Struct):
    """What the row of the table ``volume`` counts (denormalised; ``check`` recomputes them)."""

    next_ino: int
    reserved_ino: int
    next_cookie: int
    inodes: int
    live_blocks: int
    snapshot_blocks: int


class Store:
    """See the module.  Methods that change need `begin` before and `commit` some time after."""

    OPERATION_BYTES = 128 * 1024
    """What one change adds to the log at most: its rows, their versions, and all their indexes."""

    CHANGE_BYTES_MIN = 16 * 1024

    def __init__(self, path: Path, access: Access, media: Media | None = None) -> None:
        self.path = path
        self._media = HostMedia() if media is None else media
        self.writable = access is Access.READ_WRITE
        self.db = schema.connect(path, query_only=not self.writable)
        self._wal_fd: int | None = None
        self._log_failed = False
        self.failure = ""
        """Why the open transaction can't be trusted any more."""
        self.changes = 0
        """Changes in the open transaction."""
        self._change_bytes = self.OPERATION_BYTES
        try:
            self.epochs = Epochs(0, 0)
            self._load()
        except (sqlite3.Error, TypeError, ValueError) as exc:
            self.db.close()
            raise CorruptionError(str(path), str(exc)) from exc
        except BaseException:
            self.db.close()
            raise

    def _load(self) -> None:
        self.inodes = VersionedTable(self.db, schema.INODE, self.epochs)
        self.dirents = VersionedTable(self.db, schema.DIRENT, self.epochs)
        self.xattrs = VersionedTable(self.db, schema.XATTR, self.epochs)
        self.leaves = VersionedTable(self.db, schema.LEAF, self.epochs)
        self.inode = WriteBack(
            self.inodes, _inode_key, Inode, msgspec.structs.astuple, limit=INODES
        )
        self.dirent = Names(self.db, self.dirents)
        self.leaf: WriteBack[Key, Leaf] = WriteBack(
            self.leaves, tuple, Leaf, msgspec.structs.astuple, limit=LEAVES
        )
        self.xattr = Xattrs(self.xattrs)
        self.orphan = KeyBuffer(self.db, "orphan", ("ino",))
        self.reclaim = KeyBuffer(self.db, "reclaim", ("ino", "layer"))
        self.kept = Kept(self.db)
        self._buffers: tuple[Buffer, ...] = (
            self.inode,
            self.dirent,
            self.leaf,
            self.orphan,
            self.reclaim,
            self.kept,
        )
        self.load_state()

    @property
    def tables(self) -> tuple[VersionedTable, ...]:
        return self.inodes, self.dirents, self.xattrs, self.leaves

    def load_state(self) -> None:
        """Counters, epoch and snapshots as the database has them; cached rows are dropped."""
        row = self.db.execute(
            "SELECT uuid, size, provision, epoch, next_ino, reserved_ino, next_cookie,"
            " inodes, live_blocks, snapshot_blocks, in_use FROM volume"
        ).fetchone()
        if row is None:
            raise CorruptionError(str(self.path), "the table volume is empty")
        self.uuid, self.size, self.provision = row[0:3]
        self.epochs.current = row[3]
        self.counters = Counters(*row[4:10])
        self.in_use = bool(row[10])
        self.kept.load()
        self.load_snapshots()
        self.forget()

    def forget(self) -> None:
        """Drop all rows that are cached, and the changes of them that were not flushed."""
        for buffer in self._buffers:
            buffer.forget()
        self.xattr.forget()

    def load_snapshots(self) -> None:
        self.all_snapshots = [
            Snapshot(Epoch(row[0]), row[1], row[2], row[3], row[4], SnapshotState(row[5]), row[6])
            for row in self.db.execute(
                "SELECT epoch, name, guid, time_ns, snap_group, state, blocks FROM snapshot"
                " ORDER BY epoch"
            )
        ]
        self.snapshot_epochs = [snapshot.epoch for snapshot in self.all_snapshots]
        self.epochs.newest = self.snapshot_epochs[-1] if self.snapshot_epochs else 0
        self.sealed = {s.epoch: s for s in self.all_snapshots if s.state is SnapshotState.SEALED}
        self.sealed_names = {s.name: s for s in self.sealed.values()}
        rollbacks = self.db.execute("SELECT epoch, target FROM rollback").fetchall()
        self.destroying = [s for s in self.all_snapshots if s.state is SnapshotState.DESTROYING]
        staying = [s.epoch for s in self.all_snapshots if s.state is not SnapshotState.DESTROYING]
        self._newest_ancestor = newest_ancestor(staying, rollbacks)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """The live view was sealed just now: what `load_snapshots` would find, without reading."""
        self.all_snapshots.append(snapshot)
        self.snapshot_epochs.append(snapshot.epoch)
        self.epochs.newest = self._newest_ancestor = snapshot.epoch
        if snapshot.state is SnapshotState.SEALED:
            self.sealed[snapshot.epoch] = self.sealed_names[snapshot.name] = snapshot

    def came_back(self, epoch: Epoch) -> None:
        """A part of the live view is about to become what it was at a sealed epoch.

        Blocks that only that snapshot and those before it saw are live again, so later ones
        can't be taken for granted any more (`held_by_ancestor`).
        """
        rollbacks = self.db.execute("SELECT epoch, target FROM rollback").fetchall()
        common = common_ancestor(epoch, self.epochs.current, rollbacks)
        if common < self.epochs.newest:
            self.execute(
                "INSERT OR REPLACE INTO rollback VALUES (?, ?)", (self.epochs.current, common)
            )
            with self.sql_errors():
                self.kept.lose()
            self.load_snapshots()

    def ancestors(self) -> list[Snapshot]:
        """The sealed ones from which the live view descends: no rollback left them aside."""
        rollbacks = self.db.execute("SELECT epoch, target FROM rollback").fetchall()
        current = self.db.execute("SELECT epoch FROM volume").fetchone()[0]
        aside = _left_aside(current, rollbacks)
        return [
            snapshot
            for snapshot in self.sealed.values()
            if not any(target < snapshot.epoch < end for target, end in aside)
        ]

    def setting(self, name: str) -> str:
        """What was set, as of the last commit; empty if nothing was."""
        row = self.db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def held_by_ancestor(self, layer: int) -> bool | None:
        """Whether a snapshot sees a block that the live view sees in *layer*.

        The live view's snapshots are its ancestors: a block written in epoch `layer` and still
        live was seen by each ancestor from that epoch on.  None: only snapshots that a rollback
        left aside, or that are being destroyed, could see it, so one has to look.
        """
        if layer <= self._newest_ancestor:
            return True
        if layer > self.epochs.newest:
            return False
        return None

    def changed_since(self, epoch: int) -> bool:
        """Whether a row of the live view is not what a sealed snapshot sees."""
        if any(cache.dirty_count for cache in (self.inode, self.dirent, self.leaf)):
            return True  # whatever was not flushed came after the newest seal
        return any(table.changed_since(epoch) for table in self.tables)

    # transactions

    def begin(self) -> None:
        """Begin the transaction if none is open; a change is about to be made."""
        self.changes += 1
        if not self.db.in_transaction:
            with self.sql_errors():
                self.db.execute("BEGIN IMMEDIATE")

    def flush(self, *buffers: Buffer) -> None:
        """Write cached rows, of all tables or of these, so that SQL sees what the caches know."""
        for buffer in buffers or self._buffers:
            if buffer.dirty_count:
                self.begin()
                with self.sql_errors():
                    buffer.flush()

    @property
    def dirty_count(self) -> int:
        """Rows that `flush` would write."""
        return sum([buffer.dirty_count for buffer in self._buffers])

    def commit(self) -> None:
        """Flush, write the counters, commit.  Durable after `sync_log`."""
        self.flush()
        if not self.db.in_transaction:
            return
        with self.sql_errors():
            self._write_counters()
        before = self.log_size()
        with self.sql_errors(may_retry=True):
            self.db.execute("COMMIT")
        self._learn_cost(self.log_size() - before)
        self.changes = 0

    def _learn_cost(self, grown: int) -> None:
        """What a change costs depends on how many share a page: as much as lately, twice."""
        latest = 2 * grown // max(self.changes, 1)
        self._change_bytes = max(latest, self._change_bytes * 3 // 4, self.CHANGE_BYTES_MIN)

    def _write_counters(self) -> None:
        self.db.execute(
            "UPDATE volume SET epoch = ?, next_ino = ?, reserved_ino = ?, next_cookie = ?,"
            " inodes = ?, live_blocks = ?, snapshot_blocks = ?",
            (self.epochs.current, *msgspec.structs.astuple(self.counters)),
        )

    def rollback_transaction(self) -> None:
        """Back to the last commit, caches included."""
        self.forget()
        self.changes = 0
        try:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            self.load_state()
        except sqlite3.Error as exc:
            raise CorruptionError(str(self.path), str(exc)) from exc
        self.failure = ""

    @property
    def changed(self) -> bool:
        return self.db.in_transaction or self.dirty_count > 0

    def sync_log(self) -> None:
        """Make what was committed durable.  May be called in a thread."""
        # Closing a descriptor of the WAL drops no lock: SQLite's are on meta.db and -shm.
        if self._wal_fd is None:
            self._media.sync_directory(self.path.parent)  # a new log's name has to survive, too
            self._wal_fd = self._media.open(Path(f"{self.path}-wal"), write=False)
        try:
            self._media.sync(self._wal_fd)
        except MediaError:
            self._log_failed = True
            raise

    def rewrite_log(self) -> None:
        """Write the bytes of the log where they are once more, and sync them.

        What the host has failed to write is clean in its memory: a sync alone would tell that all
        is well, and a power cut would leave a log with a gap, before commits that came later or
        behind tables that were newer.
        """
        fd = self._media.open(Path(f"{self.path}-wal"), write=True)
        try:
            for offset in range(0, self._media.size(fd), REWRITE_BYTES):
                data = self._media.read(fd, REWRITE_BYTES, offset)
                self._media.write(fd, [data], offset)
            self._media.sync(fd)
        finally:
            self._media.close(fd)

    def checkpoint_needed(self) -> bool:
        return self.log_size() > CHECKPOINT_BYTES

    def log_size(self) -> int:
        """Bytes in the log."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def extend_log(self, count: int) -> bool:
        """Have space behind the end of the log allocated; False if there is not so much."""
        size = self.log_size()
        try:
            self._media.allocate_behind(Path(f"{self.path}-wal"), size, size + count)
        except MediaError:
            return False
        return True

    def log_need(self) -> int:
        """Bytes that the open transaction adds to the log at most: each page once."""
        if not self.db.in_transaction:
            return 0
        pages = self.db.execute("PRAGMA page_count").fetchone()[0] + self.dirty_count
        return min(self.changes * self._change_bytes, int(pages) * PAGE_BYTES)

    def checkpoint(self) -> None:
        """Move the WAL into meta.db and empty it.

        Where a reader is in the way or the disk is full, the WAL stays as it is: nothing is lost
        by that, and the next time may be better.
        """
        # By a connection of its own: readers on ours go on meanwhile.
        other = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            # It stays the same file, so the descriptor that we sync stays right.
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.DatabaseError as exc:
            name = getattr(exc, "sqlite_errorname", "")
            if not name.startswith(("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED")):
                self._raise_ours(exc)
        finally:
            other.close()

    def close(self) -> None:
        if self._wal_fd is not None:
            self._media.close(self._wal_fd)
            self._wal_fd = None
        if self._log_failed:  # closing moves it into the tables
            with suppress(MediaError):
                self.rewrite_log()
        self.db.close()

    @contextmanager
    def sql_errors(self, *, may_retry: bool = False) -> Iterator[None]:
        """SQLite's errors as ours.

        Args:
            may_retry: the statement is a whole by itself, so its failure leaves nothing half
                done; any other failure is noted in `failure`.
        """
        try:
            yield
        except sqlite3.DatabaseError as exc:
            if not (may_retry and self.db.in_transaction):
                self.failure = f"{self.path}: {exc}"
            self._raise_ours(exc)

    def _raise_ours(self, exc: sqlite3.DatabaseError) -> NoReturn:
        if isinstance(exc, sqlite3.OperationalError):
            code = getattr(exc, "sqlite_errorname", "")
            if code.startswith("SQLITE_FULL"):
                raise MediaError(errno.ENOSPC, str(self.path)) from exc
            if code.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise MediaError(errno.EIO, str(self.path)) from exc
        raise CorruptionError(str(self.path), str(exc)) from exc

    # small helpers over the tables

    def allocate_ino(self) -> int:
        """A number that was never given before, not even to something a crash has lost."""
        number = self.counters.next_ino
        if number >= self.counters.reserved_ino:
            raise AssertionError("reserve_inos comes before allocate_ino")
        self.counters.next_ino = number + 1
        return number

    def inos_left(self) -> int:
        return self.counters.reserved_ino - self.counters.next_ino

    def reserve_inos(self) -> None:
        """Reserve more numbers; they may be given once this is durable."""
        self.begin()
        self.counters.reserved_ino = (
            max(self.counters.reserved_ino, self.counters.next_ino) + INO_RESERVE
        )

    def next_cookie(self) -> int:
        cookie = self.counters.next_cookie
        self.counters.next_cookie = cookie + 1
        return cookie

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """A statement that changes something beside the four tables."""
        self.begin()
        with self.sql_errors():
            return self.db.execute(sql, values)


def _inode_key(ino: int) -> tuple[int]:
    return (ino,)


def newest_ancestor(snapshots: Sequence[int], rollbacks: list[tuple[int, int]]) -> int:
    """The newest of *snapshots* that the live view descends from; 0 if there is none.

    Args:
        snapshots: epochs, ascending.
        rollbacks: (epoch, target): in that epoch the live view became the snapshot `target`, so
            the snapshots in (target, epoch) are not among its ancestors.
    """
    limit = None
    for epoch, target in sorted(rollbacks, reverse=True):
        if limit is not None and epoch > limit:
            continue  # that rollback itself was left aside by a later one
        found = [s for s in snapshots if s >= epoch and (limit is None or s <= limit)]
        if found:
            return found[-1]
        limit = target
    found = [s for s in snapshots if limit is None or s <= limit]
    return found[-1] if found else 0


def common_ancestor(epoch: int, current: int, rollbacks: list[tuple[int, int]]) -> int:
    """The newest epoch from which both the view as of *epoch* and the live view descend.

    Args:
        current: the live view's epoch.
        rollbacks: as for `newest_ancestor`.
    """
    aside = [*_left_aside(epoch, rollbacks), *_left_aside(current, rollbacks)]
    common = epoch
    while gaps := [target for target, end in aside if target < common < end]:
        common = min(gaps)
    return common


def _left_aside(view: int, rollbacks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The open intervals of epochs before *view* from which that view does not descend."""
    found = []
    limit = view
    for epoch, target in sorted(rollbacks, reverse=True):
        if epoch <= limit:
            found.append((target, epoch))
            limit = target
    return found
