"""Stamps: they do not stay behind the kernel's own, and fit into their rows."""

from __future__ import annotations

import stat

import pytest

from nasfs.volume import ROOT_INO, Ino, Volume
from nasfs.volume.files import KERNEL_AHEAD_NS, TIME_MAX_NS, TIME_MIN_NS, coarse_now_ns


@pytest.fixture
def ino(volume: Volume) -> Ino:
    return volume.mknod(ROOT_INO, b"x", stat.S_IFREG | 0o644, uid=0, gid=0).ino


def test_a_now_of_the_kernel_is_not_followed_by_an_earlier_one(volume: Volume, ino: Ino) -> None:
    ahead = coarse_now_ns() + KERNEL_AHEAD_NS
    inode = volume.setattr(ino, atime_ns=ahead, mtime_ns=ahead)
    assert inode.mtime_ns == inode.ctime_ns == ahead
    volume.write(ino, 0, b"x")
    assert volume.getattr(ino).mtime_ns >= ahead


def test_a_time_that_somebody_makes_up_moves_no_clock(volume: Volume, ino: Ino) -> None:
    future = coarse_now_ns() + 3_600 * 10**9
    inode = volume.setattr(ino, mtime_ns=future)
    assert (inode.mtime_ns, inode.ctime_ns < future) == (future, True)
    volume.write(ino, 0, b"x")
    assert volume.getattr(ino).mtime_ns < future
    for _ in range(1_000):  # a little ahead each time does not add up
        volume.setattr(ino, mtime_ns=volume.getattr(ino).ctime_ns + KERNEL_AHEAD_NS // 2)
    volume.write(ino, 0, b"x")
    assert volume.getattr(ino).mtime_ns <= coarse_now_ns() + KERNEL_AHEAD_NS


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (1 << 63, TIME_MAX_NS),
        (-(1 << 63) - 1, TIME_MIN_NS),
        ((1 << 62) * 10**9, TIME_MAX_NS),
        (TIME_MAX_NS, TIME_MAX_NS),
        (TIME_MIN_NS, TIME_MIN_NS),
        (-1, -1),
    ],
)
def test_times_beyond_a_row_become_the_last_ones(
    volume: Volume, ino: Ino, asked: int, kept: int
) -> None:
    inode = volume.setattr(ino, atime_ns=asked, mtime_ns=asked)
    assert (inode.atime_ns, inode.mtime_ns) == (kept, kept)
    volume.commit()
    assert volume.getattr(ino).mtime_ns == kept
