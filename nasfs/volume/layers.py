"""Layer files: the blocks of one inode that were written in one epoch.

A block lies at the same offset in its layer as in the file.  Bytes of a block beyond the size of
the file are undefined.  This module knows paths, open descriptors, what waits to be written and
what is not synced yet; which block is in which layer is the block map's business.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from nasfs.volume.behind import SMALL_BYTES, Behind, LayerKey
from nasfs.volume.datasync import DataSync
from nasfs.volume.errors import CorruptionError, MediaError, WouldWait
from nasfs.volume.media import Media

DIRECTORIES = 256

NAMED = 65_536
"""So many layers are remembered as having synced names; else a directory is synced once more."""


def directory_name(index: int) -> str:
    return f"{index:02x}"


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
        self._directories: set[int] = set()
        """Those from which layers were removed."""
        self._named: set[LayerKey] = set()
        """Layers whose names are synced; or will be, with one of the directories that are to be."""
        self._spoiled: set[LayerKey] = set()
        self._under_way: set[DataSync] = set()
        self._behind = Behind()
        self._landing: dict[LayerKey, DataSync] = {}
        """Layers to which a thread writes what waited."""
        self.delays = False
        """Whether small writes to new places wait until the next sync."""
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
        """Exactly *length* bytes of a sealed layer; what the file does not hold is zeros."""
        data = self.media.read(self._reader((ino, epoch)), length, offset)
        return data if len(data) == length else data.ljust(length, b"\0")

    def read_into(self, ino: int, epoch: int, buffer: memoryview, offset: int) -> None:
        """Fill the buffer; what the file does not hold is zeros.

        Raises:
            WouldWait: `waits` is off, and some of it is not in memory.
        """
        key = (ino, epoch)
        if (self._behind.logs or self._landing) and not self._land_to_read(key, buffer, offset):
            return
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

    def write(
        self,
        ino: int,
        epoch: int,
        parts: Sequence[bytes | memoryview],
        offset: int,
        *,
        fresh: bool = False,
    ) -> None:
        """Into the layer of the current epoch, which is made if it is not there.

        Args:
            fresh: to a place that no map named in this layer; it may wait for the next sync.
        """
        key = (ino, epoch)
        if self._behind.logs or self._landing or (fresh and self.delays):
            length = sum(map(len, parts))
            clashes = self._waits(key, offset, offset + length)
            if self.delays and length <= SMALL_BYTES and (fresh or clashes):
                if self._behind.is_too_much:
                    self._write_oldest()
                self._behind.add(key, parts, offset, length)
                return
            if clashes:
                self.land(key)
        self._write(key, parts, offset)

    def _waits(self, key: LayerKey, start: int, stop: int) -> bool:
        """Whether something for the blocks of these bytes waits, or is on its way in a thread."""
        log, work = self._behind.logs.get(key), self._landing.get(key)
        return (log is not None and log.touches(start, stop)) or (
            work is not None and work.logs[key].touches(start, stop)
        )

    def _write(self, key: LayerKey, parts: Sequence[bytes | memoryview], offset: int) -> None:
        fd = self._writer(key)
        try:
            self.media.write(fd, parts, offset)
        except MediaError:
            self._spoiled.add(key)
            raise

    def _writer(self, key: LayerKey) -> int:
        """A descriptor through which something is about to be written."""
        fd = self._writers.get(key)
        if fd is None:
            fd = self._remember(self._writers, key, write=True)
        with self._lock:
            self._dirty.add(key)
        return fd

    def write_whole(self, ino: int, epoch: int, data: bytes | memoryview) -> None:
        """A layer from its beginning, which hardly anybody will ask for soon: no open descriptor.

        Not for a layer that this object has open.  May be called while others are synced.
        """
        key = (ino, epoch)
        if self._behind.logs or self._landing:  # of blocks that no map names any more
            self._behind.drop(key)
            self.land(key)
        fd = self.media.open(self._path(ino, epoch), write=True)
        try:
            with self._lock:
                self._dirty.add(key)
            self.media.write(fd, (data,), 0)
        except MediaError:
            self._spoiled.add(key)
            raise
        finally:
            self.media.close(fd)

    def read_once(self, ino: int, epoch: int, length: int, offset: int) -> bytes:
        """Like `read`, for who goes through many layers: no descriptor stays open."""
        key = (ino, epoch)
        if key in self._readers or key in self._writers:
            return self.read(ino, epoch, length, offset)
        fd = self._open(key, write=False)
        try:
            data = self.media.read(fd, length, offset)
        finally:
            self.media.close(fd)
        return data if len(data) == length else data.ljust(length, b"\0")

    def read_disk(self, ino: int, epoch: int, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from a sealed layer as it is on the disk (see `Media.read_disk`)."""
        path = self._path(ino, epoch)
        try:
            count = self.media.read_disk(path, buffer, offset)
        except MediaError as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                raise CorruptionError(path, "the block map names a missing layer") from exc
            raise
        buffer[count:] = bytes(len(buffer) - count)

    # what waits to be written

    @property
    def waiting_bytes(self) -> int:
        """Of writes that the host has not been given yet."""
        return self._behind.bytes

    def land(self, key: LayerKey) -> None:
        """The host has all that was written to a layer, on return.

        Raises:
            MediaError: it refused; what waited goes on to wait.
        """
        work = self._landing.get(key)
        if work is not None:
            work.wait_written()
            self.take_back(work)
        log = self._behind.logs.get(key)
        if log is not None:
            log.write(self.media, self._writer(key))
            self._behind.drop(key)

    def _land_to_read(self, key: LayerKey, buffer: memoryview, offset: int) -> bool:
        """Before the host is asked for it.  False: it refused, and the buffer is filled already."""
        if not self._waits(key, offset, offset + len(buffer)):
            return True
        work = self._landing.get(key)
        if work is not None and not self.waits:
            raise WouldWait(work.wait_written)
        try:
            self.land(key)
        except MediaError:
            self._read_unlanded(key, buffer, offset)
            return False
        return True

    def _read_unlanded(self, key: LayerKey, buffer: memoryview, offset: int) -> None:
        """A full disk takes nothing more, but reading goes on."""
        count = 0
        if os.path.exists(self._path(*key)):
            count = self.media.read_into(self._reader(key), buffer, offset, wait=True) or 0
        buffer[count:] = bytes(len(buffer) - count)
        self._behind.logs[key].lay_over(buffer, offset)

    def _write_oldest(self) -> None:
        """Until a quarter of what may wait is free again."""
        behind = self._behind
        least_bytes, least_layers = behind.bytes * 3 // 4, len(behind.logs) * 3 // 4
        for key in list(behind.logs):
            if behind.bytes <= least_bytes and len(behind.logs) <= least_layers:
                break
            self.land(key)

    def land_all(self) -> None:
        """See `land`; for every layer."""
        for key in list(self._behind.logs):
            self.land(key)

    def drop_waiting(self, ino: int, epoch: int) -> None:
        """Nobody will read what was written to this layer: if it waits, it need not land."""
        self._behind.drop((ino, epoch))

    def drop_all_waiting(self) -> None:
        """What was not committed is dropped, and this with it."""
        self._behind.take_all()

    def landed(self, work: DataSync) -> None:
        """Called by the work, in its thread: the host has what waited."""
        for key in work.logs:
            self._landing.pop(key, None)

    def take_back(self, work: DataSync) -> None:
        """What this work could not write, if so, waits again: before whatever came since."""
        logs = {key: log for key, log in work.logs.items() if self._landing.get(key) is work}
        for key in logs:
            del self._landing[key]
        self._behind.put_back(logs)

    def take_spoiled(self) -> set[LayerKey]:
        """Layers that may hold parts of writes that were refused since this was last asked."""
        spoiled, self._spoiled = self._spoiled, set()
        return spoiled

    def data_ranges(self, ino: int, epoch: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Byte ranges from *start* on that are not holes; none if there is no such file."""
        self.land((ino, epoch))
        try:
            return self.media.data_ranges(self._reader((ino, epoch)), start)
        except CorruptionError:
            return iter(())

    def size(self, ino: int, epoch: int) -> int | None:
        """Bytes of the layer file; None if there is no such file."""
        self.land((ino, epoch))
        try:
            return self.media.size(self._reader((ino, epoch)))
        except CorruptionError:
            return None

    def punch(self, ino: int, epoch: int, start: int, stop: int) -> None:
        """Give the space of bytes [start, stop) of a layer back."""
        self.land((ino, epoch))
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
        self._behind.drop(key)
        if key in self._landing:
            self.land(key)
        for cache in (self._readers, self._writers):
            fd = cache.pop(key, None)
            if fd is not None:
                self.media.close(fd)
        with self._lock:  # as with `punch`: a power cut must not bring the file back unnoticed
            self._dirty.discard(key)
            self._named.discard(key)
            self._directories.add(ino % DIRECTORIES)
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
            return self._take(set(self._dirty), set(self._directories))

    def take_unsynced(self) -> DataSync:
        """Like `take_dirty`, and again what others took and have not finished syncing."""
        with self._lock:
            others = list(self._under_way)
        for other in others:
            other.wait_written()
            self.take_back(other)
        with self._lock:
            return self._take(
                self._dirty.union(*(other.keys for other in others)),
                self._directories.union(*(other.directories for other in others)),
            )

    def _take(self, keys: set[LayerKey], directories: set[int]) -> DataSync:
        # Later writes to a layer must not land before earlier ones.
        assert not self._landing, "what is under way is written before more is taken"
        logs = self._behind.take_all()
        keys.update(logs)
        unnamed = keys - self._named
        directories.update(ino % DIRECTORIES for ino, _ in unnamed)
        if len(self._named) + len(unnamed) > NAMED:
            self._named.clear()
        self._named |= unnamed
        work = DataSync(self, frozenset(keys), frozenset(directories), logs)
        self._dirty, self._directories = set(), set()
        self._under_way.add(work)
        self._landing.update(dict.fromkeys(logs, work))
        return work

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty or self._directories or self._behind.logs)

    def sync_ended(self, work: DataSync, *, failed: bool) -> None:
        with self._lock:
            self._under_way.discard(work)
            if failed:
                self._dirty |= work.keys
                self._directories |= work.directories

    def close_all(self) -> None:
        for cache in (self._readers, self._writers):
            for fd in cache.values():
                self.media.close(fd)
            cache.clear()

    def seal(self) -> None:
        """A new epoch begins: nothing may be written through the old descriptors any more."""
        assert not self._behind.logs, "a layer is whole when it is sealed"
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
        fd = self._open(key, write=write)
        if len(cache) >= self._descriptors:
            for old in list(cache)[: self._descriptors // 4]:
                self.media.close(cache.pop(old))
        cache[key] = fd
        return fd

    def _open(self, key: LayerKey, *, write: bool) -> int:
        path = self._path(*key)
        try:
            return self.media.open(path, write=write)
        except MediaError as exc:
            if isinstance(exc.__cause__, FileNotFoundError) and not write:
                raise CorruptionError(path, "the block map names a missing layer") from exc
            raise
