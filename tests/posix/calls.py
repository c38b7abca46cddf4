"""System calls that Python has no function for, and small helpers that many groups share."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from tests.posix.users import User

P = ParamSpec("P")

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
CLOCK_REALTIME_COARSE = 5

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""The value of security.capability that means cap_net_bind_service."""

KINDS = ("file", "directory", "fifo", "block", "char", "socket", "symlink")
NOT_DIRECTORIES = tuple(kind for kind in KINDS if kind != "directory")
NOT_LINKS = tuple(kind for kind in KINDS if kind != "symlink")


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def make(kind: str, path: Path, owner: User | None = None, mode: int = 0o644) -> Path:
    """Something of that kind; a directory is searchable by those who may read it."""
    match kind:
        case "file":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        case "directory":
            path.mkdir()
            mode |= (mode & 0o444) >> 2
        case "fifo":
            os.mkfifo(path)
        case "block":
            os.mknod(path, stat.S_IFBLK | mode, os.makedev(1, 2))
        case "char":
            os.mknod(path, stat.S_IFCHR | mode, os.makedev(1, 2))
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                _bind(sock, path)
        case "symlink":
            os.symlink("nowhere", path)
    if owner is not None:
        os.lchown(path, owner.uid, owner.gid)
    if kind != "symlink":
        path.chmod(mode)  # after the chown, which may take bits of it
    return path


def _bind(sock: socket.socket, path: Path) -> None:
    """Names of sockets are short: so the path goes by a descriptor of the directory."""
    directory = os.open(path.parent, os.O_PATH)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def tick() -> None:
    """Return when the clock that files are stamped with has moved."""
    now = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == now:
        pass


def times_changed(path: Path, action: Callable[[], object]) -> set[str]:
    """Which of the times of *path* the action moves; they move forward only."""
    before = os.lstat(path)
    tick()
    action()
    after = os.lstat(path)
    names = ("atime", "mtime", "ctime")
    for name in names:
        assert getattr(after, f"st_{name}_ns") >= getattr(before, f"st_{name}_ns")
    return {n for n in names if getattr(after, f"st_{n}_ns") != getattr(before, f"st_{n}_ns")}


def errno_of(action: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> str:
    """The name of the error that a call ends with, or ``ok``."""
    try:
        action(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "ok"


def open_close(
    path: Path | str, flags: int, mode: int = 0o644, *, dir_fd: int | None = None
) -> None:
    os.close(os.open(path, flags, mode, dir_fd=dir_fd))


def renameat2(old: Path, new: Path, flags: int) -> None:
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link_followed(old: Path | str, new: Path) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW."""
    _check(_libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW))


def link_descriptor(fd: int, path: Path) -> None:
    """linkat(2) with AT_EMPTY_PATH."""
    _check(_libc.linkat(fd, b"", AT_FDCWD, os.fsencode(path), AT_EMPTY_PATH))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def utimensat(
    path: Path | str, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True
) -> None:
    """utimensat(2): times as (seconds, nanoseconds), which UTIME_NOW and UTIME_OMIT stand for."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("bytes", ctypes.c_ubyte * 128),
    )


def name_to_handle(path: Path) -> bytes:
    """name_to_handle_at(2), as bytes."""
    handle, mount_id = _FileHandle(size=128), ctypes.c_int()
    _check(
        _libc.name_to_handle_at(
            AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0
        )
    )
    return bytes(handle)[: 8 + handle.size]


def open_by_handle(root: Path, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2) on the file system of *root*."""
    raw = _FileHandle.from_buffer_copy(handle.ljust(ctypes.sizeof(_FileHandle), b"\0"))
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _check(_libc.open_by_handle_at(fd, ctypes.byref(raw), flags))
    finally:
        os.close(fd)
