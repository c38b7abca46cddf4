"""A disk that fills up: ENOSPC to the writer, what was acknowledged stays, nothing half made."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import (
    ROOT_INO,
    FsError,
    MediaError,
    Volume,
    check_volume,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "nasfs-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def write_until_refused(volume: Volume) -> tuple[int, dict[int, bytes]]:
    """Files of 256 KiB until the disk says no: the errno, and what was acknowledged."""
    written: dict[int, bytes] = {}
    for number in range(1000):
        data = bytes([number % 256]) * (MIB // 4)
        try:
            ino = volume.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            volume.write(ino, 0, data)
            volume.commit()
        except (MediaError, FsError) as exc:
            return exc.errno, written
        written[ino] = data
    raise AssertionError("the disk never filled up")


def test_a_full_disk_refuses_the_write_and_keeps_everything_else(small_disk: Path) -> None:
    pool = create_pool(small_disk / "pool")
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        refused, written = write_until_refused(volume)
        assert refused == errno.ENOSPC
        assert len(written) > 50
        volume.seal("when full")  # metadata still has room
        for ino, data in written.items():
            assert volume.read(ino, 0, len(data) + 1) == data
    assert check_volume(path) == []
    with open_volume(path) as volume:
        view = volume.view(volume.snapshot("when full").epoch)
        for ino, data in written.items():
            assert view.read(ino, 0, len(data) + 1) == data


def test_space_that_was_freed_can_be_written_again(small_disk: Path) -> None:
    pool = create_pool(small_disk / "pool")
    create_volume(pool, "v", size=1 << 40)
    with open_volume(volume_path(pool, "v")) as volume:
        _, written = write_until_refused(volume)
        for number in range(len(written)):
            volume.unlink(ROOT_INO, b"%d" % number)
        while volume.changed or volume.reclaim_step():
            volume.commit()
        again = volume.mknod(ROOT_INO, b"again", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        volume.write(again, 0, bytes(10 * MIB))
        volume.commit()


def test_a_volume_that_does_not_fit_is_not_made(small_disk: Path) -> None:
    pool = create_pool(small_disk / "pool")
    (small_disk / "other").write_bytes(bytes(39 * MIB + 900 * 1024))
    with pytest.raises(MediaError) as caught:
        create_volume(pool, "v", size=1 << 40)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(pool.path) == ["pool.yaml"]


def test_the_size_of_the_volume_is_a_limit_too(small_disk: Path) -> None:
    pool = create_pool(small_disk / "pool")
    create_volume(pool, "v", size=4 * MIB)
    with open_volume(volume_path(pool, "v")) as volume:
        refused, written = write_until_refused(volume)
        assert (refused, len(written)) == (errno.ENOSPC, 16)
        assert volume.statfs().available == 0
        first = next(iter(written))
        volume.write(first, 0, b"in place is fine")
    assert check_volume(volume_path(pool, "v")) == []
