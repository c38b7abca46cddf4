"""The disk, as the engine uses it: one small seam for all calls outside SQLite.

`HostMedia` is the host's file system.  Tests put media in its place that cut the power, fill up
or fail; nothing else in the engine touches files.  `OSError` becomes `MediaError` here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from nasfs.volume.errors import MediaError

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syncfs.argtypes = (ctypes.c_int,)


class Media(Protocol):
    """What the engine asks of a disk.  Offsets and lengths are bytes."""

    def open(self, path: Path, *, write: bool) -> int:
        """A descriptor; with *write* the file is created if it is missing."""
        ...

    def close(self, fd: int) -> None: ...

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Short only at the end of the file."""
        ...

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """All parts, one behind the other, or `MediaError`."""
        ...

    def punch(self, fd: int, start: int, stop: int) -> None:
        """Give the space of [start, stop) back; it reads as zeros, the size stays."""
        ...

    def data_ranges(self, fd: int) -> Iterator[tuple[int, int]]:
        """The parts of a file that may hold something else than a hole."""
        ...

    def size(self, fd: int) -> int: ...

    def unlink(self, path: Path) -> None:
        """Remove the file; one that is not there is fine."""
        ...

    def names(self, directory: Path) -> list[str]: ...

    def sync_files(self, paths: Sequence[Path]) -> None:
        """Data, sizes and directory entries of these files are on stable storage on return."""
        ...

    def free_bytes(self, directory: Path) -> tuple[int, int]:
        """What the host's file system still takes from an ordinary writer, and its size."""
        ...


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MediaError(exc.errno or errno.EIO, where) from exc


class HostMedia:
    """The host's file system."""

    MANY = 48
    """From so many files on, one syncfs is cheaper than a sync for each."""

    def open(self, path: Path, *, write: bool) -> int:
        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        with _translated(str(path)):
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        with _translated("read of a layer"):
            data = os.pread(fd, length, offset)
            while len(data) < length:
                more = os.pread(fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        with _translated("write to a layer"):
            total = sum(map(len, parts))
            written = os.pwritev(fd, parts, offset)
            if written < total:  # a nearly full disk, or a signal: the rest by itself
                rest = b"".join(parts)[written:]
                while rest:
                    step = os.pwrite(fd, rest, offset + written)
                    written += step
                    rest = rest[step:]

    def punch(self, fd: int, start: int, stop: int) -> None:
        flags = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(fd, flags, start, stop - start) != 0:
            number = ctypes.get_errno()
            if number != errno.EOPNOTSUPP:  # then the space stays until the layer goes
                raise MediaError(number, "punch into a layer")

    def data_ranges(self, fd: int) -> Iterator[tuple[int, int]]:
        position = 0
        while True:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise MediaError(exc.errno or errno.EIO, "seek in a layer") from exc
            position = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, position

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def unlink(self, path: Path) -> None:
        with _translated(str(path)), suppress(FileNotFoundError):
            os.unlink(path)

    def names(self, directory: Path) -> list[str]:
        with _translated(str(directory)):
            return os.listdir(directory)

    def sync_files(self, paths: Sequence[Path]) -> None:
        if not paths:
            return
        with _translated("sync of layers"):
            if len(paths) >= self.MANY:
                self._sync_all(paths[0].parent)
                return
            for path in paths:
                self._sync(path, os.fdatasync)
            for directory in {path.parent for path in paths}:
                self._sync(directory, os.fsync)

    def _sync(self, path: Path, call: object) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # reclaimed meanwhile: nothing names it any more
            return
        try:
            assert callable(call)
            call(fd)
        finally:
            os.close(fd)

    def _sync_all(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(fd)

    def free_bytes(self, directory: Path) -> tuple[int, int]:
        with _translated(str(directory)):
            found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
