"""A delta, applied to a copy of its first snapshot, gives the second one; it costs what changed."""

from __future__ import annotations

import errno
import itertools
import random
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Applier,
    Ino,
    Pool,
    Snapshot,
    View,
    Volume,
    check_volume,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.errors import MediaError
from nasfs.volume.media import HostMedia
from replication.endpoint import Amount, Batch, DataBatch, Progress, RowBatch, SnapshotRef
from replication.local import VolumeSink, VolumeSource


def whole(view: View, ino: int = ROOT_INO) -> dict[bytes, object]:
    """Everything that a user can see, inode numbers and times included."""
    tree: dict[bytes, object] = {}
    after = 0
    while page := view.readdir(ino, after, 100):
        for entry, inode in page:
            after = entry.cookie
            below = whole(view, inode.ino) if inode.is_dir else view_content(view, inode.ino)
            xattrs = {name: view.getxattr(inode.ino, name) for name in view.listxattr(inode.ino)}
            tree[entry.name] = (
                inode.ino, inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, inode.size,
                inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns, entry.cookie,
                inode.blocks, xattrs, below,
            )  # fmt: skip
    return tree


def view_content(view: View, ino: int) -> bytes:
    inode = view.getattr(ino)
    if inode.target is not None:
        return inode.target
    return view.read(ino, 0, inode.size) if inode.is_file else b""


def change_something(volume: Volume, chance: random.Random, rounds: int) -> None:
    """A random history: what users do to a tree."""
    dirs = [ROOT_INO]
    files: list[Ino] = []

    def collect(ino: int) -> None:
        for _, inode in volume.readdir(ino, 0, 10_000):
            (dirs if inode.is_dir else files).append(inode.ino)
            if inode.is_dir:
                collect(inode.ino)

    collect(ROOT_INO)
    for number in range(rounds):
        parent = chance.choice(dirs)
        name = f"{volume.epoch}-{number}".encode()
        entries = volume.readdir(parent, 0, 10_000)
        match chance.randrange(9):
            case 0:
                dirs.append(volume.mkdir(parent, name, 0o755, uid=5, gid=6).ino)
            case 1 | 2:
                ino = volume.mknod(parent, name, stat.S_IFREG | 0o640, uid=1, gid=2).ino
                volume.write(
                    ino, chance.randrange(9) * 700, chance.randbytes(chance.randrange(9000))
                )
                files.append(ino)
            case 3 if files:
                ino = chance.choice(files)
                if volume.getattr(ino).is_file:
                    volume.write(ino, chance.randrange(20_000), chance.randbytes(5000))
            case 4 if files:
                ino = chance.choice(files)
                if volume.getattr(ino).is_file:
                    volume.setattr(ino, size=chance.randrange(30_000))
            case 5 if files:
                volume.setxattr(chance.choice(files), b"user.k", chance.randbytes(5))
            case 6 if entries:
                entry, inode = chance.choice(entries)
                if not inode.is_dir:
                    volume.unlink(parent, entry.name)
                    if inode.nlink == 1:
                        files = [ino for ino in files if ino != inode.ino]
            case 7 if entries:
                entry, inode = chance.choice(entries)
                if not inode.is_dir:
                    volume.rename(parent, entry.name, chance.choice(dirs), name)
            case 8 if files:
                ino = chance.choice(files)
                volume.link(ino, parent, name)
            case _:
                volume.symlink(parent, name, b"target" + name, uid=3, gid=4)


def transfer(
    source: VolumeSource, sink: VolumeSink, base: str | None, target: SnapshotRef
) -> Amount:
    progress = Progress(base, target, source.total(base, target.guid))
    sink.begin(progress)
    done = Amount()
    for batch in source.read_delta(base, target.guid, b""):
        sink.apply(batch)
        done += amount(batch)
    assert done == progress.total
    sink.seal(target)
    return done


def amount(batch: Batch) -> Amount:
    if isinstance(batch, RowBatch):
        return Amount(len(batch.rows), 0)
    return Amount(0, len(batch.body))


@pytest.fixture
def pair(pool: Pool) -> tuple[Path, Path]:
    for name in ("active", "passive"):
        create_volume(pool, name, size=1 << 40)
    return volume_path(pool, "active"), volume_path(pool, "passive")


@pytest.mark.parametrize("seed", range(12))
def test_deltas_between_any_snapshots_make_an_equal_copy(
    pair: tuple[Path, Path], seed: int
) -> None:
    chance = random.Random(seed)
    active, passive = pair
    base = None
    with open_volume(active) as volume:
        for number in range(5):
            change_something(volume, chance, 60)
            if number == 3:  # a rollback is a change like any other
                volume.rollback(volume.snapshots()[1].epoch)
                change_something(volume, chance, 20)
            sealed = volume.seal(f"s{number}", snap_group="g")
            if number == 1:
                continue  # intermediate snapshots may be skipped
            source, sink = VolumeSource(active), VolumeSink(passive)
            target = SnapshotRef(sealed.guid, sealed.name, sealed.time_ns, sealed.snap_group)
            transfer(source, sink, base, target)
            base = target.guid
            sink.close()
            source.close()
            with open_volume(passive) as copy:
                seen = copy.view(copy.snapshot(target.guid).epoch)
                assert whole(seen) == whole(volume.view(sealed.epoch))
    assert check_volume(passive) == []
    assert check_volume(active) == []


def test_a_delta_read_on_from_any_of_its_positions_is_the_rest_of_it(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.local.ROWS_A_BATCH", 7)
    monkeypatch.setattr("replication.local.BYTES_A_BATCH", 2 * BLOCK)
    monkeypatch.setattr("nasfs.volume.delta.PAGE", 5)
    active, _ = pair
    chance = random.Random(1)
    with open_volume(active) as volume:
        change_something(volume, chance, 100)
        first = volume.seal("one").guid
        change_something(volume, chance, 100)
        second = volume.seal("two").guid
        change_something(volume, chance, 100)  # moves rows to the past while the delta is read
        for base, target in ((None, first), (first, second), (None, second)):
            source = VolumeSource(active)
            batches = list(source.read_delta(base, target, b""))
            assert len(batches) > 10
            for position, batch in enumerate(batches):
                rest = list(source.read_delta(base, target, batch.cursor))
                assert rest == batches[position + 1 :]
            volume.commit()
            source.close()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_counted_before_is_what_comes(
    pair: tuple[Path, Path], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    with open_volume(pair[0]) as volume:
        for number in range(4):
            change_something(volume, chance, 80)
            ino = volume.mknod(ROOT_INO, b"scattered%d" % number, stat.S_IFREG, uid=0, gid=0).ino
            for _ in range(5):  # leaf rows
                volume.write(ino, chance.randrange(20 << 20), chance.randbytes(6000))
            if number == 2:
                volume.acquire(ino)  # open, without a name
                volume.unlink(ROOT_INO, b"scattered2")
            volume.seal(f"s{number}", snap_group="g")
        source = VolumeSource(pair[0])
        guids = [None, *(snapshot.guid for snapshot in volume.snapshots())]
        for base, target in itertools.combinations(guids, 2):
            assert target is not None
            batches = list(source.read_delta(base, target, b""))
            assert sum(map(amount, batches), Amount()) == source.total(base, target)
            # Counted, it is remembered if it is small; read on from somewhere, it never is.
            assert list(source.read_delta(base, target, b"")) == batches
            with monkeypatch.context() as patch:
                patch.setattr("nasfs.volume.delta.REMEMBERED", 3)
                other = VolumeSource(pair[0])
                assert other.total(base, target) == source.total(base, target)
                assert list(other.read_delta(base, target, b"")) == batches
                other.close()
        source.close()


def test_renaming_a_directory_of_many_files_is_a_handful_of_rows(pair: tuple[Path, Path]) -> None:
    active, _ = pair
    with open_volume(active) as volume:
        directory = volume.mkdir(ROOT_INO, b"many", 0o755, uid=0, gid=0).ino
        for number in range(2000):
            volume.mknod(directory, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0)
        first = volume.seal("one").guid
        volume.rename(ROOT_INO, b"many", ROOT_INO, b"renamed")
        second = volume.seal("two").guid
    source = VolumeSource(active)
    assert source.total(first, second) == Amount(rows=4, bytes=0)
    source.close()


def test_one_changed_block_of_a_large_file_is_one_block(pair: tuple[Path, Path]) -> None:
    active, _ = pair
    with open_volume(active) as volume:
        ino = volume.mknod(ROOT_INO, b"large", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        for offset in range(0, 64 << 20, 1 << 20):
            volume.write(ino, offset, bytes(1 << 20))
        first = volume.seal("one").guid
        volume.write(ino, 33 << 20, b"x" * 100)
        second = volume.seal("two").guid
    source = VolumeSource(active)
    batches = list(source.read_delta(first, second, b""))
    data = [batch for batch in batches if isinstance(batch, DataBatch)]
    assert source.total(first, second) == Amount(rows=1, bytes=BLOCK)
    assert [(extent.offset, extent.length) for extent in data[0].extents] == [(33 << 20, BLOCK)]
    source.close()


def test_large_attributes_travel_in_batches_that_fit_a_frame(pair: tuple[Path, Path]) -> None:
    active, passive = pair
    with open_volume(active) as volume:
        for number in range(100):
            ino = volume.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            volume.setxattr(ino, b"user.large", bytes(60_000))
        sealed = volume.seal("one")
    source, sink = VolumeSource(active), VolumeSink(passive)
    for batch in source.read_delta(None, sealed.guid, b""):
        assert isinstance(batch, RowBatch)
        assert sum(len(getattr(row, "value", b"")) for row in batch.rows) < 3 << 20
    transfer(source, sink, None, SnapshotRef(sealed.guid, "one", sealed.time_ns, ""))
    sink.close()
    source.close()
    assert check_volume(passive) == []


@pytest.mark.parametrize("seed", range(6))
def test_half_a_delta_is_taken_back_to_the_newest_snapshot(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What a failover begins with; and what a receiver does when the sender changed its mind."""
    monkeypatch.setattr("replication.local.ROWS_A_BATCH", 10)
    monkeypatch.setattr("replication.local.BYTES_A_BATCH", 4 * BLOCK)
    active, passive = pair
    chance = random.Random(seed)
    with open_volume(active) as volume:
        change_something(volume, chance, 150)
        first = ref(volume.seal("one"))
        change_something(volume, chance, 150)
        second = ref(volume.seal("two"))
    source, sink = VolumeSource(active), VolumeSink(passive)
    transfer(source, sink, None, first)
    progress = Progress(first.guid, second, source.total(first.guid, second.guid))
    sink.begin(progress)
    batches = list(source.read_delta(first.guid, second.guid, b""))
    for batch in batches[: chance.randrange(1, len(batches))]:
        sink.apply(batch)
        sink.commit(progress)
    sink.close()
    with open_volume(passive) as copy:
        epoch = copy.snapshot(first.guid).epoch
        assert whole(copy) != whole(copy.view(epoch))
        Applier(copy).reset(epoch)
        assert Applier(copy).progress() is None
        assert whole(copy) == whole(copy.view(epoch))
        copy.skip_inode_numbers()
        new = copy.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644, uid=0, gid=0).ino
        assert new > 1 << 32
        copy.unlink(ROOT_INO, b"new")
    assert check_volume(passive) == []
    sink = VolumeSink(passive)
    transfer(source, sink, first.guid, second)
    sink.close()
    source.close()
    with open_volume(passive) as copy, open_volume(active) as volume:
        seen = copy.view(copy.snapshot(second.guid).epoch)
        assert whole(seen) == whole(volume.view(volume.snapshot("two").epoch))
    assert check_volume(passive) == []


def ref(snapshot: Snapshot) -> SnapshotRef:
    return SnapshotRef(snapshot.guid, snapshot.name, snapshot.time_ns, snapshot.snap_group)


@pytest.mark.parametrize("fails", [False, True])
def test_new_files_are_written_by_two(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """And a file that goes on in the same batch is whole; what the other one can't do is told."""
    monkeypatch.setattr("nasfs.volume.apply.MANY", 2)
    monkeypatch.setattr("replication.local.BYTES_A_BATCH", 16 * BLOCK)
    active, passive = pair
    inos: list[Ino] = []
    with open_volume(active) as volume:
        for number in range(40):
            name = b"%d" % number
            ino = volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            volume.write(ino, 0, name * 700 * (1 + number % 5 * number))
            inos.append(ino)
        volume.seal("zero")
        for ino in inos:  # the part behind comes as a piece of its own
            volume.write(ino, BLOCK, b"later")
        one = ref(volume.seal("one"))
    source, sink = VolumeSource(active), VolumeSink(passive)
    wrote: set[str] = set()
    write = HostMedia.write

    def writing(
        media: HostMedia, fd: int, parts: Sequence[bytes | memoryview], offset: int
    ) -> None:
        who = threading.current_thread().name.partition("_")[0]
        wrote.add(who)
        if fails and who == "files":
            raise MediaError(errno.ENOSPC, "a layer")
        write(media, fd, parts, offset)

    monkeypatch.setattr(HostMedia, "write", writing)
    if fails:
        with pytest.raises(MediaError):
            transfer(source, sink, None, one)
    else:
        transfer(source, sink, None, one)
        assert {"MainThread", "files"} <= wrote
    sink.close()
    if not fails:
        with open_volume(active) as volume, open_volume(passive) as copy:
            assert whole(copy) == whole(volume)
    source.close()
    assert check_volume(passive) == []
