"""The difference between two snapshots of one volume, by queries that cost what changed.

A delta is two streams in a fixed order: *rows* (of the tables inode, dirent and xattr: what
is, then what is gone) and *extents* (changed blocks of files, by (born, inode) of their inode
row).  Both can begin behind any of their positions, so a reader needs no long transaction: it reads
page by page, and the order is fixed by the two snapshots, which are immutable.

Inodes without a name (open but unlinked when the snapshot was taken) are not there, nor are their
attributes: nobody could reach them on the other side.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Literal

import msgspec

from nasfs.volume.blockmap import diff_runs, map_runs
from nasfs.volume.layers import Layers
from nasfs.volume.schema import INODE
from nasfs.volume.store import Store
from nasfs.volume.table import Key, RowValues, VersionedTable
from nasfs.volume.types import BLOCK, Epoch, Inode, Layer, Run
from nasfs.volume.view import AsOf

PAGE = 1000

_WITHOUT_LEAVES = f"leaves = 0 AND nlink > 0 AND (mode & {stat.S_IFMT(0xFFFF)}) = {stat.S_IFREG}"

REMEMBERED = 5_000
"""A delta of fewer rows and of fewer extents is small."""

SMALL = 256 * 1024
"""Bytes of a file that is read at once."""

_INO, _BORN, _NLINK, _BLOCKS = map(INODE.columns.index, ("ino", "born", "nlink", "blocks"))

Sort = Literal["inode", "dirent", "xattr"]


class RowPosition(msgspec.Struct, frozen=True, array_like=True):
    """Behind one row of the stream of rows."""

    stage: int
    epoch: int
    key: Key


class Change(msgspec.Struct, frozen=True):
    """One row of the delta: `row` as it is at the second snapshot, or the key that is gone."""

    sort: Sort
    gone: bool
    row: RowValues
    position: RowPosition


class ExtentPosition(msgspec.Struct, frozen=True, array_like=True):
    """Behind one byte of one inode in the stream of extents."""

    born: int
    ino: int
    offset: int


class ChangedExtent(msgspec.Struct, frozen=True):
    """Bytes [start, stop) of a file changed; in `layer`, or a hole if that is 0."""

    born: int
    ino: int
    start: int
    stop: int
    layer: int


class Delta:
    """The delta (base, target].  Base 0 is the empty volume."""

    def __init__(self, store: Store, layers: Layers, base: Epoch, target: Epoch) -> None:
        self._store = store
        self._layers = layers
        self._base = base
        self._target = target
        self._old = AsOf(store, layers, base) if base else None
        self._new = AsOf(store, layers, target)
        self._counted: tuple[list[Change], list[ChangedExtent]] | None = None
        """What a small delta consists of, once it was counted."""
        self._tables: tuple[tuple[Sort, VersionedTable], ...] = (
            ("inode", store.inodes),
            ("dirent", store.dirents),
            ("xattr", store.xattrs),
        )

    @property
    def views(self) -> tuple[AsOf, AsOf]:
        """Both views; the delta must have a base."""
        assert self._old is not None
        return self._old, self._new

    def data_differs(self, ino: int) -> bool:
        """Whether any block of a file that both views have, as long in both, was written."""
        inode = self._new._inode(ino)
        return inode is not None and next(self._extents_of(inode, 0), None) is not None

    def rows(self, after: RowPosition | None = None) -> Iterator[Change]:
        """All changed rows behind a position: first what is, then what is gone."""
        if self._counted is not None and after is None:
            yield from self._counted[0]
            return
        count = len(self._tables)
        stage = 0 if after is None else after.stage
        cursor = None if after is None else (after.epoch, tuple(after.key))
        while stage < 2 * count:
            sort, table = self._tables[stage % count]
            if stage < count:
                yield from self._present(stage, sort, table, cursor)
            elif self._base:
                yield from self._gone(stage, sort, table, cursor)
            stage, cursor = stage + 1, None

    def _present(
        self, stage: int, sort: Sort, table: VersionedTable, cursor: tuple[int, Key] | None
    ) -> Iterator[Change]:
        width = len(table.spec.key)
        while page := table.born_between(self._base, self._target, cursor, PAGE):
            for row in page:
                cursor = (row[width], row[:width])
                position = RowPosition(stage, *cursor)
                if sort == "inode" and row[_NLINK] == 0:
                    if self._base and self._was_named(row[0]):
                        yield Change(sort, True, row[:width], position)
                    continue
                if sort == "xattr" and not self._is_named(row[0]):
                    continue
                yield Change(sort, False, row, position)

    def _gone(
        self, stage: int, sort: Sort, table: VersionedTable, cursor: tuple[int, Key] | None
    ) -> Iterator[Change]:
        width = len(table.spec.key)
        while page := table.gone_between(self._base, self._target, cursor, PAGE):
            if sort == "inode":
                self._new.look_ahead([row[_INO] for _, row in page])
            for died, row in page:
                cursor = (died, row[:width])
                if sort == "inode":
                    # Without a name it was never there for the other side.
                    is_gone = row[_NLINK] > 0 and self._new._inode(row[_INO]) is None
                else:
                    is_gone = table.get_at(row[:width], self._target) is None
                if is_gone:
                    yield Change(sort, True, row[:width], RowPosition(stage, *cursor))

    def _is_named(self, ino: int) -> bool:
        inode = self._new._inode(ino)
        return inode is not None and inode.nlink > 0

    def _was_named(self, ino: int) -> bool:
        row = self._store.inodes.get_at((ino,), self._base)
        return row is not None and row[_NLINK] > 0

    def count(self) -> tuple[int, int]:
        """How many rows `rows` has, and how many bytes `extents` that are no holes.

        From the empty volume SQL can tell most of it; else it costs what changed.
        """
        if self._base:
            return self._count_changes()
        target = self._new.epoch
        rows = sum(table.sum_at("1", "1", target) for _, table in self._tables)
        for row in self._store.inodes.scan_at("nlink = 0", (), target):
            xattrs = self._store.xattrs.scan_at("ino = ?", (row[_INO],), target)
            rows -= 1 + sum(1 for _ in xattrs)
        size = self._store.inodes.sum_at(f"MIN(layer_end * {BLOCK}, size)", _WITHOUT_LEAVES, target)
        for row in self._store.inodes.scan_at("leaves > 0 AND nlink > 0", (), target):
            extents = self._extents_of(Inode(*row), 0)
            size += sum(extent.stop - extent.start for extent in extents if extent.layer)
        return rows, size

    def _count_changes(self) -> tuple[int, int]:
        """A small delta is remembered: to look for it twice would take longer than to send it."""
        rows, extents = self.rows(), self.extents()
        some_rows, some_extents = list(islice(rows, REMEMBERED)), list(islice(extents, REMEMBERED))
        if max(len(some_rows), len(some_extents)) < REMEMBERED:
            self._counted = some_rows, some_extents
        count = len(some_rows) + sum(1 for _ in rows)
        everything = chain(some_extents, extents)
        return count, sum(extent.stop - extent.start for extent in everything if extent.layer)

    def extents(self, after: ExtentPosition | None = None) -> Iterator[ChangedExtent]:
        """All changed bytes of files behind a position."""
        if self._counted is not None and after is None:
            yield from self._counted[1]
            return
        cursor: tuple[int, Key] | None = None
        if after is not None:
            # From the very inode on: its extents up to the offset are left out below.
            cursor = (after.born, (after.ino - 1,))
        while page := self._store.inodes.born_between(self._base, self._target, cursor, PAGE):
            if self._old is not None:
                self._old.look_ahead([row[_INO] for row in page])
            for row in page:
                cursor = (row[_BORN], (row[_INO],))
                if not row[_BLOCKS] and not self._base:
                    continue  # most of a new tree's directories, links and empty files
                inode = Inode(*row)
                skip = 0
                if after is not None and (inode.born, inode.ino) == (after.born, after.ino):
                    skip = after.offset
                if not (inode.is_file and inode.nlink):
                    continue
                if not self._base and not inode.leaves and not skip:  # nearly every file
                    stop = min(inode.layer_end * BLOCK, inode.size)
                    yield ChangedExtent(inode.born, inode.ino, 0, stop, inode.layer)
                else:
                    yield from self._extents_of(inode, skip)

    def _extents_of(self, inode: Inode, skip: int) -> Iterator[ChangedExtent]:
        old = None if self._old is None else self._old._inode(inode.ino)
        if not inode.blocks and (old is None or not old.blocks):
            return
        if old is not None and _same_map(old, inode):
            return
        stop = -(-inode.size // BLOCK)
        new_runs = self._new.runs(inode, 0, stop)
        if old is None or self._old is None:
            old_runs = map_runs(0, 0, [], 0, stop)
        else:
            old_runs = self._old.runs(old, 0, stop)
            if _grew_over_tail(old, inode):
                old_runs = _with_unknown(old_runs, old.size // BLOCK)
        for run, _ in diff_runs(old_runs, new_runs):
            start, end = run.start * BLOCK, min(run.stop * BLOCK, inode.size)
            start = max(start, skip)
            if start < end:
                yield ChangedExtent(inode.born, inode.ino, start, end, run.layer)

    def read(self, extent: ChangedExtent) -> bytes:
        """The bytes of an extent that is no hole."""
        length = extent.stop - extent.start
        if extent.start == 0 and length <= SMALL:  # most likely that is all of it
            return self._layers.read_once(extent.ino, extent.layer, length, 0)
        return self._layers.read(extent.ino, extent.layer, length, extent.start)


def touched(table: VersionedTable, low: int, high: int) -> Iterator[list[RowValues]]:
    """Rows that one of the two views has and the other has not, by the page."""
    width = len(table.spec.key)
    cursor: tuple[int, Key] | None = None
    while page := table.born_between(low, high, cursor, PAGE):
        yield page
        cursor = (page[-1][width], page[-1][:width])
    cursor = None
    while dead := table.gone_between(low, high, cursor, PAGE):
        yield [row for _, row in dead]
        cursor = (dead[-1][0], dead[-1][1][:width])


def _same_map(old: Inode, new: Inode) -> bool:
    """Certainly the same blocks (leaf rows could differ, if there are any)."""
    return (
        old.leaves == new.leaves == 0
        and (old.layer, old.layer_end, old.blocks) == (new.layer, new.layer_end, new.blocks)
        and not _grew_over_tail(old, new)
    )


def _grew_over_tail(old: Inode, new: Inode) -> bool:
    """Bytes beyond the old size, undefined then, are within the new one.

    Mostly the block was written, so that its layer differs.  Not so after a rollback to a
    snapshot in which the file was longer: the same block of the same layer, more of it visible.
    """
    return new.size > old.size and old.size % BLOCK != 0


def _with_unknown(runs: Iterable[Run], block: int) -> Iterator[Run]:
    """The same runs, but one block is in a layer that equals no other."""
    for run in runs:
        if run.layer and run.start <= block < run.stop:
            if run.start < block:
                yield Run(run.start, block, run.layer)
            yield Run(block, block + 1, _UNKNOWN)
            if block + 1 < run.stop:
                yield Run(block + 1, run.stop, run.layer)
        else:
            yield run


_UNKNOWN = Layer(-1)
