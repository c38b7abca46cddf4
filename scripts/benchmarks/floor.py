"""The floor: how fast a pyfuse3 file system can be that only keeps dicts in memory.

What it costs is what the kernel, libfuse, pyfuse3, trio and an interpreter cost; a file system
that stores anything cannot be faster by much.  It asks the kernel to keep all that it may, holds
every attribute in the form in which it is sent, and copies file content as seldom as it can.
POSIX as far as the workloads need it: no xattrs, no ACLs, no account of space.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

FOREVER_S = 86_400.0
CHUNK = 1 << 20
"""Bytes of content under one key: the largest request, so that it is kept as it came."""


class Node:
    """A file, directory or symlink.  Content: chunks, of which each may be short or missing."""

    __slots__ = ("attr", "children", "chunks", "parent", "target")

    def __init__(self, ino: int, mode: int, ctx: RequestContext | None, parent: Node | None):
        now = time.time_ns()
        self.attr = attr = EntryAttributes()
        attr.st_ino = InodeT(ino)
        attr.st_mode = ModeT(mode)
        attr.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attr.st_uid, attr.st_gid = (ctx.uid, ctx.gid) if ctx else (os.getuid(), os.getgid())
        attr.st_blksize = 131_072
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = now
        attr.entry_timeout = attr.attr_timeout = FOREVER_S
        self.parent = parent or self
        self.children: dict[bytes, Node] = {}
        self.chunks: dict[int, bytes | bytearray] = {}
        self.target = b""

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.attr.st_size - offset)
        number, start = divmod(offset, CHUNK)
        if start + size <= CHUNK:
            return self._piece(number, start, size) if size > 0 else b""
        pieces = []
        while size > 0:
            piece = self._piece(number, start, min(size, CHUNK - start))
            pieces.append(piece)
            size -= len(piece)
            number, start = number + 1, 0
        return b"".join(pieces)

    def _piece(self, number: int, start: int, size: int) -> bytes:
        chunk = self.chunks.get(number, b"")
        if not start and size == len(chunk):
            return bytes(chunk)  # no copy of what is bytes already
        return bytes(memoryview(chunk)[start : start + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        number, start = divmod(offset, CHUNK)
        if start + len(data) <= CHUNK:
            self._store(number, start, data)
        else:
            rest = memoryview(data)
            while rest:
                self._store(number, start, bytes(rest[: CHUNK - start]))
                rest = rest[CHUNK - start :]
                number, start = number + 1, 0
        attr = self.attr
        if end > attr.st_size:
            self._resize(end)
        attr.st_mtime_ns = attr.st_ctime_ns = time.time_ns()

    def _store(self, number: int, start: int, data: bytes) -> None:
        chunk = self.chunks.get(number)
        if not start and (chunk is None or len(data) >= len(chunk)):
            self.chunks[number] = data  # as it came
            return
        if not isinstance(chunk, bytearray):
            chunk = self.chunks[number] = bytearray(chunk or b"")
        if len(chunk) < start:
            chunk.extend(bytes(start - len(chunk)))
        chunk[start : start + len(data)] = data

    def truncate(self, size: int) -> None:
        number, start = divmod(size, CHUNK)
        for key in [key for key in self.chunks if key >= number]:
            if key == number and start:
                self.chunks[key] = self.chunks[key][:start]
            else:
                del self.chunks[key]
        self._resize(size)

    def _resize(self, size: int) -> None:
        self.attr.st_size = size
        self.attr.st_blocks = -(-size // 512)

    def changed(self) -> None:
        """Names in this directory changed."""
        self.attr.st_mtime_ns = self.attr.st_ctime_ns = time.time_ns()


NO_ENTRY = EntryAttributes()
NO_ENTRY.entry_timeout = FOREVER_S


class Floor(pyfuse3.Operations):
    """File handles are inode numbers; a directory's is a number of its own, for its listing."""

    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, None, None)
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: root}
        self._last = int(pyfuse3.ROOT_INODE)
        self._listings: dict[int, tuple[Node, list[tuple[bytes, Node]]]] = {}

    def _make(self, parent_ino: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        parent = self._nodes[parent_ino]
        if name in parent.children:
            raise FUSEError(errno.EEXIST)
        self._last += 1
        node = self._nodes[self._last] = Node(self._last, mode, ctx, parent)
        parent.children[name] = node
        parent.changed()
        return node

    def _remove(self, parent: Node, name: bytes) -> Node:
        try:
            node = parent.children.pop(name)
        except KeyError:
            raise FUSEError(errno.ENOENT) from None
        node.attr.st_nlink -= 1
        node.attr.st_ctime_ns = time.time_ns()
        parent.changed()
        return node

    # names

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._nodes[parent_inode].children.get(name)
        return NO_ENTRY if node is None else node.attr

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for ino, _ in inode_list:  # what has no name is not looked up again: no need to count
            node = self._nodes.get(ino)
            if node is not None and node.attr.st_nlink == 0:
                del self._nodes[ino]

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._nodes[inode].attr

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        attr = self._make(parent_inode, name, mode, ctx).attr
        return FileInfo(fh=FileHandleT(attr.st_ino), keep_cache=True), attr

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        attr = self._make(parent_inode, name, mode, ctx).attr
        attr.st_rdev = rdev
        return attr

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFDIR | mode, ctx)
        node.parent.attr.st_nlink += 1
        return node.attr

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        node.attr.st_size = len(target)
        return node.attr

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self._nodes[inode].target)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node, parent = self._nodes[inode], self._nodes[new_parent_inode]
        if new_name in parent.children:
            raise FUSEError(errno.EEXIST)
        parent.children[new_name] = node
        node.attr.st_nlink += 1
        node.attr.st_ctime_ns = time.time_ns()
        parent.changed()
        return node.attr

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._remove(self._nodes[parent_inode], name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._nodes[parent_inode]
        if (node := parent.children.get(name)) is not None and node.children:
            raise FUSEError(errno.ENOTEMPTY)
        self._remove(parent, name).attr.st_nlink = 0
        parent.attr.st_nlink -= 1

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        old, new = self._nodes[parent_inode_old], self._nodes[parent_inode_new]
        node, replaced = old.children[name_old], new.children.get(name_new)
        if replaced is node:
            return
        if replaced is not None and stat.S_ISDIR(replaced.attr.st_mode):
            await self.rmdir(parent_inode_new, name_new, ctx)
        elif replaced is not None:
            self._remove(new, name_new)
        new.children[name_new] = old.children.pop(name_old)
        if stat.S_ISDIR(node.attr.st_mode):
            node.parent = new
            old.attr.st_nlink -= 1
            new.attr.st_nlink += 1
        old.changed()
        new.changed()
        node.attr.st_ctime_ns = time.time_ns()

    # attributes

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        mine = node.attr
        now = time.time_ns()
        if fields.update_size:
            node.truncate(attr.st_size)
            mine.st_mtime_ns = now
        if fields.update_mode:
            mine.st_mode = attr.st_mode
        if fields.update_uid:
            mine.st_uid = attr.st_uid
        if fields.update_gid:
            mine.st_gid = attr.st_gid
        if fields.update_atime:
            mine.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            mine.st_mtime_ns = attr.st_mtime_ns
        mine.st_ctime_ns = now
        return mine

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return ()

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found = StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = found.f_bfree = found.f_bavail = 1 << 30
        found.f_files = found.f_ffree = found.f_favail = 1 << 30
        found.f_namemax = 255
        return found

    # files

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            self._nodes[inode].truncate(0)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._nodes[fh].read(off, size)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self._nodes[fh].write(off, buf)
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        raise FUSEError(errno.ENOSYS)  # then the kernel does not ask again

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        pass

    # directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        node = self._nodes[inode]
        fh = FileHandleT(self._last)
        self._last += 1
        listing = [(b".", node), (b"..", node.parent), *node.children.items()]
        self._listings[fh] = node, listing
        return fh

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        directory, listing = self._listings[fh]
        for cookie in range(start_id, len(listing)):
            name, node = listing[cookie]
            if cookie > 1 and directory.children.get(name) is not node:
                continue  # removed since
            if not pyfuse3.readdir_reply(token, FileNameT(name), node.attr, cookie + 1):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        pass


def serve(mountpoint: str) -> None:
    """Mount, and serve until unmounted."""
    gc.disable()  # nothing here is a cycle, and a full collection walks every inode
    pyfuse3.init(Floor(), mountpoint, {"fsname=floor", "default_permissions", "allow_other"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    serve(sys.argv[1])
