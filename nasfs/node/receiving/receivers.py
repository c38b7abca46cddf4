"""Who receives into a volume: a file with the process's number, and taking over from it."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from ..places import Places

MODULE = "nasfs.node.receiving.receive"


def announce(places: Places, volume_uuid: str) -> None:
    """This process receives into that volume; the caller owns the volume's lock."""
    places.receiver_pid(volume_uuid).write_text(f"{os.getpid()}\n")


def withdraw(places: Places, volume_uuid: str) -> None:
    """This process no longer does; a successor's announcement stays."""
    path = places.receiver_pid(volume_uuid)
    if _announced(path) == os.getpid():
        path.unlink(missing_ok=True)


def take_over(places: Places, volume_uuid: str, *, wait_s: float) -> None:
    """End the process that receives into that volume, if it is really one of ours; wait for it."""
    pid = _announced(places.receiver_pid(volume_uuid))
    if pid is None or pid == os.getpid():
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _is_receiver(pid, places):  # the number went to somebody else
            return
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not _ended(pidfd, wait_s / 3):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _ended(pidfd, wait_s)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def _announced(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_receiver(pid: int, places: Places) -> bool:
    """Asked while a pidfd is open: the number cannot change hands meanwhile."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    root = os.fsencode(places.root) if places.root else None
    return MODULE.encode() in words and (root is None or root in words)


def _ended(pidfd: int, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))
