"""Hundreds of snapshots made and destroyed at random, with every kind of change between.

What must be so at the end, on an engine alone and on a real mount: the check is clean, each
snapshot that remains is to the byte what was copied when it was made, and the bytes in use, by the
volume's account and by the host's, are those of the blocks that a remaining view reaches.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Access,
    FsError,
    Ino,
    Inode,
    View,
    Volume,
    check_volume,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.files import RENAME_EXCHANGE
from nasfs.volume.types import REGION_BLOCKS
from nasfs.volume.view import mapped_runs

from .mounts import TestMount, mounted
from .node_world import wait_until
from .test_volume_model import layer_bytes
from .test_volume_space import reclaim_all

pytestmark = pytest.mark.mount

Picture: TypeAlias = dict[bytes, tuple[Any, ...]]
"""What a tree holds, by path."""

NAMES = [b"a", b"b", b"c", b"d"]
XATTRS = [b"user.one", b"user.two"]
DEPTH = 3


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4: a file system that is known to count a file's blocks to the block."""
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(8 << 30)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def walk(view: View) -> Iterator[tuple[bytes, Inode]]:
    """Paths and inodes of everything below the root."""
    left: list[tuple[bytes, Ino]] = [(b"", ROOT_INO)]
    while left:
        path, ino = left.pop()
        for entry, inode in view.readdir(ino, 0, 1000):
            below = path + b"/" + entry.name
            yield below, inode
            if inode.is_dir:
                left.append((below, inode.ino))


def picture(view: View) -> Picture:
    """Everything that a snapshot promises to keep."""
    found: Picture = {}
    for path, inode in walk(view):
        content = view.read(inode.ino, 0, inode.size) if inode.is_file else b""
        found[path] = (
            inode.ino, inode.mode, inode.uid, inode.nlink, inode.size, inode.mtime_ns,
            inode.target, hashlib.blake2b(content).digest(),
            sorted((name, view.getxattr(inode.ino, name)) for name in view.listxattr(inode.ino)),
        )  # fmt: skip
    return found


def needed_bytes(volume: Volume) -> int:
    """Bytes in the blocks that the live view or a snapshot reaches, by their block maps alone."""
    blocks: set[tuple[int, int, int]] = set()
    for view in (volume, *(volume.view(s.epoch) for s in volume.snapshots())):
        for _, inode in walk(view):
            for run in mapped_runs(view, inode):
                blocks.update((inode.ino, run.layer, n) for n in range(run.start, run.stop))
    return len(blocks) * BLOCK


def allocated_excess(path: Path) -> int:
    """Bytes that the host has allocated for layer files, beyond their data.

    Of each file one block is not counted: ext4 keeps the list of a file's pieces in its inode
    until there are more than four, then in a block, and there it stays.
    """
    excess = 0
    for file in (path / "layers").glob("*/*"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            own = os.fstat(opened.fileno()).st_blocks * 512
        excess += max(0, own - data_bytes(file) - BLOCK)
    return excess


def data_bytes(file: Path) -> int:
    """What is no hole, in whole blocks."""
    total = 0
    with file.open("rb") as opened:
        position = 0
        while True:
            try:
                start = os.lseek(opened.fileno(), position, os.SEEK_DATA)
            except OSError:
                return total
            position = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            total += -(-position // BLOCK) * BLOCK - start // BLOCK * BLOCK


class Changes:
    """Random changes of a volume, by the engine; refusals by the rules of POSIX are fine."""

    def __init__(self, volume: Volume, chance: random.Random) -> None:
        self.volume = volume
        self.chance = chance

    def one(self) -> None:
        kinds: list[Callable[[], object]] = [
            *[self.write] * 8, *[self.truncate] * 3, *[self.create] * 4, self.mkdir,
            *[self.rename] * 3, *[self.unlink] * 3, self.rmdir, self.link, self.symlink,
            self.set_xattr, self.remove_xattr, self.set_mode, self.unlink_open,
        ]  # fmt: skip
        with suppress(FsError):
            self.chance.choice(kinds)()

    def directory(self) -> Ino:
        ino = ROOT_INO
        for _ in range(self.chance.randrange(DEPTH)):
            with suppress(FsError):
                below = self.volume.lookup(ino, self.chance.choice(NAMES))
                ino = below.ino if below.is_dir else ino
        return ino

    def name(self) -> bytes:
        return self.chance.choice(NAMES)

    def file(self) -> Ino:
        for _ in range(8):
            with suppress(FsError):
                inode = self.volume.lookup(self.directory(), self.name())
                if inode.is_file:
                    return inode.ino
        return self.create()

    def block(self) -> int:
        """Near the start of a file, or about the end of its first region."""
        far = self.chance.random() < 0.2
        return self.chance.randrange(12) + (REGION_BLOCKS - 6 if far else 0)

    def create(self) -> Ino:
        mode = stat.S_IFREG | 0o644
        return self.volume.mknod(self.directory(), self.name(), mode, uid=0, gid=0).ino

    def write(self) -> None:
        offset = self.block() * BLOCK + self.chance.choice([0, 0, 0, 1, 1000])
        size = self.chance.choice([1, 700, BLOCK, 3 * BLOCK, 5 * BLOCK])
        self.volume.write(self.file(), offset, self.chance.randbytes(size))

    def truncate(self) -> None:
        size = self.block() * BLOCK + self.chance.choice([0, 1, 2000])
        self.volume.setattr(self.file(), size=size)

    def mkdir(self) -> None:
        self.volume.mkdir(self.directory(), self.name(), 0o755, uid=0, gid=0)

    def rename(self) -> None:
        flags = self.chance.choice([0, 0, 0, RENAME_EXCHANGE])
        self.volume.rename(self.directory(), self.name(), self.directory(), self.name(), flags)

    def unlink(self) -> None:
        self.volume.unlink(self.directory(), self.name())

    def rmdir(self) -> None:
        self.volume.rmdir(self.directory(), self.name())

    def link(self) -> None:
        self.volume.link(self.file(), self.directory(), self.name())

    def symlink(self) -> None:
        self.volume.symlink(self.directory(), self.name(), self.chance.randbytes(9), uid=0, gid=0)

    def set_xattr(self) -> None:
        value = self.chance.randbytes(self.chance.choice([0, 5, 3000]))
        self.volume.setxattr(self.file(), self.chance.choice(XATTRS), value)

    def remove_xattr(self) -> None:
        self.volume.removexattr(self.file(), self.chance.choice(XATTRS))

    def set_mode(self) -> None:
        self.volume.setattr(self.file(), mode=self.chance.choice([0o600, 0o644, 0o755]))

    def unlink_open(self) -> None:
        """A file that is open is written to after its last name is gone."""
        parent, name = self.directory(), self.name()
        inode = self.volume.lookup(parent, name)
        self.volume.acquire(inode.ino)
        try:
            self.volume.unlink(parent, name)
            self.volume.write(inode.ino, 0, b"gone")
        finally:
            self.volume.release(inode.ino)


def assert_all_is_accounted_for(path: Path, copies: dict[str, Picture]) -> None:
    """The volume is closed, and its space was reclaimed."""
    assert [str(finding) for finding in check_volume(path)] == []
    with open_volume(path, Access.READ_ONLY) as volume:
        assert [s.name for s in volume.snapshots()] == list(copies)
        for name, copy in copies.items():
            assert picture(volume.view(volume.snapshot(name).epoch)) == copy, name
        used = volume.statfs().used
        assert used == needed_bytes(volume)
    assert layer_bytes(path) == used
    assert allocated_excess(path) == 0


def destroy(path: Path, names: Iterable[str]) -> None:
    with open_volume(path) as volume:
        for name in names:
            volume.destroy_snapshot(name)
        reclaim_all(volume)


def assert_the_rest_goes(path: Path, copies: dict[str, Picture], chance: random.Random) -> None:
    """Half of the snapshots are destroyed, then all, then every file: nothing is left over."""
    assert_all_is_accounted_for(path, copies)
    half = chance.sample(list(copies), len(copies) // 2)
    destroy(path, half)
    for name in half:
        del copies[name]
    assert_all_is_accounted_for(path, copies)
    destroy(path, list(copies))
    assert_all_is_accounted_for(path, {})
    with open_volume(path) as volume:
        live = {inode.ino: inode.blocks for _, inode in walk(volume)}
        assert volume.statfs().used == sum(live.values()) * BLOCK
    db = sqlite3.connect(path / "meta.db")
    for table in ("inode", "dirent", "xattr", "leaf"):
        assert db.execute(f"SELECT count(*) FROM {table}_past").fetchone() == (0,), table
    db.close()
    with open_volume(path) as volume:
        remove_all(volume, ROOT_INO)
        reclaim_all(volume)
        assert volume.statfs().used == 0
    assert check_volume(path) == []
    assert list((path / "layers").glob("*/*")) == []


def remove_all(volume: Volume, parent: Ino) -> None:
    for entry, inode in volume.readdir(parent, 0, 1000):
        if inode.is_dir:
            remove_all(volume, inode.ino)
            volume.rmdir(parent, entry.name)
        else:
            volume.unlink(parent, entry.name)


@pytest.mark.parametrize(
    ("seed", "steps"),
    [
        *((seed, 1000) for seed in range(3)),
        *(pytest.param(seed, 10_000, marks=pytest.mark.soak) for seed in range(3, 15)),
    ],
)
def test_snapshots_come_and_go_and_the_rest_is_as_it_was(disk: Path, seed: int, steps: int) -> None:
    chance = random.Random(seed)
    pool = create_pool(disk / "pool")
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    volume = open_volume(path)
    copies: dict[str, Picture] = {}
    made = 0
    for _ in range(steps):
        changes = Changes(volume, chance)
        kind = chance.random()
        if kind < 0.70:
            changes.one()
        elif kind < 0.84:
            copies[volume.seal(f"s{made}").name] = picture(volume)
            made += 1
        elif kind < 0.94 and copies:
            name = chance.choice(list(copies))
            volume.destroy_snapshot(name)
            del copies[name]
        elif kind < 0.96 and copies:
            name = chance.choice(list(copies))
            volume.rollback(volume.snapshot(name).epoch)
            assert picture(volume) == copies[name]
        elif kind < 0.98:
            volume.reclaim_step(chance.choice([1, 2, 50]))
        else:
            volume.commit()
            volume.close() if chance.random() < 0.5 else volume.abandon()
            volume = open_volume(path)
    reclaim_all(volume)
    volume.close()
    assert made > steps // 10
    assert len(copies) > 10
    assert_the_rest_goes(path, copies, chance)


# through the kernel and the control socket


def picture_of(root: Path) -> Picture:
    """Everything that a snapshot promises to keep, as a process sees it."""
    found: Picture = {}
    for place, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            path = os.path.join(place, name)
            status = os.lstat(path)
            content = target = b""
            attributes = []
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(path)
            else:
                attributes = [(a, os.getxattr(path, a)) for a in sorted(os.listxattr(path))]
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, os.fsencode(root))] = (
                status.st_ino & (1 << 40) - 1, status.st_mode, status.st_nlink, status.st_size,
                status.st_mtime_ns, target, hashlib.blake2b(content).digest(), attributes,
            )  # fmt: skip
    return found


class Requests:
    """Random changes of a mounted volume; refusals by the rules of POSIX are fine."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root = root
        self.chance = chance

    def one(self) -> None:
        kinds: list[Callable[[], object]] = [
            *[self.write] * 8, *[self.truncate] * 3, *[self.replace] * 3, self.mkdir,
            *[self.rename] * 3, *[self.unlink] * 2, self.rmdir, self.link, self.symlink,
            self.set_xattr, self.set_mode,
        ]  # fmt: skip
        with suppress(OSError):
            self.chance.choice(kinds)()

    def path(self) -> Path:
        """Most likely of something that is there."""
        path = self.root
        for _ in range(self.chance.randrange(DEPTH)):
            below = path / self.chance.choice("abcd")
            path = below if below.is_dir() and not below.is_symlink() else path
        return path / self.chance.choice("abcd")

    def offset(self) -> int:
        far = self.chance.random() < 0.2
        block = self.chance.randrange(12) + (REGION_BLOCKS - 6 if far else 0)
        return block * BLOCK + self.chance.choice([0, 0, 0, 1, 1000])

    def write(self) -> None:
        fd = os.open(self.path(), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            size = self.chance.choice([1, 700, BLOCK, 3 * BLOCK, 5 * BLOCK])
            os.pwrite(fd, self.chance.randbytes(size), self.offset())
        finally:
            os.close(fd)

    def truncate(self) -> None:
        os.truncate(self.path(), self.offset())

    def replace(self) -> None:
        """As editors save."""
        path = self.path()
        fresh = path.with_name("new")
        fresh.write_bytes(self.chance.randbytes(self.chance.randrange(20_000)))
        os.rename(fresh, path)

    def mkdir(self) -> None:
        self.path().mkdir()

    def rename(self) -> None:
        os.rename(self.path(), self.path())

    def unlink(self) -> None:
        self.path().unlink()

    def rmdir(self) -> None:
        self.path().rmdir()

    def link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def symlink(self) -> None:
        self.path().symlink_to(self.path())

    def set_xattr(self) -> None:
        value = self.chance.randbytes(self.chance.choice([0, 5, 3000]))
        os.setxattr(self.path(), self.chance.choice(XATTRS), value, follow_symlinks=False)

    def set_mode(self) -> None:
        self.path().chmod(self.chance.choice([0o600, 0o644, 0o755]))


def roll_back(mount: TestMount, name: str) -> None:
    mount.unmount()
    with open_volume(mount.volume_path) as volume:
        volume.rollback(volume.snapshot(name).epoch)
    mount.mount()


@pytest.mark.parametrize("steps", [700, pytest.param(20_000, marks=pytest.mark.soak)])
def test_snapshots_of_a_mount_come_and_go_and_the_rest_is_as_it_was(steps: int, disk: Path) -> None:
    chance = random.Random(steps)
    copies: dict[str, Picture] = {}
    made = 0
    with mounted(disk, interval_s=0.2) as mount:
        requests = Requests(mount.root, chance)
        snapshots = mount.root / ".snapshots"
        for _ in range(steps):
            kind = chance.random()
            if kind < 0.78:
                requests.one()
            elif kind < 0.90:
                name = f"s{made}"
                copies[name] = picture_of(mount.root)
                mount.snapshot(name)
                made += 1
            elif kind < 0.98 and copies:
                doomed = chance.sample(list(copies), min(len(copies), chance.choice([1, 1, 3])))
                mount.control.call("snapshot_destroy", names=doomed)
                for name in doomed:
                    del copies[name]
            elif kind < 0.985:
                mount.kill()  # what was not committed is lost, snapshots are not
                mount.mount()
            elif kind < 0.99 and copies:
                name = chance.choice(list(copies))
                roll_back(mount, name)
                assert picture_of(mount.root) == copies[name]
            elif copies:
                name = chance.choice(list(copies))
                assert picture_of(snapshots / name) == copies[name]
        assert made > steps // 12
        assert copies
        assert sorted(os.listdir(snapshots)) == sorted(copies)
        for name, copy in copies.items():
            assert picture_of(snapshots / name) == copy, name
        path = mount.volume_path
        mount.control.call("commit")
        wait_until(
            lambda: layer_bytes(path) == mount.control.call("stats")["used"], "space is back"
        )
        mount.unmount()
        engine = dict[str, Picture]()
        with open_volume(path) as volume:
            reclaim_all(volume)
            for snapshot in volume.snapshots():
                engine[snapshot.name] = picture(volume.view(snapshot.epoch))
        assert list(engine) == list(copies)
        assert_the_rest_goes(path, engine, chance)
