"""SQLite's disk operations, seen and refused: a VFS on top of the one that SQLite uses anyway.

`watched(watcher)` makes it the default of this process for a while, so the engine opens its
meta.db through it without knowing.  Reads, locks and the shared memory of the WAL index (which
SQLite builds anew after a crash) go to the original untouched.
"""

from __future__ import annotations

import ctypes
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, Protocol

OK = 0
SQLITE_FULL = 13
SQLITE_IOERR_WRITE = 10 | 3 << 8
SQLITE_IOERR_FSYNC = 10 | 4 << 8

_OPEN_CREATE = 0x00000004
_OPEN_WAL = 0x00080000


class Watcher(Protocol):
    """Told of each operation before and after it.  Paths are of meta.db and its log."""

    def sqlite_begins(self, operation: str, path: Path) -> int:
        """`OK`, or the SQLite error with which the operation is refused."""
        ...

    def sqlite_created(self, path: Path) -> None: ...

    def sqlite_wrote(self, path: Path, data: bytes, offset: int) -> None: ...

    def sqlite_truncated(self, path: Path, size: int) -> None: ...

    def sqlite_synced(self, path: Path, *, name_too: bool) -> None:
        """*name_too*: the directory was synced as well, as SQLite does for a new log."""
        ...

    def sqlite_deleted(self, path: Path, *, synced: bool) -> None: ...


class _File(ctypes.Structure):
    pass


_WRITE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = ctypes.CFUNCTYPE(c_int, c_void_p, c_int)
_OPEN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)


class _Methods(ctypes.Structure):
    """struct sqlite3_io_methods, version 3."""

    _fields_ = (
        ("iVersion", c_int),
        ("xClose", c_void_p),
        ("xRead", c_void_p),
        ("xWrite", _WRITE),
        ("xTruncate", _TRUNCATE),
        ("xSync", _SYNC),
        *((name, c_void_p) for name in (
            "xFileSize", "xLock", "xUnlock", "xCheckReservedLock", "xFileControl", "xSectorSize",
            "xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch",
            "xUnfetch",
        )),
    )  # fmt: skip


_File._fields_ = (("pMethods", ctypes.POINTER(_Methods)),)


class _Vfs(ctypes.Structure):
    """struct sqlite3_vfs, version 3."""

    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", _OPEN),
        ("xDelete", _DELETE),
        *((name, c_void_p) for name in (
            "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose",
            "xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64",
            "xSetSystemCall", "xGetSystemCall", "xNextSystemCall",
        )),
    )  # fmt: skip


class _Nobody:
    """The watcher when nobody watches: connections may outlive `watched`."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_, **__: OK


class _Shim:
    """The one VFS of this process that is put in front; it is never taken apart again."""

    def __init__(self) -> None:
        self.watcher: Any = _Nobody()
        self._sqlite = ctypes.CDLL("libsqlite3.so.0")
        self._sqlite.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._original = self._sqlite.sqlite3_vfs_find(None)
        self._vfs = _Vfs.from_buffer_copy(self._original.contents)
        self._vfs.pNext = None
        self._vfs.zName = b"nasfs-watched"
        self._open_original = self._original.contents.xOpen
        self._delete_original = self._original.contents.xDelete
        self._vfs.xOpen = _OPEN(self._open)
        self._vfs.xDelete = _DELETE(self._delete)
        self._methods: dict[int, tuple[_Methods, _Methods]] = {}
        """By the address of SQLite's own methods: those, and ours."""
        self._files: dict[int, tuple[Path, _Methods]] = {}
        """By the address of an open file: its path and its original methods."""
        self._named: set[int] = set()
        """Open logs whose first sync, which syncs the directory too, is still to come."""

    def register(self) -> None:
        assert self._sqlite.sqlite3_vfs_register(ctypes.byref(self._vfs), 1) == OK

    def unregister(self) -> None:
        assert self._sqlite.sqlite3_vfs_register(self._original, 1) == OK

    def _open(
        self, vfs: int, name: int | None, file: int, flags: int, out_flags: int | None
    ) -> int:
        path = None if name is None else Path(ctypes.string_at(name).decode())
        is_new = path is not None and not path.exists()
        result: int = self._open_original(vfs, name, file, flags, out_flags)
        if result != OK or path is None:
            return result
        opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
        address = ctypes.addressof(opened.pMethods.contents)
        if address not in self._methods:
            original = _Methods.from_address(address)
            ours = _Methods.from_buffer_copy(original)
            ours.xWrite = _WRITE(self._write)
            ours.xTruncate = _TRUNCATE(self._truncate)
            ours.xSync = _SYNC(self._sync)
            self._methods[address] = original, ours
        original, ours = self._methods[address]
        self._files[file] = path, original
        self._named.discard(file)
        if flags & _OPEN_WAL and flags & _OPEN_CREATE:
            self._named.add(file)
        opened.pMethods = ctypes.pointer(ours)
        if is_new:
            self.watcher.sqlite_created(path)
        return result

    def _delete(self, vfs: int, name: bytes, sync_directory: int) -> int:
        path = Path(name.decode())
        refused: int = self.watcher.sqlite_begins("delete", path)
        result = refused or int(self._delete_original(vfs, name, sync_directory))
        if result == OK:
            self.watcher.sqlite_deleted(path, synced=bool(sync_directory))
        return result

    def _write(self, file: int, data: int, length: int, offset: int) -> int:
        path, original = self._files[file]
        refused: int = self.watcher.sqlite_begins("write", path)
        result = refused or int(original.xWrite(file, data, length, offset))
        if result == OK:
            self.watcher.sqlite_wrote(path, ctypes.string_at(data, length), offset)
        return result

    def _truncate(self, file: int, size: int) -> int:
        path, original = self._files[file]
        refused: int = self.watcher.sqlite_begins("truncate", path)
        result = refused or int(original.xTruncate(file, size))
        if result == OK:
            self.watcher.sqlite_truncated(path, size)
        return result

    def _sync(self, file: int, flags: int) -> int:
        path, original = self._files[file]
        refused: int = self.watcher.sqlite_begins("sync", path)
        result = refused or int(original.xSync(file, flags))
        if result == OK:
            self.watcher.sqlite_synced(path, name_too=file in self._named)
            self._named.discard(file)
        return result


_shim: _Shim | None = None


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """SQLite databases that are opened in the body are watched until its end."""
    global _shim
    if _shim is None:
        _shim = _Shim()
    _shim.watcher = watcher
    _shim.register()
    try:
        yield
    finally:
        _shim.unregister()
        _shim.watcher = _Nobody()


def sees_this_sqlite(path: Path) -> bool:
    """Whether Python's sqlite3 and the library that the shim found are the same one."""
    seen: list[Path] = []

    class Seeing(_Nobody):
        def sqlite_created(self, path: Path) -> None:
            seen.append(path)

    with watched(Seeing()):  # type: ignore[arg-type]
        sqlite3.connect(path).close()
    return seen == [path]
