"""The live view: what the file system is now, committed or not."""

from __future__ import annotations

from nasfs.volume.blockmap import LeafValue
from nasfs.volume.store import Leaf
from nasfs.volume.types import Dirent, Inode
from nasfs.volume.view import View


class Live(View):
    """Answers from the live tables through the write-back caches."""

    def _inode(self, ino: int) -> Inode | None:
        return self._store.inode.get(ino)

    def _dirent(self, parent: int, name: bytes) -> Dirent | None:
        return self._store.dirent.get(parent, name)

    def _dirents(self, parent: int, after: int, limit: int) -> list[Dirent]:
        store = self._store
        if not store.dirent.is_listed(parent):
            store.flush(store.dirent)
        return store.dirent.page(parent, after, limit)

    def _inodes(self, numbers: list[int]) -> list[Inode | None]:
        return self._store.inode.get_many(numbers)

    def _xattr(self, ino: int, name: bytes) -> bytes | None:
        return self._store.xattr.get(ino, name)

    def _xattr_names(self, ino: int) -> list[bytes]:
        return self._store.xattr.names(ino)

    def _leaves(self, ino: int, first: int, last: int) -> list[tuple[int, LeafValue]]:
        if first == last:  # the usual read or write: one region, mostly cached
            leaf = self.leaf(ino, first)
            return [] if leaf is None else [(first, leaf.map)]
        self._store.flush(self._store.leaf)
        rows = self._store.db.execute(
            "SELECT region, map FROM leaf WHERE ino = ? AND region BETWEEN ? AND ? ORDER BY region",
            (ino, first, last),
        )
        return rows.fetchall()

    def leaf(self, ino: int, region: int) -> Leaf | None:
        return self._store.leaf.get((ino, region))

    def leaf_regions(self, ino: int, first: int) -> list[int]:
        """The regions from *first* on that have a leaf row."""
        self._store.flush(self._store.leaf)
        rows = self._store.db.execute(
            "SELECT region FROM leaf WHERE ino = ? AND region >= ?", (ino, first)
        )
        return [row[0] for row in rows]
