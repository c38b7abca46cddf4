"""Sizes, blocks and what is free: stat(2), statvfs(3), lseek(2)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounts import TestMount
from tests.posix.calls import errno_of, make

pytestmark = pytest.mark.mount


def wait_until(condition: Callable[[], bool]) -> bool:
    """Ask until the kernel has made it true, at its own time."""
    return any(condition() for _ in range(2_000))


def blocks(path: Path) -> int:
    """4 KiB blocks in use."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # elsewhere blocks are given late
    os.close(fd)
    assert path.stat().st_blocks % 8 == 0
    return path.stat().st_blocks // 8


def test_blocks_count_what_is_written(work: Path) -> None:
    path = make("file", work / "x")
    assert blocks(path) == 0
    fd = os.open(path, os.O_WRONLY)
    for offset, size, total in (
        (0, 1, 1),
        (1, 4095, 1),
        (4095, 2, 2),
        (4096 * 10, 4096 * 5, 7),
        (4096 * 12, 4096 * 2, 7),
        (4096 * 1000 + 100, 200, 8),
    ):
        os.pwrite(fd, b"x" * size, offset)
        assert blocks(path) == total
    for size, total in ((4096 * 1000, 7), (4096 * 11, 3), (1, 1), (0, 0)):
        os.ftruncate(fd, size)
        assert blocks(path) == total
    os.close(fd)


def test_holes_are_zeros(work: Path) -> None:
    path = make("file", work / "x")
    with path.open("r+b", buffering=0) as file:
        file.seek(1 << 20)
        file.write(b"end")
    assert path.read_bytes() == bytes(1 << 20) + b"end"
    assert blocks(path) == 1


def test_a_file_can_be_extended_and_cut_around_its_blocks(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"a" * 10_000)
    os.truncate(path, 5_000)
    os.truncate(path, 20_000)
    assert path.read_bytes() == b"a" * 5_000 + bytes(15_000)
    assert blocks(path) == 2


@pytest.mark.parametrize("offset", [(1 << 31) - 1, 1 << 32, 1 << 40, (8 << 40) - 2])
def test_bytes_far_away_are_kept(work: Path, offset: int) -> None:
    path = make("file", work / "x")
    with path.open("r+b", buffering=0) as file:
        try:
            file.seek(offset)
            file.write(b"far")
        except OSError as exc:
            pytest.skip(str(exc))
        assert file.seek(0, os.SEEK_END) == offset + 3
        assert os.pread(file.fileno(), 10, offset - 2) == b"\0\0far"
    assert path.stat().st_size == offset + 3
    assert blocks(path) <= 2


def test_the_last_byte_and_the_one_behind(mount: TestMount, work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDWR)
    last = 4096 * ((1 << 32) - 1) * 1024 - 1
    assert os.pwrite(fd, b"x", last) == 1
    assert os.fstat(fd).st_size == last + 1
    assert errno_of(os.pwrite, fd, b"x", last + 1) == "EFBIG"
    assert os.pwrite(fd, b"xy", last) == 1  # all that fits
    assert os.pread(fd, 10, last) == b"x"
    os.ftruncate(fd, 0)
    os.close(fd)


def test_writes_of_all_shapes(work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDWR)
    assert os.write(fd, b"") == 0
    assert os.pwritev(fd, [b"ab", b"", b"cde"], 3) == 5
    assert os.pread(fd, 100, 0) == b"\0\0\0abcde"
    assert os.pread(fd, 100, 8) == b""
    assert os.pread(fd, 0, 0) == b""
    assert errno_of(os.pwrite, fd, b"x", -1) == "EINVAL"
    os.close(fd)


def test_seeking(work: Path) -> None:
    path = work / "x"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    assert os.lseek(fd, 4, os.SEEK_SET) == 4
    assert os.lseek(fd, 3, os.SEEK_CUR) == 7
    assert os.read(fd, 1) == b"7"
    assert os.lseek(fd, -2, os.SEEK_END) == 8
    assert os.lseek(fd, 100, os.SEEK_END) == 110
    assert os.read(fd, 1) == b""
    assert errno_of(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 10
    assert errno_of(os.lseek, fd, 10, os.SEEK_DATA) == "ENXIO"
    os.close(fd)


def test_preallocation_is_refused_and_not_pretended(mount: TestMount, work: Path) -> None:
    path = make("file", work / "x")
    fd = os.open(path, os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    for mode in (0, 1, 3, 0x10):  # allocate, keep the size, punch a hole, zero
        assert libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4096)) == -1
        assert ctypes.get_errno() == 95  # EOPNOTSUPP
    assert os.fstat(fd).st_size == 0
    os.posix_fallocate(fd, 0, 10_000)  # the C library writes the blocks itself
    assert (os.fstat(fd).st_size, blocks(path)) == (10_000, 3)
    os.close(fd)


def test_ranges_can_be_copied_from_file_to_file(work: Path) -> None:
    (work / "x").write_bytes(bytes(range(256)) * 100)
    with (work / "x").open("rb") as source, (work / "y").open("wb") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), 10_000, 5, 7)
    assert copied == 10_000
    assert (work / "y").read_bytes() == bytes(7) + (work / "x").read_bytes()[5:10_005]


@pytest.mark.usefixtures("mount")
def test_files_without_a_name_from_the_start_are_refused(work: Path) -> None:
    assert errno_of(os.open, work, os.O_TMPFILE | os.O_RDWR) == "ENOTSUP"


def test_what_is_free_goes_down_and_up_by_what_is_used(mount: TestMount, work: Path) -> None:
    before = os.statvfs(work)
    assert (before.f_bsize, before.f_frsize, before.f_namemax) == (4096, 4096, 255)
    path = work / "x"
    path.write_bytes(bytes(4096 * 100 - 5))
    after = os.statvfs(work)
    assert before.f_bfree - after.f_bfree == 100
    assert after.f_files - after.f_ffree == before.f_files - before.f_ffree + 1
    path.unlink()
    assert wait_until(lambda: os.statvfs(work) == before)


def test_du_and_df_agree(mount: TestMount, work: Path) -> None:
    before = os.statvfs(work).f_bfree
    for number, size in enumerate((1, 4096, 4097, 1 << 20, 3_000_001)):
        (work / f"{number}").write_bytes(b"x" * size)
        os.truncate(work / f"{number}", size + (1 << 30))
    used = sum(blocks(path) for path in work.iterdir())
    assert before - os.statvfs(work).f_bfree == used


def test_directories_have_a_size_and_no_blocks(mount: TestMount, work: Path) -> None:
    found = make("directory", work / "d").stat()
    assert (found.st_size, found.st_blocks) == (4096, 0)
    assert found.st_blksize == 131_072
