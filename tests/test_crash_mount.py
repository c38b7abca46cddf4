"""The power goes, for real, under a mounted volume.

A writer works on files through the kernel: it replaces, overwrites, unlinks, syncs files and
directories, and takes snapshots over the control socket.  The host's disk is shut down, the mount
process killed; then the volume is opened, judged, and mounted again for the next writer.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasfs.fuse.mountpoint import detach_dead, find_mount
from nasfs.volume import check_volume, create_pool, create_volume, open_volume

from .crash_history import reclaim_all
from .crash_power import PowerDisk, Told, Writer, content, power_disk
from .mounts import TestMount

pytestmark = pytest.mark.mount

WRITER = """
import json, os, random, sys
from pathlib import Path
from nasfs.fuse.control import ControlClient
root, control, number = Path(sys.argv[1]), ControlClient(Path(sys.argv[2])), 0
chance = random.Random(int(sys.argv[3]))
def tell(*words):
    print(json.dumps(words))
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
while True:
    number += 1
    kind = chance.randrange(6)
    name = "rf"[kind > 1] + str(chance.randrange(15))
    word, count, path = f"{number}-{sys.argv[3]}", chance.randrange(1, 2500), root / name
    data = (word + " ").encode() * count
    if kind < 2:
        tell("replace", name, word, count)
        (root / "tmp").write_bytes(data)
        os.rename(root / "tmp", path)
    elif kind == 2 and path.exists():
        tell("unlink", name)
        path.unlink()
    else:
        tell("write", name, word, count)
        path.write_bytes(data)
        if kind == 3:
            os.setxattr(path, "user.large", data[:60_000])  # the log fills up sooner
    match chance.randrange(9):
        case 0 | 1 if path.exists():
            sync(path)
            tell("synced", name)
        case 2:
            sync(root)  # whoever syncs anything, syncs everything
            tell("committed")
        case 3:
            control.call("commit")
            tell("committed")
        case 4:
            snapshot = f"{sys.argv[3]}-{number}"
            control.call("snapshot", name=snapshot)
            tell("sealed", snapshot)
        case 5 if len(os.listdir(root / ".snapshots")) > 5:
            oldest = min(os.listdir(root / ".snapshots"), key=lambda s: [*map(int, s.split("-"))])
            tell("destroying", oldest)
            control.call("snapshot_destroy", names=[oldest])
"""


@dataclass
class PowerMount(TestMount):
    """A mount whose pool is on a disk that loses its power."""

    disk: PowerDisk | None = None

    @property
    def volume_path(self) -> Path:
        assert self.disk is not None
        return self.disk.path / "pool" / "home"

    def lose_power(self) -> None:
        """The disk is gone, and the machine with it; then both are back, the volume not mounted."""
        assert self.disk is not None
        self.disk.cut()
        if self.pid:
            self.kill()
        while find_mount(self.root) is not None:
            detach_dead(self.root)
        self.disk.detach()
        self.disk.attach()


@pytest.mark.parametrize("cuts", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_a_power_cut_under_a_mount_takes_nothing_that_was_acknowledged(
    tmp_path: Path, cuts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told, chance = Told(), random.Random(cuts)
    with power_mount(tmp_path, interval_s=0.2) as mount:
        for number in range(cuts):
            mount.mount()
            with Writer(WRITER, mount.root, mount.base / "control.sock", str(number)) as writer:
                writer.wait_acknowledged(chance.randrange(2, 60))
                mount.lose_power()
            told.read(writer)
            with open_volume(mount.volume_path) as volume:
                told.verify(volume)
                told.accept(volume)
                if number % 2:
                    reclaim_all(volume)
            assert check_volume(mount.volume_path) == []
    with capsys.disabled():
        print(f"\n{cuts} power cuts under a mount, {told.acknowledged} acknowledgements kept")


def by_fsync(mount: PowerMount, path: Path) -> None:
    path.write_bytes(b"acknowledged")
    with path.open() as file:
        os.fsync(file.fileno())


def by_fdatasync(mount: PowerMount, path: Path) -> None:
    path.write_bytes(b"acknowledged")
    with path.open() as file:
        os.fdatasync(file.fileno())


def by_fsync_of_the_directory(mount: PowerMount, path: Path) -> None:
    path.write_bytes(b"acknowledged")
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def by_o_sync(mount: PowerMount, path: Path) -> None:
    write_through(path, os.O_SYNC)


def by_o_dsync(mount: PowerMount, path: Path) -> None:
    write_through(path, os.O_DSYNC)


def write_through(path: Path, flag: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
    os.write(file, b"acknowledged")
    os.close(file)


def by_msync(mount: PowerMount, path: Path) -> None:
    with path.open("w+b") as file:
        file.truncate(12)
        with mmap.mmap(file.fileno(), 12) as mapped:
            mapped[:] = b"acknowledged"
            mapped.flush()


def by_command(mount: PowerMount, path: Path) -> None:
    path.write_bytes(b"acknowledged")
    mount.control.call("commit")


def by_snapshot(mount: PowerMount, path: Path) -> None:
    path.write_bytes(b"acknowledged")
    mount.snapshot("s")


def by_unmounting(mount: PowerMount, path: Path) -> None:
    path.write_bytes(b"acknowledged")
    mount.unmount()


def test_whoever_was_told_that_it_is_durable_finds_it_after_a_power_cut(tmp_path: Path) -> None:
    ways: list[Callable[[PowerMount, Path], None]] = [
        by_fsync, by_fdatasync, by_fsync_of_the_directory, by_o_sync, by_o_dsync, by_msync,
        by_command, by_snapshot, by_unmounting,
    ]  # fmt: skip
    with power_mount(tmp_path, interval_s=3600) as mount:
        for way in ways:
            mount.mount()
            way(mount, mount.root / way.__name__)
            mount.lose_power()
            with open_volume(mount.volume_path) as volume:
                assert content(volume, way.__name__) == b"acknowledged", way.__name__


def test_sync_of_a_whole_file_system_does_not_reach_a_mount(tmp_path: Path) -> None:
    """The kernel sends no request for it to FUSE file systems; docs/durability.md says so."""
    with power_mount(tmp_path, interval_s=3600) as mount:
        mount.mount()
        (mount.root / "file").write_bytes(b"told to nobody")
        subprocess.run(["sync", "-f", mount.root], check=True)
        mount.lose_power()
        with open_volume(mount.volume_path) as volume:
            assert content(volume, "file") is None


@contextmanager
def power_mount(directory: Path, *, interval_s: float) -> Iterator[PowerMount]:
    """A volume on a disk that loses its power; not mounted yet."""
    with power_disk(directory) as disk:
        create_volume(create_pool(disk.path / "pool"), "home", size=1 << 40)
        mount = PowerMount(directory, interval_s=interval_s, disk=disk)
        mount.root.mkdir()
        try:
            yield mount
        finally:
            mount.clean_up()
