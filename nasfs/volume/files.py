"""The file operations of the live view: names, links, attributes, data.

Names are checked, links counted and times stamped as POSIX asks; permissions are the kernel's
business (``default_permissions``).  When all this becomes durable is the `Volume`'s.
"""

from __future__ import annotations

import errno
import stat
import time
from abc import abstractmethod
from collections import Counter
from pathlib import Path

import msgspec

from nasfs.volume.errors import FsError, MediaError
from nasfs.volume.filedata import Buffer, FileData
from nasfs.volume.layers import Layers
from nasfs.volume.live import Live
from nasfs.volume.media import Media
from nasfs.volume.space import Space
from nasfs.volume.store import Store
from nasfs.volume.types import (
    BLOCK,
    LINK_MAX,
    NAME_MAX,
    TARGET_MAX,
    XATTR_NAME_MAX,
    XATTR_VALUE_MAX,
    Dirent,
    Epoch,
    Ino,
    Inode,
    Layer,
)
from nasfs.volume.view import mapped_runs

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

DIRTY_ROWS = 4_000
"""From so many changed rows on, the caches are flushed into the open transaction.

More would be a longer stop for everybody else: a row takes some 5 us.
"""

_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it

_replace = msgspec.structs.replace


def coarse_now_ns() -> int:
    """The clock that the kernel stamps with; a finer one would run ahead of its stamps."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Files(Live):
    """The live view, and all that changes files in it.

    Methods raise `FsError` (the caller's business), `MediaError` (the disk refused) or
    `CorruptionError`.  Those that change an inode return it as it is then.
    """

    def __init__(self, path: Path, store: Store, layers: Layers, media: Media) -> None:
        super().__init__(store, layers)
        self.path = path
        self.name = path.name
        self._media = media
        self._space = Space(store, layers, self)
        self._data = FileData(store, layers, self, self._space)
        self._open: Counter[int] = Counter()
        self._read_only_reason = ""
        self._usable_ino = store.counters.next_ino
        self._written = HEADROOM_CHECK_BYTES

    @abstractmethod
    def commit(self) -> None:
        """Everything that returned before is durable on return."""

    @property
    def epoch(self) -> Epoch:
        """The current epoch."""
        return Epoch(self._store.epochs.current)

    @property
    def writable(self) -> bool:
        return not self._read_only_reason

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
        stored = self._store.xattr.get(ino, name)
        if flags & XATTR_CREATE and stored is not None:
            raise FsError(errno.EEXIST)
        if flags & XATTR_REPLACE and stored is None:
            raise FsError(errno.ENODATA)
        with self._store.sql_errors():
            self._store.xattr.put(ino, name, self.epoch, value)
        self._put(inode, ctime_ns=now)

    def removexattr(self, ino: int, name: bytes) -> None:
        now = self._begin()
        inode = self.getattr(ino)
        with self._store.sql_errors():
            if not self._store.xattr.delete(ino, name):
                raise FsError(errno.ENODATA)
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
            self._remove_orphan(inode)

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
        if self._store.dirty_count > DIRTY_ROWS:
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
        self._store.xattr.is_new(inode.ino)
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
        cookie = self._store.next_cookie()
        entry = Dirent(Ino(parent), name, self.epoch, cookie, inode.ino, stat.S_IFMT(inode.mode))
        self._store.dirent.put(entry)

    def _remove_entry(self, entry: Dirent) -> None:
        self._store.dirent.delete(entry)

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
            kind = stat.S_IFMT(new.mode)
            changed = _replace(old, born=self.epoch, ino=new.ino, kind=kind)
            self._store.dirent.put(changed)
        self._move(inode, entry.parent, other.parent, now)
        self._move(self.getattr(other_inode.ino), other.parent, entry.parent, now)

    def _drop_link(self, inode: Inode, now: int) -> Inode:
        """One name less (a directory has one); without any it goes, or waits for its release."""
        links = 0 if inode.is_dir else inode.nlink - 1
        inode = self._put(inode, nlink=links, ctime_ns=now)
        if links == 0:
            if inode.ino in self._open:
                self._store.orphan.add((inode.ino,))
            else:
                self._remove_inode(inode)
        return inode

    def _remove_orphan(self, inode: Inode) -> None:
        """Nobody has the inode without a name open any more."""
        self._remove_inode(inode)
        self._store.orphan.remove((inode.ino,))

    def _remove_inode(self, inode: Inode) -> None:
        """The inode leaves the live view, with its blocks and attributes."""
        ino = inode.ino
        if inode.is_file and inode.blocks:
            self._space.dropped(ino, mapped_runs(self, inode))
        if inode.leaves:
            for region in self.leaf_regions(ino, 0):
                self._store.leaf.delete((ino, region))
        with self._store.sql_errors():
            self._store.xattr.delete_all(ino)
        self._store.inode.delete((ino,))
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
