"""Small writes that wait in memory until the data is synced, by the layer they go to.

Theory of operation.  A write that goes to a place where its layer had nothing makes the host find
space for it, and for a new file's first block make the layer file, too.  That takes longer than
all else in a small write, and a file that is removed again soon needed none of it.  So such writes
wait here; who syncs, in a thread, hands them to the host many at once.  The block map names them
already: it says where a block is, not since when.

Writes to one block land in the order in which they were made: what is written to a block that
waits waits behind it.  Whoever needs a layer's file as it has to be, to read or punch it, lands
what waits first.  Nothing here outlives the
process, like all that is not committed: docs/durability.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from nasfs.volume.media import Media
from nasfs.volume.types import BLOCK

LIMIT_BYTES = 64 * 1024 * 1024
"""What waits at most; then the layers that wait longest are written."""

LIMIT_LAYERS = 4096
"""The same by their number."""

SMALL_BYTES = 16 * 1024
"""Larger writes don't wait: the host allocates as much at once with hardly more effort."""

_PARTS = 1000
"""One call takes 1024 at most: IOV_MAX."""

LayerKey = tuple[int, int]
"""(inode number, epoch)"""


class WriteLog:
    """What waits for one layer, in the order in which it was written."""

    def __init__(self) -> None:
        self.bytes = 0
        self._pieces: list[tuple[int, list[bytes]]] = []
        self._end = -1
        self._blocks: set[int] = set()

    def add(self, parts: Sequence[bytes | memoryview], offset: int, length: int) -> None:
        own = [part if isinstance(part, bytes) else bytes(part) for part in parts]
        if offset == self._end and len(self._pieces[-1][1]) < _PARTS:
            self._pieces[-1][1].extend(own)
        else:
            self._pieces.append((offset, own))
        self._end = offset + length
        self._blocks.update(range(offset // BLOCK, -(-self._end // BLOCK)))
        self.bytes += length

    def touches(self, start: int, stop: int) -> bool:
        """Whether any of it is in the blocks of bytes [start, stop)."""
        return not self._blocks.isdisjoint(range(start // BLOCK, -(-stop // BLOCK)))

    def write(self, media: Media, fd: int) -> None:
        """Hand it to the host; may be done again, from the beginning, if the host refuses."""
        for offset, parts in self._pieces:
            media.write(fd, parts, offset)

    def lay_over(self, buffer: memoryview, start: int) -> None:
        """Put what it holds of bytes [start, start + len(buffer)) into the buffer."""
        for offset, parts in self._pieces:
            for part in parts:
                low, high = max(offset, start), min(offset + len(part), start + len(buffer))
                if low < high:
                    buffer[low - start : high - start] = part[low - offset : high - offset]
                offset += len(part)

    def precede(self, later: WriteLog) -> None:
        """What *later* holds comes behind this."""
        self._pieces += later._pieces
        self._end = later._end
        self._blocks |= later._blocks
        self.bytes += later.bytes


class Behind:
    """What waits, by layer; the one that waits longest is first."""

    def __init__(self) -> None:
        self.logs: dict[LayerKey, WriteLog] = {}
        self.bytes = 0

    def add(
        self, key: LayerKey, parts: Sequence[bytes | memoryview], offset: int, length: int
    ) -> None:
        log = self.logs.get(key)
        if log is None:
            log = self.logs[key] = WriteLog()
        log.add(parts, offset, length)
        self.bytes += length

    @property
    def is_too_much(self) -> bool:
        return self.bytes > LIMIT_BYTES or len(self.logs) > LIMIT_LAYERS

    def drop(self, key: LayerKey) -> None:
        log = self.logs.pop(key, None)
        if log is not None:
            self.bytes -= log.bytes

    def take_all(self) -> dict[LayerKey, WriteLog]:
        taken, self.logs, self.bytes = self.logs, {}, 0
        return taken

    def put_back(self, logs: dict[LayerKey, WriteLog]) -> None:
        """What was taken and did not land: before everything that came since."""
        if not logs:
            return
        since = self.take_all()
        for key, log in logs.items():
            if key in since:
                log.precede(since.pop(key))
        self.logs = logs | since
        self.bytes = sum(log.bytes for log in self.logs.values())
