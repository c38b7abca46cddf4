"""The handlers of the kernel's requests: thin, and never waiting for the disk on the loop.

File handles are inode numbers: the kernel checks what a descriptor may do, and the engine counts
how often an inode is open.  Reading goes to the tree that a number belongs to; changing is for
the live view alone, and goes through the gate: between finding it open and the end of the change
there is no ``await``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import nullcontext, suppress
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

from nasfs.fuse.commit import Committer, Gate
from nasfs.fuse.known import KnownInodes
from nasfs.fuse.snapdir import FIRST_SNAPSHOT_NUMBER, SNAPSHOTS_INO, SNAPSHOTS_NAME, Trees
from nasfs.fuse.translate import handler
from nasfs.fuse.tree import directory_stub, to_entry
from nasfs.volume import FsError, Ino, Inode, Volume
from nasfs.volume.types import BLOCK, NAME_MAX, ROOT_INO

CAPABILITY = b"security.capability"

SYSTEM = b"system."
"""POSIX ACLs: an ACL that is stored but that nobody enforces would be a lie, so it is refused."""
"""The kernel asks for it before every write."""

CAPABILITY_MEMORY = 100_000
"""Inodes of which we remember that they have no capability."""

READ_BYTES = 1 << 20
"""The most that the kernel reads at once; if it ever wants more, the buffer grows."""

FREE_INODES = 1 << 32
"""What statfs says is left: numbers never run out, space does."""


class Writer(NamedTuple):
    """What a mount that can change has beside the volume."""

    gate: Gate
    committer: Committer


class Operations(pyfuse3.Operations):
    """Requests of the kernel against a volume.

    Args:
        writer: None for a mount that cannot change.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, volume: Volume, trees: Trees, writer: Writer | None) -> None:
        super().__init__()
        self._volume = volume
        self._trees = trees
        self._gate = None if writer is None else writer.gate
        self._committer = None if writer is None else writer.committer
        self._known = KnownInodes(volume)
        self._no_capability: set[int] = set()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self.started = trio.Event()
        """Set when the kernel has said hello."""

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
        if self._gate is None or number >= FIRST_SNAPSHOT_NUMBER or number == SNAPSHOTS_INO:
            raise FsError(errno.EROFS)
        if self._gate.is_closed:
            await self._gate.wait_open()
        return Ino(number)

    async def _to_change_entry(self, parent: int, name: bytes) -> Ino:
        if name == SNAPSHOTS_NAME and parent == ROOT_INO:
            raise FsError(errno.EROFS)
        return await self._to_change(parent)

    def _is_live(self, number: int) -> bool:
        return self._gate is not None and number < FIRST_SNAPSHOT_NUMBER and number != SNAPSHOTS_INO

    def _told(self, inode: Inode) -> EntryAttributes:
        """The reply to a request after which the kernel knows the inode."""
        self._known.add(inode.ino)
        return to_entry(inode)

    # names

    @handler
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        entry = self._trees.of(parent_inode).lookup(parent_inode, name)
        if self._is_live(entry.st_ino):
            self._known.add(entry.st_ino)
        return entry

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for number, count in inode_list:
            self._no_capability.discard(number)
            if self._known.forget(number, count):
                with suppress(pyfuse3.FUSEError):  # nobody waits for an answer
                    await self._drop(Ino(number))

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
            self._volume.mknod(parent, name, mode, uid=ctx.uid, gid=ctx.gid, rdev=rdev)
        )

    @handler
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = await self._to_change_entry(parent_inode, name)
        mode = ModeT(stat.S_IFREG | stat.S_IMODE(mode))
        inode = self._volume.mknod(parent, name, mode, uid=ctx.uid, gid=ctx.gid)
        self._volume.acquire(inode.ino)
        self._remember_no_capability(inode.ino)
        return FileInfo(fh=FileHandleT(inode.ino), keep_cache=True), self._told(inode)

    @handler
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = await self._to_change_entry(parent_inode, name)
        return self._told(
            self._volume.mkdir(parent, name, stat.S_IMODE(mode), uid=ctx.uid, gid=ctx.gid)
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
            replaced = self._find(parent_new, name_new)
        with nullcontext() if replaced is None else self._known.outliving(replaced):
            self._volume.rename(parent_old, name_old, parent_new, name_new, flags)

    def _find(self, parent: Ino, name: bytes) -> Ino | None:
        try:
            return self._volume.lookup(parent, name).ino
        except FsError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

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
        return to_entry(
            self._volume.setattr(
                ino,
                mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
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
        if name == CAPABILITY and inode in self._no_capability:
            raise FsError(errno.ENODATA)
        if name.startswith(SYSTEM):
            raise FsError(errno.EOPNOTSUPP)
        try:
            return self._trees.of(inode).getxattr(inode, name)
        except FsError as exc:
            if name == CAPABILITY and exc.errno == errno.ENODATA:
                self._remember_no_capability(inode)
            raise

    def _remember_no_capability(self, number: int) -> None:
        if len(self._no_capability) >= CAPABILITY_MEMORY:
            self._no_capability.clear()
        self._no_capability.add(number)

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return self._trees.of(inode).listxattr(inode)

    @handler
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        ino = await self._to_change(inode)
        if name.startswith(SYSTEM):
            raise FsError(errno.EOPNOTSUPP)
        if name == CAPABILITY:
            self._no_capability.discard(ino)
        self._volume.setxattr(ino, name, value)

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
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    def _acquire(self, number: int) -> None:
        """An open inode stays; ESTALE if it is gone already, or its snapshot."""
        if self._is_live(number):
            self._volume.getattr(number)
            self._volume.acquire(number)
        else:
            self._trees.of(number).getattr(number)

    def _truncate(self, ino: Ino, ctx: RequestContext) -> None:
        """O_TRUNC comes with `open` alone, so dropping the SUID bit is up to us too."""
        mode = self._volume.getattr(ino).mode
        dropped = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        strip = ctx.uid != 0 and mode & dropped
        self._volume.setattr(ino, size=0, mode=stat.S_IMODE(mode & ~dropped) if strip else None)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> memoryview:  # type: ignore[override]
        # One buffer for all: pyfuse3 copies it to the kernel before another task can run.
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        count = self._trees.of(fh).read_into(fh, off, self._buffer[:size])
        return self._buffer[:count]

    @handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return self._volume.write(await self._to_change(fh), off, buf)

    @handler
    async def flush(self, fh: FileHandleT) -> None:
        raise FsError(errno.ENOSYS)  # then the kernel does not ask again

    @handler
    async def release(self, fh: FileHandleT) -> None:
        if self._is_live(fh):
            self._volume.release(await self._to_change(fh))

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if self._committer is not None and self._is_live(fh):
            await self._committer.commit()

    # directories

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self._acquire(inode)
        return FileHandleT(inode)

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        tree = self._trees.of(fh)
        if start_id < 1 and not pyfuse3.readdir_reply(
            token, FileNameT(b"."), directory_stub(fh), 1
        ):
            return
        if start_id < 2 and not pyfuse3.readdir_reply(
            token, FileNameT(b".."), directory_stub(tree.parent(fh)), 2
        ):
            return
        live = self._is_live(fh)
        after, limit = max(start_id, 2), 32
        while page := tree.readdir(fh, after, limit):
            for entry in page:
                if not pyfuse3.readdir_reply(token, entry.name, entry.attributes, entry.cookie):
                    return
                if live:
                    self._known.add(entry.attributes.st_ino)
            after, limit = page[-1].cookie, min(limit * 2, 512)

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        await self.release(fh)

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self.fsync(fh, datasync)
