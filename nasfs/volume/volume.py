"""A volume that is open: the file operations, snapshots and commits of its live view.

Everything here is synchronous and belongs to one thread, the owner's; only `DataSync.run`,
`sync_log` and `checkpoint` may run in another one meanwhile.  Names are checked, links counted and
times stamped as POSIX asks; permissions are the kernel's business (``default_permissions``).
"""

from __future__ import annotations

import errno
import stat
import time
import uuid as uuids
from collections import Counter
from pathlib import Path
from types import TracebackType

import msgspec

from nasfs.volume.delta import Delta
from nasfs.volume.errors import (
    FsError,
    MediaError,
    NoSuchSnapshot,
    SnapshotExists,
    SnapshotHeld,
)
from nasfs.volume.filedata import Buffer, FileData
from nasfs.volume.layers import DataSync, Layers
from nasfs.volume.live import Live
from nasfs.volume.lock import VolumeLock
from nasfs.volume.media import Media
from nasfs.volume.reclaim import Reclaim
from nasfs.volume.rollback import roll_back
from nasfs.volume.space import Space
from nasfs.volume.store import INO_RESERVE, Store
from nasfs.volume.types import (
    BLOCK,
    LINK_MAX,
    NAME_MAX,
    TARGET_MAX,
    XATTR_NAME_MAX,
    XATTR_VALUE_MAX,
    Access,
    Dirent,
    Epoch,
    Hold,
    Ino,
    Inode,
    Layer,
    Snapshot,
    SnapshotState,
    VolumeStats,
)
from nasfs.volume.view import AsOf, mapped_runs

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

XATTR_CREATE = 1
XATTR_REPLACE = 2

DIR_SIZE = 4096
"""The size that every directory reports."""

HEADROOM_BYTES = 16 * 1024 * 1024
"""The pool's disk keeps so much for metadata (or a twentieth of it): data gets ENOSPC before."""

HEADROOM_CHECK_BYTES = 4 * 1024 * 1024
"""The disk is asked again after so many bytes written."""

DIRTY_ROWS = 50_000
"""From so many changed rows on, the caches are flushed into the open transaction."""

_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it

_replace = msgspec.structs.replace


def coarse_now_ns() -> int:
    """The clock that the kernel stamps with; a finer one would run ahead of its stamps."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Volume(Live):
    """The live view of an open volume, and all that can be done to it.

    Made by `nasfs.volume.open_volume`; a context manager.  Methods raise `FsError` (the caller's
    business), `MediaError` (the disk refused) or `CorruptionError`.
    """

    def __init__(self, path: Path, access: Access, media: Media) -> None:
        self.path = path
        self.name = path.name
        self._lock = VolumeLock(path / "lock") if access is Access.READ_WRITE else None
        try:
            store = Store(path / "meta.db", access)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        layers = Layers(path / "layers", media)
        super().__init__(store, layers)
        self._media = media
        self._space = Space(store, layers, self)
        self._data = FileData(store, layers, self, self._space)
        self._reclaim = Reclaim(store, layers, self._space)
        self._open: Counter[int] = Counter()
        self._read_only_reason = "" if access is Access.READ_WRITE else "opened read-only"
        self._usable_ino = store.counters.next_ino
        self._written = HEADROOM_CHECK_BYTES
        self._views: dict[int, AsOf] = {}
        if access is Access.READ_WRITE:
            self._take_over()

    # opening and closing

    def _take_over(self) -> None:
        """Mark the volume as in use; after a crash put right what a crash leaves."""
        store = self._store
        if store.in_use:
            # Numbers that the last owner gave may have layer files, though no row names them.
            store.counters.next_ino = store.counters.reserved_ino
            store.execute("INSERT OR REPLACE INTO sweep VALUES (?, 0)", (store.epochs.current,))
        store.execute("UPDATE volume SET in_use = 1")
        store.reserve_inos()
        for (ino,) in store.db.execute("SELECT ino FROM orphan").fetchall():
            self._remove_inode(self.getattr(ino))
        self.commit()

    def close(self) -> None:
        """Commit everything, durable, and let the volume go."""
        try:
            if self.writable:
                self._store.execute("UPDATE volume SET in_use = 0")
                self._store.counters.reserved_ino = self._store.counters.next_ino
                self.commit()
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Let the volume go without committing: it is as of its last commit."""
        if self._store.db.in_transaction:
            self._store.db.execute("ROLLBACK")
        self._let_go()

    def _let_go(self) -> None:
        self._layers.close_all()
        self._store.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, FsError):
            self.close()
        else:  # half an operation may be in the transaction
            self.abandon()

    @property
    def uuid(self) -> str:
        return str(self._store.uuid)

    @property
    def size(self) -> int:
        """Bytes that the volume may use."""
        return int(self._store.size)

    @property
    def provision(self) -> str:
        return str(self._store.provision)

    @property
    def epoch(self) -> Epoch:
        """The current epoch."""
        return Epoch(self._store.epochs.current)

    @property
    def writable(self) -> bool:
        return not self._read_only_reason

    def statfs(self) -> VolumeStats:
        """Like a view's, but never more available than the pool's disk has."""
        stats = super().statfs()
        free, _ = self._media.free_bytes(self.path)
        return _replace(stats, available=min(stats.available, free))

    def go_read_only(self, reason: str) -> None:
        """Refuse every change from now on; what was not committed is dropped."""
        if self.writable:
            self._read_only_reason = reason
            self._store.rollback_transaction()

    # making and removing entries

    def mknod(
        self, parent: int, name: bytes, mode: int, *, uid: int, gid: int, rdev: int = 0
    ) -> Inode:
        """A regular file, FIFO, socket or device; *mode* carries the type."""
        return self._create(parent, name, mode, uid=uid, gid=gid, rdev=rdev)

    def mkdir(self, parent: int, name: bytes, mode: int, *, uid: int, gid: int) -> Inode:
        return self._create(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid=uid, gid=gid)

    def symlink(self, parent: int, name: bytes, target: bytes, *, uid: int, gid: int) -> Inode:
        if not target:
            raise FsError(errno.ENOENT)
        if len(target) > TARGET_MAX:
            raise FsError(errno.ENAMETOOLONG)
        return self._create(parent, name, stat.S_IFLNK | 0o777, uid=uid, gid=gid, target=target)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Another name for a file."""
        now = self._begin()
        inode = self.getattr(ino)
        if inode.is_dir:
            raise FsError(errno.EPERM)
        if inode.nlink == 0:
            raise FsError(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        directory = self._new_name(parent, name)
        self._add_entry(parent, name, inode)
        self._touch_dir(directory, now)
        return self._put(inode, nlink=inode.nlink + 1, ctime_ns=now)

    def unlink(self, parent: int, name: bytes) -> Inode:
        """Remove a name; the inode as it is after (nlink 0: it lives while it is open)."""
        now = self._begin()
        entry, inode = self._existing(parent, name)
        if inode.is_dir:
            raise FsError(errno.EISDIR)
        self._remove_entry(entry)
        self._touch_dir(self.getattr(parent), now)
        return self._drop_link(inode, now)

    def rmdir(self, parent: int, name: bytes) -> None:
        now = self._begin()
        if name in (b".", b".."):
            raise FsError(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        entry, inode = self._existing(parent, name)
        if not inode.is_dir:
            raise FsError(errno.ENOTDIR)
        self._check_empty(inode)
        self._remove_entry(entry)
        self._touch_dir(self.getattr(parent), now, links=-1)
        self._drop_link(inode, now)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """rename(2) and renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FsError(errno.EINVAL)
        now = self._begin()
        for word in (name, new_name):
            if word in (b".", b".."):
                raise FsError(errno.EBUSY)
        entry, inode = self._existing(parent, name)
        target_dir = self._directory(new_parent)
        self._check_name(new_name)
        target_entry = self._dirent(new_parent, new_name)
        if target_dir.nlink == 0:
            raise FsError(errno.ENOENT)
        if inode.is_dir:
            self._check_not_below(target_dir, inode)
        if flags == RENAME_EXCHANGE:
            if target_entry is None:
                raise FsError(errno.ENOENT)
            self._exchange(entry, inode, target_entry, now)
            return
        if target_entry is not None:
            if flags == RENAME_NOREPLACE:
                raise FsError(errno.EEXIST)
            if target_entry.ino == entry.ino:  # two names of one file: nothing to do
                return
            self._replace_target(target_entry, inode, now)
        self._remove_entry(entry)
        self._add_entry(new_parent, new_name, inode)
        self._move(inode, parent, new_parent, now)

    # attributes and data

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Inode:
        """Change what is given.  A new size changes mtime; every change changes ctime."""
        now = self._begin()
        inode = _replace(self.getattr(ino), born=self.epoch)
        if size is not None:
            if inode.is_dir:
                raise FsError(errno.EISDIR)
            if not inode.is_file or size < 0:
                raise FsError(errno.EINVAL)
            inode = self._data.truncate(inode, size)
            mtime_ns = now if mtime_ns is None else mtime_ns
        return self._put(
            inode,
            mode=inode.mode if mode is None else stat.S_IFMT(inode.mode) | stat.S_IMODE(mode),
            uid=inode.uid if uid is None else uid,
            gid=inode.gid if gid is None else gid,
            atime_ns=inode.atime_ns if atime_ns is None else atime_ns,
            mtime_ns=inode.mtime_ns if mtime_ns is None else mtime_ns,
            ctime_ns=now if ctime_ns is None else ctime_ns,
        )

    def write(self, ino: int, offset: int, data: Buffer) -> int:
        """Bytes written (all); they are in the next snapshot, and durable after a commit."""
        now = self._begin()
        inode = self.getattr(ino)
        if not inode.is_file:
            raise FsError(errno.EISDIR if inode.is_dir else errno.EINVAL)
        self._check_disk(len(data))
        inode = self._data.write(_replace(inode, born=self.epoch), offset, data)
        self._put(inode, mtime_ns=now, ctime_ns=now)
        return len(data)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        now = self._begin()
        inode = self.getattr(ino)
        if not name or len(name) > XATTR_NAME_MAX:
            raise FsError(errno.ERANGE)
        if len(value) > XATTR_VALUE_MAX:
            raise FsError(errno.E2BIG)
        stored = self._store.xattrs.get((ino, name))
        if flags & XATTR_CREATE and stored is not None:
            raise FsError(errno.EEXIST)
        if flags & XATTR_REPLACE and stored is None:
            raise FsError(errno.ENODATA)
        with self._store.sql_errors():
            self._store.xattrs.put(
                (ino, name, self.epoch, value), None if stored is None else stored[2]
            )
        self._put(inode, ctime_ns=now)

    def removexattr(self, ino: int, name: bytes) -> None:
        now = self._begin()
        inode = self.getattr(ino)
        stored = self._store.xattrs.get((ino, name))
        if stored is None:
            raise FsError(errno.ENODATA)
        with self._store.sql_errors():
            self._store.xattrs.delete((ino, name), stored[2])
        self._put(inode, ctime_ns=now)

    def acquire(self, ino: int) -> None:
        """Somebody has the inode open: it outlives its last name."""
        self._open[ino] += 1

    def release(self, ino: int) -> None:
        """The other half of `acquire`; the last one removes an inode without a name."""
        self._open[ino] -= 1
        if self._open[ino] > 0:
            return
        del self._open[ino]
        inode = self._inode(ino)
        if inode is not None and inode.nlink == 0 and self.writable:
            self._begin()
            self._remove_inode(inode)

    # durability

    @property
    def changed(self) -> bool:
        """Something is not committed."""
        return self._store.changed

    def dirty_data(self) -> DataSync:
        """What has been written and not synced; its `run` may be called in a thread."""
        return self._layers.take_dirty()

    def commit_nowait(self) -> None:
        """Commit metadata without waiting for the disk; all data must be synced before.

        Durable after `sync_log`.
        """
        assert not self._layers.is_dirty, "data is synced before the metadata that names it"
        self._commit_metadata()

    def _commit_metadata(self) -> None:
        self._check_failure()
        if self._store.db.in_transaction and self._store.inos_left() < INO_RESERVE // 2:
            self._store.reserve_inos()  # so that hardly ever a create has to wait for it
        try:
            self._store.commit()
        except MediaError:
            if not self._store.db.in_transaction:  # SQLite has rolled it back by itself
                self.go_read_only("the pool's disk refused a commit")
            raise
        self._committed = self._space.committed()
        self._reserved = self._store.counters.reserved_ino

    def sync_log(self) -> None:
        """What was committed is durable on return.  May be called in a thread."""
        generation, reserved = self._committed, self._reserved
        self._store.sync_log()
        self._space.durable(generation)
        self._usable_ino = reserved

    def checkpoint_needed(self) -> bool:
        return self._store.checkpoint_needed()

    def checkpoint(self) -> None:
        """Move the log into the tables; while nothing changes the volume.  May be in a thread."""
        self._store.checkpoint()

    def commit(self) -> None:
        """Everything that returned before is durable on return."""
        if not self.writable:
            return
        self._layers.take_unsynced().run()
        self._commit_metadata()
        self.sync_log()
        if self.checkpoint_needed():
            self.checkpoint()

    # snapshots

    def snapshots(self) -> list[Snapshot]:
        """The sealed ones, oldest first."""
        if not self._store.writable:
            self._store.load_snapshots()
        return [s for s in self._store.all_snapshots if s.state is SnapshotState.SEALED]

    def snapshot(self, name: str) -> Snapshot:
        """By its name or GUID."""
        for snapshot in self.snapshots():
            if name in (snapshot.name, snapshot.guid):
                return snapshot
        raise NoSuchSnapshot(
            f"volume {self.name} has no snapshot {name}", hint="list them: nasfs snapshot list"
        )

    def view(self, epoch: Epoch) -> AsOf:
        """The file system as of a sealed snapshot."""
        view = self._views.get(epoch)
        if view is None:
            if epoch not in {s.epoch for s in self.snapshots()}:
                raise NoSuchSnapshot(f"volume {self.name} has no snapshot of epoch {epoch}")
            if len(self._views) >= 16:
                del self._views[next(iter(self._views))]
            view = self._views[epoch] = AsOf(self._store, self._layers, epoch)
        return view

    def delta(self, base: Epoch, target: Epoch) -> Delta:
        """What changed from one sealed snapshot to a later one; base 0 is the empty volume."""
        if base:
            self.view(base)
        self.view(target)
        return Delta(self._store, self._layers, base, target)

    def seal(
        self,
        name: str,
        *,
        guid: str | None = None,
        time_ns: int | None = None,
        snap_group: str = "",
    ) -> Snapshot:
        """A snapshot of everything that returned before; durable and immutable on return."""
        self._layers.take_unsynced().run()
        snapshot = self.seal_nowait(name, guid=guid, time_ns=time_ns, snap_group=snap_group)
        self.sync_log()
        return snapshot

    def seal_nowait(
        self,
        name: str,
        *,
        guid: str | None = None,
        time_ns: int | None = None,
        snap_group: str = "",
    ) -> Snapshot:
        """Like `seal` but durable only after `sync_log`; all data must be synced before."""
        assert not self._layers.is_dirty, "data is synced before the metadata that names it"
        check_snapshot_name(name)
        self._begin()
        for other in self._store.all_snapshots:
            taken = other.name == name and other.state is SnapshotState.SEALED
            if taken or other.guid == guid:
                raise SnapshotExists(
                    f"volume {self.name} has a snapshot {other.name} already",
                    hint="choose another name, or destroy that snapshot first",
                )
        epoch = self.epoch
        snapshot = Snapshot(
            epoch=epoch,
            name=name,
            guid=guid or str(uuids.uuid4()),
            time_ns=time.time_ns() if time_ns is None else time_ns,
            snap_group=snap_group,
            state=SnapshotState.SEALED,
        )
        self._store.flush()
        self._store.execute(
            "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?)",
            (epoch, name, snapshot.guid, snapshot.time_ns, snap_group, snapshot.state.value),
        )
        self._store.epochs.current = epoch + 1
        try:
            self._commit_metadata()
        except MediaError:
            if self.writable:  # the transaction is still open: take the snapshot out of it
                self._store.epochs.current = epoch
                self._store.execute("DELETE FROM snapshot WHERE epoch = ?", (epoch,))
            raise
        self._layers.seal()
        self._store.load_snapshots()
        return snapshot

    def rename_snapshot(self, name: str, new_name: str) -> None:
        snapshot = self.snapshot(name)
        check_snapshot_name(new_name)
        if any(s.name == new_name for s in self.snapshots()):
            raise SnapshotExists(f"volume {self.name} has a snapshot {new_name} already")
        self._begin()
        self._store.execute(
            "UPDATE snapshot SET name = ? WHERE epoch = ?", (new_name, snapshot.epoch)
        )
        self._snapshots_changed()

    def destroy_snapshot(self, name: str) -> None:
        """No longer offered from now on; `reclaim_step` gives its space back."""
        snapshot = self.snapshot(name)
        holds = self.holds(name)
        if holds:
            raise SnapshotHeld(snapshot.name, [hold.owner for hold in holds])
        self._begin()
        self._store.execute(
            "UPDATE snapshot SET state = ? WHERE epoch = ?",
            (SnapshotState.DESTROYING.value, snapshot.epoch),
        )
        self._views.pop(snapshot.epoch, None)
        self._snapshots_changed()

    def hold(self, name: str, owner: str, reason: str) -> None:
        """The snapshot can't be destroyed until this owner releases it."""
        snapshot = self.snapshot(name)
        self._begin()
        self._store.execute(
            "INSERT OR REPLACE INTO hold VALUES (?, ?, ?)", (snapshot.epoch, owner, reason)
        )
        self.commit()

    def release_hold(self, name: str, owner: str) -> None:
        """Releasing what is not held changes nothing."""
        snapshot = self.snapshot(name)
        self._begin()
        self._store.execute(
            "DELETE FROM hold WHERE epoch = ? AND owner = ?", (snapshot.epoch, owner)
        )
        self.commit()

    def holds(self, name: str) -> list[Hold]:
        snapshot = self.snapshot(name)
        rows = self._store.db.execute(
            "SELECT owner, reason FROM hold WHERE epoch = ? ORDER BY owner", (snapshot.epoch,)
        )
        return [Hold(*row) for row in rows]

    def rollback(self, epoch: Epoch) -> None:
        """The live view becomes what it was at a sealed snapshot; durable on return.

        Later snapshots stay.  Costs what changed since, not what is there.
        """
        self._begin()
        self.view(epoch)
        self.commit()
        self._begin()
        roll_back(self._store, self._space, self, epoch)
        self._store.load_snapshots()
        for (ino,) in self._store.db.execute("SELECT ino FROM orphan").fetchall():
            if ino not in self._open:
                self._remove_inode(self.getattr(ino))
        self.commit()

    def skip_inode_numbers(self, count: int = 1 << 32) -> None:
        """What a lost active site allocated can never alias a new file; durable on return."""
        self._begin()
        self._store.counters.next_ino = self._store.counters.reserved_ino + count
        self._store.reserve_inos()
        self.commit()

    def reclaim_step(self, limit: int = 1000) -> bool:
        """Give space back, in a bounded step; False when nothing can be done before a commit."""
        if not self.writable:
            return False
        return self._reclaim.step(limit)

    def reclaim_pending(self) -> dict[str, int]:
        """What reclaim has left to do: layers, snapshots, directories."""
        return self._reclaim.pending()

    def _snapshots_changed(self) -> None:
        self.commit()
        self._store.load_snapshots()

    # small parts

    def _check_failure(self) -> None:
        """A statement that failed may have left half an operation: back to the last commit."""
        if self._store.failure and self.writable:
            self.go_read_only(self._store.failure)

    def _begin(self) -> int:
        """Every change begins here: allowed?  Returns the time to stamp."""
        self._check_failure()
        if self._read_only_reason:
            raise FsError(errno.EROFS, f"volume {self.name} is read-only: {self._read_only_reason}")
        self._store.begin()
        if self._store.inode.dirty_count + self._store.leaf.dirty_count > DIRTY_ROWS:
            self._store.flush()
        return coarse_now_ns()

    def _put(self, inode: Inode, **changes: int) -> Inode:
        inode = _replace(inode, born=self.epoch, **changes)
        self._store.inode.put((inode.ino,), inode)
        return inode

    def _directory(self, ino: int) -> Inode:
        inode = self.getattr(ino)
        if not inode.is_dir:
            raise FsError(errno.ENOTDIR)
        return inode

    def _check_name(self, name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not name or b"/" in name or b"\0" in name:
            raise FsError(errno.EINVAL)

    def _new_name(self, parent: int, name: bytes) -> Inode:
        """The directory, in which there is no such name yet."""
        directory = self._directory(parent)
        self._check_name(name)
        if directory.nlink == 0:
            raise FsError(errno.ENOENT)
        if name in (b".", b"..") or self._dirent(parent, name) is not None:
            raise FsError(errno.EEXIST)
        return directory

    def _existing(self, parent: int, name: bytes) -> tuple[Dirent, Inode]:
        self._directory(parent)
        self._check_name(name)
        entry = self._dirent(parent, name)
        if entry is None:
            raise FsError(errno.ENOENT)
        return entry, self.getattr(entry.ino)

    def _create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        *,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        now = self._begin()
        directory = self._new_name(parent, name)
        self._check_disk(BLOCK)
        is_dir = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:  # as on every file system with System V semantics
            gid = directory.gid
            if is_dir:
                mode |= stat.S_ISGID
        inode = Inode(
            ino=self._allocate_ino(),
            born=self.epoch,
            generation=1,
            mode=mode,
            uid=uid,
            gid=gid,
            nlink=2 if is_dir else 1,
            rdev=rdev,
            size=DIR_SIZE if is_dir else len(target or b""),
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
            parent=parent if is_dir else 0,
            target=target,
            layer=Layer(0),
            layer_end=0,
            leaves=0,
            blocks=0,
        )
        self._store.inode.put((inode.ino,), inode, new=True)
        self._store.counters.inodes += 1
        self._add_entry(parent, name, inode)
        self._touch_dir(directory, now, links=1 if is_dir else 0)
        return inode

    def _allocate_ino(self) -> Ino:
        store = self._store
        if store.counters.next_ino >= self._usable_ino:
            if store.inos_left() <= 0:
                store.reserve_inos()
            self.commit()  # a number may be given only when its reservation is durable
            store.begin()
        return Ino(store.allocate_ino())

    def _add_entry(self, parent: int, name: bytes, inode: Inode) -> None:
        row = (
            parent,
            name,
            self.epoch,
            self._store.next_cookie(),
            inode.ino,
            stat.S_IFMT(inode.mode),
        )
        with self._store.sql_errors():
            self._store.dirents.put(row, None)

    def _remove_entry(self, entry: Dirent) -> None:
        with self._store.sql_errors():
            self._store.dirents.delete((entry.parent, entry.name), entry.born)

    def _touch_dir(self, directory: Inode, now: int, links: int = 0) -> None:
        self._put(directory, mtime_ns=now, ctime_ns=now, nlink=directory.nlink + links)

    def _check_empty(self, inode: Inode) -> None:
        if self._dirents(inode.ino, 0, 1):
            raise FsError(errno.ENOTEMPTY)

    def _check_not_below(self, directory: Inode, moved: Inode) -> None:
        """A directory can't move into itself or below itself."""
        while True:
            if directory.ino == moved.ino:
                raise FsError(errno.EINVAL)
            if directory.parent == directory.ino:
                return
            directory = self.getattr(directory.parent)

    def _replace_target(self, entry: Dirent, moved: Inode, now: int) -> None:
        """The entry that a rename overwrites goes."""
        victim = self.getattr(entry.ino)
        if victim.is_dir and not moved.is_dir:
            raise FsError(errno.EISDIR)
        if moved.is_dir and not victim.is_dir:
            raise FsError(errno.ENOTDIR)
        if victim.is_dir:
            self._check_empty(victim)
            self._touch_dir(self.getattr(entry.parent), now, links=-1)
        self._remove_entry(entry)
        self._drop_link(victim, now)

    def _move(self, inode: Inode, parent: int, new_parent: int, now: int) -> None:
        """After its entry moved: times, the directory's parent, the links of both parents."""
        links = 1 if inode.is_dir and parent != new_parent else 0
        self._put(inode, ctime_ns=now, parent=new_parent if inode.is_dir else 0)
        self._touch_dir(self.getattr(parent), now, links=-links)
        self._touch_dir(self.getattr(new_parent), now, links=links)

    def _exchange(self, entry: Dirent, inode: Inode, other: Dirent, now: int) -> None:
        other_inode = self.getattr(other.ino)
        if other_inode.is_dir:
            self._check_not_below(self.getattr(entry.parent), other_inode)
        if entry.ino == other.ino:
            return
        for old, new in ((entry, other_inode), (other, inode)):
            row = (old.parent, old.name, self.epoch, old.cookie, new.ino, stat.S_IFMT(new.mode))
            with self._store.sql_errors():
                self._store.dirents.put(row, old.born)
        self._move(inode, entry.parent, other.parent, now)
        self._move(self.getattr(other_inode.ino), other.parent, entry.parent, now)

    def _drop_link(self, inode: Inode, now: int) -> Inode:
        """One name less (a directory has one); without any it goes, or waits for its release."""
        links = 0 if inode.is_dir else inode.nlink - 1
        inode = self._put(inode, nlink=links, ctime_ns=now)
        if links == 0:
            if inode.ino in self._open:
                self._store.execute("INSERT INTO orphan VALUES (?)", (inode.ino,))
            else:
                self._remove_inode(inode)
        return inode

    def _remove_inode(self, inode: Inode) -> None:
        """The inode leaves the live view, with its blocks and attributes."""
        ino = inode.ino
        if inode.is_file and inode.blocks:
            self._space.dropped(ino, mapped_runs(self, inode))
        if inode.leaves:
            for region in self.leaf_regions(ino, 0):
                self._store.leaf.delete((ino, region))
        rows = self._store.db.execute("SELECT name, born FROM xattr WHERE ino = ?", (ino,))
        for name, born in rows.fetchall():
            self._store.xattrs.delete((ino, name), born)
        self._store.inode.delete((ino,))
        self._store.execute("DELETE FROM orphan WHERE ino = ?", (ino,))
        self._store.counters.inodes -= 1

    def _check_disk(self, count: int) -> None:
        """ENOSPC while there is still room for the metadata of what was accepted."""
        self._written += count
        if self._written < HEADROOM_CHECK_BYTES:
            return
        free, total = self._media.free_bytes(self.path)
        if free < min(HEADROOM_BYTES, total // 20):
            raise MediaError(
                errno.ENOSPC,
                f"the pool's disk ({self.path.parent})",
                hint="free space on the pool's disk, or destroy snapshots",
            )
        self._written = 0


def check_snapshot_name(name: str) -> None:
    """A snapshot's name is one path component, without ``@``."""
    encoded = name.encode(errors="surrogateescape")
    if not encoded or len(encoded) > NAME_MAX or name in (".", "..") or set(name) & set("/@\0\n"):
        raise FsError(errno.EINVAL, f"{name!r} can't be the name of a snapshot")
