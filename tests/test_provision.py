"""Guaranteed capacity: others may fill the disk, an exact volume can still be filled to its size.

And resizing, of thin and exact volumes: up, down, never below what is held, nothing half done.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from nasfs.errors import ConfigError, Refused
from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    FsError,
    Ino,
    MediaError,
    Pool,
    Volume,
    check_volume,
    create_pool,
    create_volume,
    open_volume,
    volume_info,
    volume_path,
)
from nasfs.volume.media import HostMedia
from nasfs.volume.provision import SLACK_BYTES, allowance
from tests.mounts import TestMount, failing

MIB = 1 << 20
SIZE = 48 * MIB
FILE = MIB // 4


def run(*words: str) -> None:
    subprocess.run(words, check=True)


class Disk:
    """A file system of its own, and the others who use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Others take whatever is free."""
        with (self.path / "others").open("ab") as file:
            end = os.fstat(file.fileno()).st_size
            piece = 256 * MIB
            while piece >= BLOCK:
                try:
                    os.posix_fallocate(file.fileno(), end, piece)
                    end += piece
                except OSError as exc:
                    if exc.errno != errno.ENOSPC:
                        raise
                    os.ftruncate(file.fileno(), end)
                    piece //= 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=400m", "nasfs-test", str(place))
    yield Disk(place)
    run("umount", "--lazy", str(place))  # a mount process may just be ending there


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def real_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    image, place = tmp_path / "image", tmp_path / "disk"
    if not shutil.which(f"mkfs.{request.param}"):
        pytest.skip(f"there is no mkfs.{request.param}")
    with image.open("wb") as file:
        file.truncate(1200 * MIB if request.param == "btrfs" else 500 * MIB)
    place.mkdir()
    run(f"mkfs.{request.param}", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(place))
    yield Disk(place)
    run("umount", "--lazy", str(place))


def new_file(volume: Volume, name: str) -> Ino:
    return volume.mknod(ROOT_INO, name.encode(), stat.S_IFREG | 0o644, uid=0, gid=0).ino


def fill_volume(volume: Volume, before: Callable[[], None] = lambda: None) -> dict[Ino, bytes]:
    """Write until the volume is full; what was written."""
    written: dict[Ino, bytes] = {}
    for number in range(10_000):
        before()
        data = bytes([number % 255 + 1]) * FILE
        ino = new_file(volume, f"f{number}")
        try:
            volume.write(ino, 0, data)
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return written
        written[ino] = data
        if number % 10 == 9:
            volume.commit()
    raise AssertionError("it never filled up")


def no_space() -> AbstractContextManager[object]:
    """The pool's disk refuses something in the body."""
    return pytest.raises(MediaError, check=lambda exc: exc.errno == errno.ENOSPC)


def reclaim_all(volume: Volume) -> None:
    while volume.reclaim_step() or volume.changed:
        volume.commit()


def make(disk: Disk, *, size: int = SIZE, provision: str = "exact") -> Path:
    pool = create_pool(disk.path / "pool")
    create_volume(pool, "v", size=size, provision=provision)
    return volume_path(pool, "v")


# what is held


def test_an_exact_volume_takes_its_space_when_it_is_made(disk: Disk) -> None:
    before = disk.free
    path = make(disk)
    taken = before - disk.free
    assert SIZE + allowance(SIZE) <= taken < SIZE + allowance(SIZE) + 2 * MIB
    info = volume_info(path)
    assert (info.provision, info.unreserved) == ("exact", 0)
    assert info.reserved >= SIZE
    assert check_volume(path) == []


def test_what_does_not_fit_is_not_made(disk: Disk) -> None:
    pool = create_pool(disk.path / "pool")
    with pytest.raises(MediaError, match=r"pool's disk needs 598\.\d MiB more, and has 399\.") as e:
        create_volume(pool, "v", size=400 * MIB, provision="exact")
    assert e.value.errno == errno.ENOSPC
    assert os.listdir(pool.path) == ["pool.yaml"]
    assert disk.free > 399 * MIB


def test_a_host_that_cannot_reserve_is_told_so(pool: Pool) -> None:
    class Unable(HostMedia):
        def allocate(self, fd: int, start: int, stop: int) -> None:
            raise MediaError(errno.EOPNOTSUPP, "allocation of space")

    with pytest.raises(MediaError, match="can't reserve space") as caught:
        create_volume(pool, "v", size=SIZE, provision="exact", media=Unable())
    assert "thin" in caught.value.hint
    assert os.listdir(pool.path) == ["pool.yaml"]


def test_it_is_filled_to_its_size_though_others_have_filled_the_disk(real_disk: Disk) -> None:
    path = make(real_disk)
    real_disk.fill()
    with open_volume(path) as volume:
        assert volume.statfs().available == SIZE
        written = fill_volume(volume)
        assert len(written) == SIZE // FILE
        assert volume.statfs().available == 0
        volume.seal("full")
        for ino, data in written.items():
            assert volume.read(ino, 0, FILE + 1) == data
    assert check_volume(path) == []


class Busy(HostMedia):
    """Before each call of the volume others take what is free."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def open(self, path: str | Path, *, write: bool) -> int:
        self._disk.fill()
        return super().open(path, write=write)

    def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        super().sync_files(paths, directories)
        self._disk.fill()


def test_it_is_filled_to_its_size_though_others_take_all_that_becomes_free(disk: Disk) -> None:
    path = make(disk)
    disk.fill()
    with open_volume(path, media=Busy(disk)) as volume:
        written = fill_volume(volume, disk.fill)
        assert len(written) == SIZE // FILE
        volume.commit()
    assert disk.free < BLOCK * 2
    (disk.path / "others").unlink()
    assert check_volume(path) == []


def test_space_that_is_freed_belongs_to_the_volume(disk: Disk) -> None:
    path = make(disk)
    disk.fill()
    with open_volume(path) as volume:
        for number in range(3):
            written = fill_volume(volume)
            disk.fill()
            volume.seal("s")
            for entry, _ in volume.readdir(ROOT_INO, 0, 1000):
                volume.unlink(ROOT_INO, entry.name)
            volume.destroy_snapshot("s")
            while volume.reclaim_step() or volume.changed:
                disk.fill()
                volume.commit()
            assert len(written) == SIZE // FILE, f"round {number}"
            assert volume.statfs().used == 0
            assert volume.unreserved == 0
            disk.fill()
    assert check_volume(path) == []


def test_thin_neighbours_see_only_what_is_left(disk: Disk) -> None:
    path = make(disk)
    pool = create_pool(disk.path / "other")
    create_volume(pool, "thin", size=1 << 40)
    with open_volume(volume_path(pool, "thin")) as thin, open_volume(path) as volume:
        assert thin.statfs().available <= disk.free
        with no_space():
            for number in range(1000):
                thin.write(new_file(thin, f"t{number}"), 0, bytes(FILE))
                thin.commit()
        assert len(fill_volume(volume)) == SIZE // FILE


# in step with the commits


def test_it_gives_way_to_data_only_when_that_is_durable(disk: Disk) -> None:
    path = make(disk)
    with open_volume(path) as volume:
        held = volume.reserved
        ino = new_file(volume, "f")
        volume.write(ino, 0, bytes(32 * MIB))
        volume.dirty_data().run()
        volume.commit_nowait()
        assert volume.reserved == held
        volume.sync_log()
        assert held - volume.reserved >= 32 * MIB - SLACK_BYTES
        held = volume.reserved
        volume.setattr(ino, size=0)
        volume.commit()  # and takes the place again before it is given back
        assert volume.reserved - held >= 32 * MIB - SLACK_BYTES


def test_after_a_crash_it_is_what_the_last_commit_needs(disk: Disk) -> None:
    path = make(disk)
    volume = open_volume(path)
    needed = volume.reserved
    volume.write(new_file(volume, "lost"), 0, bytes(32 * MIB))
    disk.fill()
    volume.write(new_file(volume, "more"), 0, bytes(8 * MIB))  # the reservation gives way
    assert volume.reserved < needed - 8 * MIB
    volume.abandon()
    (disk.path / "others").unlink()
    with open_volume(path) as volume:
        assert volume.statfs().used == 0
        assert volume.unreserved == 0
        reclaim_all(volume)
        disk.fill()
        assert len(fill_volume(volume)) == SIZE // FILE


@pytest.mark.parametrize("seed", range(4))
def test_after_a_power_cut_others_find_nothing_of_it(tmp_path: Path, seed: int) -> None:
    """They fill the disk before the volume is opened again, and it has its capacity yet."""
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(600 * MIB)
    place.mkdir()
    run("mkfs.xfs", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(place))
    disk, chance = Disk(place), random.Random(seed)
    try:
        path = make(disk)
        volume = open_volume(path)
        for number in range(chance.randrange(20, 60)):
            ino = new_file(volume, f"f{number}")
            with suppress(FsError):  # full
                volume.write(ino, 0, bytes([number]) * chance.randrange(4 * MIB))
            if chance.random() < 0.3:
                volume.unlink(ROOT_INO, f"f{number}".encode())
            if chance.random() < 0.3:
                volume.commit()
                volume.reclaim_step(chance.randrange(5))
        run("xfs_io", "-x", "-c", "shutdown", str(place))
        with suppress(MediaError):
            volume.abandon()
        run("umount", "--lazy", str(place))
        run("mount", "-o", "loop", str(image), str(place))
        disk.fill()
        with open_volume(path) as volume:
            reclaim_all(volume)
            for entry, _ in volume.readdir(ROOT_INO, 0, 1000):
                volume.unlink(ROOT_INO, entry.name)
            reclaim_all(volume)
            assert len(fill_volume(volume)) == SIZE // FILE
        assert check_volume(path) == []
    finally:
        run("umount", "--lazy", str(place))


def test_what_others_have_taken_is_told_and_taken_back(disk: Disk) -> None:
    path = make(disk)
    os.truncate(path / "reserve", 20 * MIB)
    disk.fill()
    with open_volume(path) as volume:
        assert volume.unreserved > SIZE - 20 * MIB
        assert volume_info(path).unreserved == volume.unreserved
        assert volume.statfs().available < SIZE
        (disk.path / "others").unlink()
        new_file(volume, "f")
        volume.commit()
        assert volume.unreserved == 0
        assert volume.statfs().available == SIZE


def test_a_copy_whose_reservation_is_a_hole_reserves_again(disk: Disk) -> None:
    path = make(disk)
    size = (path / "reserve").stat().st_size
    os.truncate(path / "reserve", 0)
    os.truncate(path / "reserve", size)
    assert volume_info(path).unreserved >= SIZE
    with open_volume(path):
        assert volume_info(path).unreserved == 0
    assert (path / "reserve").stat().st_blocks * 512 >= SIZE


def test_closed_it_holds_what_its_log_had(disk: Disk) -> None:
    path = make(disk)
    before = disk.free
    with open_volume(path) as volume:
        for number in range(1000):
            new_file(volume, f"f{number}")
    grown = (path / "meta.db").stat().st_blocks * 512
    assert abs(before - disk.free) < 2 * MIB
    assert (path / "reserve").stat().st_size + grown >= SIZE + allowance(SIZE) - BLOCK


# metadata


def test_a_large_commit_on_a_full_disk_has_room(disk: Disk) -> None:
    path = make(disk)
    disk.fill()
    with open_volume(path) as volume:
        for number in range(600):
            ino = new_file(volume, f"f{number}")
            volume.setxattr(ino, b"user.x", os.urandom(60_000))
        volume.commit()
        disk.fill()
        volume.commit()
        volume.checkpoint()
    assert (path / "meta.db").stat().st_size > 28 * MIB
    (disk.path / "others").unlink()
    assert check_volume(path) == []


def test_metadata_beyond_the_allowance_is_refused_and_nothing_is_lost(disk: Disk) -> None:
    path = make(disk)
    disk.fill()
    with open_volume(path) as volume:
        with no_space():
            for number in range(50_000):
                ino = new_file(volume, f"f{number}")
                volume.setxattr(ino, b"user.x", os.urandom(12_000))
                if number % 500 == 0:
                    volume.commit()
        volume.commit()
        assert volume.writable
        assert volume.reserved >= SIZE - MIB
        volume.unlink(ROOT_INO, b"f0")
        volume.commit()
    (disk.path / "others").unlink()
    assert check_volume(path) == []


def test_a_volume_on_a_full_disk_is_opened(disk: Disk) -> None:
    path = make(disk)
    disk.fill()
    with open_volume(path) as volume:
        volume.write(new_file(volume, "f"), 0, b"x")


# resizing


@pytest.mark.parametrize("provision", ["thin", "exact"])
def test_a_volume_grows_and_shrinks_and_is_durable(disk: Disk, provision: str) -> None:
    path = make(disk, provision=provision)
    volume = open_volume(path)
    written = fill_volume(volume)
    volume.resize(SIZE + 8 * MIB)
    assert volume.statfs().available == 8 * MIB
    ino = new_file(volume, "more")
    volume.write(ino, 0, bytes(8 * MIB))
    with pytest.raises(FsError):
        volume.write(ino, 8 * MIB, b"x")
    volume.unlink(ROOT_INO, b"more")
    reclaim_all(volume)
    volume.resize(SIZE)
    with pytest.raises(FsError):
        volume.write(new_file(volume, "again"), 0, b"x")
    volume.resize(SIZE + 2 * MIB)
    volume.abandon()
    assert len(written) == SIZE // FILE
    assert volume_info(path).size == SIZE + 2 * MIB
    assert volume_info(path).unreserved == 0
    assert check_volume(path) == []


def test_it_never_shrinks_below_what_it_holds(disk: Disk) -> None:
    path = make(disk, provision="thin")
    with open_volume(path) as volume:
        ino = new_file(volume, "f")
        volume.write(ino, 0, bytes(10 * MIB))
        volume.seal("s")
        volume.write(ino, 0, bytes(2 * MIB))
        with pytest.raises(Refused) as caught:
            volume.resize(12 * MIB - 1)
        assert "12582912 bytes (10.0 MiB live, 2.0 MiB in snapshots alone)" in str(caught.value)
        assert volume.size == SIZE
        volume.resize(12 * MIB)
        assert volume.statfs().available == 0
        with pytest.raises(ConfigError):
            volume.resize(1000)
    assert volume_info(path).size == 12 * MIB


def test_an_exact_volume_that_cannot_grow_stays_as_it_is(disk: Disk) -> None:
    path = make(disk)
    with open_volume(path) as volume:
        held, free = volume.reserved, disk.free
        with pytest.raises(MediaError, match=r"to guarantee 1.0 GiB the pool's disk needs") as e:
            volume.resize(1 << 30)
        assert e.value.errno == errno.ENOSPC
        assert (volume.size, volume.unreserved) == (SIZE, 0)
        assert abs(volume.reserved - held) < MIB
        assert abs(disk.free - free) < MIB
        volume.resize(SIZE + 16 * MIB)
        assert volume.reserved - held > 16 * MIB
        volume.resize(SIZE)
        assert abs(disk.free - free) < MIB
    assert volume_info(path).size == SIZE


def test_a_size_that_was_not_committed_is_not_the_size(disk: Disk) -> None:
    path = make(disk)
    volume = open_volume(path)
    volume.prepare_resize(SIZE + 16 * MIB)
    volume.resize_nowait(SIZE + 16 * MIB)
    volume.abandon()
    assert volume_info(path).size == SIZE
    with open_volume(path) as volume:
        assert volume.size == SIZE
        assert volume.reserved < SIZE + allowance(SIZE) + MIB


@pytest.mark.mount
def test_a_mounted_exact_volume_is_filled_and_resized(disk: Disk, tmp_path: Path) -> None:
    create_volume(create_pool(disk.path / "pool"), "home", size=SIZE, provision="exact")
    mount = TestMount(disk.path)
    mount.root.mkdir()
    try:
        mount.mount()
        disk.fill()
        for number in range(SIZE // MIB):
            (mount.root / f"f{number}").write_bytes(os.urandom(MIB))
        with failing(errno.ENOSPC):
            (mount.root / "more").write_bytes(b"x")
        with pytest.raises(Refused):
            mount.control.call("resize", size=SIZE - MIB)
        (disk.path / "others").unlink()
        mount.control.call("resize", size=SIZE + MIB)
        (mount.root / "more").write_bytes(bytes(MIB))
        stats = mount.control.call("stats")
        assert (stats["provision"], stats["size"], stats["unreserved"]) == ("exact", SIZE + MIB, 0)
        found = os.statvfs(mount.root)
        assert (found.f_blocks * found.f_frsize, found.f_bavail) == (SIZE + MIB, 0)
        mount.unmount()
        mount.check()
        assert " ERROR " not in mount.log
    finally:
        mount.clean_up()
