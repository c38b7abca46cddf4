"""The volume against a dictionary: any history of operations, snapshots, rollbacks, reopens.

Few names and small offsets, so that collisions happen.  The model is a tree of plain Python
values; a snapshot of the model is a deep copy.  After each step the live view equals the model;
every snapshot always reads as its copy, and at the end the volume's own check finds nothing and
the space in use is what the remaining views need, to the block.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    FsError,
    Ino,
    View,
    Volume,
    check_volume,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.types import REGION_BLOCKS

RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Thousands of small volumes: none of these tests is about the disk."""

NAMES = st.sampled_from([b"a", b"b", b"c"])
DIRS = st.sampled_from([(), (b"a",), (b"b",), (b"a", b"b")])
OFFSETS = st.one_of(
    st.integers(0, 3 * BLOCK),
    st.sampled_from([0, BLOCK, 2 * BLOCK - 1, REGION_BLOCKS * BLOCK - 5, REGION_BLOCKS * BLOCK]),
)


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mode: int = 0o644


@dataclass
class Dir:
    entries: dict[bytes, Dir | File] = field(default_factory=dict)


class Errno(Exception):
    def __init__(self, number: int) -> None:
        self.number = number


def errno_of(operation: Callable[[], object]) -> int | None:
    try:
        operation()
    except Errno as exc:
        return exc.number
    except FsError as exc:
        return exc.errno
    return None


def contents(view: View, ino: int = ROOT_INO) -> object:
    """The tree under a directory as comparable values; hard links are seen by their number."""
    tree: dict[bytes, object] = {}
    after = 0
    while page := view.readdir(ino, after, 2):
        for entry, inode in page:
            after = entry.cookie
            if inode.is_dir:
                tree[entry.name] = contents(view, inode.ino)
            else:
                names = view.listxattr(inode.ino)
                tree[entry.name] = (
                    view.read(inode.ino, 0, inode.size),
                    {name: view.getxattr(inode.ino, name) for name in names},
                    stat.S_IMODE(inode.mode),
                    inode.nlink,
                )
    return tree


def expected(tree: Dir) -> object:
    links: dict[int, int] = {}

    def count(directory: Dir) -> None:
        for node in directory.entries.values():
            if isinstance(node, Dir):
                count(node)
            else:
                links[id(node)] = links.get(id(node), 0) + 1

    def render(directory: Dir) -> object:
        return {
            name: render(node)
            if isinstance(node, Dir)
            else (bytes(node.data), node.xattrs, node.mode, links[id(node)])
            for name, node in directory.entries.items()
        }

    count(tree)
    return render(tree)


class VolumeAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="nasfs-model-", dir=RAM))
        pool = create_pool(self.home / "pool")
        create_volume(pool, "v", size=1 << 40)
        self.path = volume_path(pool, "v")
        self.volume: Volume = open_volume(self.path)
        self.tree = Dir()
        self.snapshots: dict[str, Dir] = {}
        self.counter = 0

    @initialize()
    def some_directories(self) -> None:
        """So that nested paths exist more often than never."""
        self.mkdir((), b"a")

    # paths

    def model_dir(self, path: tuple[bytes, ...]) -> Dir:
        node: Dir | File = self.tree
        for name in path:
            if not isinstance(node, Dir):
                raise Errno(errno.ENOTDIR)
            if name not in node.entries:
                raise Errno(errno.ENOENT)
            node = node.entries[name]
        if not isinstance(node, Dir):
            raise Errno(errno.ENOTDIR)
        return node

    def model_file(self, path: tuple[bytes, ...], name: bytes) -> File:
        directory = self.model_dir(path)
        if name not in directory.entries:
            raise Errno(errno.ENOENT)
        node = directory.entries[name]
        if isinstance(node, Dir):
            raise Errno(errno.EISDIR)
        return node

    def ino(self, *path: bytes) -> Ino:
        ino = ROOT_INO
        for name in path:
            ino = self.volume.lookup(ino, name).ino
        return ino

    def dir_ino(self, path: tuple[bytes, ...]) -> Ino:
        """As the kernel resolves it: a path's last directory is looked at before the name."""
        inode = self.volume.getattr(self.ino(*path))
        if not inode.is_dir:
            raise FsError(errno.ENOTDIR)
        return inode.ino

    def both(self, real: Callable[[], object], model: Callable[[], object]) -> None:
        """Both sides do it, or both refuse with the same errno."""
        expected_errno = errno_of(model)
        assert errno_of(real) == expected_errno

    # rules

    @rule(path=DIRS, name=NAMES)
    def create(self, path: tuple[bytes, ...], name: bytes) -> None:
        def model() -> None:
            directory = self.model_dir(path)
            if name in directory.entries:
                raise Errno(errno.EEXIST)
            directory.entries[name] = File()

        self.both(
            lambda: self.volume.mknod(self.ino(*path), name, stat.S_IFREG | 0o644, uid=1, gid=2),
            model,
        )

    @rule(path=DIRS, name=NAMES)
    def mkdir(self, path: tuple[bytes, ...], name: bytes) -> None:
        def model() -> None:
            directory = self.model_dir(path)
            if name in directory.entries:
                raise Errno(errno.EEXIST)
            directory.entries[name] = Dir()

        self.both(lambda: self.volume.mkdir(self.ino(*path), name, 0o755, uid=1, gid=2), model)

    @rule(path=DIRS, name=NAMES, offset=OFFSETS, data=st.binary(min_size=1, max_size=40))
    def write(self, path: tuple[bytes, ...], name: bytes, offset: int, data: bytes) -> None:
        self.write_bytes(path, name, offset, data)

    @rule(
        path=DIRS,
        name=NAMES,
        first=st.integers(0, 6),
        count=st.integers(1, 6),
        fill=st.binary(min_size=1, max_size=1),
    )
    def write_blocks(
        self, path: tuple[bytes, ...], name: bytes, first: int, count: int, fill: bytes
    ) -> None:
        self.write_bytes(path, name, first * BLOCK, fill * (count * BLOCK))

    def write_bytes(self, path: tuple[bytes, ...], name: bytes, offset: int, data: bytes) -> None:
        def model() -> None:
            file = self.model_file(path, name)
            file.data.extend(bytes(max(0, offset - len(file.data))))
            file.data[offset : offset + len(data)] = data

        self.both(lambda: self.volume.write(self.ino(*path, name), offset, data), model)

    @rule(path=DIRS, name=NAMES, size=OFFSETS)
    def truncate(self, path: tuple[bytes, ...], name: bytes, size: int) -> None:
        def model() -> None:
            file = self.model_file(path, name)
            del file.data[size:]
            file.data.extend(bytes(size - len(file.data)))

        self.both(lambda: self.volume.setattr(self.ino(*path, name), size=size), model)

    @rule(path=DIRS, name=NAMES, mode=st.sampled_from([0o600, 0o640, 0o777]))
    def chmod(self, path: tuple[bytes, ...], name: bytes, mode: int) -> None:
        def model() -> None:
            self.model_file(path, name).mode = mode

        def real() -> None:
            ino = self.ino(*path, name)
            if self.volume.getattr(ino).is_dir:
                raise FsError(errno.EISDIR)
            self.volume.setattr(ino, mode=mode)

        self.both(real, model)

    @rule(
        path=DIRS,
        name=NAMES,
        key=st.sampled_from([b"user.a", b"user.b"]),
        value=st.binary(max_size=3),
    )
    def setxattr(self, path: tuple[bytes, ...], name: bytes, key: bytes, value: bytes) -> None:
        def model() -> None:
            self.model_file(path, name).xattrs[key] = value

        def real() -> None:
            ino = self.ino(*path, name)
            if self.volume.getattr(ino).is_dir:
                raise FsError(errno.EISDIR)
            self.volume.setxattr(ino, key, value)

        self.both(real, model)

    @rule(path=DIRS, name=NAMES)
    def unlink(self, path: tuple[bytes, ...], name: bytes) -> None:
        def model() -> None:
            self.model_file(path, name)
            del self.model_dir(path).entries[name]

        self.both(lambda: self.volume.unlink(self.ino(*path), name), model)

    @rule(path=DIRS, name=NAMES)
    def unlink_while_open(self, path: tuple[bytes, ...], name: bytes) -> None:
        """The file goes with its last release, its bytes readable until then."""
        try:
            file = self.model_file(path, name)
        except Errno:
            return
        ino = self.ino(*path, name)
        self.volume.acquire(ino)
        self.unlink(path, name)
        assert self.volume.read(ino, 0, 1 << 30) == bytes(file.data)
        self.volume.release(ino)

    @rule(path=DIRS, name=NAMES)
    def rmdir(self, path: tuple[bytes, ...], name: bytes) -> None:
        def model() -> None:
            directory = self.model_dir(path)
            if name not in directory.entries:
                raise Errno(errno.ENOENT)
            node = directory.entries[name]
            if not isinstance(node, Dir):
                raise Errno(errno.ENOTDIR)
            if node.entries:
                raise Errno(errno.ENOTEMPTY)
            del directory.entries[name]

        self.both(lambda: self.volume.rmdir(self.ino(*path), name), model)

    @rule(path=DIRS, name=NAMES, to=DIRS, new=NAMES)
    def link(self, path: tuple[bytes, ...], name: bytes, to: tuple[bytes, ...], new: bytes) -> None:
        def model() -> None:
            try:
                file = self.model_file(path, name)
            except Errno as exc:
                raise Errno(errno.EPERM if exc.number == errno.EISDIR else exc.number) from exc
            directory = self.model_dir(to)
            if new in directory.entries:
                raise Errno(errno.EEXIST)
            directory.entries[new] = file

        def real() -> None:
            ino = self.ino(*path, name)
            if self.volume.getattr(ino).is_dir:
                raise FsError(errno.EPERM)
            self.volume.link(ino, self.ino(*to), new)

        self.both(real, model)

    @rule(path=DIRS, name=NAMES, to=DIRS, new=NAMES)
    def rename(
        self, path: tuple[bytes, ...], name: bytes, to: tuple[bytes, ...], new: bytes
    ) -> None:
        def model() -> None:
            source, target = self.model_dir(path), self.model_dir(to)
            if name not in source.entries:
                raise Errno(errno.ENOENT)
            node = source.entries[name]
            if isinstance(node, Dir) and (*path, name) == to[: len(path) + 1]:
                raise Errno(errno.EINVAL)
            victim = target.entries.get(new)
            if victim is node:
                return
            if isinstance(victim, Dir):
                if not isinstance(node, Dir):
                    raise Errno(errno.EISDIR)
                if victim.entries:
                    raise Errno(errno.ENOTEMPTY)
            elif victim is not None and isinstance(node, Dir):
                raise Errno(errno.ENOTDIR)
            del source.entries[name]
            target.entries[new] = node

        self.both(
            lambda: self.volume.rename(self.dir_ino(path), name, self.dir_ino(to), new),
            model,
        )

    @rule(name=NAMES, new=NAMES)
    def exchange(self, name: bytes, new: bytes) -> None:
        def model() -> None:
            entries = self.tree.entries
            if name not in entries or new not in entries:
                raise Errno(errno.ENOENT)
            entries[name], entries[new] = entries[new], entries[name]

        self.both(lambda: self.volume.rename(ROOT_INO, name, ROOT_INO, new, 2), model)

    @rule()
    def snapshot(self) -> None:
        name = f"s{self.counter}"
        self.counter += 1
        self.volume.seal(name)
        self.snapshots[name] = copy.deepcopy(self.tree)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.snapshots)))
        self.volume.rollback(self.volume.snapshot(name).epoch)
        self.tree = copy.deepcopy(self.snapshots[name])

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def destroy(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.snapshots)))
        self.volume.destroy_snapshot(name)
        del self.snapshots[name]

    @rule(limit=st.sampled_from([1, 2, 1000]))
    def reclaim(self, limit: int) -> None:
        self.volume.reclaim_step(limit)

    @rule()
    def commit(self) -> None:
        self.volume.commit()

    @rule()
    def reopen(self) -> None:
        self.volume.close()
        self.volume = open_volume(self.path)

    @rule()
    def die_and_reopen(self) -> None:
        """The owner is killed after a commit: nothing was said goodbye to."""
        self.volume.commit()
        self.volume.abandon()
        self.volume = open_volume(self.path)

    @invariant()
    def the_live_tree_equals_the_model(self) -> None:
        assert contents(self.volume) == expected(self.tree)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def a_snapshot_reads_as_when_it_was_made(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.snapshots)))
        view = self.volume.view(self.volume.snapshot(name).epoch)
        assert contents(view) == expected(self.snapshots[name])

    def teardown(self) -> None:
        try:
            for name, tree in self.snapshots.items():
                view = self.volume.view(self.volume.snapshot(name).epoch)
                assert contents(view) == expected(tree)
            while self.volume.reclaim_step(3) or self.volume.changed:
                self.volume.commit()
            used = self.volume.statfs().used
            self.volume.close()
            assert [str(finding) for finding in check_volume(self.path)] == []
            assert layer_bytes(self.path) == used
        finally:
            shutil.rmtree(self.home)


def layer_bytes(path: Path) -> int:
    """Bytes in the layer files, in whole blocks (the host's own count is in larger units)."""
    total = 0
    for file in (path / "layers").glob("*/*"):
        with file.open("rb") as opened:
            position = 0
            while True:
                try:
                    start = os.lseek(opened.fileno(), position, os.SEEK_DATA)
                except OSError:
                    break
                position = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
                total += -(-position // BLOCK) * BLOCK - start // BLOCK * BLOCK
    return total


TestVolumeAgainstModel = VolumeAgainstModel.TestCase
TestVolumeAgainstModel.settings = settings(
    max_examples=int(os.environ.get("NASFS_MODEL_EXAMPLES", "150")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
