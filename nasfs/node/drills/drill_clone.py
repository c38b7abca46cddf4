"""Writable clones of snapshots: an overlayfs over the read-only mount of each.

The snapshot's mount reads in a process of its own and owns nothing, so replication goes on
beside it.  What is written into a clone lies in a directory of its own, and goes with it.

Options of overlayfs: ``index=on`` keeps hard links together when one of them is written,
``redirect_dir=on`` lets directories be renamed (smbd does not copy them as mv(1) would), and
``metacopy=off`` makes no file that has attributes here and data there.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from nasfs.errors import Failed, NasError
from nasfs.fuse.mount import mount_in_background
from nasfs.fuse.mountpoint import check_mountpoint, find_mount, is_dead, resolve, umount

from ..context import Node
from ..records import VolumeRow
from .drill_table import Drill, DrillVolume

log = logging.getLogger(__name__)

OPTIONS = "index=on,redirect_dir=on,metacopy=off"
FOR_NFS = "nfs_export=on,xino=on"
"""Handles, and one device number for all files: else Ganesha answers look-ups with XDEV."""
NOT_IN_PATHS = ",:\\\"'\n\t "
"""What the options of a mount would take for something else."""
PROCESSES = (
    "unshare", "smbd", "smbpasswd", "pdbedit", "net", "smbclient", "ganesha.nfsd", "nfs-",
)  # fmt: skip
"""Programs that a test starts; our own run as python."""
END_S = 10.0
"""So long a process may take to end before it is killed (seconds)."""


def check_place(path: Path, what: str) -> None:
    """Raises Failed unless *path* can be named in the options of a mount."""
    wrong = sorted(set(str(path)) & set(NOT_IN_PATHS))
    if wrong:
        raise Failed(
            f"{path} can't be used {what}: it contains {wrong[0]!r}", hint="name another directory"
        )


def check_free(drill: Drill) -> None:
    """Raises Failed if a clone's place is taken."""
    for volume in drill.volumes:
        path = drill.clone(volume)
        for parent in (path, *path.parents):
            if parent.exists() and not parent.is_dir():
                raise Failed(f"the mount point {path} can't be made: {parent} is no directory")
        if path.exists():
            check_mountpoint(path)
            if any(path.iterdir()):
                raise Failed(
                    f"the mount point {path} is not empty", hint="name another: --mountpoint DIR"
                )


def mount_snapshot(node: Node, drill: Drill, volume: DrillVolume) -> None:
    """The snapshot, read-only, where only root comes."""
    row = node.state.find_volume(volume.uuid)
    assert row is not None, "members of a group are volumes"
    place = drill.lower(volume)
    place.mkdir(mode=0o700, parents=True)
    mount_in_background(
        node.volume_path(row),
        place,
        snapshot=volume.guid,
        fsname=f"{volume.name}@{drill.snapshot}",
        log_file=Path(drill.home) / f"{volume.uuid}.log",
    )


def mount_clone(drill: Drill, volume: DrillVolume) -> bool:
    """The clone; whether it can be exported, which is asked for if a share is.

    Raises:
        Failed: the kernel has no overlayfs, or the file system of `Drill.space` can't be used.
    """
    upper, work, place = drill.upper(volume), drill.work(volume), drill.clone(volume)
    for directory in (upper, work):
        directory.mkdir(mode=0o700, parents=True)
    place.mkdir(parents=True)
    _like(drill.lower(volume), upper)  # the root of an overlay is what the upper directory is
    options = f"lowerdir={drill.lower(volume)},upperdir={upper},workdir={work},{OPTIONS}"
    exported = any(share.nfs for share in drill.shares)
    if exported:
        options += f",{FOR_NFS}"
    source = f"nasfs-test:{volume.name}@{drill.snapshot}"
    done = subprocess.run(
        ["mount", "-t", "overlay", source, "-o", options, str(place)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(
            f"overlayfs over {volume.name}@{drill.snapshot}: {done.stderr.strip()}",
            hint=f"can {drill.space} hold an upper directory? name another: --space DIR",
        )
    granted = _overlay_options(place)
    if not {"index=on", "redirect_dir=on"} <= granted:
        raise Failed(
            f"the kernel gives no hard links or renames to a clone with {drill.space}",
            hint="its file system needs extended attributes: name another: --space DIR",
        )
    return {"nfs_export=on", "xino=on"} <= granted


def _like(old: Path, new: Path) -> None:
    """Owner, mode, access lists, attributes and times of a directory."""
    at = old.stat()
    os.chown(new, at.st_uid, at.st_gid)
    shutil.copystat(old, new)


def _overlay_options(place: Path) -> set[str]:
    """What the kernel has made of the options."""
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        if fields[4] == str(resolve(place)):
            return set(fields[-1].split(","))
    return set()


def clone_problem(drill: Drill, volume: DrillVolume) -> str:
    """Why a clone can't be used at present; empty: it can.  Never waits for its mounts."""
    mount = find_mount(resolve(drill.clone(volume)))
    if mount is None or mount.fstype != "overlay":
        return f"the clone of {volume.name} is not mounted any more"
    lower = find_mount(resolve(drill.lower(volume)))
    if lower is None or is_dead(lower):
        return f"the mount process below the clone of {volume.name} is gone"
    return ""


def clear_clones(drill: Drill) -> None:
    """Unmount and remove all of it, whatever there is of it.  Programs in it lose their files.

    Raises:
        Failed: something could not be unmounted; nothing of it is removed.
    """
    end_processes(drill.home, of_ours=False)
    for place in _mounts_below(Path(drill.mountpoint), Path(drill.home), Path(drill.space)):
        try:
            umount(path=place)
        except NasError:
            umount("--lazy", path=place)  # busy, or its process is gone
    end_processes(drill.home, of_ours=True)
    left = _mounts_below(Path(drill.mountpoint), Path(drill.home), Path(drill.space))
    if left:
        raise Failed(f"{left[0]} is still mounted", hint="nasfs test-failover stop, again")
    for directory in (Path(drill.space), Path(drill.home), drill.samba):
        shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        Path(drill.home).parent.rmdir()  # the last one takes the common directory along
    _remove_places(drill)


def _mounts_below(*roots: Path) -> list[Path]:
    """What is mounted there, the topmost first."""
    found = []
    resolved = [resolve(root) for root in roots]
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        path = Path(line.split(" ")[4].replace("\\040", " "))
        if any(path.is_relative_to(root) for root in resolved):
            found.append(path)
    return found[::-1]


def _remove_places(drill: Drill) -> None:
    """The directories of the mount points, as far as they are empty."""
    top = Path(drill.mountpoint)
    for volume in drill.volumes:
        place = drill.clone(volume)
        with suppress(OSError):
            place.rmdir()
            place.parent.rmdir()
    with suppress(OSError):
        top.rmdir()
        if top.parent.name == "nasfs-test":
            top.parent.rmdir()


# the processes of a test


def end_processes(home: str, *, of_ours: bool) -> None:
    """End those whose command line names a test's directory, with all that is in their name spaces.

    Args:
        of_ours: also the mount processes below the clones.
    """
    doomed = _processes(home, of_ours=of_ours)
    for pidfd in doomed:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM if of_ours else signal.SIGKILL)
    deadline = time.monotonic() + END_S
    for pidfd in doomed:
        try:
            if not _ended(pidfd, deadline):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _ended(pidfd, time.monotonic() + END_S)
        finally:
            os.close(pidfd)


def _ended(pidfd: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _processes(home: str, *, of_ours: bool) -> list[int]:
    """Descriptors of the processes of a test."""
    wanted = os.fsencode(home)
    spaces: set[str] = set()
    pids = []
    everything = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in everything:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        program = os.path.basename(line.split(b"\0", 1)[0]).decode(errors="replace")
        if wanted in line and program.startswith(PROCESSES):
            pids.append(pid)
            spaces |= _other_spaces(pid)
        elif wanted in line and of_ours and program.startswith("python") and pid != os.getpid():
            pids.append(pid)
    for pid in everything:
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") in spaces and pid not in pids:
                pids.append(pid)
    found = []
    for pid in pids:
        with suppress(ProcessLookupError):
            found.append(os.pidfd_open(pid))
    return found


def _other_spaces(pid: int) -> set[str]:
    """The process name spaces of a process and of its children, but ours."""
    found = set()
    for name in ("pid", "pid_for_children"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
    return found - {os.readlink("/proc/self/ns/pid")}


def has_server(home: str, program: str) -> bool:
    """Whether that server of a test runs."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if program.encode() in words and os.fsencode(home) in b" ".join(words):
                    return True
    return False


def rows_of(node: Node, drill: Drill) -> list[VolumeRow]:
    """Its volumes, as far as they are still here."""
    rows = (node.state.find_volume(volume.uuid) for volume in drill.volumes)
    return [row for row in rows if row is not None]
