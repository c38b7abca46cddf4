"""The disk, as the engine uses it: one small seam for all calls outside SQLite.

`HostMedia` is the host's file system.  Tests put media in its place that cut the power, fill up
or fail; nothing else in the engine touches files.  `OSError` becomes `MediaError` here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from nasfs.volume.errors import MediaError

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_BTRFS = 0x9123683E  # linux/magic.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syncfs.argtypes = (ctypes.c_int,)


class Media(Protocol):
    """What the engine asks of a disk.  Offsets and lengths are bytes."""

    def open(self, path: str | Path, *, write: bool) -> int:
        """A descriptor; with *write* the file is created if it is missing."""
        ...

    def close(self, fd: int) -> None: ...

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Short only at the end of the file."""
        ...

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, wait: bool) -> int | None:
        """Fill the buffer; bytes read, fewer only at the end of the file.

        Without *wait*: None if that would take waiting for the disk.
        """
        ...

    def read_disk(self, path: str | Path, buffer: memoryview, offset: int) -> int:
        """Fill the buffer with what the disk holds, not the host's memory; bytes read.

        The buffer begins at a page of memory; its length and the offset are whole blocks.  Where
        the host can't read past its memory (tmpfs), what is there is read.
        """
        ...

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        """All parts, one behind the other, or `MediaError`."""
        ...

    def punch(self, fd: int, start: int, stop: int) -> None:
        """Give the space of [start, stop) back; it reads as zeros, the size stays."""
        ...

    def data_ranges(self, fd: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """The parts of a file, from *start* on, that may hold something else than a hole."""
        ...

    def size(self, fd: int) -> int: ...

    def usage(self, path: Path) -> tuple[int, int]:
        """Size and bytes allocated of a file, without opening it; zeros if it is not there."""
        ...

    def allocate(self, fd: int, start: int, stop: int) -> None:
        """Take space for [start, stop) now, so that writes there can't lack it.

        Raises:
            MediaError: ENOSPC (part of it may be allocated), or EOPNOTSUPP of a host that can't.
        """
        ...

    def allocate_behind(self, path: Path, start: int, stop: int) -> None:
        """The same behind the end of a file that SQLite has open; its size stays."""
        ...

    def truncate(self, fd: int, size: int) -> None: ...

    def copies_on_write(self, path: Path) -> bool:
        """The host writes changed blocks to another place, as btrfs does."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove the file; one that is not there is fine."""
        ...

    def names(self, directory: Path) -> list[str]: ...

    def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        """Data and sizes of files, and the names in directories, are on stable storage on return.

        A file whose name was not synced before is there after a power cut only if its directory
        is among them.
        """
        ...

    def sync(self, fd: int) -> None:
        """Data and size of an open file are on stable storage on return; not its name."""
        ...

    def sync_directory(self, path: Path) -> None:
        """The names in a directory are on stable storage on return."""
        ...

    def sync_filesystem(self, directory: Path) -> None:
        """Everything on the file system of *directory* is on stable storage on return."""
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


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class HostMedia:
    """The host's file system."""

    MANY = 48
    """From so many files on, one syncfs is cheaper than a sync for each."""

    _can_tell = True
    """The host tells whether a read would wait; tmpfs does not, and never waits."""

    def open(self, path: str | Path, *, write: bool) -> int:
        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise MediaError(exc.errno or errno.EIO, str(path)) from exc

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

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, wait: bool) -> int | None:
        flags = 0 if wait or not self._can_tell else os.RWF_NOWAIT
        done = 0
        with _translated("read of a layer"):
            while done < len(buffer):
                try:
                    count = os.preadv(fd, (buffer[done:],), offset + done, flags)
                except BlockingIOError:
                    return None
                except OSError as exc:
                    if exc.errno != errno.EOPNOTSUPP or not flags:
                        raise
                    self._can_tell, flags = False, 0
                    continue
                if not count:
                    break
                done += count
        return done

    def read_disk(self, path: str | Path, buffer: memoryview, offset: int) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise MediaError(exc.errno or errno.EIO, str(path)) from exc
            fd = self.open(path, write=False)
        try:
            return self.read_into(fd, buffer, offset, wait=True) or 0
        finally:
            self.close(fd)

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

    def data_ranges(self, fd: int, start: int = 0) -> Iterator[tuple[int, int]]:
        position = start
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

    def usage(self, path: Path) -> tuple[int, int]:
        with _translated(str(path)):
            try:
                found = os.stat(path)
            except FileNotFoundError:
                return 0, 0
            return found.st_size, found.st_blocks * 512

    def allocate(self, fd: int, start: int, stop: int) -> None:
        step = max(stop - start, 1)
        if self.copies_on_write(Path(f"/proc/self/fd/{fd}")):
            step = 16 << 20  # btrfs frees an extent as a whole or not at all
        for position in range(start, stop, step):
            self._allocate(fd, 0, position, min(position + step, stop))

    def allocate_behind(self, path: Path, start: int, stop: int) -> None:
        # By SQLite's own descriptor: closing one of ours would drop its locks (fcntl(2)).
        fd = self._descriptor(path)
        if fd is not None:
            self._allocate(fd, _FALLOC_FL_KEEP_SIZE, start, stop)

    def _descriptor(self, path: Path) -> int | None:
        """One that this process has open for writing."""
        with suppress(FileNotFoundError):
            wanted = os.stat(path)
            for name in os.listdir("/proc/self/fd"):
                fd = int(name)
                with suppress(OSError):  # the listing's own is closed already
                    writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
                    if writes and os.path.samestat(os.fstat(fd), wanted):
                        return fd
        return None

    def _allocate(self, fd: int, flags: int, start: int, stop: int) -> None:
        while _libc.fallocate(fd, flags, start, stop - start) != 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:  # a large one may be interrupted by any signal
                raise MediaError(number, "allocation of space")

    def truncate(self, fd: int, size: int) -> None:
        with _translated("truncation"):
            os.ftruncate(fd, size)

    def copies_on_write(self, path: Path) -> bool:
        words = (ctypes.c_long * 16)()  # struct statfs begins with the type of the file system
        return _libc.statfs(os.fsencode(path), words) == 0 and words[0] == _BTRFS

    def unlink(self, path: Path) -> None:
        with _translated(str(path)), suppress(FileNotFoundError):
            os.unlink(path)

    def names(self, directory: Path) -> list[str]:
        with _translated(str(directory)):
            return os.listdir(directory)

    def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        if len(paths) >= self.MANY:
            self.sync_filesystem(paths[0].parent)
            return
        for path in paths:
            self._sync_file(path)
        for directory in directories:
            self.sync_directory(directory)

    def sync(self, fd: int) -> None:
        with _translated("sync of a file"):
            os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        with _translated(f"sync of {path}"), _opened(path) as fd:
            os.fsync(fd)

    def sync_filesystem(self, directory: Path) -> None:
        with _translated(f"sync of all around {directory}"), _opened(directory) as fd:
            if _libc.syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")

    def _sync_file(self, path: Path) -> None:
        try:
            fd = self.open(path, write=False)
        except MediaError as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return  # reclaimed meanwhile: nothing names it any more
            raise
        try:
            self.sync(fd)
        finally:
            self.close(fd)

    def free_bytes(self, directory: Path) -> tuple[int, int]:
        with _translated(str(directory)):
            found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
