"""The mount process: from opening the volume to the moment when everything is durable.

pyfuse3 holds one session per process, so each mounted volume has a process of its own.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pyfuse3
import trio

import nasfs
from nasfs.errors import Failed
from nasfs.fuse import background
from nasfs.fuse.attach import KernelMount
from nasfs.fuse.commit import Committer, Gate
from nasfs.fuse.control import ControlServer, ControlSocket
from nasfs.fuse.follow import Follower
from nasfs.fuse.identity import IdentityMap
from nasfs.fuse.loop import shorten
from nasfs.fuse.mapped import MappedOperations
from nasfs.fuse.mountpoint import (
    FSTYPE,
    announce,
    check_mountpoint,
    detach_dead,
    find_mount,
    fusermount,
    is_dead,
    prepare_mountpoint,
    process_of,
    resolve,
    umount,
    wait_end,
    watch,
)
from nasfs.fuse.operations import Operations, Writer
from nasfs.fuse.service import Service
from nasfs.fuse.snapdir import Trees
from nasfs.volume import Access, Volume, open_volume
from nasfs.volume.behind import LIMIT_BYTES

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

MAX_REQUESTS = 512
"""Requests under way at once.  Those that wait for a commit must not keep reads from a place."""

IDLE_TASKS = 8

ELSEWHERE_S = 1.0
"""A process that goes on for so long after it was unmounted is told to end (seconds)."""

KERNEL_FLAGS = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "sync"})
"""Words of mount(8) that the kernel carries out; libfuse dies of any other."""


def run_mount(
    volume_path: Path,
    mountpoint: Path,
    *,
    snapshot: str | None = None,
    control: Path | None = None,
    fsname: str,
    commit_interval_s: float = 5.0,
    on_ready: Callable[[], None] | None = None,
    allow_other: bool = True,
    flags: Collection[str] = (),
    list_snapshots: bool | None = None,
    identities: IdentityMap | None = None,
    follow: bool = False,
) -> None:
    """Mount a volume and serve it until it is unmounted, stopped or signalled.

    Everything is durable on return.  SIGTERM and SIGINT unmount; files that are open then fail.

    Args:
        snapshot: mount read-only as of this snapshot, beside whoever owns the volume.
        control: where to listen for `ControlClient`; the directory must exist.  Not used with
            *snapshot*.
        fsname: the source that mount tables show.
        commit_interval_s: seconds after which everything is made durable unasked.
        on_ready: called when requests are being served.
        allow_other: let other users than the mounting one in.
        list_snapshots: whether the root lists `.snapshots`; as the volume says if None.
        identities: whom the volume's numbers stand for on this node; None: for the same.
        follow: mount read-only as of the newest snapshot, and of those to come.
        flags: of `KERNEL_FLAGS`.  With "ro" this process still owns the volume, and can be asked
            for snapshots; nobody changes a file, until it is remounted.

    Raises:
        Failed: the mount point or the volume cannot be used, or what was written last could not
            be made durable.
    """
    path = check_mountpoint(mountpoint)
    _allow_many_files()
    read_only = follow or snapshot is not None
    access = Access.READ_ONLY if read_only else Access.READ_WRITE
    with ExitStack() as stack:  # its end, from below: durable, then unmounted, then announced
        ending = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        kernel = stack.enter_context(KernelMount())
        volume = open_volume(volume_path, access)
        stack.callback(volume.close)
        volume.wait_for_disk(False)  # requests that need not wait go on meanwhile
        follower = Follower(volume, listed=list_snapshots) if follow else None
        if follower is not None:
            trees, writer = follower.trees, None
        else:
            trees, writer = _sides(volume, snapshot, commit_interval_s, listed=list_snapshots)
        if identities is None or identities.is_empty:
            operations = Operations(volume, trees, writer)
        else:
            operations = MappedOperations(volume, trees, writer, identities)
        stack.callback(operations.release_all)
        server = None
        if control is not None and writer is not None:
            listening = ControlSocket(control)
            stack.callback(listening.close)
            service = Service(volume, path, trees, writer.committer, operations.known)
            server = _server(listening, service)
        prepare_mountpoint(path)
        kernel.open(operations, path, _options(fsname, allow_other, flags, read_only=read_only))
        announce(ending, path)
        log.info("mounted %s at %s", fsname, path)
        shorten(kernel.is_introduced)
        _collect_seldom()
        _keep_memory()
        trio.run(_serve, operations, writer, server, follower, on_ready)
    log.info("unmounted %s", path)


def _sides(
    volume: Volume, snapshot: str | None, interval_s: float, *, listed: bool | None
) -> tuple[Trees, Writer | None]:
    """What is seen, and what changes it: nothing does as of a snapshot."""
    if snapshot is not None:
        return Trees.as_of(volume.view(volume.snapshot(snapshot).epoch)), None
    gate = Gate()
    committer = Committer(volume, gate, interval_s=interval_s)
    return Trees.live(volume, listed=listed), Writer(gate, committer)


def _server(listening: ControlSocket, service: Service) -> ControlServer:
    return ControlServer(
        listening, service.handlers(), on_stopped=pyfuse3.terminate, release=service.release
    )


def _options(
    fsname: str, allow_other: bool, flags: Collection[str], *, read_only: bool
) -> set[str]:
    assert KERNEL_FLAGS.issuperset(flags), flags
    source = fsname.encode("ascii", "backslashreplace").decode()  # pyfuse3 takes nothing else
    source = source.replace("\\", "\\\\").replace(",", "\\,")
    options = {f"fsname={source}", "subtype=nasfs", "default_permissions", *flags}
    if allow_other:
        options.add("allow_other")
    if read_only:
        options.add("ro")
    if os.geteuid() == 0:  # libfuse's own default is without; it knows no order of words
        options |= {word for word in ("dev", "suid") if f"no{word}" not in flags}
    return options


def _collect_seldom() -> None:
    """Nothing that a request makes is a cycle, and each collection walks what is remembered."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _keep_memory() -> None:
    """What small writes that waited have left is used for the next ones, not given back: memory
    that the machine has to find anew costs as much as the rest of such a write."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc alone has it
        libc.mallopt(_M_TRIM_THRESHOLD, LIMIT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # else each large request has memory of its own


def _allow_many_files() -> None:
    """The engine keeps descriptors of thousands of layers open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    operations: Operations,
    writer: Writer | None,
    server: ControlServer | None,
    follower: Follower | None,
    on_ready: Callable[[], None] | None,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_terminate_on_signal)
        if writer is not None:
            nursery.start_soon(writer.committer.run)
            nursery.start_soon(writer.committer.run_reclaim)
        if server is not None:
            nursery.start_soon(server.serve)
        if follower is not None:
            nursery.start_soon(follower.run)
        if on_ready is not None:
            nursery.start_soon(_tell_ready, operations, on_ready)
        await pyfuse3.main(min_tasks=IDLE_TASKS, max_tasks=MAX_REQUESTS)
        nursery.cancel_scope.cancel()


async def _tell_ready(operations: Operations, on_ready: Callable[[], None]) -> None:
    await operations.started.wait()
    on_ready()


async def _terminate_on_signal() -> None:
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.SIG_IGN)  # from its end on: nothing cuts the last commit short
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            pyfuse3.terminate()


def mount_in_background(
    volume_path: Path,
    mountpoint: Path,
    *,
    snapshot: str | None = None,
    control: Path | None = None,
    fsname: str,
    commit_interval_s: float = 5.0,
    allow_other: bool = True,
    flags: Collection[str] = (),
    list_snapshots: bool | None = None,
    identities: IdentityMap | None = None,
    follow: bool = False,
    log_file: Path | None = None,
    timeout_s: float = 60.0,
) -> int:
    """`run_mount` in a process of its own, which outlives the caller; returns when it serves.

    The process is a fresh interpreter in a session of its own and inherits nothing but the
    environment; it logs to *log_file*, or to syslog.

    Returns:
        Its process number.

    Raises:
        Failed, Refused, ...: why it did not come up, as `run_mount` says it.
    """
    order = background.Order(
        volume_path=str(volume_path.absolute()),
        mountpoint=str(mountpoint.absolute()),
        snapshot=snapshot,
        control=None if control is None else str(control.absolute()),
        fsname=fsname,
        commit_interval_s=commit_interval_s,
        allow_other=allow_other,
        flags=tuple(flags),
        list_snapshots=list_snapshots,
        identities=identities,
        follow=follow,
        log_file=None if log_file is None else str(log_file.absolute()),
    )
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reports:
        try:
            process = _start(order, writing)
        finally:
            os.close(writing)
        try:
            report = _wait_report(reports, timeout_s)
        except BaseException as exc:  # nobody waits for it any more
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, TimeoutError):
                message = f"the mount process did not serve {mountpoint} within {timeout_s:g} s"
                raise Failed(message) from exc
            raise
        finally:
            process.wait()
    return background.outcome(report)


def _wait_report(reports: io.FileIO, timeout_s: float) -> bytes:
    """One line, or what there was of it when the process ended.  Raises TimeoutError."""
    report = b""
    ready = select.poll()
    ready.register(reports, select.POLLIN)
    while not report.endswith(b"\n"):
        if not ready.poll(timeout_s * 1000):
            raise TimeoutError
        chunk = reports.read(65_536)
        if not chunk:
            break
        report += chunk
    return report


def _start(order: background.Order, report_fd: int) -> subprocess.Popen[bytes]:
    package = str(Path(nasfs.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            background.__name__,
            str(report_fd),
            msgspec.json.encode(order).decode(),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[report_fd],
        cwd="/",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, inherited]))},
        start_new_session=True,
    )


def unmount(mountpoint: Path, *, timeout_s: float = 300.0, force: bool = False) -> None:
    """Unmount, and return when the mount process has made everything durable.

    Args:
        force: what is under way in the volume fails, as ``umount -f`` says.

    Raises:
        Failed: nothing of ours is mounted there, it is in use, a full disk refuses what it shall
            make durable (then it stays mounted), or the process took too long.
    """
    path = resolve(mountpoint)
    mount = find_mount(path)
    if mount is None or mount.fstype != FSTYPE:
        raise Failed(f"no nasfs volume is mounted at {path}")
    if is_dead(mount):
        detach_dead(path)
        return
    connection = watch(mount)
    try:
        if force:
            umount("--force", path=path)
        else:
            _commit(path)
            fusermount("-u", path=path)
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    if connection is None:
        log.warning("%s: its process cannot be waited for", path)
        return
    _end_elsewhere(connection, path)
    if not wait_end(connection, timeout_s):
        raise Failed(f"{path} is unmounted, but its process is not done after {timeout_s:g} s")


def _end_elsewhere(connection: socket.socket, path: Path) -> None:
    """End the process if it goes on although its mount is gone.

    A mount name space that was made while the volume was mounted has a copy of the mount, unless
    it follows ours (``rprivate``, as containers say): for the kernel it is mounted until that ends.
    """
    if select.select([connection], [], [], ELSEWHERE_S)[0]:
        return
    log.warning("%s: mounted in another mount name space, too; that ends with this", path)
    with suppress(ProcessLookupError):
        os.kill(process_of(connection), signal.SIGTERM)  # ignored if it is just ending


def _commit(path: Path) -> None:
    """Have the mount make everything durable while it still can say that it could not.

    Raises:
        Failed: the pool's disk is full.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            return  # not ours to look into; or read-only since an error: there is nothing to save
        raise Failed(
            f"{path} stays mounted: the pool's disk is full, and has not taken all that was"
            " written",
            hint=f"make room on it and unmount again; or lose that: umount -f {path}",
        ) from exc
