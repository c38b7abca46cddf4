"""Mount points: what the kernel says about them, checked before and waited for behind a mount.

The mount process holds an abstract UNIX socket named after the mount (number and place).  Whoever
unmounts connects to it and waits for its end: by then the process has made everything durable.
Unlike a file with a process number, it cannot be left behind.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nasfs.errors import Failed

log = logging.getLogger(__name__)

FSTYPE = "fuse.nasfs"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo(5)."""

    device: str
    """Major and minor number, as "0:45"."""
    path: Path
    fstype: str
    source: str


def find_mount(path: Path) -> Mount | None:
    """The topmost mount at *path* (absolute, without symlinks); never touches the mount itself."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if _unescape(fields[4]) == str(path):
                tail = fields.index("-")
                found = Mount(fields[2], path, fields[tail + 1], _unescape(fields[tail + 2]))
    return found


def _unescape(field: str) -> str:
    for code, char in (("040", " "), ("011", "\t"), ("012", "\n"), ("043", "#"), ("134", "\\")):
        field = field.replace(f"\\{code}", char)
    return field


def resolve(path: Path) -> Path:
    """Absolute and without symlinks; a dead mount at its end is in nobody's way."""
    return Path(os.path.realpath(path))


def check_mountpoint(path: Path) -> Path:
    """The place for a mount, resolved; there may be a dead FUSE mount in it.

    A dead mount stays as long as it can: while it is there, nobody writes into the directory
    below it, where it would be hidden by the next mount.

    Raises:
        Failed: it is missing, no directory, or something is mounted there.
    """
    path = resolve(path)
    mount = find_mount(path)
    if mount is not None and is_dead(mount):
        return path
    if mount is not None:
        raise Failed(
            f"{path} is busy: {mount.source} ({mount.fstype}) is mounted there",
            hint=f"unmount it first: nasfs unmount {path}",
        )
    try:
        is_directory = path.is_dir()
        if not is_directory:
            os.stat(path)
    except OSError as exc:
        raise Failed(f"the mount point {path} cannot be used: {exc.strerror}") from exc
    if not is_directory:
        raise Failed(f"the mount point {path} is not a directory")
    return path


def prepare_mountpoint(path: Path) -> Path:
    """Like `check_mountpoint`, and a dead FUSE mount is detached: right before the next one."""
    path = check_mountpoint(path)
    while (mount := find_mount(path)) is not None and is_dead(mount):
        detach_dead(path)
    return check_mountpoint(path)


def is_dead(mount: Mount) -> bool:
    """Whether it is a FUSE mount whose process is gone."""
    if not mount.fstype.startswith("fuse"):
        return False
    try:
        os.statvfs(mount.path)  # not stat: the kernel may remember the attributes
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach_dead(path: Path) -> None:
    """Take the mount of a process that is gone out of the way, at once."""
    fusermount("-u", "-z", path=path)


def fusermount(*options: str, path: Path) -> None:
    """Run fusermount3(1).

    Raises:
        Failed: with what it said.
    """
    try:
        _run_unmount(["fusermount3", *options], path)
    except FileNotFoundError as exc:
        raise Failed("fusermount3 is not installed", hint="apt install fuse3") from exc


def umount(*options: str, path: Path) -> None:
    """Run umount(8) without its helper, which may be who asks.

    Raises:
        Failed: with what it said.
    """
    _run_unmount(["umount", "--internal-only", "--no-canonicalize", *options], path)


def _run_unmount(command: list[str], path: Path) -> None:
    done = subprocess.run(
        [*command, "--", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().removeprefix(f"{command[0]}: ") or f"status {done.returncode}"
        raise Failed(f"unmounting {path}: {said}", hint="close what is open below it (fuser -vm)")


# the socket that ends with the mount process


def _address(mount: Mount) -> str:
    # The device number alone is given anew while the process of an ended mount still commits.
    place = hashlib.blake2b(os.fsencode(mount.path), digest_size=8).hexdigest()
    return f"\0nasfs/mount/{mount.device}/{place}"


def announce(sock: socket.socket, path: Path) -> None:
    """Let others wait for the end of *sock*: it tells that everything is done for *path*."""
    mount = find_mount(path)
    if mount is None:  # unmounted already
        return
    try:
        sock.bind(_address(mount))
        sock.listen(16)
    except OSError as exc:  # only waiting for the end of the mount suffers
        log.warning("cannot announce the mount of %s: %s", path, exc)


def watch(mount: Mount) -> socket.socket | None:
    """A connection that ends when the process of a mount has done everything; None if it is dead.

    Raises:
        Failed: somebody else has taken its place.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(5)
        sock.connect(_address(mount))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = int.from_bytes(credentials[4:8], "little")
        if uid not in (0, os.geteuid()):
            raise Failed(f"a stranger (uid {uid}) stands in for the process of {mount.path}")
    except (ConnectionRefusedError, TimeoutError, BlockingIOError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def process_of(sock: socket.socket) -> int:
    """The number of the mount process behind what `watch` gave."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


def wait_end(sock: socket.socket, timeout_s: float) -> bool:
    """Whether the process was done within the time."""
    with sock:
        sock.settimeout(timeout_s)
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
