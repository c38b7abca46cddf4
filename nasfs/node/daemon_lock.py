"""One daemon for each node: the lock that says so."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nasfs.errors import Failed

from .places import Places

ASKING_S = 0.5
"""Who asks whether a daemon runs has the lock for a moment: mounts at boot do (seconds)."""


@contextmanager
def only_daemon(places: Places) -> Iterator[None]:
    """Hold the lock of the one daemon of this node.

    Raises:
        Failed: another daemon has it.
    """
    places.make()
    descriptor = os.open(places.daemon_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + ASKING_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            pid = os.pread(descriptor, 32, 0).decode().strip()
            raise Failed(
                f"a daemon of this node runs already (process {pid or 'unknown'})",
                hint="several nodes on one machine need a --root each",
            ) from exc


def running_daemon(places: Places) -> int:
    """The process of the daemon of this node; 0: none runs."""
    if not daemon_runs(places):
        return 0
    try:
        return int(places.daemon_lock.read_text())
    except (OSError, ValueError):
        return -1  # it has only just begun


def daemon_runs(places: Places) -> bool:
    """Whether somebody holds that lock."""
    try:
        descriptor = os.open(places.daemon_lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
