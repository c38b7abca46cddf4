"""flock(2) and fcntl(2) locks, between processes of one machine."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.posix.calls import errno_of, make

pytestmark = pytest.mark.mount

TRY = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    exec(sys.argv[2])
except BlockingIOError:
    sys.exit(3)
"""


def another_process_gets(path: Path, code: str) -> bool:
    """Whether another process gets the lock that the code asks for without waiting."""
    done = subprocess.run([sys.executable, "-c", TRY, path, code], check=False)
    assert done.returncode in (0, 3)
    return done.returncode == 0


def test_flock_excludes_others_until_it_is_closed(work: Path) -> None:
    path = make("file", work / "x")
    exclusive = "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    shared = "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)"
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert another_process_gets(path, shared)
    assert not another_process_gets(path, exclusive)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not another_process_gets(path, shared)
    os.close(fd)
    assert another_process_gets(path, exclusive)


def test_record_locks_are_for_ranges(work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 100)

    def lock(start: int, length: int) -> str:
        return f"fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, {length}, {start})"

    assert another_process_gets(path, lock(0, 100))
    assert another_process_gets(path, lock(200, 0))
    assert not another_process_gets(path, lock(150, 1))
    assert not another_process_gets(path, lock(0, 0))
    fcntl.lockf(fd, fcntl.LOCK_UN, 50, 100)
    assert another_process_gets(path, lock(100, 50))
    assert not another_process_gets(path, lock(199, 1))
    os.close(fd)
    assert another_process_gets(path, lock(0, 0))


def test_locks_of_open_descriptions_exclude_within_a_process(work: Path) -> None:
    path = make("file", work / "x")
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    set_lock = 37  # F_OFD_SETLK, which Python has no name for
    fcntl.fcntl(one, set_lock, lock)
    assert errno_of(fcntl.fcntl, two, set_lock, lock) == "EAGAIN"
    os.close(one)
    fcntl.fcntl(two, set_lock, lock)
    os.close(two)
