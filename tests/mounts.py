"""Mounting volumes in tests: real mount processes, unmounted and waited for whatever happens."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nasfs.errors import Failed
from nasfs.fuse.control import ControlClient
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.fuse.mountpoint import detach_dead, find_mount
from nasfs.volume import check_volume, create_pool, create_volume, open_pool, volume_path


@dataclass
class TestMount:
    """A volume and its mount point below one directory."""

    __test__ = False  # not a class of tests

    base: Path
    interval_s: float = 5.0
    pid: int = 0
    _others: list[Path] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.base / "mnt"

    @property
    def volume_path(self) -> Path:
        return volume_path(open_pool(self.base / "pool"), "home")

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.base / "control.sock", timeout_s=60)

    @property
    def log(self) -> str:
        return (self.base / "log").read_text()

    def snapshot(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.control.call("snapshot", name=name)
        return found

    def mount(self) -> None:
        self.pid = mount_in_background(
            self.volume_path,
            self.root,
            control=self.base / "control.sock",
            fsname="pool/home",
            commit_interval_s=self.interval_s,
            log_file=self.base / "log",
            timeout_s=30,
        )

    def mount_snapshot(self, name: str) -> Path:
        """Mount the volume as of a snapshot, at another place."""
        place = self.base / f"mnt-{name}"
        place.mkdir()
        self._others.append(place)
        mount_in_background(
            self.volume_path,
            place,
            snapshot=name,
            fsname=f"pool/home@{name}",
            log_file=self.base / f"log-{name}",
            timeout_s=30,
        )
        return place

    def unmount(self) -> None:
        unmount(self.root, timeout_s=60)
        self.pid = 0

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        pid, self.pid = self.pid, 0
        end = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            wait_for_end(end)
        finally:
            os.close(end)

    def check(self) -> None:
        """The invariants of the volume hold; it must not be mounted."""
        assert check_volume(self.volume_path) == []

    def clean_up(self) -> None:
        for place in (self.root, *self._others):
            while find_mount(place) is not None:
                try:
                    unmount(place, timeout_s=60)
                except Failed:
                    detach_dead(place)
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def failing(number: int) -> AbstractContextManager[object]:
    """The body must raise OSError with this number."""
    return pytest.raises(OSError, check=lambda exc: exc.errno == number)


def wait_for_end(pidfd: int, timeout_s: float = 60) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(timeout_s * 1000), "the process does not end"


@contextmanager
def mounted(base: Path, *, interval_s: float = 5.0, size: int = 1 << 40) -> Iterator[TestMount]:
    """A fresh volume, mounted; at the end its log must be clean and its invariants hold."""
    create_volume(create_pool(base / "pool"), "home", size=size)
    mount = TestMount(base, interval_s)
    mount.root.mkdir()
    try:
        mount.mount()
        yield mount
        if find_mount(mount.root) is not None:
            mount.unmount()
        mount.check()
        assert " ERROR " not in mount.log
        assert " CRITICAL " not in mount.log
        assert " WARNING " not in mount.log
    finally:
        mount.clean_up()
