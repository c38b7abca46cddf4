"""Layer files: the blocks of one inode that were written in one epoch.

A block lies at the same offset in its layer as in the file.  Bytes of a block beyond the size of
the file are undefined.  This module knows paths, open descriptors and what is not synced yet; which
block is in which layer is the block map's business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from nasfs.volume.errors import CorruptionError, MediaError, WouldWait
from nasfs.volume.media import Media

DIRECTORIES = 256

LayerKey = tuple[int, int]
"""(inode number, epoch)"""


def directory_name(index: int) -> str:
    return f"{index:02x}"


class DataSync:
    """A piece of work: make the data written so far durable.  `run` may be called in a thread.

    Args:
        keys: layers that were written or punched.
        thinned: directories from which layers were removed, by their number.
    """

    def __init__(self, layers: Layers, keys: frozenset[LayerKey], thinned: frozenset[int]) -> None:
        self._layers = layers
        self.keys = keys
        self.thinned = thinned

    @property
    def count(self) -> int:
        """Files and directories to sync."""
        return len(self.keys) + len(self.thinned)

    def run(self) -> None:
        layers = self._layers
        try:
            layers.media.sync_files([layers.path(*key) for key in sorted(self.keys)])
            for index in sorted(self.thinned):
                layers.media.sync_directory(layers.directory(index))
        except BaseException:
            layers.sync_ended(self, failed=True)
            raise
        layers.sync_ended(self, failed=False)


class Layers:
    """The folder ``layers/`` of a volume, with a bounded cache of open descriptors."""

    def __init__(self, directory: Path, media: Media, *, descriptors: int = 2048) -> None:
        self.media = media
        self.waits = True
        """Whether `read_into` waits for the disk, or raises `WouldWait`."""
        self._directory = directory
        self._prefix = f"{directory}/"
        self._descriptors = descriptors
        self._readers: dict[LayerKey, int] = {}
        self._writers: dict[LayerKey, int] = {}
        self._dirty: set[LayerKey] = set()
        self._thinned: set[int] = set()
        self._spoiled: set[LayerKey] = set()
        self._under_way: set[DataSync] = set()
        self._lock = threading.Lock()

    def path(self, ino: int, epoch: int) -> Path:
        return Path(self._path(ino, epoch))

    def _path(self, ino: int, epoch: int) -> str:
        # Making a `Path` takes as long as the write.
        return f"{self._prefix}{directory_name(ino % DIRECTORIES)}/{ino}.{epoch}"

    def directory(self, index: int) -> Path:
        """One of the 256 directories."""
        return self._directory / directory_name(index)

    def read(self, ino: int, epoch: int, length: int, offset: int) -> bytes:
        """Exactly *length* bytes; what the file does not hold is zeros."""
        data = self.media.read(self._reader((ino, epoch)), length, offset)
        return data if len(data) == length else data.ljust(length, b"\0")

    def read_into(self, ino: int, epoch: int, buffer: memoryview, offset: int) -> None:
        """Fill the buffer; what the file does not hold is zeros.

        Raises:
            WouldWait: `waits` is off, and some of it is not in memory.
        """
        key = (ino, epoch)
        count = self.media.read_into(self._reader(key), buffer, offset, wait=self.waits)
        if count is None:
            raise WouldWait(partial(self.fetch, key, len(buffer), offset))
        if count < len(buffer):
            buffer[count:] = bytes(len(buffer) - count)

    def fetch(self, key: LayerKey, length: int, offset: int) -> None:
        """Bring a part of a layer into the host's memory.  May be called in a thread."""
        try:  # by a descriptor of its own: the loop may close its own meanwhile
            fd = self.media.open(self.path(*key), write=False)
        except MediaError:  # reclaimed meanwhile, perhaps; whoever tries again will see
            return
        try:
            self.media.read(fd, length, offset)
        finally:
            self.media.close(fd)

    def write(self, ino: int, epoch: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """Into the layer of the current epoch, which is made if it is not there."""
        key = (ino, epoch)
        fd = self._writers.get(key)
        if fd is None:
            fd = self._remember(self._writers, key, write=True)
        with self._lock:
            self._dirty.add(key)
        try:
            self.media.write(fd, parts, offset)
        except MediaError:
            self._spoiled.add(key)
            raise

    def take_spoiled(self) -> set[LayerKey]:
        """Layers that may hold parts of writes that were refused since this was last asked."""
        spoiled, self._spoiled = self._spoiled, set()
        return spoiled

    def data_ranges(self, ino: int, epoch: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Byte ranges from *start* on that are not holes; none if there is no such file."""
        try:
            return self.media.data_ranges(self._reader((ino, epoch)), start)
        except CorruptionError:
            return iter(())

    def size(self, ino: int, epoch: int) -> int | None:
        """Bytes of the layer file; None if there is no such file."""
        try:
            return self.media.size(self._reader((ino, epoch)))
        except CorruptionError:
            return None

    def punch(self, ino: int, epoch: int, start: int, stop: int) -> None:
        """Give the space of bytes [start, stop) of a layer back."""
        with self._lock:  # synced before the commit that forgets what there was to do
            self._dirty.add((ino, epoch))
        fd = self.media.open(self.path(ino, epoch), write=True)
        try:
            self.media.punch(fd, start, stop)
        finally:
            self.media.close(fd)

    def remove(self, ino: int, epoch: int) -> None:
        """Remove a layer that no view can reach."""
        key = (ino, epoch)
        for cache in (self._readers, self._writers):
            fd = cache.pop(key, None)
            if fd is not None:
                self.media.close(fd)
        with self._lock:  # as with `punch`: a power cut must not bring the file back unnoticed
            self._dirty.discard(key)
            self._thinned.add(ino % DIRECTORIES)
        self.media.unlink(self.path(ino, epoch))

    def listing(self, index: int) -> list[LayerKey]:
        """The layers in one of the 256 directories."""
        found = []
        for name in self.media.names(self.directory(index)):
            ino, dot, epoch = name.partition(".")
            if dot and ino.isdecimal() and epoch.isdecimal():
                found.append((int(ino), int(epoch)))
        return sorted(found)

    def take_dirty(self) -> DataSync:
        """All that was changed and not synced; it counts as synced unless the sync fails."""
        with self._lock:
            return self._take(set(self._dirty), set(self._thinned))

    def take_unsynced(self) -> DataSync:
        """Like `take_dirty`, and again what others took and have not finished syncing."""
        with self._lock:
            others = list(self._under_way)
            return self._take(
                self._dirty.union(*(other.keys for other in others)),
                self._thinned.union(*(other.thinned for other in others)),
            )

    def _take(self, keys: set[LayerKey], thinned: set[int]) -> DataSync:
        work = DataSync(self, frozenset(keys), frozenset(thinned))
        self._dirty, self._thinned = set(), set()
        self._under_way.add(work)
        return work

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty or self._thinned)

    def sync_ended(self, work: DataSync, *, failed: bool) -> None:
        with self._lock:
            self._under_way.discard(work)
            if failed:
                self._dirty |= work.keys
                self._thinned |= work.thinned

    def close_all(self) -> None:
        for cache in (self._readers, self._writers):
            for fd in cache.values():
                self.media.close(fd)
            cache.clear()

    def seal(self) -> None:
        """A new epoch begins: nothing may be written through the old descriptors any more."""
        for fd in self._writers.values():
            self.media.close(fd)
        self._writers.clear()

    def _reader(self, key: LayerKey) -> int:
        fd = self._writers.get(key)
        if fd is None:
            fd = self._readers.get(key)
        if fd is None:
            fd = self._remember(self._readers, key, write=False)
        return fd

    def _remember(self, cache: dict[LayerKey, int], key: LayerKey, *, write: bool) -> int:
        path = self._path(*key)
        try:
            fd = self.media.open(path, write=write)
        except MediaError as exc:
            if isinstance(exc.__cause__, FileNotFoundError) and not write:
                raise CorruptionError(path, "the block map names a missing layer") from exc
            raise
        if len(cache) >= self._descriptors:
            for old in list(cache)[: self._descriptors // 4]:
                self.media.close(cache.pop(old))
        cache[key] = fd
        return fd
