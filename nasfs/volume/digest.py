"""Digests of a sealed view, from the tables and the disk: what two sites compare.

Theory of operation.  Only what both sites have in common counts: the rows that a delta carries
(no epochs, no layers, no inodes without a name) and the bytes of files.  They are cut into *parts*
that depend on inode numbers and offsets alone, so that both sites cut alike:

- the rows of a *page* of 256 inode numbers, together with the data of its small files
- 64 MiB of a larger file (a *group* of 16 regions); one that holds nothing but zeros has no digest

Parts come in the order of their keys, each costs a bounded amount of reading, and the next one can
always be asked for by the key of the one before: nothing is kept between two questions.  Where
parts differ, one asks what is in the page (`facts`), in a directory (`entries`), and in the file
(`blocks`).

File data is read past the host's memory.  What can't be read has no digest that equals another.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from nasfs.volume.errors import CorruptionError, FsError, MediaError
from nasfs.volume.table import RowValues, VersionedTable
from nasfs.volume.types import BLOCK, REGION_BLOCKS, ROOT_INO, Epoch, Inode, Run
from nasfs.volume.volume import Volume

DIGEST = 16
"""Bytes of a digest."""

PAGE_INODES = 256
SMALL_BLOCKS = 64
"""A file of at most so many blocks (256 KiB) is digested with the rows of its page."""
GROUP_REGIONS = 16
GROUP_BLOCKS = GROUP_REGIONS * REGION_BLOCKS
ROWS = 500
"""Rows of a table that are read at once."""
DEPTH_MAX = 1 << 16
"""More directories above each other than a damaged volume is followed through."""

ZERO = bytes(DIGEST)
"""The digest of a whole block, or group, of zeros; a hole is one, too."""
UNREADABLE = b"\xff" * DIGEST
"""In the place of a block's digest: the disk, or the map, did not give it."""

_REGION_BYTES = REGION_BLOCKS * BLOCK
_ZEROS = bytes(BLOCK)
_ROW = msgspec.msgpack.Encoder()

Part = tuple[int, int, int, bytes]
"""Page, inode number and group (both 0: of the page's rows), digest."""

Key = tuple[int, int, int]
"""The first three of a part: parts come in the order of these."""

InodeValues = tuple[Any, ...]
"""What a delta's row of an inode says, in that order."""

Entry = tuple[bytes, int, int, int]
"""Name, cookie, inode number, kind."""


class Facts(NamedTuple):
    """All rows of one inode number, and its data if it is a small file."""

    ino: int
    inode: InodeValues | None
    xattrs: list[tuple[bytes, bytes]]
    """Name and digest of the value, by name."""
    entries: bytes
    """Digest of the entries of a directory; `ZERO`: it has none."""
    data: bytes
    """Digest of a small file; `ZERO`: all zeros, or no small file."""


class Digests:
    """The digests of one sealed view of a volume; for one thread.

    Attributes:
        read_bytes: of file data, so far.
    """

    def __init__(self, volume: Volume, epoch: Epoch) -> None:
        self._view = volume.view(epoch)
        self._epoch = epoch
        self._layers = volume._layers
        self._inodes = volume._store.inodes
        self._dirents = volume._store.dirents
        self._xattrs = volume._store.xattrs
        self._leaves = volume._store.leaves
        self._buffer = memoryview(mmap.mmap(-1, _REGION_BYTES))  # it begins at a page of memory
        self.read_bytes = 0

    # parts

    def parts(self, after: Key | None = None) -> Iterator[Part]:
        """All parts behind a key.  Those whose digest is `ZERO` tell the position and no more."""
        page, ino, group = (0, -1, -1) if after is None else after
        while (found := self._page_from(page)) is not None:
            if found > page:
                page, ino, group = found, -1, -1
            inodes = self._page(page)
            if ino < 0:
                yield page, 0, 0, self._digest_page(page, inodes)
            for inode in inodes.values():
                if inode.ino >= ino and is_large(inode) and inode.nlink:
                    first = group + 1 if inode.ino == ino else 0
                    for number, digest in self._groups(inode, first):
                        yield page, inode.ino, number, digest
            page, ino, group = page + 1, -1, -1

    def _page_from(self, page: int) -> int | None:
        """The first page, from this one on, of which there is any row."""
        found = []
        for table in (self._inodes, self._dirents, self._xattrs):
            key = table.spec.key_names[0]
            rows = table.scan_at(
                f"{key} >= ?", (page * PAGE_INODES,), self._epoch, f"ORDER BY {key} LIMIT 1"
            )
            found += [row[0] // PAGE_INODES for row in rows]
        return min(found, default=None)

    def _page(self, page: int) -> dict[int, Inode]:
        first = page * PAGE_INODES
        rows = self._inodes.scan_at(
            "ino BETWEEN ? AND ?", (first, first + PAGE_INODES - 1), self._epoch, "ORDER BY ino"
        )
        return {row[0]: Inode(*row) for row in rows}

    def _digest_page(self, page: int, inodes: dict[int, Inode]) -> bytes:
        hasher = blake3()
        for inode in inodes.values():
            if inode.nlink:
                hasher.update(_ROW.encode(("i", inode.ino, *inode_values(inode))))
        first, last = page * PAGE_INODES, page * PAGE_INODES + PAGE_INODES - 1
        for row in self._rows(self._xattrs, first, last):
            if is_named(inodes.get(row[0])):
                hasher.update(_ROW.encode(("x", row[0], row[1], row[3])))
        for row in self._rows(self._dirents, first, last):
            if is_named(inodes.get(row[0])):
                hasher.update(_ROW.encode(("d", row[0], entry_of(row))))
        for inode in inodes.values():
            digest = self._digest_small(inode)
            if digest != ZERO:
                hasher.update(_ROW.encode((inode.ino, digest)))
        return hasher.digest(DIGEST)

    def _rows(
        self, table: VersionedTable, first: int, last: int, after: bytes | None = None
    ) -> Iterator[RowValues]:
        """Rows of these inode numbers by key, a page of them at a time.

        Args:
            after: of the first number only names behind this one.
        """
        number, name = table.spec.key_names
        where = f"({number}, {name}) > (?, ?) AND {number} <= ?"
        tail = f"ORDER BY {number}, {name} LIMIT {ROWS}"
        cursor = (first - 1, b"\xff" * 256) if after is None else (first, after)
        while True:
            rows = list(table.scan_at(where, (*cursor, last), self._epoch, tail))
            yield from rows
            if len(rows) < ROWS:
                return
            cursor = rows[-1][:2]

    def _digest_small(self, inode: Inode) -> bytes:
        if not (has_data(inode) and inode.nlink) or is_large(inode):
            return ZERO
        try:
            content = self._content(inode, 0, -(-inode.size // BLOCK))
        except (MediaError, CorruptionError, FsError):
            return os.urandom(DIGEST)
        return blake3(content).digest(DIGEST) if _has_content(content) else ZERO

    def _groups(self, inode: Inode, first: int) -> Iterator[tuple[int, bytes]]:
        while (group := self._group_from(inode, first)) is not None:
            yield group, self._digest_group(inode, group)
            first = group + 1

    def _group_from(self, inode: Inode, group: int) -> int | None:
        """The first group, from this one on, that may have a block."""
        stop = -(-inode.size // BLOCK)
        if group * GROUP_BLOCKS < min(inode.layer_end, stop):
            return group
        if not inode.leaves:
            return None
        row = next(
            self._leaves.scan_at(
                "ino = ? AND region >= ?",
                (inode.ino, group * GROUP_REGIONS),
                self._epoch,
                "ORDER BY region LIMIT 1",
            ),
            None,
        )
        return None if row is None or row[1] * REGION_BLOCKS >= stop else row[1] // GROUP_REGIONS

    def _digest_group(self, inode: Inode, group: int) -> bytes:
        hasher = blake3()
        stop = -(-inode.size // BLOCK)
        empty = True
        for region in range(group * GROUP_REGIONS, (group + 1) * GROUP_REGIONS):
            first = region * REGION_BLOCKS
            if first >= stop:
                break
            try:
                content = self._content(inode, first, min(first + REGION_BLOCKS, stop))
            except (MediaError, CorruptionError, FsError):
                return os.urandom(DIGEST)
            if _has_content(content):
                hasher.update(region.to_bytes(8, "big") + blake3(content).digest(DIGEST))
                empty = False
        return ZERO if empty else hasher.digest(DIGEST)

    def _content(self, inode: Inode, first: int, stop: int) -> memoryview:
        """The bytes of at most a region's blocks, cut at the end of the file.

        Valid until the next call.  Empty if all of it is a hole.
        """
        runs = list(self._view.runs(inode, first, stop))
        if not any(run.layer for run in runs):
            return self._buffer[:0]
        for run in runs:
            part = self._buffer[(run.start - first) * BLOCK : (run.stop - first) * BLOCK]
            if run.layer:
                self._layers.read_disk(inode.ino, run.layer, part, run.start * BLOCK)
                self.read_bytes += len(part)
            else:
                part[:] = bytes(len(part))
        return self._buffer[: min(stop * BLOCK, inode.size) - first * BLOCK]

    # what is in a part

    def facts(self, page: int, after: int = -1) -> Iterator[Facts]:
        """What is known of each inode number of a page, behind *after*."""
        inodes = self._page(page)
        first, last = page * PAGE_INODES, page * PAGE_INODES + PAGE_INODES - 1
        xattrs: dict[int, list[tuple[bytes, bytes]]] = {}
        for row in self._rows(self._xattrs, first, last):
            if is_named(inodes.get(row[0])) and row[0] > after:
                value = blake3(row[3]).digest(DIGEST)
                xattrs.setdefault(row[0], []).append((row[1], value))
        hashers: dict[int, Any] = {}
        for row in self._rows(self._dirents, first, last):
            if is_named(inodes.get(row[0])) and row[0] > after:
                hashers.setdefault(row[0], blake3()).update(_ROW.encode(entry_of(row)))
        named = {ino for ino, inode in inodes.items() if inode.nlink}
        for ino in sorted(named | xattrs.keys() | hashers.keys()):
            if ino > after:
                inode = inodes.get(ino)
                yield Facts(
                    ino,
                    None if inode is None else inode_values(inode),
                    xattrs.get(ino, []),
                    hashers[ino].digest(DIGEST) if ino in hashers else ZERO,
                    ZERO if inode is None else self._digest_small(inode),
                )

    def entries(self, ino: int, after: bytes) -> Iterator[Entry]:
        """The entries of a directory by name, behind a name."""
        for row in self._rows(self._dirents, ino, ino, after):
            yield entry_of(row)

    def blocks(self, ino: int, first: int, stop: int) -> bytes:
        """One digest for each of these blocks, joined; of no block behind the end of the file."""
        inode = self._view._inode(ino)
        if inode is None or not inode.is_file:
            return b""
        stop = min(stop, -(-inode.size // BLOCK))
        found = bytearray()
        while first < stop:
            upto = min(stop, (first // REGION_BLOCKS + 1) * REGION_BLOCKS)
            found += self._digest_blocks(inode, first, upto)
            first = upto
        return bytes(found)

    def _digest_blocks(self, inode: Inode, first: int, stop: int) -> bytes:
        try:
            content = self._content(inode, first, stop)
        except (MediaError, CorruptionError, FsError):
            if stop - first == 1:
                return UNREADABLE
            single = (self._digest_blocks(inode, n, n + 1) for n in range(first, stop))
            return b"".join(single)
        length = min(stop * BLOCK, inode.size) - first * BLOCK
        if not content:
            content = memoryview(bytes(length))
        pieces = (content[at : at + BLOCK] for at in range(0, length, BLOCK))
        return b"".join(
            ZERO if piece.tobytes() == _ZEROS else blake3(piece).digest(DIGEST) for piece in pieces
        )

    def mapped(self, ino: int) -> Iterator[Run]:
        """Where the blocks of a file are, without holes."""
        inode = self._view.getattr(ino)
        stop = -(-inode.size // BLOCK)
        first = 0
        while (group := self._group_from(inode, first)) is not None:
            first = group + 1
            upto = min(first * GROUP_BLOCKS, stop)
            runs = self._view.runs(inode, group * GROUP_BLOCKS, upto)
            yield from (run for run in runs if run.layer)

    def path(self, ino: int) -> bytes | None:
        """A path of an inode, from the root without a first slash; None if nothing leads to it."""
        names: list[bytes] = []
        while ino != ROOT_INO:
            row = next(self._dirents.scan_at("ino = ?", (ino,), self._epoch, "LIMIT 1"), None)
            if row is None or len(names) > DEPTH_MAX:
                return None
            names.append(row[1])
            ino = row[0]
        return b"/".join(reversed(names))


def inode_values(inode: Inode) -> InodeValues:
    """What a delta's row of it says, behind its number."""
    return (
        inode.generation, inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, inode.size,
        inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns, inode.parent, inode.target,
    )  # fmt: skip


def entry_of(row: RowValues) -> Entry:
    return row[1], row[3], row[4], row[5]


def is_named(inode: Inode | None) -> bool:
    """Not one that was open without a name: of that no delta tells.  (One without a row counts.)"""
    return inode is None or inode.nlink > 0


def has_data(inode: Inode) -> bool:
    return stat.S_ISREG(inode.mode) and bool(inode.layer_end or inode.leaves)


def is_large(inode: Inode) -> bool:
    return has_data(inode) and inode.size > SMALL_BLOCKS * BLOCK


def _has_content(content: memoryview) -> bool:
    """Anything but zeros."""
    head = content[:BLOCK].tobytes()
    return head != _ZEROS[: len(head)] or content.tobytes() != bytes(len(content))
