"""Everything that the tables tell about one inode, in all views at once.

`histories` reads the versioned tables side by side in the order of inode numbers, each row once,
however many snapshots there are, and never holds more than one inode's rows.  Between two epochs
in which nothing of an inode changed all views see the same of it: a `Moment`.  So what has to
hold in every view is looked at once for each moment that a view falls into.
"""

from __future__ import annotations

import sqlite3
import stat
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from nasfs.volume.blockmap import LeafValue
from nasfs.volume.types import Snapshot

FOREVER = 1 << 62
"""When a row dies that is visible in the live view."""

LIVE = FOREVER - 1
"""The live view, as an epoch."""


class InodeVersion(NamedTuple):
    """A row of `inode`, visible from `born` until before `died`."""

    born: int
    died: int
    mode: int
    nlink: int
    size: int
    parent: int
    layer: int
    layer_end: int
    leaves: int
    blocks: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class NameVersion(NamedTuple):
    """A row of `dirent` that names the inode."""

    born: int
    died: int
    parent: int
    kind: int


class LeafVersion(NamedTuple):
    born: int
    died: int
    region: int
    map: LeafValue


@dataclass(slots=True)
class History:
    """All versions of all rows about one inode number."""

    ino: int
    inodes: list[InodeVersion] = field(default_factory=list)
    names: list[NameVersion] = field(default_factory=list)
    entries: dict[tuple[int, int, bool], int] = field(default_factory=dict)
    """(born, died, of a directory) of the entries in it, and how many there are."""
    xattrs: list[tuple[int, int]] = field(default_factory=list)
    """(born, died) of its extended attributes."""
    leaves: list[LeafVersion] = field(default_factory=list)

    @property
    def live(self) -> InodeVersion | None:
        return self.inodes[-1] if self.inodes and self.inodes[-1].died == FOREVER else None

    def leaves_at(self, view: int) -> list[LeafVersion]:
        return [leaf for leaf in self.leaves if leaf.born <= view < leaf.died]


class Moment(NamedTuple):
    """What views see of an inode from one change to the next."""

    view: int
    """The newest view that falls into it."""
    inode: InodeVersion | None
    names: int
    parent: int
    """The directory of its name, if it has just one; else 0."""
    entries: int
    directories: int
    """How many of the entries are directories."""
    xattrs: int
    leaves: int


class Views:
    """The epochs at which somebody may look at the volume."""

    def __init__(self, snapshots: list[Snapshot]) -> None:
        self._names = {int(snapshot.epoch): snapshot.name for snapshot in snapshots}
        self._epochs: list[int] = [*sorted(self._names), LIVE]

    def newest(self, born: int, died: int) -> int | None:
        """The newest view that sees what is visible from *born* until before *died*."""
        index = bisect_left(self._epochs, died) - 1
        return self._epochs[index] if index >= 0 and self._epochs[index] >= born else None

    def all(self, born: int, died: int) -> list[int]:
        """All of them, oldest first."""
        return self._epochs[bisect_left(self._epochs, born) : bisect_left(self._epochs, died)]

    def label(self, view: int) -> str:
        return "live" if view == LIVE else f"snapshot {self._names[view]}"


def moments(history: History, views: Views) -> list[Moment]:
    """The moments that a view falls into, newest first."""
    simple = _only_moment(history, views)
    if simple is not None:
        return [simple]
    changes: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])

    def count(born: int, died: int, column: int, number: int = 1) -> None:
        changes[born][column] += number
        changes[died][column] -= number

    for name in history.names:
        count(name.born, name.died, 0)
    for (born, died, directory), number in history.entries.items():
        count(born, died, 1, number)
        if directory:
            count(born, died, 2, number)
    for born, died in history.xattrs:
        count(born, died, 3)
    for leaf in history.leaves:
        count(leaf.born, leaf.died, 4)
    for inode in history.inodes:
        count(inode.born, inode.died, 0, 0)
    found = []
    totals = [0, 0, 0, 0, 0]
    edges = sorted(changes)
    for edge, following in pairwise(edges):
        totals = [total + change for total, change in zip(totals, changes[edge], strict=True)]
        view = views.newest(edge, following)
        if view is None:
            continue
        names, entries, directories, xattrs, leaves = totals
        row = next((row for row in history.inodes if row.born <= view < row.died), None)
        parent = 0
        if names == 1:
            parent = next(n.parent for n in history.names if n.born <= view < n.died)
        if row is not None or any(totals):
            found.append(Moment(view, row, names, parent, entries, directories, xattrs, leaves))
    return found[::-1]


def _only_moment(history: History, views: Views) -> Moment | None:
    """If no view saw anything else than the live view does: nearly always, and quickly."""
    if len(history.inodes) != 1:
        return None
    rows: tuple[tuple[Any, ...], ...]
    rows = (*history.inodes, *history.names, *history.entries, *history.xattrs, *history.leaves)
    if min([row[1] for row in rows]) != FOREVER:
        return None
    births = [row[0] for row in rows]
    if views.newest(min(births), max(births)) is not None:
        return None
    names = history.names
    return Moment(
        LIVE,
        history.inodes[0],
        len(names),
        names[0].parent if len(names) == 1 else 0,
        sum(history.entries.values()),
        sum(number for (_, _, directory), number in history.entries.items() if directory),
        len(history.xattrs),
        len(history.leaves),
    )


class _Stream:
    """Rows of one kind in the order of inode numbers, with the number first."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = rows
        self._next: tuple[Any, ...] | None = None
        self.head = FOREVER
        self._advance()

    def _advance(self) -> None:
        self._next = next(self._rows, None)
        self.head = FOREVER if self._next is None else self._next[0]

    def take(self, ino: int) -> Iterator[tuple[Any, ...]]:
        """The rows of one inode, without its number."""
        while self.head == ino:
            assert self._next is not None
            yield self._next[1:]
            self._advance()


def histories(db: sqlite3.Connection) -> Iterator[History]:
    """The history of every inode number that a row names, in the order of the numbers."""
    inodes = _stream(db, "inode", "ino", ", ".join(InodeVersion._fields[2:]))
    names = _stream(db, "dirent", "ino", "parent, kind")
    entries = _stream(db, "dirent", "parent", "kind")
    xattrs = _stream(db, "xattr", "ino", "NULL")
    leaves = _stream(db, "leaf", "ino", "region, map")
    streams = (inodes, names, entries, xattrs, leaves)
    while (ino := min([stream.head for stream in streams])) != FOREVER:
        history = History(ino)
        if inodes.head == ino:
            history.inodes = [InodeVersion._make(row) for row in inodes.take(ino)]
        if names.head == ino:
            history.names = [NameVersion._make(row) for row in names.take(ino)]
        if entries.head == ino:
            counted: defaultdict[tuple[int, int, bool], int] = defaultdict(int)
            for born, died, kind in entries.take(ino):
                counted[born, died, kind == stat.S_IFDIR] += 1
            history.entries = dict(counted)
        if xattrs.head == ino:
            history.xattrs = [(born, died) for born, died, _ in xattrs.take(ino)]
        if leaves.head == ino:
            history.leaves = [LeafVersion._make(row) for row in leaves.take(ino)]
        yield history


def _stream(db: sqlite3.Connection, table: str, key: str, columns: str) -> _Stream:
    order = "1, 2" if table == "inode" else "1"
    return _Stream(
        db.execute(
            f"SELECT {key}, born, {FOREVER}, {columns} FROM {table}"
            f" UNION ALL SELECT {key}, born, died, {columns} FROM {table}_past ORDER BY {order}"
        )
    )
