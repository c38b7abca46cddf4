"""The handlers of the kernel's requests: thin, and never waiting for the disk on the loop.

File handles are inode numbers, but for directories: the kernel checks what a descriptor may do,
and the engine counts how often an inode is open.  Reading goes to the tree that a number belongs
to; changing is for the live view alone, and goes through the gate: between finding it open and the
end of the change there is no ``await``.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import NamedTuple

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from nasfs.fuse import caller
from nasfs.fuse.commit import Committer, Gate
from nasfs.fuse.known import KnownInodes
from nasfs.fuse.snapdir import FIRST_SNAPSHOT_NUMBER, OWN_NUMBERS, SNAPSHOTS_NAME, Trees
from nasfs.fuse.translate import handler
from nasfs.fuse.tree import Entry, directory_stub
from nasfs.volume import FsError, Ino, Inode, Volume, acl
from nasfs.volume.types import BLOCK, NAME_MAX, ROOT_INO

ASKED_BY_THE_KERNEL = frozenset({b"security.capability", acl.ACCESS, acl.DEFAULT})
"""The first one before every write, the others when it checks access."""

PRIVILEGES = stat.S_ISUID | stat.S_ISGID

UNPRIVILEGED = 1 << 63
"""In the handle of a file: whoever opened it to write is not root.  (It is in no inode's
number but below `.snapshots/@GMT`, where a file is what it is below `.snapshots/NAME`.)"""

READ_BYTES = 1 << 20
"""The most that the kernel reads at once; if it ever wants more, the buffer grows."""

LISTED_FIRST = 32
LISTED_MIN = 8
"""Entries looked up for the first part of a listing, and for later ones at least."""

FREE_INODES = 1 << 32
"""What statfs says is left: numbers never run out, space does."""


class Writer(NamedTuple):
    """What a mount that can change has beside the volume."""

    gate: Gate
    committer: Committer


@dataclass(slots=True)
class _Stream:
    """An open directory."""

    number: int
    end: int
    """Entries with this cookie or a higher one were made after it was opened, or rewound: were
    they listed, who renames what he lists would see it again and again."""
    fits: int = LISTED_FIRST
    """How many entries the kernel took the last time, and one more."""


class Operations(pyfuse3.Operations):
    """Requests of the kernel against a volume.

    Args:
        writer: None for a mount that cannot change.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, volume: Volume, trees: Trees, writer: Writer | None) -> None:
        super().__init__()
        self._volume = volume
        self._trees = trees
        self._gate = None if writer is None else writer.gate
        self._committer = None if writer is None else writer.committer
        self._known = KnownInodes(volume)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._streams: dict[int, _Stream] = {}
        self._handles = itertools.count(1)
        self.drops_privileges = False
        """Whether the kernel leaves it to us to take SUID and SGID bits with a change."""
        self.started = trio.Event()
        """Set when the kernel has said hello."""

    @property
    def known(self) -> KnownInodes:
        """What the kernel knows of the live view."""
        return self._known

    def init(self) -> None:
        self.started.set()

    def distrust(self, reason: str) -> None:
        """The volume contradicts itself: nobody changes it any more."""
        self._volume.go_read_only(reason)

    def release_all(self) -> None:
        """The mount is over: removed inodes that the kernel knew may go."""
        self._known.drop_all()

    # the gate

    async def _to_change(self, number: int) -> Ino:
        """The live inode, once it may be changed: no ``await`` until the change is done."""
        if self._gate is None or number >= FIRST_SNAPSHOT_NUMBER or number in OWN_NUMBERS:
            raise FsError(errno.EROFS)
        if self._gate.is_closed:
            await self._gate.wait_open()
        return Ino(number)

    async def _to_change_entry(self, parent: int, name: bytes) -> Ino:
        if name == SNAPSHOTS_NAME and parent == ROOT_INO:
            raise FsError(errno.EROFS)
        return await self._to_change(parent)

    def _is_live(self, number: int) -> bool:
        return (
            self._gate is not None and number < FIRST_SNAPSHOT_NUMBER and number not in OWN_NUMBERS
        )

    def _told(self, inode: Inode) -> EntryAttributes:
        """The reply to a request after which the kernel knows the inode."""
        self._known.add(inode.ino)
        return self._trees.entry(inode)

    # names

    @handler
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        entry = self._trees.of(parent_inode).lookup(parent_inode, name)
        number = entry.st_ino
        if number and self._is_live(number):
            self._known.add(number)
        return entry

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for ino in self._known.forget(inode_list):
            with suppress(pyfuse3.FUSEError):  # nobody waits for an answer
                await self._drop(ino)

    @handler
    async def _drop(self, ino: Ino) -> None:
        await self._to_change(ino)
        self._known.drop(ino)

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._trees.of(inode).getattr(inode)

    @handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return self._trees.of(inode).readlink(inode)

    @handler
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = await self._to_change_entry(parent_inode, name)
        return self._told(
            self._volume.mknod(
                parent, name, mode, uid=ctx.uid, gid=ctx.gid, rdev=rdev, umask=ctx.umask
            )
        )

    @handler
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = await self._to_change_entry(parent_inode, name)
        mode = ModeT(stat.S_IFREG | stat.S_IMODE(mode))
        inode = self._volume.mknod(parent, name, mode, uid=ctx.uid, gid=ctx.gid, umask=ctx.umask)
        self._volume.acquire(inode.ino)
        handle = self._handle(inode.ino, flags, ctx)
        return FileInfo(fh=handle, keep_cache=True), self._told(inode)

    @handler
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = await self._to_change_entry(parent_inode, name)
        return self._told(
            self._volume.mkdir(
                parent, name, stat.S_IMODE(mode), uid=ctx.uid, gid=ctx.gid, umask=ctx.umask
            )
        )

    @handler
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = await self._to_change_entry(parent_inode, name)
        return self._told(self._volume.symlink(parent, name, target, uid=ctx.uid, gid=ctx.gid))

    @handler
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if self._is_live(inode) != self._is_live(new_parent_inode):
            raise FsError(errno.EXDEV)
        parent = await self._to_change_entry(new_parent_inode, new_name)
        return self._told(self._volume.link(Ino(inode), parent, new_name))

    @handler
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = await self._to_change_entry(parent_inode, name)
        with self._known.outliving(self._volume.lookup(parent, name).ino):
            self._volume.unlink(parent, name)

    @handler
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = await self._to_change_entry(parent_inode, name)
        with self._known.outliving(self._volume.lookup(parent, name).ino):
            self._volume.rmdir(parent, name)

    @handler
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if self._is_live(parent_inode_old) != self._is_live(parent_inode_new):
            raise FsError(errno.EXDEV)
        parent_old = await self._to_change_entry(parent_inode_old, name_old)
        parent_new = await self._to_change_entry(parent_inode_new, name_new)
        replaced = None
        if not flags & (pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            found = self._volume.find(parent_new, name_new)
            replaced = None if found is None else found.ino
        with nullcontext() if replaced is None else self._known.outliving(replaced):
            self._volume.rename(parent_old, name_old, parent_new, name_new, flags)

    # attributes

    @handler
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        ino = await self._to_change(inode)
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
        if fields.update_size:
            mode = self._mode_after_change(ino, ctx) or mode
        elif self.drops_privileges and (fields.update_uid or fields.update_gid):
            mode = self._mode_after_chown(ino, ctx)
        return self._trees.entry(
            self._volume.setattr(
                ino,
                mode=mode,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size=attr.st_size if fields.update_size else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
                ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            )
        )

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        stats = self._volume.statfs()
        found = StatvfsData()
        found.f_bsize = found.f_frsize = BLOCK
        found.f_blocks = stats.size // BLOCK
        found.f_bfree = found.f_bavail = stats.available // BLOCK
        found.f_files = stats.inodes + FREE_INODES
        found.f_ffree = found.f_favail = FREE_INODES
        found.f_namemax = NAME_MAX
        return found

    @handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if (
            name in ASKED_BY_THE_KERNEL
            and self._is_live(inode)
            and not self._volume.has_xattr(inode, name)
        ):
            raise pyfuse3.FUSEError(errno.ENODATA)  # nearly always, so by the shortest way
        return self._trees.of(inode).getxattr(inode, name)

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = self._trees.of(inode).listxattr(inode)
        shown = [name for name in names if not name.startswith(b"trusted.")]
        if len(shown) < len(names) and caller.is_capable(ctx, caller.CAP_SYS_ADMIN):
            shown = names
        return [XAttrNameT(name) for name in shown]

    @handler
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        ino = await self._to_change(inode)
        strip_sgid = name == acl.ACCESS and self._is_stranger(self._volume.getattr(ino), ctx)
        self._volume.setxattr(ino, name, value, strip_sgid=strip_sgid)

    def _is_stranger(self, inode: Inode, ctx: RequestContext) -> bool:
        """Whether what the caller does takes the SGID bit from an inode that has it."""
        return bool(
            inode.mode & stat.S_ISGID
            and not caller.is_member(ctx, inode.gid)
            and not caller.is_capable(ctx, caller.CAP_FSETID)
        )

    @handler
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        self._volume.removexattr(await self._to_change(inode), name)

    # files

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            ino = await self._to_change(inode)
            if flags & os.O_TRUNC:
                self._truncate(ino, ctx)
        self._acquire(inode)
        return FileInfo(fh=self._handle(inode, flags, ctx), keep_cache=True)

    def _handle(self, number: int, flags: int, ctx: RequestContext) -> FileHandleT:
        """Requests to write do not tell who sends them, so the handle tells who opened."""
        if self.drops_privileges and ctx.uid != 0 and flags & (os.O_WRONLY | os.O_RDWR):
            return FileHandleT(number | UNPRIVILEGED)
        return FileHandleT(number)

    def _acquire(self, number: int) -> None:
        """An open inode stays; ESTALE if it is gone already, or its snapshot."""
        if self._is_live(number):
            self._volume.getattr(number)
            self._volume.acquire(number)
        else:
            self._trees.of(number).getattr(number)

    def _truncate(self, ino: Ino, ctx: RequestContext) -> None:
        """O_TRUNC comes with `open` alone."""
        self._volume.setattr(ino, size=0, mode=self._mode_after_change(ino, ctx))

    def _mode_after_change(self, ino: Ino, ctx: RequestContext) -> int | None:
        """The mode without the bits that a change of the data by this caller takes; None: as it is.

        The kernel sends some of this with truncate(2), and nothing with O_TRUNC.
        """
        inode = self._volume.getattr(ino)
        if not inode.mode & PRIVILEGES or caller.is_capable(ctx, caller.CAP_FSETID):
            return None
        return self._without_privileges(inode, ctx)

    def _mode_after_chown(self, ino: Ino, ctx: RequestContext) -> int | None:
        inode = self._volume.getattr(ino)
        if not inode.mode & PRIVILEGES or inode.is_dir:
            return None
        return self._without_privileges(inode, ctx)

    def _without_privileges(self, inode: Inode, ctx: RequestContext) -> int:
        """The SGID bit of what the group can't execute is taken by strangers alone: chmod(2)."""
        dropped = stat.S_ISUID
        if inode.mode & stat.S_IXGRP or self._is_stranger(inode, ctx):
            dropped |= stat.S_ISGID
        return stat.S_IMODE(inode.mode & ~dropped)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> memoryview:  # type: ignore[override]
        # One buffer for all: pyfuse3 copies it to the kernel before another task can run.
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        number = fh & ~UNPRIVILEGED
        count = self._trees.of(number).read_into(number, off, self._buffer[:size])
        return self._buffer[:count]

    @handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        ino = await self._to_change(fh & ~UNPRIVILEGED)
        if fh & UNPRIVILEGED:
            self._take_privileges(ino)
        return self._volume.write(ino, off, buf)

    def _take_privileges(self, ino: Ino) -> None:
        """What a write by an unprivileged process takes from the mode.

        The kernel asks for the attributes again before it runs a file that was written.
        """
        mode = self._volume.getattr(ino).mode
        if not mode & PRIVILEGES:
            return
        dropped = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        self._volume.setattr(ino, mode=stat.S_IMODE(mode & ~dropped))

    @handler
    async def flush(self, fh: FileHandleT) -> None:
        raise FsError(errno.ENOSYS)  # then the kernel does not ask again

    @handler
    async def release(self, fh: FileHandleT) -> None:
        number = fh & ~UNPRIVILEGED
        if self._is_live(number):
            self._volume.release(await self._to_change(number))

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if self._committer is not None and self._is_live(fh & ~UNPRIVILEGED):
            await self._committer.commit()

    # directories

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self._acquire(inode)
        handle = next(self._handles)
        self._streams[handle] = _Stream(inode, self._end_of_listing(inode))
        return FileHandleT(handle)

    def _end_of_listing(self, number: int) -> int:
        """Entries made from now on have this cookie or a higher one."""
        return self._volume.next_cookie if self._is_live(number) else sys.maxsize

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        stream = self._streams[fh]
        number = stream.number
        tree = self._trees.of(number)
        if start_id < 1:
            stream.end = self._end_of_listing(number)
            if not pyfuse3.readdir_reply(token, FileNameT(b"."), directory_stub(number), 1):
                return
        if start_id < 2 and not pyfuse3.readdir_reply(
            token, FileNameT(b".."), directory_stub(tree.parent(number)), 2
        ):
            return
        taken = 0
        after, limit = max(start_id, 2), stream.fits
        while page := tree.readdir(number, after, limit):
            count = self._list(token, page, stream.end)
            if self._is_live(number):
                self._known.add_all([attributes.st_ino for _, attributes, _ in page[:count]])
            taken += count
            if count < len(page):
                stream.fits = max(taken + 1, LISTED_MIN)
                return
            after, limit = page[-1][2], min(limit * 2, 512)

    def _list(self, token: ReaddirToken, page: list[Entry], end: int) -> int:
        """Give the kernel entries with cookies below *end*; how many it took."""
        reply = pyfuse3.readdir_reply
        for count, (name, attributes, cookie) in enumerate(page):
            if cookie >= end or not reply(token, name, attributes, cookie):
                return count
        return len(page)

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        await self.release(FileHandleT(self._streams.pop(fh).number))

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self.fsync(FileHandleT(self._streams[fh].number), datasync)
