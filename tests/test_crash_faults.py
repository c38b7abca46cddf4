"""The disk refuses an operation: the first, the second, ... of each kind, once or from then on.

Whatever it is: nothing acknowledged is lost, the volume stays as it was before the operation that
was refused, or turns read-only with a reason and is as of a commit; opened again it is sound.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from nasfs.errors import NasError
from nasfs.fuse.commit import Committer, Gate
from nasfs.volume import ROOT_INO, MediaError, check_volume, open_volume

from .crash_disk import Disk, Image, Log, LostSync, Luck, RecordingMedia, write_image
from .crash_history import History, fresh, place_in_memory, reclaim_all, verify
from .crash_model import State, look
from .crash_sqlite import SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_IOERR_WRITE, watched
from .test_volume_model import layer_bytes


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with place_in_memory(monkeypatch) as directory:
        yield directory


@dataclass
class Fault:
    """Refuses operation number *at* (from 0) of a kind, or all from that one on."""

    kind: str
    error: int
    at: int
    lasting: bool
    seen: int = 0
    hits: int = 0

    def strikes(self, kind: str) -> bool:
        if kind != self.kind:
            return False
        self.seen += 1
        hit = self.seen > self.at if self.lasting else self.seen == self.at + 1
        self.hits += hit
        return hit


class FaultyLog(Log):
    """Where SQLite's operations are refused."""

    fault: Fault

    def sqlite_begins(self, operation: str, path: Path) -> int:
        fault = self.fault
        if operation == "sync" and fault.kind == "sync" and fault.lasting and fault.hits:
            self.add(LostSync(self.name(path)))  # a disk that fails the engine fails SQLite, too
            return SQLITE_IOERR_FSYNC
        return fault.error if fault.strikes(f"sqlite {operation}") else 0


class FaultyMedia(RecordingMedia):
    """Where the engine's operations are refused."""

    def __init__(self, log: FaultyLog) -> None:
        super().__init__(log)
        self._fault = log.fault

    def open(self, path: str | Path, *, write: bool) -> int:
        if write and not Path(path).exists():
            self._pass("create")
        return super().open(path, write=write)

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        data = b"".join(parts)
        try:
            self._pass("write")
        except MediaError:
            super().write(fd, [data[: len(data) // 2]], offset)  # so much there was room for
            raise
        super().write(fd, [data], offset)

    def punch(self, fd: int, start: int, stop: int) -> None:
        self._pass("punch")
        super().punch(fd, start, stop)

    def unlink(self, path: Path) -> None:
        self._pass("unlink")
        super().unlink(path)

    def sync(self, fd: int) -> None:
        try:
            self._pass("sync")
        except MediaError:
            self.log.add(LostSync(self.paths[fd]))
            raise
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        self._pass("sync")
        super().sync_directory(path)

    def _pass(self, kind: str) -> None:
        if self._fault.strikes(kind):
            raise MediaError(self._fault.error, "the disk of the test")


def faulty(place: Path, image: Image, fault: Fault) -> FaultyMedia:
    """A disk that holds *image*."""
    write_image(image, place / "run")
    log = FaultyLog(place / "run")
    log.fault = fault
    return FaultyMedia(log)


KINDS = [
    ("write", errno.ENOSPC),
    ("create", errno.ENOSPC),
    ("sync", errno.EIO),
    ("punch", errno.EIO),
    ("unlink", errno.EIO),
    ("sqlite write", SQLITE_FULL),
    ("sqlite write", SQLITE_IOERR_WRITE),
    ("sqlite sync", SQLITE_IOERR_FSYNC),
    ("sqlite truncate", SQLITE_IOERR_WRITE),
    ("sqlite delete", SQLITE_IOERR_WRITE),
]


@pytest.mark.parametrize("points", [10, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_a_refusal_of_any_operation_loses_nothing_that_was_acknowledged(
    place: Path, kind: str, error: int, lasting: bool, points: int
) -> None:
    image, start = fresh(place)
    unbroken = Fault(kind, error, 1 << 60, lasting)
    run_against(place, image, start, unbroken)
    assert unbroken.seen, "nothing of the kind ever happens"
    step = max(unbroken.seen // points, 1)
    for at in range(random.Random(unbroken.seen).randrange(step), unbroken.seen, step):
        fault = Fault(kind, error, at, lasting)
        history, refused = run_against(place, image, start, fault)
        assert fault.hits
        assert refused or kind.startswith("sqlite")  # which says nothing while it closes
        look_at_what_is_left(place, history, image)


def run_against(
    place: Path, image: Image, start: State, fault: Fault
) -> tuple[History, list[NasError]]:
    """Always the same history, up to the refusal."""
    history = History(random.Random(7), start, faulty(place, image, fault))
    return history, history.run_refused(80)


def look_at_what_is_left(place: Path, history: History, image: Image) -> None:
    """After the owner has ended, and after a power cut at that moment."""
    past, end = history.past, len(history.log)
    disk = Disk(image)
    disk.take(history.log.operations, end)
    for luck in (Luck.NONE, Luck.SOME):
        write_image(disk.survivor(luck, random.Random(end)), place / "cut")
        verify(place / "cut", past, end + 1)
    path = place / "run"
    assert [str(finding) for finding in check_volume(path)] == []
    with open_volume(path) as volume:
        past.match(end + 1, look(volume))
        reclaim_all(volume)
        used = volume.statfs().used
    assert [str(finding) for finding in check_volume(path)] == []
    assert layer_bytes(path) == used


async def test_a_mount_whose_log_cannot_be_moved_into_the_tables_takes_no_more_changes(
    place: Path,
) -> None:
    image, _ = fresh(place)
    media = faulty(place, image, Fault("sqlite truncate", SQLITE_IOERR_WRITE, 0, lasting=True))
    with watched(media.log):
        volume = open_volume(place / "run", media=media)
        committer = Committer(volume, Gate())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            for number in range(4):
                volume.setxattr(ROOT_INO, b"user.%d" % number, bytes(60_000))
            for _ in range(2):
                with pytest.raises(MediaError) as refused:
                    await committer.commit()
                assert refused.value.errno == errno.EIO
            assert not volume.writable
            assert "into the tables" in volume._read_only_reason
            nursery.cancel_scope.cancel()
        volume.close()
    with open_volume(place / "run") as volume:  # not acknowledged, but committed
        assert len(volume.listxattr(ROOT_INO)) == 4
