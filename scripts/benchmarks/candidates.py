"""Who is measured: file systems that are set up, served and taken down again.

Each stands on a file system image of its own (XFS or ext4 in a file, through a loop device), so
that all have the same below them and none pays for the others.  A candidate is an entry of
`CANDIDATES`: a context manager that gives a mounted `Candidate`, or raises `Missing`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar, cast

from workloads import SNAPSHOTS

from nasfs.errors import NasError
from nasfs.fuse.control import ControlClient
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.fuse.mountpoint import detach_dead, find_mount
from nasfs.volume import create_pool, create_volume, volume_path

T = TypeVar("T")

MKFS = {"xfs": ("mkfs.xfs", "-q", "-f"), "ext4": ("mkfs.ext4", "-q", "-F")}


class Missing(Exception):
    """It cannot be measured here; says why."""


def _no_snapshot() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mounted file system.

    Args:
        root: a directory of it that belongs to us.
        pid: the process that serves it, if there is one.
        snapshot: take a snapshot and keep it, where that is what is measured.
    """

    root: Path
    pid: int | None = None
    snapshot: Callable[[], None] = _no_snapshot

    def cpu_seconds(self) -> float:
        """Processor time that the serving process has used, with its threads."""
        if self.pid is None:
            return 0.0
        # clock_getcpuclockid(3), which Python does not have: nanoseconds, not ticks as in /proc
        return time.clock_gettime((~self.pid << 3) | 2)


class Storage:
    """Where images are made.

    Args:
        home: a directory of the host.
        fstype: "xfs" or "ext4", or "" for plain directories of *home* itself.
        size: bytes of an image, which is sparse.
        shared: where servers end that several candidates use: after all of them.
    """

    def __init__(self, home: Path, fstype: str, size: int, shared: ExitStack) -> None:
        self.home = home
        self.size = size
        self._fstype = fstype
        self._shared = shared
        self._open: dict[str, object] = {}

    def share(self, name: str, make: Callable[[], AbstractContextManager[T]]) -> T:
        """What the first one who asked for it has opened."""
        if name not in self._open:
            self._open[name] = self._shared.enter_context(make())
        return cast("T", self._open[name])

    def directory(self, name: str) -> Path:
        """A fresh one, of the host."""
        place = self.home / name
        place.mkdir()
        return place

    @contextmanager
    def make(self, name: str) -> Iterator[Path]:
        """An empty directory on a file system of its own."""
        place = self.directory(name)
        if not self._fstype:
            yield place
            return
        image = self.home / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(self.size)
        _run(*MKFS[self._fstype], str(image))
        try:
            # discard: what is removed goes back to the host, so images do not pile up in memory
            _run("mount", "-o", "loop,discard", str(image), str(place))
            yield place
        finally:
            if find_mount(place) is not None:
                _unmount(place)
            image.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def _patiently(*command: str) -> None:
    """What is busy for a moment is tried again, for some seconds."""
    for _ in range(50):
        with suppress(RuntimeError):
            return _run(*command)
        time.sleep(0.1)
    return _run(*command)


def _unmount(place: Path) -> None:
    try:
        _patiently("umount", str(place))
    except RuntimeError:
        _run("umount", "--lazy", str(place))


@contextmanager
def _process(command: list[str], ready: Callable[[], bool], log: Path) -> Iterator[int]:
    """A server in the foreground; gives its number when it is ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # the terminal's Ctrl-C is for us alone
        )
    try:
        _wait(process, ready, log)
        yield process.pid
    finally:
        _end(process)


@contextmanager
def _server(command: list[str], mountpoint: Path, log: Path) -> Iterator[int]:
    """A process that serves a mount."""

    def is_mounted() -> bool:
        return find_mount(mountpoint) is not None

    with _process(command, is_mounted, log) as pid:
        try:
            yield pid
        finally:
            if is_mounted():
                _unmount(mountpoint)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    for _ in range(300):
        if ready():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not serve: {log.read_text(errors='replace')}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It is told to end; who does not hear is killed."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise Missing(f"{program} is not installed (--install does it)")
    return found


@contextmanager
def host(storage: Storage) -> Iterator[Candidate]:
    """the kernel's own file system, without anything on top"""
    with storage.make("host") as place:
        yield Candidate(place)


@contextmanager
def floor(storage: Storage) -> Iterator[Candidate]:
    """pyfuse3 with nothing but dicts behind it"""
    mountpoint = storage.directory("floor")
    script = Path(__file__).with_name("floor.py")
    command = [sys.executable, str(script), str(mountpoint)]
    with _server(command, mountpoint, storage.home / "floor.log") as pid:
        yield Candidate(mountpoint, pid)


@contextmanager
def _volume(storage: Storage, name: str) -> Iterator[tuple[Candidate, ControlClient]]:
    mountpoint = storage.directory(f"{name}-mounted")
    control = storage.home / f"{name}.sock"
    with storage.make(name) as place:
        pool = create_pool(place / "pool")
        create_volume(pool, "v", size=1 << 40)
        pid = mount_in_background(
            volume_path(pool, "v"),
            mountpoint,
            control=control,
            fsname="pool/v",
            log_file=storage.home / f"{name}.log",
        )
        try:
            yield Candidate(mountpoint, pid), ControlClient(control)
        finally:
            try:
                unmount(mountpoint, timeout_s=60)
            except NasError:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                detach_dead(mountpoint)


@contextmanager
def nasfs(storage: Storage) -> Iterator[Candidate]:
    """ours, with no snapshot"""
    with _volume(storage, "nasfs") as (candidate, _):
        yield candidate


@contextmanager
def nasfs_with_snapshots(storage: Storage) -> Iterator[Candidate]:
    """ours, with 200 snapshots"""
    with _aged_volume(storage, "nasfs-snapshots") as (candidate, _):
        yield candidate


@contextmanager
def nasfs_frozen(storage: Storage) -> Iterator[Candidate]:
    """ours, with 200 snapshots and one more, just taken, of whatever a workload sets up"""
    with _aged_volume(storage, "nasfs-frozen") as (candidate, snapshot):
        yield Candidate(candidate.root, candidate.pid, snapshot)


@contextmanager
def _aged_volume(storage: Storage, name: str) -> Iterator[tuple[Candidate, Callable[[], None]]]:
    """With 200 snapshots, and what takes one more."""
    with _volume(storage, name) as (candidate, control):
        snapshot = _numbered(lambda name: control.call("snapshot", name=name))
        _age(candidate.root, snapshot)
        yield candidate, snapshot


def _numbered(take: Callable[[str], object]) -> Callable[[], None]:
    numbers = count()

    def snapshot() -> None:
        take(f"s{next(numbers)}")

    return snapshot


def _age(root: Path, snapshot: Callable[[], None]) -> None:
    """Snapshots with a little of everything between them."""
    files = [root / f"aged-{number}" for number in range(50)]
    for number in range(SNAPSHOTS):
        for file in files[number % 7 :: 7]:
            file.write_bytes(b"%d" % number * 2000)
        replaced = files[number % 50]
        replaced.unlink(missing_ok=True)
        replaced.write_bytes(b"again")
        snapshot()


@contextmanager
def bindfs(storage: Storage) -> Iterator[Candidate]:
    """bindfs of Debian, a pass-through in C"""
    program = _need("bindfs")
    mountpoint = storage.directory("bindfs-mounted")
    with storage.make("bindfs") as place:
        # big_writes: libfuse 2 sends 4 KiB at a time without it
        command = [program, "-f", "-o", "big_writes", str(place), str(mountpoint)]
        with _server(command, mountpoint, storage.home / "bindfs.log") as pid:
            yield Candidate(mountpoint, pid)


@contextmanager
def zfs_fuse(storage: Storage) -> Iterator[Candidate]:
    """zfs-fuse of Debian, in C"""
    with _zfs(storage, "zfs") as (candidate, _):
        yield candidate


@contextmanager
def zfs_fuse_frozen(storage: Storage) -> Iterator[Candidate]:
    """zfs-fuse with as many snapshots, of the same moments"""
    with _zfs(storage, "zfs-frozen") as (candidate, pool):
        snapshot = _numbered(lambda name: _run("zfs", "snapshot", f"{pool}@{name}"))
        _age(candidate.root, snapshot)
        yield Candidate(candidate.root, candidate.pid, snapshot)


@contextmanager
def _zfs(storage: Storage, name: str) -> Iterator[tuple[Candidate, str]]:
    """A pool in a file, and its name."""
    pid = storage.share("zfs-fuse", lambda: _zfs_daemon(storage.home / "zfs-fuse.log"))
    mountpoint = storage.directory(f"{name}-mounted")
    with storage.make(name) as place:
        disk = place / "disk"
        with disk.open("wb") as file:
            file.truncate(storage.size * 3 // 4)
        pool = f"bench-{os.getpid()}-{name}"
        options = ("-O", "atime=off", "-O", f"mountpoint={mountpoint}", "-o", "cachefile=none")
        _run("zpool", "create", "-f", *options, pool, str(disk))
        try:
            yield Candidate(mountpoint, pid), pool
        finally:
            _patiently("zpool", "destroy", "-f", pool)


@contextmanager
def _zfs_daemon(log: Path) -> Iterator[int]:
    """There can be one on a machine: the commands find it at a fixed address."""
    program = _need("zfs-fuse")

    def answers() -> bool:
        return subprocess.run(["zpool", "list"], capture_output=True).returncode == 0

    if answers():
        raise Missing("another zfs-fuse is running; stop it first")
    with _process([program, "--no-daemon", "--no-kstat-mount"], answers, log) as pid:
        yield pid


Open = Callable[[Storage], AbstractContextManager[Candidate]]

CANDIDATES: dict[str, Open] = {
    "nasfs": nasfs,
    "nasfs+200": nasfs_with_snapshots,
    "nasfs+200+1": nasfs_frozen,
    "floor": floor,
    "host": host,
    "bindfs": bindfs,
    "zfs-fuse": zfs_fuse,
    "zfs-fuse+200+1": zfs_fuse_frozen,
}

USUAL = [name for name in CANDIDATES if name != "zfs-fuse+200+1"]
"""Those of a run that asks for none; the other is slow to set up."""

PACKAGES = ("bindfs", "zfs-fuse")
"""Debian's, of candidates that may be missing."""
