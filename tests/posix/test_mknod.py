"""mknod(2) and mkfifo(3)."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tests.posix.calls import KINDS, errno_of, make, mode_of, owner_of, times_changed
from tests.posix.users import ALICE, BOB, TEAM, acting_as

pytestmark = pytest.mark.mount

TYPES = {
    "file": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
}
OPEN_TO_ALL = ("file", "fifo", "socket")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mode", [0o000, 0o151, 0o755])
def test_root_makes_all_types(work: Path, kind: str, mode: int) -> None:
    os.mknod(work / "x", TYPES[kind] | mode, os.makedev(1, 2))
    found = os.lstat(work / "x")
    assert found.st_mode == TYPES[kind] | mode
    assert found.st_nlink == 1


@pytest.mark.parametrize("kind", ["block", "char"])
@pytest.mark.parametrize(
    ("major", "minor"), [(0, 0), (1, 3), (255, 255), (259, 70_000), (511, 262_143)]
)
def test_device_numbers_are_kept_to_the_last(work: Path, kind: str, major: int, minor: int) -> None:
    os.mknod(work / "x", TYPES[kind] | 0o600, os.makedev(major, minor))
    found = os.lstat(work / "x").st_rdev
    assert (os.major(found), os.minor(found)) == (major, minor)


@pytest.mark.usefixtures("mount")
def test_so_are_the_highest_ones_that_linux_has(work: Path) -> None:
    os.mknod(work / "x", stat.S_IFCHR | 0o600, os.makedev(4095, (1 << 20) - 1))
    assert os.lstat(work / "x").st_rdev == os.makedev(4095, (1 << 20) - 1)


@pytest.mark.parametrize("kind", TYPES)
def test_devices_are_for_root_and_the_rest_for_all(work: Path, kind: str) -> None:
    with acting_as(ALICE):
        made = errno_of(os.mknod, work / "x", TYPES[kind] | 0o600, os.makedev(1, 2))
    assert made == ("ok" if kind in OPEN_TO_ALL else "EPERM")
    if made == "ok":
        assert owner_of(work / "x") == (ALICE.uid, ALICE.gid)


@pytest.mark.parametrize("kind", OPEN_TO_ALL)
@pytest.mark.parametrize(
    ("mode", "umask", "result"), [(0o151, 0o77, 0o100), (0o345, 0o70, 0o305), (0o666, 0o22, 0o644)]
)
def test_the_umask_is_taken_from_the_mode(
    work: Path, kind: str, mode: int, umask: int, result: int
) -> None:
    with acting_as(ALICE, umask):
        os.mknod(work / "x", TYPES[kind] | mode)
    assert mode_of(work / "x") == result


@pytest.mark.parametrize("kind", OPEN_TO_ALL)
def test_an_sgid_directory_passes_its_group_on(work: Path, kind: str) -> None:
    os.chown(work, 0, TEAM)
    work.chmod(0o2777)
    with acting_as(BOB):
        os.mknod(work / "x", TYPES[kind] | 0o644)
    assert owner_of(work / "x") == (BOB.uid, TEAM)
    assert mode_of(work / "x") == 0o644


@pytest.mark.parametrize("kind", TYPES)
def test_it_moves_the_times_of_the_directory(work: Path, kind: str) -> None:
    changed = times_changed(work, lambda: os.mknod(work / "x", TYPES[kind] | 0o644))
    assert changed == {"mtime", "ctime"}
    found = os.lstat(work / "x")
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("taken_by", KINDS)
def test_a_name_that_is_taken_is_eexist(work: Path, kind: str, taken_by: str) -> None:
    make(taken_by, work / "x")
    assert errno_of(os.mknod, work / "x", TYPES[kind] | 0o644) == "EEXIST"


def test_directories_and_symlinks_are_made_by_other_calls(work: Path) -> None:
    assert errno_of(os.mknod, work / "x", stat.S_IFDIR | 0o755) == "EPERM"
    assert errno_of(os.mknod, work / "x", stat.S_IFLNK | 0o755) == "EINVAL"


def test_a_fifo_carries_what_is_written(work: Path) -> None:
    os.mkfifo(work / "x")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((work / "x").read_bytes()))
    reader.start()
    (work / "x").write_bytes(b"through the pipe")
    reader.join()
    assert read == [b"through the pipe"]
    assert (work / "x").stat().st_size == 0


def test_devices_work(work: Path) -> None:
    os.mknod(work / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(work / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (work / "null").write_bytes(b"gone")
    assert (work / "null").read_bytes() == b""
    with (work / "zero").open("rb") as zero:
        assert zero.read(10) == bytes(10)
