"""Taking a delta in: the rows and blocks of another site's volume, under its inode numbers.

Nothing here asks whether an operation makes sense to POSIX: the other site did.  Rows carry what
a file is; where its blocks lie is this volume's own affair.  Until `seal` the live view is half
of one snapshot and half of the next, and nobody but the receiver may use it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from nasfs.volume.errors import FsError
from nasfs.volume.files import DIR_SIZE
from nasfs.volume.rollback import roll_back
from nasfs.volume.room import Kind
from nasfs.volume.types import BLOCK, INO_BITS, ROOT_INO, Dirent, Epoch, Ino, Inode, Layer, Snapshot
from nasfs.volume.volume import Volume

_replace = msgspec.structs.replace

MANY = 64
"""So many new files are worth a thread."""

Piece = tuple[int, int, bytes | memoryview]
"""Inode number, offset, data."""


class Applier:
    """The passive side of one open volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._store = volume._store
        self._data = volume._data
        self._first_new = self._store.counters.next_ino
        """Inodes from this number on were made by this object, with all that is in them."""
        self._thread: ThreadPoolExecutor | None = None

    # rows

    def put_inodes(self, rows: Sequence[Inode]) -> None:
        """The inodes are this from now on.

        Of a row counts what a file is; where its blocks lie is this volume's own (those past a
        smaller size are dropped), so `born` and the columns of the block map are ignored.
        """
        self._begin(rows=len(rows))
        store, counters, epoch = self._store, self._store.counters, self._volume.epoch
        for given in rows:
            ino = given.ino
            if ino < counters.next_ino:
                self._put_inode(given)
                continue
            _check_number(ino)  # the number was never given here, so no row has it
            mine = _replace(given, born=epoch, layer=Layer(0), layer_end=0, leaves=0, blocks=0)
            store.inode.put(ino, mine, new=True)
            counters.inodes += 1
            counters.next_ino = ino + 1
        counters.reserved_ino = max(counters.reserved_ino, counters.next_ino)

    def _put_inode(self, given: Inode) -> None:
        _check_number(given.ino)
        store = self._store
        stored = store.inode.get(given.ino)
        if stored is None:
            mine = _replace(given, size=0, layer=Layer(0), layer_end=0, leaves=0, blocks=0)
            store.counters.inodes += 1
        else:
            mine = stored
        mine = _replace(mine, born=self._volume.epoch)
        if given.size < mine.size and mine.is_file:
            mine = self._data.truncate(mine, given.size)
        inode = _replace(
            given,
            born=mine.born,
            layer=mine.layer,
            layer_end=mine.layer_end,
            leaves=mine.leaves,
            blocks=mine.blocks,
        )
        store.inode.put(inode.ino, inode, new=stored is None)

    def drop_inode(self, ino: int) -> None:
        self._begin()
        inode = self._store.inode.get(ino)
        if inode is not None and ino != ROOT_INO:
            self._volume._remove_inode(inode)

    def put_dirents(self, rows: Sequence[tuple[int, bytes, int, int, int]]) -> None:
        """Directory entries: parent, name, cookie, inode, kind of each."""
        self._begin(rows=len(rows))
        put, epoch, first_new = self._store.dirent.put, self._volume.epoch, self._first_new
        latest = 0
        for parent, name, cookie, ino, kind in rows:
            entry = Dirent(Ino(parent), name, epoch, cookie, Ino(ino), kind)
            put(entry, new=parent >= first_new)
            latest = max(latest, cookie)
        counters = self._store.counters
        counters.next_cookie = max(counters.next_cookie, latest + 1)

    def drop_dirent(self, parent: int, name: bytes) -> None:
        self._begin()
        entry = self._store.dirent.get(parent, name)
        if entry is not None:
            self._store.dirent.delete(entry)

    def put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        self._begin()
        with self._store.sql_errors():
            self._store.xattr.put(ino, name, self._volume.epoch, value)

    def drop_xattr(self, ino: int, name: bytes) -> None:
        self._begin()
        with self._store.sql_errors():
            self._store.xattr.delete(ino, name)

    # blocks

    def write_many(self, pieces: Sequence[Piece]) -> None:
        """File data within the size that the inodes' rows gave.

        A file that has no block yet is written at once and without a look at maps, which is what
        most of the many small files of a new tree are.
        """
        store, epoch = self._store, self._volume.epoch
        self._begin(Kind.ADDS, sum([len(data) for _, _, data in pieces]), rows=len(pieces))
        store.inode.get_many([ino for ino, _, _ in pieces])  # by one statement, into the cache
        whole: list[tuple[int, bytes | memoryview]] = []
        for ino, offset, data in pieces:
            end = offset + len(data)
            inode = self._file(ino, end)
            is_new = not (offset or inode.blocks or inode.leaves)
            if not (is_new and data and (end % BLOCK == 0 or end == inode.size)):
                self._write_whole(whole)  # it may go on with one of them
                whole = []
                inode = self._data.write(_replace(inode, born=epoch), offset, data)
            else:
                blocks = -(-end // BLOCK)
                self._data.check_room(blocks)
                whole.append((ino, data))
                self._volume._space.wrote(blocks)
                inode = _replace(
                    inode, born=epoch, layer=Layer(epoch), layer_end=blocks, blocks=blocks
                )
            store.inode.put(ino, inode)
        self._write_whole(whole)

    def _write_whole(self, files: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """New layers from their beginning; of many a thread writes every other one.

        What that takes is the host's time, who makes files, and not the interpreter's.
        """
        if len(files) < MANY:
            self._write_each(files)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
        others = self._thread.submit(self._write_each, files[1::2])
        try:
            self._write_each(files[::2])
        finally:
            others.result()

    def _write_each(self, files: Sequence[tuple[int, bytes | memoryview]]) -> None:
        layers, epoch = self._volume._layers, self._volume.epoch
        for ino, data in files:
            layers.write_whole(ino, epoch, data)

    def close(self) -> None:
        """The thread is gone on return, if there was one."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def punch(self, ino: int, offset: int, length: int) -> None:
        """Whole blocks become a hole (the last one may be cut by the size)."""
        self._begin()
        inode = _replace(self._file(ino, offset + length), born=self._volume.epoch)
        if offset % BLOCK:
            raise FsError(errno.EINVAL, "holes begin at a block")
        inode = self._data.unmap(inode, offset // BLOCK, -(-(offset + length) // BLOCK))
        self._store.inode.put(ino, inode)

    # the delta as a whole

    def reset(self, base: Epoch | None) -> None:
        """The live view becomes the base (None: an empty volume) before a delta; durable."""
        self._first_new = self._store.counters.next_ino
        if base is not None and self.is_at(base):
            return
        self.set_progress(b"")
        if base is not None:
            self._volume.rollback(base)
            return
        if self._volume.snapshots():
            raise FsError(errno.ENOTEMPTY, "the volume has snapshots, so it can't begin empty")
        root = self._volume.getattr(ROOT_INO)
        self._volume.commit()
        self._begin()
        roll_back(self._store, self._volume._space, self._volume, Epoch(0))
        self._store.inode.put(
            ROOT_INO, _replace(root, born=self._volume.epoch, nlink=2, size=DIR_SIZE), new=True
        )
        self._store.counters.inodes += 1
        self._volume.commit()

    def is_at(self, base: Epoch) -> bool:
        """It is the newest, and nothing was applied since: a delta may begin there.

        A later one that is no different would else go on being the newest.
        """
        if self.progress() is not None or self._store.changed_since(base):
            return False
        newest = self._store.ancestors()[-1:]
        return bool(newest) and newest[0].epoch == base

    def progress(self) -> bytes | None:
        """What `set_progress` was given last, as of the last commit."""
        row = self._store.db.execute("SELECT progress FROM incoming").fetchone()
        return None if row is None or not row[0] else row[0]

    def set_progress(self, progress: bytes) -> None:
        """Noted in the open transaction: it becomes durable with what was applied."""
        self._begin()
        self._store.execute("INSERT OR REPLACE INTO incoming VALUES (1, ?)", (progress,))

    def seal(
        self,
        name: str,
        *,
        guid: str,
        time_ns: int,
        snap_group: str,
        along: Callable[[Snapshot], None] | None = None,
    ) -> Snapshot:
        """Publish the snapshot and forget the progress, in one durable step.

        A name that a snapshot of this site has already gets the GUID's first digits added.
        *along*: see `Volume.seal`.
        """
        self.set_progress(b"")
        if any(snapshot.name == name for snapshot in self._volume.snapshots()):
            name = f"{name}-{guid[:8]}"
        return self._volume.seal(
            name, guid=guid, time_ns=time_ns, snap_group=snap_group, along=along
        )

    def _begin(self, kind: Kind = Kind.CHANGES, count: int = 0, *, rows: int = 1) -> None:
        """*rows* changes that add *count* bytes beside them are about to be made."""
        # No commit of its own: the progress is in the same transaction as what it tells of.
        self._store.changes += rows - 1
        self._volume._begin(kind, count, may_commit=False)

    def _file(self, ino: int, end: int) -> Inode:
        inode = self._store.inode.get(ino)
        if inode is None or not inode.is_file or end > inode.size:
            raise FsError(errno.EINVAL, f"data for inode {ino} does not fit its row")
        return inode


def _check_number(ino: int) -> None:
    if not 0 < ino < 1 << INO_BITS:
        raise FsError(errno.EINVAL, f"{ino} can't be an inode number")
