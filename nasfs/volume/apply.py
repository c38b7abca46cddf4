"""Taking a delta in: the rows and blocks of another site's volume, under its inode numbers.

Nothing here asks whether an operation makes sense to POSIX: the other site did.  Rows carry what
a file is; where its blocks lie is this volume's own affair.  Until `seal` the live view is half
of one snapshot and half of the next, and nobody but the receiver may use it.
"""

from __future__ import annotations

import errno

import msgspec

from nasfs.volume.errors import FsError
from nasfs.volume.files import DIR_SIZE
from nasfs.volume.rollback import roll_back
from nasfs.volume.room import Kind
from nasfs.volume.types import BLOCK, INO_BITS, ROOT_INO, Dirent, Epoch, Ino, Inode, Layer, Snapshot
from nasfs.volume.volume import Volume

_replace = msgspec.structs.replace


class Applier:
    """The passive side of one open volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._store = volume._store
        self._data = volume._data

    # rows

    def put_inode(self, given: Inode) -> None:
        """The inode is this from now on.

        Of *given* counts what a file is; where its blocks lie is this volume's own (those past a
        smaller size are dropped), so `born` and the columns of the block map are ignored.
        """
        self._begin()
        _check_number(given.ino)
        store = self._store
        stored = store.inode.get((given.ino,))
        if stored is None:
            mine = _replace(given, size=0, layer=Layer(0), layer_end=0, leaves=0, blocks=0)
            store.counters.inodes += 1
            store.counters.next_ino = max(store.counters.next_ino, given.ino + 1)
            store.counters.reserved_ino = max(store.counters.reserved_ino, given.ino + 1)
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
        store.inode.put((inode.ino,), inode, new=stored is None)

    def drop_inode(self, ino: int) -> None:
        self._begin()
        inode = self._store.inode.get((ino,))
        if inode is not None and ino != ROOT_INO:
            self._volume._remove_inode(inode)

    def put_dirent(self, parent: int, name: bytes, cookie: int, ino: int, kind: int) -> None:
        self._begin()
        entry = Dirent(Ino(parent), name, self._volume.epoch, cookie, Ino(ino), kind)
        self._store.dirent.put(entry)
        counters = self._store.counters
        counters.next_cookie = max(counters.next_cookie, cookie + 1)

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

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> None:
        """File data within the size that the inode's row gave it."""
        self._begin(Kind.ADDS, len(data))
        inode = self._file(ino, offset + len(data))
        inode = self._data.write(inode, offset, data)
        self._store.inode.put((ino,), inode)

    def punch(self, ino: int, offset: int, length: int) -> None:
        """Whole blocks become a hole (the last one may be cut by the size)."""
        self._begin()
        inode = self._file(ino, offset + length)
        if offset % BLOCK:
            raise FsError(errno.EINVAL, "holes begin at a block")
        inode = self._data.unmap(inode, offset // BLOCK, -(-(offset + length) // BLOCK))
        self._store.inode.put((ino,), inode)

    # the delta as a whole

    def reset(self, base: Epoch | None) -> None:
        """The live view becomes the base (None: an empty volume) before a delta; durable."""
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
            (ROOT_INO,), _replace(root, born=self._volume.epoch, nlink=2, size=DIR_SIZE), new=True
        )
        self._store.counters.inodes += 1
        self._volume.commit()

    def progress(self) -> bytes | None:
        """What `set_progress` was given last, as of the last commit."""
        row = self._store.db.execute("SELECT progress FROM incoming").fetchone()
        return None if row is None or not row[0] else row[0]

    def set_progress(self, progress: bytes) -> None:
        """Noted in the open transaction: it becomes durable with what was applied."""
        self._begin()
        self._store.execute("INSERT OR REPLACE INTO incoming VALUES (1, ?)", (progress,))

    def seal(self, name: str, *, guid: str, time_ns: int, snap_group: str) -> Snapshot:
        """Publish the snapshot and forget the progress, in one durable step.

        A name that a snapshot of this site has already gets the GUID's first digits added.
        """
        self.set_progress(b"")
        if any(snapshot.name == name for snapshot in self._volume.snapshots()):
            name = f"{name}-{guid[:8]}"
        return self._volume.seal(name, guid=guid, time_ns=time_ns, snap_group=snap_group)

    def _begin(self, kind: Kind = Kind.CHANGES, count: int = 0) -> None:
        # No commit of its own: the progress is in the same transaction as what it tells of.
        self._volume._begin(kind, count, may_commit=False)

    def _file(self, ino: int, end: int) -> Inode:
        inode = self._store.inode.get((ino,))
        if inode is None or not inode.is_file or end > inode.size:
            raise FsError(errno.EINVAL, f"data for inode {ino} does not fit its row")
        return _replace(inode, born=self._volume.epoch)


def _check_number(ino: int) -> None:
    if not 0 < ino < 1 << INO_BITS:
        raise FsError(errno.EINVAL, f"{ino} can't be an inode number")
