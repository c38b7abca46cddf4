"""A file or tree comes back as it was, sharing blocks where it can; the accounts stay exact."""

from __future__ import annotations

import itertools
import random
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from nasfs.errors import Failed, Refused
from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Epoch,
    FsError,
    Ino,
    NoSuchSnapshot,
    Pool,
    Restore,
    View,
    Volume,
    check_volume,
    create_volume,
    diff_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.store import common_ancestor
from replication.endpoint import SnapshotRef
from replication.local import VolumeSink, VolumeSource

from .crash_disk import Disk, Log, Luck, RecordingMedia, read_image, write_image
from .crash_history import History, fresh, place_in_memory, reclaim_all
from .crash_model import look
from .crash_sqlite import watched
from .test_volume_delta import change_something, transfer, whole
from .test_volume_model import layer_bytes


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with place_in_memory(monkeypatch) as directory:
        yield directory


@pytest.mark.parametrize(
    ("seeds", "steps"),
    [(range(12), 250), pytest.param(range(12, 300), 600, marks=pytest.mark.soak)],
)
def test_random_histories_with_restores_keep_every_view_and_every_account(
    place: Path, seeds: range, steps: int
) -> None:
    """Each step compares the live tree, and the end every snapshot, with plain values."""
    done: Counter[str] = Counter()
    image, start = fresh(place)
    for seed in seeds:
        path = place / f"run{seed}"
        write_image(image, path)
        history = History(random.Random(seed), start, RecordingMedia(Log(path)))
        history.run(steps)
        done += history.done
        assert [str(finding) for finding in check_volume(path)] == []
        with open_volume(path) as volume:
            for snapshot in volume.snapshots():
                if random.Random(seed).random() < 0.5:
                    volume.destroy_snapshot(snapshot.name)
            reclaim_all(volume)
            state = look(volume)
            used = volume.statfs().used
        assert layer_bytes(path) == used
        assert [str(finding) for finding in check_volume(path)] == []
        with open_volume(path) as volume:
            for snapshot in volume.snapshots():
                volume.destroy_snapshot(snapshot.name)
            reclaim_all(volume)
            assert look(volume).live == state.live
            assert volume.statfs().used == volume.statfs().live
        assert [str(finding) for finding in check_volume(path)] == []
    assert done["restore_over"] > 20
    assert done["restore_new"] > 10


# one thing after the other


@pytest.fixture
def path(pool: Pool) -> Path:
    create_volume(pool, "v", size=1 << 40)
    return volume_path(pool, "v")


def new_file(volume: Volume, name: bytes, data: bytes = b"") -> Ino:
    ino = volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o640, uid=1, gid=2).ino
    volume.write(ino, 0, data)
    return ino


def content(view: View, *path: bytes) -> bytes:
    inode = view.getattr(ROOT_INO)
    for name in path:
        inode = view.lookup(inode.ino, name)
    return view.read(inode.ino, 0, inode.size)


def is_sound(path: Path) -> bool:
    return [str(finding) for finding in check_volume(path)] == []


def restore(volume: Volume, snapshot: str, source: bytes, target: bytes = b"") -> None:
    Restore(volume, snapshot, (source,), (target or source,), replace=True).run("")


def test_a_block_that_came_back_and_goes_again_is_counted_once(path: Path) -> None:
    """Later snapshots do not see it, though it is older than they are."""
    with open_volume(path) as volume:
        ino = new_file(volume, b"f", b"1" * BLOCK)
        volume.seal("s1")
        volume.write(ino, 0, b"2" * BLOCK)
        volume.seal("s2")
        restore(volume, "s1", b"f")
        volume.destroy_snapshot("s1")
        reclaim_all(volume)
        volume.write(ino, 0, b"3" * BLOCK)
        reclaim_all(volume)
        assert volume.statfs().used == 2 * BLOCK
    assert is_sound(path)
    assert layer_bytes(path) == 2 * BLOCK


def test_a_file_of_a_branch_that_was_left_aside_does_not_vouch_for_others(path: Path) -> None:
    with open_volume(path) as volume:
        other = new_file(volume, b"other", b"1" * BLOCK)
        volume.seal("s1")
        volume.write(other, 0, b"2" * BLOCK)
        new_file(volume, b"f", b"f" * BLOCK)
        volume.seal("s2")
        volume.rollback(volume.snapshot("s1").epoch)
        volume.seal("s3")
        restore(volume, "s2", b"f")
        for name in ("s1", "s3"):
            volume.destroy_snapshot(name)
        reclaim_all(volume)
        volume.write(other, 0, b"3" * BLOCK)
        reclaim_all(volume)
        assert volume.statfs().used == 3 * BLOCK
    assert is_sound(path)


@pytest.mark.parametrize(
    ("epoch", "current", "rollbacks", "common"),
    [
        (3, 9, [], 3),
        (3, 9, [(7, 4)], 3),
        (5, 9, [(7, 4)], 4),
        (7, 9, [(7, 4)], 7),
        (4, 9, [(7, 4)], 4),
        (6, 9, [(7, 4), (5, 2)], 2),
        (4, 9, [(7, 4), (5, 2)], 4),
        (3, 9, [(7, 6), (5, 2)], 2),
        (6, 20, [(15, 2), (10, 8), (5, 4)], 2),
    ],
)
def test_the_newest_epoch_in_common(
    epoch: int, current: int, rollbacks: list[tuple[int, int]], common: int
) -> None:
    assert common_ancestor(epoch, current, rollbacks) == common


def test_a_removed_file_is_the_same_file_again_and_takes_no_space(path: Path) -> None:
    with open_volume(path) as volume:
        ino = new_file(volume, b"f", b"x" * 5 * BLOCK)
        volume.setxattr(ino, b"user.k", b"v")
        was = volume.setattr(ino, mode=0o6711, uid=7, mtime_ns=1, atime_ns=2)
        volume.seal("s")
        volume.unlink(ROOT_INO, b"f")
        before = volume.statfs().used
        restore(volume, "s", b"f")
        now = volume.lookup(ROOT_INO, b"f")
        assert (now.ino, now.generation, now.mode, now.uid, now.gid) == (ino, 1, was.mode, 7, 2)
        assert (now.mtime_ns, now.atime_ns, now.btime_ns) == (1, 2, was.btime_ns)
        assert now.ctime_ns >= was.ctime_ns
        assert volume.getxattr(ino, b"user.k") == b"v"
        assert volume.statfs().used == before
        volume.write(ino, BLOCK, b"new")
        assert content(volume.view(volume.snapshot("s").epoch), b"f") == b"x" * 5 * BLOCK
    assert is_sound(path)


def test_a_file_that_lives_elsewhere_is_copied_with_its_holes(path: Path) -> None:
    with open_volume(path) as volume:
        ino = new_file(volume, b"f", b"x" * 100)
        volume.write(ino, 3000 * BLOCK, b"y" * (BLOCK + 1))
        volume.setattr(ino, size=9000 * BLOCK + 7)
        volume.seal("s")
        volume.write(ino, 0, b"later")
        work = Restore(volume, "s", (b"f",), (b"copy",), replace=False)
        work.run("unused")
        copy, was = volume.lookup(ROOT_INO, b"copy"), volume.view(Epoch(1)).getattr(ino)
        assert copy.ino != ino
        assert (copy.size, copy.blocks, copy.mtime_ns) == (was.size, 3, was.mtime_ns)
        assert content(volume, b"copy") == content(volume.view(Epoch(1)), b"f")
        assert content(volume, b"f")[:5] == b"later"
        summary = work.summary()
        assert (summary.copied_bytes, summary.shared_bytes) == (3 * BLOCK, 0)
    assert is_sound(path)


def test_another_name_outside_the_tree_is_not_brought_back_with_it(path: Path) -> None:
    with open_volume(path) as volume:
        ino = new_file(volume, b"f", b"old")
        volume.link(ino, ROOT_INO, b"g")
        volume.seal("s")
        volume.write(ino, 0, b"new")
        restore(volume, "s", b"f")
        assert (content(volume, b"f"), content(volume, b"g")) == (b"old", b"new")
    assert is_sound(path)


def test_what_is_replaced_is_kept_in_a_snapshot(path: Path) -> None:
    with open_volume(path) as volume:
        ino = new_file(volume, b"f", b"old")
        volume.seal("s")
        volume.write(ino, 0, b"new")
        work = Restore(volume, "s", (b"f",), (b"f",), replace=True)
        assert work.run("kept") == "kept"
        assert content(volume.view(volume.snapshot("kept").epoch), b"f") == b"new"
        assert content(volume, b"f") == b"old"
        assert Restore(volume, "s", (b"f",), (b"g",), replace=True).run("not") == ""
        assert [s.name for s in volume.snapshots()] == ["s", "kept"]
    assert is_sound(path)


def test_only_what_differs_is_touched(path: Path) -> None:
    """Of a large tree with one changed file: the delta to the next snapshot is that file."""
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0).ino
        inos = [
            volume.mknod(directory, b"%d" % n, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            for n in range(300)
        ]
        for ino in inos:
            volume.write(ino, 0, b"x")
        volume.seal("s")
        volume.write(inos[7], 0, b"y")
        volume.unlink(directory, b"8")
        volume.seal("t")
        restore(volume, "s", b"d")
        volume.seal("u")
    with diff_volume(path, "s", "u") as diff:
        assert list(diff.entries()) == []
    with diff_volume(path, "t", "u") as diff:
        assert [(e.change, e.path) for e in diff.entries()] == [
            ("changed", b"d/7"),
            ("added", b"d/8"),
        ]
    with open_volume(path) as volume:
        delta = volume.delta(*(volume.snapshot(name).epoch for name in "tu"))
        assert sorted({extent.ino for extent in delta.extents()}) == [inos[7], inos[8]]
        assert len(list(delta.rows())) < 10
    assert is_sound(path)


REFUSED = {
    "there is no such file": ((b"none",), (b"x",), Failed, "snapshot s has no none"),
    "below a file": ((b"f", b"x"), (b"x",), Failed, "snapshot s has no f/x"),
    "in the way": ((b"f",), (b"d",), Refused, "d is there already"),
    "nothing above": ((b"f",), (b"none", b"x"), Failed, "volume v has no none"),
    "a file above": ((b"f",), (b"f", b"x"), Failed, "no directory"),
    "the root": ((), (b"x",), Refused, "root"),
    "onto the root": ((b"f",), (), Refused, "root"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_restored_is_told_and_changes_nothing(path: Path, case: str) -> None:
    source, target, error, words = REFUSED[case]
    with open_volume(path) as volume:
        new_file(volume, b"f", b"x")
        volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0)
        volume.seal("s")
        before = look(volume)
        with pytest.raises(error, match=words):
            Restore(volume, "s", source, target, replace=False).run("")
        assert look(volume) == before


def test_a_volume_that_is_full_in_the_middle_of_a_copy_is_as_it_was(pool: Pool) -> None:
    create_volume(pool, "v", size=1 << 20)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0).ino
        for name in (b"a", b"b", b"c"):
            ino = volume.mknod(directory, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            volume.write(ino, 0, b"x" * 60 * BLOCK)
        volume.seal("s")
        before = look(volume)
        with pytest.raises(FsError, match="full"):
            restore(volume, "s", b"d", b"copy")
        assert look(volume) == before
        reclaim_all(volume)
        assert volume.statfs().used == 180 * BLOCK
    assert is_sound(path)
    assert layer_bytes(path) == 180 * BLOCK


@pytest.mark.parametrize("commits", [False, True])
def test_the_owner_may_die_between_any_two_steps(path: Path, commits: bool) -> None:
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0).ino
        for number in range(5):
            ino = volume.mknod(directory, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0).ino
            volume.write(ino, 0, b"x" * 3 * BLOCK)
            if number > 2:
                volume.rename(directory, b"%d" % number, ROOT_INO, b"out%d" % number)
                volume.link(ino, directory, b"%d" % number)
        volume.seal("s")
        for number in range(5):
            volume.unlink(directory, b"%d" % number)
        volume.rmdir(ROOT_INO, b"d")
        before = look(volume)
        reclaim_all(volume)
        used = volume.statfs().used
    for death in range(1000):
        volume = open_volume(path)
        work = Restore(volume, "s", (b"d",), (b"d",), replace=False)
        for number, step in enumerate(itertools.chain(work.plan(), work.stage())):
            step()
            if commits:
                volume.commit()
            if number == death:
                break
        else:
            assert death > 3
            break
        volume.commit()
        assert is_sound(path)  # on line
        volume.abandon()
        with open_volume(path) as volume:
            assert look(volume).live == before.live
            reclaim_all(volume)
            assert volume.statfs().used == used
            assert volume.statfs().inodes == len(before.live)
        assert is_sound(path)
        assert layer_bytes(path) == used
    work.ready()
    work.apply(lambda _: nullcontext())
    volume.close()
    with open_volume(path) as volume:
        assert len(look(volume).live) == len(before.live) + 6
    assert is_sound(path)


def test_a_snapshot_taken_in_the_middle_sees_nothing_of_it(path: Path) -> None:
    with open_volume(path) as volume:
        new_file(volume, b"f", b"x" * BLOCK)
        volume.seal("s")
        volume.unlink(ROOT_INO, b"f")
        work = Restore(volume, "s", (b"f",), (b"f",), replace=False)
        for _ in itertools.chain(work.plan(), work.stage()):
            pass
        between = volume.seal("between")
        assert look(volume).snapshots["between"] == look(volume).live
        work.ready()
        work.apply(lambda _: nullcontext())
        volume.seal("after")
        rows = volume.delta(between.epoch, volume.snapshot("after").epoch).rows()
        assert [row.sort for row in rows if not row.gone] == ["inode", "inode", "dirent"]
    with diff_volume(path, "between", "after") as diff:
        assert [(e.change, e.path) for e in diff.entries()] == [("added", b"f")]
    assert is_sound(path)


def test_what_was_changed_meanwhile_is_not_replaced(path: Path) -> None:
    with open_volume(path) as volume:
        ino = new_file(volume, b"f", b"old")
        volume.seal("s")
        work = Restore(volume, "s", (b"f",), (b"f",), replace=True)
        for _ in itertools.chain(work.plan(), work.stage()):
            pass
        volume.link(ino, ROOT_INO, b"g")
        with pytest.raises(Failed, match="meanwhile"):
            work.ready()
        volume.unlink(ROOT_INO, b"g")
        work.ready()
        volume.commit()
    assert is_sound(path)


def test_a_snapshot_that_is_destroyed_meanwhile_ends_it(path: Path) -> None:
    with open_volume(path) as volume:
        new_file(volume, b"f", b"old")
        volume.seal("s")
        volume.unlink(ROOT_INO, b"f")
        work = Restore(volume, "s", (b"f",), (b"f",), replace=True)
        for _ in itertools.chain(work.plan(), work.stage()):
            pass
        volume.destroy_snapshot("s")
        with pytest.raises(NoSuchSnapshot):
            work.ready()
        for _ in work.abandon():
            pass
        reclaim_all(volume)
        assert volume.statfs().used == 0
    assert is_sound(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_delta_over_restores_makes_an_equal_copy(pool: Pool, seed: int) -> None:
    chance = random.Random(seed)
    for name in ("active", "passive"):
        create_volume(pool, name, size=1 << 40)
    active, passive = volume_path(pool, "active"), volume_path(pool, "passive")
    base, restores = None, 0
    with open_volume(active) as volume:
        for number in range(6):
            change_something(volume, chance, 40)
            for step in range(4 if number else 0):
                restores += restore_something(volume, chance)
                volume.seal(f"{number}-{step}")  # is skipped
                change_something(volume, chance, 3)
            sealed = volume.seal(f"s{number}", snap_group="g")
            source, sink = VolumeSource(active), VolumeSink(passive)
            target = SnapshotRef(sealed.guid, sealed.name, sealed.time_ns, sealed.snap_group)
            transfer(source, sink, base, target)
            base = target.guid
            sink.close()
            source.close()
            with open_volume(passive) as copy:
                seen = copy.view(copy.snapshot(target.guid).epoch)
                assert whole(seen) == whole(volume.view(sealed.epoch))
    assert restores > 8
    assert is_sound(active)
    assert is_sound(passive)


def restore_something(volume: Volume, chance: random.Random) -> bool:
    """Any path of any snapshot to its place, if that can be."""
    snapshot = chance.choice(volume.snapshots())
    view = volume.view(snapshot.epoch)
    path: list[bytes] = []
    inode = view.getattr(ROOT_INO)
    while inode.is_dir:
        page = view.readdir(inode.ino, 0, 1000)
        if not page or (path and chance.random() < 0.3):
            break
        entry, inode = chance.choice(page)
        path.append(entry.name)
    try:
        Restore(volume, snapshot.name, tuple(path), tuple(path), replace=True).run("")
    except (Failed, Refused):
        return False
    return True


def test_a_tree_that_is_too_large_is_refused_before_anything_is_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasfs.volume.restore.OBJECTS_MAX", 20)
    with open_volume(path) as volume:
        directory = volume.mkdir(ROOT_INO, b"d", 0o755, uid=0, gid=0).ino
        for number in range(30):
            volume.mknod(directory, b"%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0)
        volume.seal("s")
        before = look(volume)
        with pytest.raises(Refused, match="too many"):
            restore(volume, "s", b"d", b"copy")
        assert look(volume) == before


@pytest.mark.parametrize("what", ["restore", "copy", "rollback"])
@pytest.mark.parametrize("seed", range(2))
def test_the_power_may_go_before_any_operation_on_the_disk(
    place: Path, what: str, seed: int
) -> None:
    chance = random.Random(seed)
    image, _ = fresh(place)
    write_image(image, place / "made")
    with open_volume(place / "made") as volume:
        change_something(volume, chance, 60)
        volume.seal("s")
        change_something(volume, chance, 40)
        volume.seal("t")
        change_something(volume, chance, 20)
        volume.commit()
        top = next(e.name for e, i in volume.readdir(ROOT_INO, 0, 1000) if i.is_dir)
    write_image(image := read_image(place / "made"), place / "run")
    media = RecordingMedia(Log(place / "run"))
    with watched(media.log):
        volume = open_volume(place / "run", media=media)
        before = look(volume)
        began = len(media.log)
        if what == "rollback":
            epoch = volume.snapshot("s").epoch
            volume.seal("kept")
            volume.rollback(epoch)
        else:
            target = top if what == "restore" else b"copy"
            Restore(volume, "s", (top,), (target,), replace=True).run("kept")
        after = look(volume)
        acknowledged = len(media.log)
        volume.abandon()
    assert after.live != before.live
    disk, found = Disk(image), Counter[str]()
    for cut in range(began, acknowledged + 1):
        disk.take(media.log.operations, cut)
        write_image(disk.survivor(chance.choice(list(Luck)), chance), place / "cut")
        with open_volume(place / "cut") as volume:
            state = look(volume)
            found["after" if state.live == after.live else "before"] += 1
            assert state.live in (before.live, after.live)
            assert state.live == after.live or cut < acknowledged
            snapshots = dict(state.snapshots)
            if "kept" in after.snapshots and (state.live == after.live or "kept" in snapshots):
                assert snapshots.pop("kept") == before.live
            assert snapshots == before.snapshots
            reclaim_all(volume)
            used = volume.statfs().used
            assert volume.statfs().inodes == len({node.ino for node in state.live.values()})
        assert is_sound(place / "cut")
        assert layer_bytes(place / "cut") == used
    assert found["before"] > 3
    assert found["after"] > 0
