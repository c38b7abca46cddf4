"""Attaching a session to the kernel: the mount itself, its first request, and its end.

Root mounts without libfuse's help and gives libfuse the open device, so that we can ask the kernel
for abilities that libfuse does not know (`nasfs.fuse.handshake`).  Others mount through
fusermount3(1), and do without them.
"""

from __future__ import annotations

import ctypes
import os
import select
from pathlib import Path

import pyfuse3

from nasfs.errors import Failed
from nasfs.fuse.handshake import Ability, Handshake
from nasfs.fuse.operations import Operations

FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "suid": 0,
    "nodev": 4,
    "dev": 0,
    "noexec": 8,
    "sync": 16,
    "noatime": 1024,
}
"""Words for bits of mount(2); those for 0 are the kernel's way, but not libfuse's."""

MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class KernelMount:
    """A context manager; its end unmounts, if need be with files still open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._handshake: Handshake | None = None

    def __enter__(self) -> KernelMount:
        return self

    def open(self, operations: Operations, path: Path, options: set[str]) -> None:
        """Mount; from now on requests wait to be taken by `pyfuse3.main`.

        Args:
            options: as libfuse takes them, with fsname and subtype.

        Raises:
            Failed: the kernel refused.
        """
        where = str(path)
        if os.geteuid() == 0:
            self._handshake = Handshake(_mount(path, options))
            operations.drops_privileges = Ability.HANDLE_KILLPRIV_V2 in self._handshake.agreed
            where, options = f"/dev/fd/{self._handshake.fd}", set()
        try:
            pyfuse3.init(operations, where, options)
        except RuntimeError as exc:
            if self._handshake is not None:
                self._handshake.close()
                os.close(self._handshake.fd)
                _detach(path)
            raise _failed(path, str(exc)) from exc
        self._path = path

    def is_introduced(self) -> bool:
        """Whether kernel and libfuse talk to each other; to be asked before each wait."""
        return self._handshake is None or self._handshake.finish()

    def __exit__(self, *_: object) -> None:
        if self._path is None:
            return
        is_ours = self._handshake is not None and not _is_severed(self._handshake.fd)
        if self._handshake is not None:
            self._handshake.close()
        pyfuse3.close(unmount=True)
        if is_ours:
            _detach(self._path)


def _mount(path: Path, options: set[str]) -> int:
    """mount(2); the device on which its requests come."""
    named = dict(option.split("=", 1) for option in options if "=" in option)
    source = named["fsname"].replace("\\,", ",").replace("\\\\", "\\")
    words = {option for option in options if "=" not in option}
    flags = sum(FLAGS[word] for word in words & FLAGS.keys())
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise _failed(path, f"/dev/fuse: {exc.strerror}") from exc
    data = {f"fd={device}", "rootmode=40000", "user_id=0", f"group_id={os.getegid()}"}
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(path),
        f"fuse.{named['subtype']}".encode(),
        ctypes.c_ulong(flags),
        ",".join(data | words - FLAGS.keys()).encode(),
    )
    if done != 0:
        reason = os.strerror(ctypes.get_errno())
        os.close(device)
        raise _failed(path, reason)
    return device


def _detach(path: Path) -> None:
    _libc.umount2(os.fsencode(path), MNT_DETACH)


def _is_severed(device: int) -> bool:
    """Whether the kernel has ended the connection: the place may be somebody else's by now."""
    poll = select.poll()
    poll.register(device, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _failed(path: Path, why: str) -> Failed:
    return Failed(f"mounting at {path} failed: {why}", hint="is /dev/fuse there, and allowed?")
