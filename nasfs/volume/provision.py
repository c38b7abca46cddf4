"""Guaranteed capacity: what an ``exact`` volume holds of the pool's disk before it writes there.

Theory of operation.  Layers are sparse files on a disk that others fill as well, so capacity is
kept by a file ``reserve`` beside them, allocated and never written: as large as what the volume
may still write, and an allowance for its metadata.  It follows the *commits*: it shrinks after
the commit whose blocks took its place, and grows before reclaim gives blocks back.  So a write
usually takes space that others left free, and the reservation is handed over when the data is on
stable storage: a crash at any point leaves it too large rather than too small.

Only where others left nothing free does it shrink first: a write that the host refuses takes a
step of it (`SLACK_BYTES`) and is tried again at once.  `ReservedMedia` does that at the one seam
to the disk.  SQLite's log, which can't be asked to try again in the middle of a transaction, has
its next bytes allocated behind its end.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nasfs.errors import ConfigError
from nasfs.volume.errors import MediaError
from nasfs.volume.media import Media
from nasfs.volume.types import BLOCK

RESERVE = "reserve"
"""The name of the file in the volume's folder."""

SIZE_MIN = 1 << 20
"""Bytes of the smallest volume."""

SLACK_BYTES = 8 << 20
"""How exactly the reservation follows the commits."""

GIVEN_BYTES = 128 << 10
"""A refused write takes its own length and so much more of the reservation.

The host needs some for itself; what is left of it others may take.  With larger steps they take
more, and nothing is quicker.
"""

SPARE_BYTES = 1 << 20
"""Of a full disk not everything is taken back: SQLite's readers need a little."""

TAKEN_MIN_BYTES = 1 << 20
"""Pieces that are taken back: for less the host is not made to search."""

COPIES_BYTES = 12 << 20
"""On a host that writes even allocated blocks to another place, so much stays free."""

LOG_AHEAD_BYTES = 64 << 20
"""So much is allocated behind the end of SQLite's log: as much as its cache holds for a commit."""

INDEX_BYTES = 1 << 20
"""Of SQLite's index of the log: for a log of 512 MiB."""

ALLOWANCE_BYTES = 192 << 20
ALLOWANCE_PART = 64
"""For metadata is reserved: `ALLOWANCE_BYTES`, and this part of the size."""

OPEN_BYTES = 4 << 20
OPEN_ATTEMPTS = 8
"""Opening meta.db takes space for SQLite's files; others may be quicker, but not every time."""

T = TypeVar("T")


def check_size(size: int) -> None:
    """Raises `ConfigError` if that can't be the size of a volume."""
    if size < SIZE_MIN:
        raise ConfigError(f"a volume of {size} bytes is too small", hint="1M is the least")


def allowance(size: int) -> int:
    """Bytes reserved for the metadata of an exact volume of that size."""
    return ALLOWANCE_BYTES + size // ALLOWANCE_PART


def readable(size: int) -> str:
    """``1.5 GiB``; for sentences."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


class Reservation:
    """What one exact volume holds.  Methods may be called in any thread.

    Args:
        directory: the volume's folder.
        size: the capacity that is promised, in bytes; `size` may be set.
        used: tells how many bytes the volume uses now; it may be set.
    """

    def __init__(
        self, directory: Path, media: Media, size: int, used: Callable[[], int] = lambda: 0
    ) -> None:
        self.size = size
        self.used = used
        self._media = media
        self._path = directory / RESERVE
        self._database = directory / "meta.db"
        self._log = directory / "meta.db-wal"
        self._index = directory / "meta.db-shm"
        self._lock = threading.Lock()
        self._copies = media.copies_on_write(directory)
        self._unsynced = False
        size_there, allocated = media.usage(self._path)
        self._held = size_there if allocated >= size_there else 0  # a restored copy has holes

    @property
    def held(self) -> int:
        """Bytes in the reservation."""
        return self._held

    @property
    def for_metadata(self) -> int:
        """Bytes that nothing but the volume's metadata can take."""
        size, allocated = self._media.usage(self._log)
        return self._spare() + max(allocated - size, 0)

    def _spare(self) -> int:
        """The part of the reservation that is not for data."""
        return max(self._held - max(self.size - self.used(), 0), 0)

    def needed(self, used: int) -> int:
        """Bytes that have to be held while the volume uses so many."""
        metadata = self._media.usage(self._database)[1] + self._media.usage(self._log)[1]
        return max(self.size - used, 0) + max(allowance(self.size) - metadata, 0)

    def missing(self) -> int:
        """Bytes of the promise that are not held: others took them in a moment between."""
        return max(self.needed(self.used()) - self._held - SLACK_BYTES, 0)

    def fill(self) -> None:
        """Hold what is needed, durably; or raise `MediaError` and hold what was held before."""
        with self._lock:
            needed = self.needed(self.used())
            if needed <= self._held:
                return
            free = self._free()
            try:
                self._grow(needed)
                self._media.sync_files([self._path], [self._path.parent])
                self._unsynced = False
            except MediaError as exc:
                raise self._explained(exc, needed - self._held, free) from exc

    def _explained(self, exc: MediaError, more: int, free: int) -> MediaError:
        if exc.errno == errno.ENOSPC:
            return MediaError(
                errno.ENOSPC,
                f"to guarantee {readable(self.size)} the pool's disk needs {readable(more)} more,"
                f" and has {readable(free)} free",
                hint="choose a smaller size, free space on the disk, or use a thin volume",
            )
        if exc.errno == errno.EFBIG:  # 16 TiB on ext4
            return MediaError(
                errno.EFBIG,
                f"the pool's file system has no files as large as {readable(self._held + more)},"
                " which an exact volume of that size would need",
                hint="choose a smaller size, use a thin volume, or a pool on XFS",
            )
        if exc.errno == errno.EOPNOTSUPP:
            return MediaError(
                errno.EOPNOTSUPP,
                "the pool's file system can't reserve space",
                hint="use a thin volume, or a pool on ext4, XFS or btrfs",
            )
        return exc

    def settle(self, durable: int, *, exactly: bool = False, wait: bool = True) -> None:
        """Follow the volume.  What the disk refuses stays `missing`.

        Args:
            durable: bytes that the volume used as of the last commit on stable storage.
            exactly: not just to within `SLACK_BYTES`, and have the host look for space that it
                does not count as free yet.
            wait: what was taken back is on stable storage on return.
        """
        slack = 0 if exactly else SLACK_BYTES
        with self._lock, suppress(MediaError):
            current = self.used()
            most = self.needed(min(durable, current))
            least = self.needed(max(durable, current))
            if self._held > most + slack:
                self._shrink(most)
            elif self._held + slack < least:
                self._take_back(least, search=exactly)
            if wait and self._unsynced:
                self._media.sync_files([self._path], [self._path.parent])
                self._unsynced = False

    def give_way(self, count: int) -> bool:
        """Let a write of so many bytes have its place.  False if nothing is left to give."""
        with self._lock:
            if self._held == 0:
                return False
            self._shrink(max(self._held - count - GIVEN_BYTES, 0))
            return True

    def keep_log_ahead(self) -> None:
        """See to it that the next commit needs no space of the disk."""
        with self._lock, suppress(MediaError):
            self._allocate_behind(self._log, LOG_AHEAD_BYTES)
            self._allocate_behind(self._index, INDEX_BYTES)
            if self._copies and self._free() < COPIES_BYTES:
                self._shrink(self._held - min(2 * COPIES_BYTES, self._spare()))

    def make_room_for_log(self) -> None:
        """Before SQLite's log moves into the tables: they grow before it is cut."""
        with self._lock, suppress(MediaError):
            self._allocate_behind(self._database, self._media.usage(self._log)[0])

    def _allocate_behind(self, path: Path, count: int) -> None:
        """Of what is reserved for metadata, if others left nothing free."""
        size, allocated = self._media.usage(path)
        start, stop = max(size, allocated), size + count
        if stop - start < min(count, SLACK_BYTES):
            return
        while True:
            try:
                self._media.allocate_behind(path, start, stop)
            except MediaError as exc:
                more = min(stop - start + GIVEN_BYTES, self._spare())
                if exc.errno != errno.ENOSPC or more <= 0:
                    raise
                self._shrink(self._held - more)
            else:
                return

    def _take_back(self, target: int, *, search: bool) -> None:
        """Grow as far as possible."""
        before = self._held
        piece, smallest = target - before, TAKEN_MIN_BYTES
        if not search:
            piece, smallest = min(piece, self._free() - SPARE_BYTES), SLACK_BYTES
        while piece >= smallest:
            try:
                self._grow(self._held + piece)
            except MediaError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                piece //= 2
            else:
                piece = min(piece, target - self._held)
        lacking = SPARE_BYTES - self._free()
        if self._held > before and lacking > 0:
            self._shrink(self._held - min(lacking, self._held - before))

    def _free(self) -> int:
        return self._media.free_bytes(self._path.parent)[0]

    def _grow(self, target: int) -> None:
        fd = self._media.open(self._path, write=True)
        try:
            try:
                if not self._held:
                    self._media.truncate(fd, 0)
                # Not from the beginning: XFS would look for as much again.
                self._media.allocate(fd, self._held, target)
            except MediaError:
                self._media.truncate(fd, self._held)  # it may have got half way
                raise
            self._held = target
            self._unsynced = True
        finally:
            self._media.close(fd)

    def _shrink(self, target: int) -> None:
        target -= target % BLOCK
        fd = self._media.open(self._path, write=True)
        try:
            self._media.truncate(fd, target)
            self._held = target
        finally:
            self._media.close(fd)


def open_with_room(directory: Path, media: Media, opening: Callable[[], T]) -> T:
    """Open meta.db; on a full disk an exact volume first gives SQLite room for its log."""
    reserve = directory / RESERVE
    for _ in range(OPEN_ATTEMPTS):
        try:
            return opening()
        except MediaError as exc:
            held, _ = media.usage(reserve)
            if exc.errno != errno.ENOSPC or not held:
                raise
            fd = media.open(reserve, write=True)
            try:
                media.truncate(fd, max(held - OPEN_BYTES, 0))
                media.sync(fd)  # btrfs frees nothing before
            finally:
                media.close(fd)
    return opening()


class ReservedMedia:
    """The host's disk for a volume with a reservation, which gives way where the disk is full.

    Args:
        owner: this process owns the volume and may change the reservation.
    """

    def __init__(self, media: Media, reservation: Reservation, *, owner: bool) -> None:
        self._media = media
        self._reservation = reservation
        self._owner = owner

    def open(self, path: str | Path, *, write: bool) -> int:
        return self._with_room(0, lambda: self._media.open(path, write=write))

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        count = sum(map(len, parts))
        self._with_room(count, lambda: self._media.write(fd, parts, offset))

    def punch(self, fd: int, start: int, stop: int) -> None:
        self._with_room(0, lambda: self._media.punch(fd, start, stop))

    def _with_room(self, count: int, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except MediaError as exc:
                full = exc.errno == errno.ENOSPC and self._owner
                if not (full and self._reservation.give_way(count)):
                    raise

    def free_bytes(self, directory: Path) -> tuple[int, int]:
        """For metadata, what is reserved for it counts as well."""
        if self._owner:
            self._reservation.keep_log_ahead()
        free, total = self._media.free_bytes(directory)
        return free + self._reservation.for_metadata, total

    # the rest is the host's

    def close(self, fd: int) -> None:
        self._media.close(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return self._media.read(fd, length, offset)

    def read_disk(self, path: str | Path, buffer: memoryview, offset: int) -> int:
        return self._media.read_disk(path, buffer, offset)

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, wait: bool) -> int | None:
        return self._media.read_into(fd, buffer, offset, wait=wait)

    def data_ranges(self, fd: int, start: int = 0) -> Iterator[tuple[int, int]]:
        return self._media.data_ranges(fd, start)

    def size(self, fd: int) -> int:
        return self._media.size(fd)

    def usage(self, path: Path) -> tuple[int, int]:
        return self._media.usage(path)

    def allocate(self, fd: int, start: int, stop: int) -> None:
        self._media.allocate(fd, start, stop)

    def allocate_behind(self, path: Path, start: int, stop: int) -> None:
        self._media.allocate_behind(path, start, stop)

    def truncate(self, fd: int, size: int) -> None:
        self._media.truncate(fd, size)

    def copies_on_write(self, path: Path) -> bool:
        return self._media.copies_on_write(path)

    def unlink(self, path: Path) -> None:
        self._media.unlink(path)

    def names(self, directory: Path) -> list[str]:
        return self._media.names(directory)

    def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        self._media.sync_files(paths, directories)

    def sync(self, fd: int) -> None:
        self._media.sync(fd)

    def sync_directory(self, path: Path) -> None:
        self._media.sync_directory(path)

    def sync_filesystem(self, directory: Path) -> None:
        self._media.sync_filesystem(directory)
