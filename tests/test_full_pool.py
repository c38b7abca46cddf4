"""A disk that fills up: ENOSPC to the writer, what was acknowledged stays, nothing half made."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nasfs.errors import Failed
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

from .crash_power import power_disk
from .mounts import TestMount, failing
from .test_crash_mount import PowerMount

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


def test_on_a_full_disk_changes_that_add_nothing_go_on(small_disk: Path) -> None:
    """Each of them goes through the log, which takes turns with the tables in what is left."""
    pool = create_pool(small_disk / "pool")
    create_volume(pool, "v", size=1 << 40)
    with open_volume(volume_path(pool, "v")) as volume:
        refused, written = write_until_refused(volume)
        assert refused == errno.ENOSPC
        inos = list(written)
        for round_ in range(600):
            for ino in inos:
                volume.setattr(ino, mode=0o600 + round_ % 2)
            volume.commit()
        for number in range(len(inos)):
            volume.unlink(ROOT_INO, b"%d" % number)
        volume.commit()
        assert volume.writable


def leave(disk: Path, count: int) -> None:
    """Others take the disk but for so many bytes."""
    found = os.statvfs(disk)
    with (disk / "others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - count)


def more_names(root: Path, number: int) -> None:
    os.link(root / "file", root / f"link-{number}-{'x' * 150}")


def more_directories(root: Path, number: int) -> None:
    os.mkdir(root / f"directory-{number}-{'x' * 150}")


def more_symlinks(root: Path, number: int) -> None:
    os.symlink("t" * 4000, root / f"symlink-{number}")


def more_attributes(root: Path, number: int) -> None:
    os.setxattr(root / f"{number % 50}", f"user.{number}", b"v" * 50_000)


def more_of_all(root: Path, number: int) -> None:
    (root / f"new-{number}").write_bytes(b"%d" % number)
    os.rename(root / f"new-{number}", root / f"renamed-{number}-{'x' * 150}")


@pytest.mark.mount
@pytest.mark.parametrize(
    "more", [more_names, more_directories, more_symlinks, more_attributes, more_of_all]
)
def test_rows_alone_do_not_fill_the_disk(tmp_path: Path, more: Callable[[Path, int], None]) -> None:
    """ENOSPC to who adds; what was acknowledged stays, and who removes goes on."""
    with power_disk(tmp_path, 320 * MIB) as disk:
        create_volume(create_pool(disk.path / "pool"), "home", size=1 << 40)
        mount = PowerMount(tmp_path, interval_s=0.5, disk=disk)
        mount.root.mkdir()
        try:
            mount.mount()
            for number in range(50):
                (mount.root / f"{number}").write_bytes(b"%d" % number * 1000)
            (mount.root / "file").touch()
            sync(mount.root)
            leave(disk.path, 24 * MIB)
            with failing(errno.ENOSPC):
                for number in range(1_000_000):
                    more(mount.root, number)
            sync(mount.root)
            mount.snapshot("when full")
            kept = sorted(os.listdir(mount.root))
            for name in kept[::2]:
                remove(mount.root / name)
            sync(mount.root)
            assert not mount.control.call("stats")["read_only"]
            mount.unmount()
            mount.check()
            mount.mount()
            assert sorted(os.listdir(mount.root)) == kept[1::2]
            assert sorted(os.listdir(mount.root / ".snapshots" / "when full")) == kept
            mount.unmount()
        finally:
            mount.clean_up()


def remove(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


@pytest.mark.mount
def test_an_unmount_on_a_full_disk_loses_nothing_unasked(tmp_path: Path) -> None:
    disk = tmp_path / "pool"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "nasfs-test", disk], check=True)
    mount = TestMount(tmp_path, interval_s=3600)
    mount.root.mkdir()
    try:
        create_volume(create_pool(disk), "home", size=1 << 40)
        mount.mount()
        written = {f"f{number}": bytes([number]) * 5000 for number in range(200)}
        for name, data in written.items():
            (mount.root / name).write_bytes(data)
        others = disk / "others"
        with others.open("wb") as file:
            free = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        with pytest.raises(Failed, match="stays mounted") as refused:
            mount.unmount()
        assert "umount -f" in refused.value.hint
        assert {name: (mount.root / name).read_bytes() for name in written} == written
        others.unlink()
        mount.unmount()
        mount.mount()
        assert {name: (mount.root / name).read_bytes() for name in written} == written
    finally:
        mount.clean_up()
        subprocess.run(["umount", disk], check=True)
