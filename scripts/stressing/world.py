"""The volume under stress: on a disk of its own, mounted, and what went wrong with it so far."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nasfs.errors import Failed
from nasfs.fuse.control import ControlClient
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.fuse.mountpoint import detach_dead, find_mount
from nasfs.volume import check_volume, create_pool, create_volume, volume_path

LOUD = (" WARNING ", " ERROR ", " CRITICAL ")


@dataclass
class World:
    """A volume and its mount, and a plain directory to compare with.

    Args:
        disk: where the pool is.
    """

    home: Path
    disk: Path
    volume: Path
    pid: int = 0
    problems: list[str] = field(default_factory=list)
    """What does not hold; the first ones are the interesting ones."""

    @property
    def root(self) -> Path:
        return self.home / "mnt"

    @property
    def reference(self) -> Path:
        return self.disk / "reference"

    @property
    def log(self) -> Path:
        return self.home / "mount.log"

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.home / "control.sock", timeout_s=120)

    def snapshot(self, name: str) -> Path:
        return self.root / ".snapshots" / name

    def mount(self) -> None:
        self.pid = mount_in_background(
            self.volume,
            self.root,
            control=self.home / "control.sock",
            fsname="pool/stress",
            log_file=self.log,
        )

    def unmount(self) -> None:
        unmount(self.root)

    def memory(self) -> int:
        """Bytes that the mount process had in memory, at most (proc_pid_status(5))."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def check(self) -> None:
        """The invariants of the volume, which must not be mounted, and its log."""
        for finding in check_volume(self.volume):
            self.problems.append(f"volume check: {finding.invariant}: {finding.detail}")
        for line in self.log.read_text().splitlines():
            if any(level in line for level in LOUD):
                self.problems.append(f"log of the mount: {line}")


@contextmanager
def xfs_disk(home: Path, size: int) -> Iterator[Path]:
    """An empty XFS in an image of *size* bytes below *home*."""
    image, place = home / "disk.img", home / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-f", image], check=True)
        # discard: what is given back to the disk goes back to the host
        subprocess.run(["mount", "-o", "loop,discard", image, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        image.unlink()


@contextmanager
def mounted_world(home: Path, disk: Path, *, size: int) -> Iterator[World]:
    """A fresh volume of *size* bytes, mounted; unmounted at the end whatever happened."""
    pool = create_pool(disk / "pool")
    create_volume(pool, "stress", size=size)
    world = World(home, disk, volume_path(pool, "stress"))
    world.root.mkdir()
    world.reference.mkdir()
    try:
        world.mount()
        yield world
    finally:
        while find_mount(world.root) is not None:
            try:
                unmount(world.root)
            except Failed:
                detach_dead(world.root)


class Worker:
    """A thread that repeats *step* until it is stopped; what that raises is a problem.

    Args:
        pause_s: seconds between two steps.
    """

    def __init__(
        self, name: str, world: World, step: Callable[[], object], *, pause_s: float
    ) -> None:
        self._name = name
        self._world = world
        self._step = step
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self.steps = 0

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._pause_s):
                self._step()
                self.steps += 1
        except Exception as exc:
            self._world.problems.append(f"{self._name}, step {self.steps}: {exc!r}")
