"""The power goes before any operation on the disk, and whatever was not synced may be lost.

A random history runs once, recorded: `crash_disk` tells what the disk may hold after each prefix
of its operations, `crash_history` what of it may be found again.
"""

from __future__ import annotations

import errno
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Ino,
    MediaError,
    Volume,
    open_volume,
)

from .crash_disk import (
    Create,
    Disk,
    Image,
    Log,
    LostSync,
    Luck,
    Punch,
    RecordingMedia,
    SyncAll,
    SyncDirectory,
    SyncFile,
    Truncate,
    Unlink,
    Write,
    write_image,
)
from .crash_history import (
    History,
    fresh,
    place_in_memory,
    reclaim_all,
    verify,
    verify_use,
)
from .crash_model import State, look
from .crash_sqlite import sees_this_sqlite, watched

LOG_NAME = "meta.db-wal"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with place_in_memory(monkeypatch) as directory:
        yield directory


def record(
    place: Path, chance: random.Random, image: Image, start: State, *, steps: int
) -> History:
    """A history that goes on from *image*, which holds *start*."""
    write_image(image, place / "run")
    history = History(chance, start, RecordingMedia(Log(place / "run")))
    history.run(steps)
    return history


def some_cuts(log: Log, count: int, chance: random.Random) -> list[int]:
    """Ascending; half of them soon after something that is rare, and lasts or not."""
    rare = [
        index for index, operation in enumerate(log.operations)
        if isinstance(operation, Create | Unlink | Punch | Truncate | SyncAll)
    ]  # fmt: skip
    soon = [chance.choice(rare) + chance.randrange(1, 12) for _ in range(count // 2)]
    anywhere = chance.choices(range(len(log) + 1), k=count - count // 2)
    return sorted(min(cut, len(log)) for cut in soon + anywhere)


@pytest.mark.parametrize("lucks", [1, pytest.param(4, marks=pytest.mark.soak)])
@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_before_any_operation_leaves_a_committed_state(
    place: Path, seed: int, lucks: int
) -> None:
    chance = random.Random(seed)
    image, start = fresh(place)
    history = record(place, chance, image, start, steps=50)
    disk = Disk(image)
    for cut in range(len(history.log) + 1):
        disk.take(history.log.operations, cut)
        for luck in chance.sample(list(Luck), lucks):
            write_image(disk.survivor(luck, chance), place / "cut")
            verify(place / "cut", history.past, cut)
            if chance.random() < 0.02:
                verify_use(place / "cut", history.past, cut, chance)


@pytest.mark.parametrize(
    ("seed", "rounds", "cuts"),
    [
        (10, 3, 150),
        *(pytest.param(seed, 25, 400, marks=pytest.mark.soak) for seed in range(11, 15)),
    ],
)
def test_power_cuts_one_after_the_other_lose_nothing(
    place: Path, seed: int, rounds: int, cuts: int
) -> None:
    """Each history goes on from what a power cut has left of the one before."""
    chance = random.Random(seed)
    image, start = fresh(place)
    kinds: set[type] = set()
    for _ in range(rounds):
        history = record(place, chance, image, start, steps=200)
        kinds |= {type(operation) for operation in history.log.operations}
        disk = Disk(image)
        for cut in some_cuts(history.log, cuts, chance):
            disk.take(history.log.operations, cut)
            left = disk.survivor(chance.choice(list(Luck)), chance)
            write_image(left, place / "cut")
            verify(place / "cut", history.past, cut)
            if chance.random() < 0.15:
                verify_use(place / "cut", history.past, cut, chance)
            if chance.random() < 2 / cuts:
                image = left
        write_image(image, place / "cut")
        with open_volume(place / "cut") as volume:
            start = look(volume)
    assert kinds == {
        Create, Punch, SyncAll, SyncDirectory, SyncFile, Truncate, Unlink, Write
    }  # fmt: skip


class FailingLog(RecordingMedia):
    """When `armed`, the host fails to write the log's pages, tells it once, and forgets it."""

    armed = False

    def sync(self, fd: int) -> None:
        if self.armed and self.paths[fd] == LOG_NAME:
            self.armed = False
            self.log.add(LostSync(self.paths[fd]))
            raise MediaError(errno.EIO, "the disk of the test")
        super().sync(fd)


def test_a_log_that_the_host_failed_to_write_does_not_cut_off_what_follows(place: Path) -> None:
    image, _ = fresh(place)
    write_image(image, place / "run")
    log = Log(place / "run")
    media = FailingLog(log)
    with watched(log):
        killed = open_volume(place / "run", media=media)
        new_file(killed, b"acknowledged")
        killed.commit()
        new_file(killed, b"refused")
        media.armed = True
        with pytest.raises(MediaError):
            killed.commit()
        assert not media.armed
        assert not killed.writable
        # The process is killed now.  The host's memory still has the log, as clean pages.
        shutil.copytree(place / "run", place / "again")
        log.root = place / "again"
        volume = open_volume(place / "again", media=media)
        new_file(volume, b"after")
        volume.commit()
        cut = len(log)
        volume.abandon()
        killed.abandon()
    disk = Disk(image)
    disk.take(log.operations, cut)
    write_image(disk.survivor(Luck.NONE, random.Random(0)), place / "cut")
    with open_volume(place / "cut") as volume:
        names = {entry.name for entry, _ in volume.readdir(ROOT_INO, 0, 10)}
    assert names >= {b"acknowledged", b"after"}


def test_what_was_written_after_a_seal_that_is_lost_takes_no_space(place: Path) -> None:
    """Layers of an epoch that, after the power cut, has not begun."""
    image, _ = fresh(place)
    with recording(place, image) as (log, volume):
        ino = new_file(volume, b"f")
        volume.write(ino, 0, b"before")
        volume.commit()
        durable = len(log)
        volume.seal_nowait("lost")
        volume.write(ino, 0, b"after")
        volume.dirty_data().run()
        since = log.operations[durable:]
        volume.abandon()
    lost = [o for o in since if getattr(o, "path", None) == LOG_NAME]
    assert lost
    disk = Disk(image)
    disk.take(log.operations, durable)
    disk.take(
        log.operations[:durable] + [o for o in since if o not in lost],
        durable + len(since) - len(lost),
    )
    write_image(disk.survivor(Luck.NONE, random.Random(0)), place / "cut")
    with open_volume(place / "cut") as volume:
        assert volume.snapshots() == []
        assert volume.read(ino, 0, 10) == b"before"
        assert len(list(place.glob("cut/layers/*/*"))) == 2
        reclaim_all(volume)
    assert len(list(place.glob("cut/layers/*/*"))) == 1


def test_a_snapshot_after_the_owner_was_killed_does_not_change_with_a_power_cut(
    place: Path,
) -> None:
    """The killed one's last writes are seen by all, and may be in the host's memory alone."""
    image, _ = fresh(place)
    with recording(place, image) as (log, volume):
        ino = new_file(volume, b"f")
        volume.write(ino, 0, b"one ")
        volume.commit()
        volume.write(ino, 0, b"two ")
        volume.abandon()
        volume = open_volume(place / "run", media=RecordingMedia(log))
        snapshot = volume.seal("s")
        seen = volume.view(snapshot.epoch).read(ino, 0, 10)
        cut = len(log)
        volume.abandon()
    disk = Disk(image)
    disk.take(log.operations, cut)
    write_image(disk.survivor(Luck.NONE, random.Random(0)), place / "cut")
    with open_volume(place / "cut") as volume:
        assert volume.view(volume.snapshot("s").epoch).read(ino, 0, 10) == seen == b"two "


def test_nothing_is_given_back_before_the_log_is_synced_that_tells_so(place: Path) -> None:
    """The state on stable storage still names the blocks; reclaim runs while a thread syncs."""
    image, _ = fresh(place)
    with recording(place, image) as (log, volume):
        media = volume._media
        assert isinstance(media, RecordingMedia)
        kept, removed = new_file(volume, b"kept"), new_file(volume, b"removed")
        for ino in (kept, removed):
            volume.write(ino, 0, b"x" * 3 * BLOCK)
        volume.commit()
        volume.setattr(kept, size=BLOCK)
        volume.unlink(ROOT_INO, b"removed")
        volume.commit_nowait()
        tried: list[bool] = []
        media.meanwhile = lambda: tried.append(volume.reclaim_step())
        volume.sync_log()
        assert tried == [False]
        assert not any(isinstance(operation, Punch | Unlink) for operation in log.operations)
        assert volume.reclaim_step()
        assert any(isinstance(operation, Punch) for operation in log.operations)
        assert any(isinstance(operation, Unlink) for operation in log.operations)
        volume.close()


@contextmanager
def recording(place: Path, image: Image) -> Iterator[tuple[Log, Volume]]:
    """A volume, recorded; the body lets go of it."""
    write_image(image, place / "run")
    log = Log(place / "run")
    with watched(log):
        volume = open_volume(place / "run", media=RecordingMedia(log))
        yield log, volume


def new_file(volume: Volume, name: bytes) -> Ino:
    return volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino


def test_sqlite_is_watched_for_real(place: Path) -> None:
    assert sees_this_sqlite(place / "some.db")
