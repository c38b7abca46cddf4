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
from contextlib import suppress
from pathlib import Path

import msgspec

from nasfs.volume import acl
from nasfs.volume.errors import CorruptionError, FsError
from nasfs.volume.filedata import Buffer, FileData
from nasfs.volume.layers import Layers
from nasfs.volume.live import Live
from nasfs.volume.media import Media
from nasfs.volume.room import Kind, Room
from nasfs.volume.space import Space
from nasfs.volume.store import Store
from nasfs.volume.types import (
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
from nasfs.volume.view import XATTR_NAMESPACES, is_xattr_name, mapped_runs

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

XATTR_CREATE = 1
XATTR_REPLACE = 2

XATTR_LIST_MAX = 65_536
"""Bytes in all names of an inode's attributes, each with a zero: more could not be listed."""

DIR_SIZE = 4096
"""The size that every directory reports."""

FLUSH_EVERY = 1_000
"""After so many changes the caches are flushed into the open transaction.

A change leaves up to four rows, and a row takes some 5 us: more would be a longer stop for others.
"""

TIME_MIN_NS, TIME_MAX_NS = -(1 << 63), (1 << 63) - 1
"""Times that a row can hold: from 1677 to 2262.  Others become the nearest one."""

_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it

_replace = msgspec.structs.replace


KERNEL_AHEAD_NS = 10_000_000
"""The kernel's stamps (6.13 and later) may be ahead of the coarse clock by so much: a tick."""


def coarse_now_ns() -> int:
    """The clock that the kernel stamps with; a finer one would run ahead of its stamps."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def _bounded(time_ns: int) -> int:
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


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
        self._space = Space(store, layers)
        self._data = FileData(store, layers, self, self._space)
        self._open: Counter[int] = Counter()
        self._kernel_ns = 0
        """The latest stamp of the kernel's own: ours do not stay behind it."""
        self._read_only_reason = ""
        self._usable_ino = store.counters.next_ino
        self._room = Room(path, media, store, layers, self.commit)
        self._unflushed = 0

    @abstractmethod
    def commit(self) -> None:
        """Everything that returned before is durable on return."""

    @property
    def epoch(self) -> Epoch:
        """The current epoch."""
        return Epoch(self._store.epochs.current)

    @property
    def next_cookie(self) -> int:
        """The readdir cookie of the next entry that is made."""
        return self._store.counters.next_cookie

    @property
    def writable(self) -> bool:
        return not self._read_only_reason

    def go_read_only(self, reason: str) -> None:
        """Refuse every change from now on; what was not committed is dropped."""
        if self.writable:
            self._read_only_reason = reason
            self._layers.drop_all_waiting()
            with suppress(CorruptionError):  # a disk that is gone can't be read, either
                self._store.rollback_transaction()

    def has_xattr(self, ino: int, name: bytes) -> bool:
        """The cheap question; False, too, if there is no such inode."""
        return self._store.xattr.get(ino, name) is not None

    # making and removing entries

    def mknod(
        self,
        parent: int,
        name: bytes,
        mode: int,
        *,
        uid: int,
        gid: int,
        rdev: int = 0,
        umask: int = 0,
    ) -> Inode:
        """A regular file, FIFO, socket or device; *mode* carries the type.

        Args:
            umask: taken from *mode*, unless the directory has a default ACL, as acl(5) says.
        """
        return self._create(parent, name, mode, uid=uid, gid=gid, rdev=rdev, umask=umask)

    def mkdir(
        self, parent: int, name: bytes, mode: int, *, uid: int, gid: int, umask: int = 0
    ) -> Inode:
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._create(parent, name, mode, uid=uid, gid=gid, umask=umask)

    def symlink(self, parent: int, name: bytes, target: bytes, *, uid: int, gid: int) -> Inode:
        if not target:
            raise FsError(errno.ENOENT)
        if len(target) > TARGET_MAX:
            raise FsError(errno.ENAMETOOLONG)
        return self._create(parent, name, stat.S_IFLNK | 0o777, uid=uid, gid=gid, target=target)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Another name for a file."""
        now = self._begin(Kind.ADDS)
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
        now = self._begin(Kind.REMOVES)
        entry, inode = self._existing(parent, name)
        if inode.is_dir:
            raise FsError(errno.EISDIR)
        self._remove_entry(entry)
        self._touch_dir(self.getattr(parent), now)
        return self._drop_link(inode, now)

    def rmdir(self, parent: int, name: bytes) -> None:
        now = self._begin(Kind.REMOVES)
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
        now = self._begin(Kind.CHANGES if size is None else Kind.REMOVES)
        if max(atime_ns or now, mtime_ns or now) > now:
            now = self._learn_time(now, atime_ns, mtime_ns)
        inode = _replace(self.getattr(ino), born=self.epoch)
        if size is not None:
            if inode.is_dir:
                raise FsError(errno.EISDIR)
            if not inode.is_file or size < 0:
                raise FsError(errno.EINVAL)
            inode = self._data.truncate(inode, size)
            mtime_ns = now if mtime_ns is None else mtime_ns
        if mode is not None:
            self._chmod_acl(ino, mode)
        return self._put(
            inode,
            mode=inode.mode if mode is None else stat.S_IFMT(inode.mode) | stat.S_IMODE(mode),
            uid=inode.uid if uid is None else uid,
            gid=inode.gid if gid is None else gid,
            atime_ns=inode.atime_ns if atime_ns is None else _bounded(atime_ns),
            mtime_ns=inode.mtime_ns if mtime_ns is None else _bounded(mtime_ns),
            ctime_ns=now if ctime_ns is None else _bounded(ctime_ns),
        )

    def write(self, ino: int, offset: int, data: Buffer) -> int:
        """Bytes written (all); they are in the next snapshot, and durable after a commit."""
        now = self._begin(Kind.ADDS, len(data))
        inode = self.getattr(ino)
        if not inode.is_file:
            raise FsError(errno.EISDIR if inode.is_dir else errno.EINVAL)
        inode = self._data.write(_replace(inode, born=self.epoch), offset, data)
        self._put(inode, mtime_ns=now, ctime_ns=now)
        return len(data)

    def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int = 0, *, strip_sgid: bool = False
    ) -> None:
        """setxattr(2); a POSIX ACL is checked, and brings the mode with it.

        Args:
            strip_sgid: with an access ACL the SGID bit goes: the caller is not of the file's group.
        """
        now = self._begin(Kind.ADDS, 2 * len(value))
        inode = self.getattr(ino)
        self._check_xattr_name(name)
        if len(value) > XATTR_VALUE_MAX:
            raise FsError(errno.E2BIG)
        is_there = self._store.xattr.get(ino, name) is not None
        if flags & XATTR_CREATE and is_there:
            raise FsError(errno.EEXIST)
        if flags & XATTR_REPLACE and not is_there:
            raise FsError(errno.ENODATA)
        if name in (acl.ACCESS, acl.DEFAULT):
            inode = self._set_acl(inode, name, value, strip_sgid=strip_sgid)
        else:
            self._put_xattr(ino, name, value)
        self._put(inode, ctime_ns=now)

    def removexattr(self, ino: int, name: bytes) -> None:
        """ENODATA if there is none; but removing an ACL that is not there is no error."""
        now = self._begin(Kind.REMOVES)
        inode = self.getattr(ino)
        with self._store.sql_errors():
            removed = self._store.xattr.delete(ino, name)
        if removed:
            self._put(inode, ctime_ns=now)
        elif name not in (acl.ACCESS, acl.DEFAULT):
            self._check_xattr_name(name)
            raise FsError(errno.ENODATA)

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
            self._begin(Kind.REMOVES)
            self._remove_orphan(inode)

    # small parts

    def _check_failure(self) -> None:
        """A statement that failed may have left half an operation: back to the last commit."""
        if self._store.failure and self.writable:
            self.go_read_only(self._store.failure)

    def _begin(self, kind: Kind = Kind.CHANGES, count: int = 0, *, may_commit: bool = True) -> int:
        """Every change begins here: allowed, and room for it?  Returns the time to stamp.

        Args:
            count: bytes that it adds, beside its rows.
            may_commit: nothing of a larger whole has been done yet.
        """
        self._check_failure()
        if self._read_only_reason:
            raise FsError(errno.EROFS, f"volume {self.name} is read-only: {self._read_only_reason}")
        self._room.take(count, kind, may_commit=may_commit)
        self._store.begin()
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVERY:
            self._unflushed = 0
            self._store.flush()
        return max(coarse_now_ns(), self._kernel_ns)

    def _learn_time(self, now: int, *told: int | None) -> int:
        """The time to stamp beside the times that are set: UTIME_NOW comes as the kernel's now."""
        latest = coarse_now_ns() + KERNEL_AHEAD_NS
        self._kernel_ns = max([now, *(ns for ns in told if ns is not None and ns <= latest)])
        return self._kernel_ns

    def _put(self, inode: Inode, **changes: int) -> Inode:
        inode = _replace(inode, born=self.epoch, **changes)
        self._store.inode.put(inode.ino, inode)
        return inode

    # extended attributes and access control lists

    def _check_xattr_name(self, name: bytes) -> None:
        if not name or len(name) > XATTR_NAME_MAX:
            raise FsError(errno.ERANGE)
        if not is_xattr_name(name):
            raise FsError(errno.EOPNOTSUPP)
        if name in XATTR_NAMESPACES:
            raise FsError(errno.EINVAL)

    def _put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        names = self._store.xattr.names(ino)
        if name not in names and sum(map(len, names)) + len(names) + len(name) >= XATTR_LIST_MAX:
            raise FsError(errno.ENOSPC)
        with self._store.sql_errors():
            self._store.xattr.put(ino, name, self.epoch, value)

    def _set_acl(self, inode: Inode, name: bytes, value: bytes, *, strip_sgid: bool) -> Inode:
        """Store a list, or nothing if the mode alone can say it; the inode with its new mode."""
        if stat.S_ISLNK(inode.mode):
            raise FsError(errno.EOPNOTSUPP)
        try:
            entries = acl.decode(value)
        except ValueError as exc:
            raise FsError(errno.EINVAL, str(exc)) from exc
        is_access = name == acl.ACCESS
        if entries and not is_access and not inode.is_dir:
            raise FsError(errno.EACCES)
        if not entries or (is_access and acl.is_minimal(entries)):
            with self._store.sql_errors():
                self._store.xattr.delete(inode.ino, name)
        else:
            self._put_xattr(inode.ino, name, acl.encode(entries))
        if not entries or not is_access:
            return inode
        mode = inode.mode & ~0o777 | acl.permissions(entries)
        return _replace(inode, mode=mode & ~stat.S_ISGID if strip_sgid else mode)

    def _acl(self, ino: int, name: bytes) -> acl.Acl:
        """A stored list; () if there is none."""
        value = self._store.xattr.get(ino, name)
        if value is None:
            return ()
        try:
            return acl.decode(value)
        except ValueError as exc:
            raise CorruptionError(f"inode {ino}", f"{name.decode()}: {exc}") from exc

    def _chmod_acl(self, ino: int, mode: int) -> None:
        """The access list, if there is one, follows the mode."""
        entries = self._acl(ino, acl.ACCESS)
        changed = acl.with_permissions(entries, mode)
        if changed != entries:
            self._put_xattr(ino, acl.ACCESS, acl.encode(changed))

    def _inherit_acl(self, inode: Inode, default: acl.Acl) -> None:
        """What a new inode gets from its directory's default list; its mode is set already."""
        access = acl.inherited(default, inode.mode)
        if not acl.is_minimal(access):
            self._put_xattr(inode.ino, acl.ACCESS, acl.encode(access))
        if inode.is_dir:
            self._put_xattr(inode.ino, acl.DEFAULT, acl.encode(default))

    # names and links

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
        umask: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        now = self._begin(Kind.ADDS)
        directory = self._new_name(parent, name)
        is_dir = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:  # as on every file system with System V semantics
            gid = directory.gid
            if is_dir:
                mode |= stat.S_ISGID
        default: acl.Acl = ()
        if target is None:
            default = self._acl(parent, acl.DEFAULT)
            mode &= (~0o777 | acl.permissions(default)) if default else ~umask
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
        self._store.inode.put(inode.ino, inode, new=True)
        self._store.xattr.is_new(inode.ino)
        if is_dir:
            self._store.dirent.is_new(inode.ino)
        if default:
            self._inherit_acl(inode, default)
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
            self._layers.drop_waiting(ino, self.epoch)
            self._space.dropped(ino, mapped_runs(self, inode))
        if inode.leaves:
            for region in self.leaf_regions(ino, 0):
                self._store.leaf.delete((ino, region))
        with self._store.sql_errors():
            self._store.xattr.delete_all(ino)
        self._store.inode.delete(ino)
        self._store.counters.inodes -= 1
