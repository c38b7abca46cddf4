"""A mount with an identity map: requests and answers are translated, nothing else differs."""

from __future__ import annotations

import errno
from typing import NamedTuple

import pyfuse3
from msgspec.structs import replace
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, InodeT, RequestContext, SetattrFields

from nasfs.fuse.identity import IdentityMap
from nasfs.fuse.ntacl import Subject, decoded
from nasfs.fuse.operations import Operations, Writer
from nasfs.fuse.snapdir import Trees
from nasfs.fuse.translate import handler
from nasfs.fuse.tree import Entry, Tree
from nasfs.volume import FsError, Inode, Volume, acl


class _Caller(NamedTuple):
    """A request's context, in stored numbers."""

    uid: int
    gid: int
    pid: int
    umask: int


_FIELDS = (
    "st_ino", "generation", "entry_timeout", "attr_timeout", "st_mode", "st_nlink", "st_uid",
    "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks", "st_atime_ns", "st_mtime_ns",
    "st_ctime_ns",
)  # fmt: skip


class _MappedTree:
    """A tree as it is shown."""

    def __init__(self, tree: Tree, identities: IdentityMap) -> None:
        self._tree = tree
        self._map = identities
        self.parent = tree.parent
        self.readlink = tree.readlink
        self.read_into = tree.read_into
        self.listxattr = tree.listxattr

    def lookup(self, number: int, name: bytes) -> EntryAttributes:
        return entry_here(self._map, self._tree.lookup(number, name))

    def getattr(self, number: int) -> EntryAttributes:
        return entry_here(self._map, self._tree.getattr(number))

    def readdir(self, number: int, after: int, limit: int) -> list[Entry]:
        page = self._tree.readdir(number, after, limit)
        return [(name, entry_here(self._map, entry), cookie) for name, entry, cookie in page]

    def getxattr(self, number: int, name: bytes) -> bytes:
        value = self._tree.getxattr(number, name)
        if self._map.is_about_numbers(name):
            return self._map.descriptor_here(value, subject(self._tree, number))
        return self._map.value_here(name, value)


def subject(tree: Tree, number: int) -> Subject:
    """What Samba's descriptor of a file is about besides SIDs, as it is stored."""
    found = tree.getattr(number)

    def entries(name: bytes) -> acl.Acl:
        try:
            return decoded(tree.getxattr(number, name))
        except FsError as exc:
            if exc.errno != errno.ENODATA:
                raise
            return ()

    return Subject(
        found.st_uid, found.st_gid, found.st_mode, entries(acl.ACCESS), entries(acl.DEFAULT)
    )


def entry_here(identities: IdentityMap, entry: EntryAttributes) -> EntryAttributes:
    """The same, or a copy with other owners."""
    uid, gid = identities.uids.to_here(entry.st_uid), identities.gids.to_here(entry.st_gid)
    if (uid, gid) == (entry.st_uid, entry.st_gid):
        return entry
    copy = pyfuse3.EntryAttributes()
    for name in _FIELDS:
        setattr(copy, name, getattr(entry, name))
    copy.st_uid, copy.st_gid = uid, gid
    return copy


class MappedTrees(Trees):
    """All trees of a mount, as they are shown."""

    def __init__(self, trees: Trees, identities: IdentityMap) -> None:
        self._trees = trees
        self._map = identities
        self.list_snapshots = trees.list_snapshots  # type: ignore[method-assign]
        self.forget_snapshot = trees.forget_snapshot  # type: ignore[method-assign]
        self.entry = lambda inode: entry_here(identities, trees.entry(inode))

    def of(self, number: int) -> Tree:
        return _MappedTree(self._trees.of(number), self._map)


class MappedOperations(Operations):
    """Requests of the kernel, with what they say of people translated to what is stored."""

    def __init__(
        self, volume: Volume, trees: Trees, writer: Writer | None, identities: IdentityMap
    ) -> None:
        super().__init__(volume, MappedTrees(trees, identities), writer)
        self._map = identities
        self._stored = trees

    def _caller(self, ctx: RequestContext) -> RequestContext:
        uid, gid = self._map.uids.to_stored(ctx.uid), self._map.gids.to_stored(ctx.gid)
        return _Caller(uid, gid, ctx.pid, ctx.umask)  # type: ignore[return-value]

    async def mknod(
        self, parent_inode: InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:  # fmt: skip
        return await super().mknod(parent_inode, name, mode, rdev, self._caller(ctx))

    async def create(
        self, parent_inode: InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT, ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:  # fmt: skip
        return await super().create(parent_inode, name, mode, flags, self._caller(ctx))

    async def mkdir(
        self, parent_inode: InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT,
        ctx: RequestContext,
    ) -> EntryAttributes:  # fmt: skip
        return await super().mkdir(parent_inode, name, mode, self._caller(ctx))

    async def symlink(
        self, parent_inode: InodeT, name: pyfuse3.FileNameT, target: pyfuse3.FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:  # fmt: skip
        return await super().symlink(parent_inode, name, target, self._caller(ctx))

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:  # fmt: skip
        if fields.update_uid:
            attr.st_uid = self._map.uids.to_stored(attr.st_uid)
        if fields.update_gid:
            attr.st_gid = self._map.gids.to_stored(attr.st_gid)
        return await super().setattr(inode, attr, fields, fh, ctx)

    @handler
    async def setxattr(
        self, inode: InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        if self._map.is_about_numbers(name):
            known = subject(self._stored.of(inode), inode)
            value = self._map.descriptor_stored(value, known)
        else:
            value = self._map.value_stored(name, value)
        await super().setxattr(inode, name, value, ctx)

    def _is_stranger(self, inode: Inode, ctx: RequestContext) -> bool:
        # The caller's groups are those of this node.
        return super()._is_stranger(replace(inode, gid=self._map.gids.to_here(inode.gid)), ctx)
