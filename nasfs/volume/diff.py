"""What changed between two snapshots, or since one, as a person sees it: paths, not rows.

Theory of operation.  The versioned tables tell which inodes have any row that differs (the same
queries as a delta's, so it costs what changed).  Each of those is looked at in both views: its
names, its attributes, its map.  An inode that has another name is *renamed*, whatever happened to
it besides; a directory that moved is one entry, because its content has the same parent as before.

What comes out is sorted by path in a temporary database of SQLite's own, which goes to the disk
when it grows: neither a million entries nor a slow reader of them takes memory.
"""

from __future__ import annotations

import itertools
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from nasfs.volume.delta import PAGE, Delta, touched
from nasfs.volume.errors import CorruptionError, NoSuchSnapshot
from nasfs.volume.pool import open_volume
from nasfs.volume.schema import DIRENT
from nasfs.volume.types import ROOT_INO, Access, Epoch, Inode
from nasfs.volume.view import AsOf
from nasfs.volume.volume import Volume

Kind = Literal["added", "removed", "renamed", "changed"]

KINDS: tuple[Kind, ...] = ("removed", "added", "renamed", "changed")
"""In the order in which they stand at one path."""

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}

PATHS = 50_000
"""Directories whose paths are remembered, of each side."""

DEPTH_MAX = 1 << 16
"""More directories above each other than a damaged volume is followed through."""

_DIRENT_INO = DIRENT.columns.index("ino")


class DiffEntry(msgspec.Struct, frozen=True):
    """One path that differs.  Paths are relative to the volume's root, without a first slash."""

    change: Kind
    type: str
    path: bytes
    """Where it is now; of what was removed, where it was."""
    old_path: bytes
    """Of what was renamed; else empty."""
    what: tuple[str, ...]
    """Of what changed: data, mode, owner, times, xattrs, device or target."""
    ino: int


class _Side:
    """One of the two views, with the way from an inode to its names."""

    def __init__(self, volume: Volume, view: AsOf) -> None:
        self.view = view
        self._dirents = volume._store.dirents
        self._xattrs = volume._store.xattrs
        self._paths: dict[int, bytes] = {ROOT_INO: b""}

    def inode(self, ino: int) -> Inode | None:
        """None, too, for an inode that has no name (it was open)."""
        inode = self.view._inode(ino)
        return None if inode is None or inode.nlink == 0 else inode

    def names(self, ino: int) -> set[tuple[int, bytes]]:
        """(directory, name) of all names."""
        rows = self._dirents.scan_at("ino = ?", (ino,), self.view.epoch)
        return {(row[0], row[1]) for row in rows}

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        rows = self._xattrs.scan_at("ino = ?", (ino,), self.view.epoch)
        return {row[1]: row[3] for row in rows}

    def path(self, parent: int, name: bytes) -> bytes:
        above = self._directory(parent)
        return above + b"/" + name if above else name

    def _directory(self, ino: int) -> bytes:
        steps: list[tuple[int, bytes]] = []
        while (known := self._paths.get(ino)) is None:
            names = self.names(ino)
            if len(names) != 1 or len(steps) > DEPTH_MAX:
                raise CorruptionError(f"directory {ino}", f"it has {len(names)} names")
            ((parent, name),) = names
            steps.append((ino, name))
            ino = parent
        if len(self._paths) > PATHS:
            self._paths = {ROOT_INO: b""}
        for below, name in reversed(steps):
            known = self._paths[below] = known + b"/" + name if known else name
        return known


class Diff:
    """The entries, sorted by path.  A context manager: what it keeps goes with its end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """How many of each kind."""
        # An empty name: a file without a name, made only when memory does not hold it.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA cache_size = -16384")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE touched (ino INTEGER PRIMARY KEY)")
        self._db.execute(
            "CREATE TABLE entry (path BLOB, rank INTEGER, number INTEGER, entry BLOB,"
            " PRIMARY KEY (path, rank, number)) WITHOUT ROWID"
        )
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def entries(self) -> Iterator[DiffEntry]:
        """A directory before what is in it."""
        decoder = msgspec.msgpack.Decoder(DiffEntry)
        rows = self._db.execute("SELECT entry FROM entry ORDER BY path, rank, number")
        for (encoded,) in rows:
            yield decoder.decode(encoded)

    # filling it

    def fill(self, volume: Volume, old: Epoch, new: Epoch) -> None:
        """Compare two views; `new` may be older than `old`, then it tells the way back."""
        if old == new:
            return
        self._db.execute("BEGIN")
        low, high = min(old, new), max(old, new)
        for table, column in (
            (volume._store.inodes, 0),
            (volume._store.dirents, _DIRENT_INO),
            (volume._store.xattrs, 0),
        ):
            for page in touched(table, low, high):
                self._db.executemany(
                    "INSERT OR IGNORE INTO touched VALUES (?)", [(row[column],) for row in page]
                )
        delta = Delta(volume._store, volume._layers, low, high)
        sides = [_Side(volume, view) for view in delta.views]
        before, after = sides if old == low else reversed(sides)
        last = 0
        while numbers := self._touched_after(last):
            for ino in numbers:
                self._compare(ino, before, after, delta)
            last = numbers[-1]
        self._db.execute("COMMIT")

    def _touched_after(self, after: int) -> list[int]:
        rows = self._db.execute(
            "SELECT ino FROM touched WHERE ino > ? ORDER BY ino LIMIT ?", (after, PAGE)
        )
        return [row[0] for row in rows]

    def _compare(self, ino: int, before: _Side, after: _Side, delta: Delta) -> None:
        was, now = before.inode(ino), after.inode(ino)
        if was is not None and now is not None and _is_other(was, now):
            self._all("removed", was, before)
            self._all("added", now, after)
        elif was is not None and now is not None:
            self._moved(was, now, before, after, delta)
        elif was is not None:
            self._all("removed", was, before)
        elif now is not None:
            self._all("added", now, after)

    def _all(self, kind: Kind, inode: Inode, side: _Side) -> None:
        for parent, name in side.names(inode.ino):
            self._add(kind, inode, side.path(parent, name))

    def _moved(self, was: Inode, now: Inode, before: _Side, after: _Side, delta: Delta) -> None:
        """An inode that is in both: its names, then what it is."""
        old_names, new_names = before.names(was.ino), after.names(now.ino)
        gone, fresh = sorted(old_names - new_names), sorted(new_names - old_names)
        kept = old_names & new_names
        for old, new in zip(gone, fresh, strict=False):
            self._add("renamed", now, after.path(*new), old_path=before.path(*old))
            kept.add(new)
        for old in gone[len(fresh) :]:
            self._add("removed", was, before.path(*old))
        for new in fresh[len(gone) :]:
            self._add("added", now, after.path(*new))
        what = _what_changed(was, now, before, after, delta)
        if what and was.ino != ROOT_INO:
            for name in kept:
                self._add("changed", now, after.path(*name), what=what)
        elif what:
            self._add("changed", now, b"", what=what)

    def _add(
        self,
        kind: Kind,
        inode: Inode,
        path: bytes,
        *,
        old_path: bytes = b"",
        what: tuple[str, ...] = (),
    ) -> None:
        type_ = TYPES.get(stat.S_IFMT(inode.mode), "unknown")
        entry = DiffEntry(kind, type_, path, old_path, what, inode.ino)
        self.counts[kind] += 1
        # A zero is in no name: so a directory stands just before what is in it.
        key = path.replace(b"/", b"\0")
        self._db.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?)",
            (key, KINDS.index(kind), next(self._numbers), msgspec.msgpack.encode(entry)),
        )


def _is_other(was: Inode, now: Inode) -> bool:
    """Not the same object any more, though it has the number."""
    return was.generation != now.generation or stat.S_IFMT(was.mode) != stat.S_IFMT(now.mode)


def _what_changed(
    was: Inode, now: Inode, before: _Side, after: _Side, delta: Delta
) -> tuple[str, ...]:
    """Times count where they are all that changed, and never of directories: entries set them."""
    what = []
    if was.is_file and (was.size != now.size or delta.data_differs(was.ino)):
        what.append("data")
    if was.mode != now.mode:
        what.append("mode")
    if (was.uid, was.gid) != (now.uid, now.gid):
        what.append("owner")
    if was.rdev != now.rdev:
        what.append("device")
    if was.target != now.target:
        what.append("target")
    if before.xattrs(was.ino) != after.xattrs(now.ino):
        what.append("xattrs")
    times = (was.atime_ns, was.mtime_ns) != (now.atime_ns, now.mtime_ns)
    if times and not what and not was.is_dir:
        what.append("times")
    return tuple(what)


def diff_volume(path: Path, old: str, new: str | None) -> Diff:
    """What is different in the snapshot *new*, or in the live view (None), from *old*.

    Whoever owns the volume is not disturbed.  The live view is that of the last commit: have the
    owner commit before, and everything that returned before that is in it.

    Raises:
        NoSuchSnapshot: there is none of that name or GUID, or it was destroyed meanwhile.
    """
    found = Diff()
    try:
        with open_volume(path, Access.READ_ONLY) as volume:
            base = volume.snapshot(old)
            if new is None:
                with volume.as_of_last_commit() as epoch:
                    found.fill(volume, base.epoch, epoch)
            else:
                target = volume.snapshot(new)
                found.fill(volume, base.epoch, target.epoch)
                _check_there(volume, target.guid)
            _check_there(volume, base.guid)
    except BaseException:
        found.close()
        raise
    return found


def _check_there(volume: Volume, guid: str) -> None:
    """No row of a snapshot goes before it is marked as being destroyed."""
    try:
        volume.snapshot(guid)
    except NoSuchSnapshot as exc:
        raise NoSuchSnapshot("a snapshot was destroyed while it was compared") from exc
