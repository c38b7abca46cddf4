"""Data before the metadata that names it, and a disk that refuses in the middle of anything."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    FsError,
    Ino,
    MediaError,
    Pool,
    Volume,
    check_volume,
    create_volume,
    layers,
    open_volume,
    volume_path,
)
from nasfs.volume.media import HostMedia

MIB = 1 << 20


class WatchedMedia(HostMedia):
    """The host's disk; it knows what was written and not synced, and may refuse a write."""

    def __init__(self, refuse_at: int | None = None, error: int = errno.ENOSPC) -> None:
        self.unsynced: set[str] = set()
        self.writes = 0
        self._refuse_at = refuse_at
        self._error = error

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        self.writes += 1
        if self.writes == self._refuse_at:
            raise MediaError(self._error, "the disk of the test")
        self.unsynced.add(os.readlink(f"/proc/self/fd/{fd}"))
        super().write(fd, parts, offset)

    def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        super().sync_files(paths, directories)
        self.unsynced -= {str(path.resolve()) for path in paths}


@pytest.fixture
def path(pool: Pool) -> Path:
    create_volume(pool, "v", size=1 << 40)
    return volume_path(pool, "v")


def new_file(volume: Volume, name: bytes) -> Ino:
    return volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino


def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits in memory for the next sync."""
    monkeypatch.setattr(layers, "SMALL_BYTES", -1)


@pytest.mark.parametrize("files", [3, 2 * HostMedia.MANY])
def test_a_commit_and_a_seal_sync_every_layer_that_was_written(
    path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at_once(monkeypatch)
    media = WatchedMedia()
    with open_volume(path, media=media) as volume:
        inos = [new_file(volume, b"%d" % number) for number in range(files)]
        for finish in (volume.commit, lambda: volume.seal("s"), volume.commit):
            for ino in inos:
                volume.write(ino, 0, b"x" * BLOCK)
            assert len(media.unsynced) == files
            finish()
            assert media.unsynced == set()


def test_metadata_is_not_committed_while_another_sync_is_under_way(path: Path) -> None:
    media = WatchedMedia()
    with open_volume(path, media=media) as volume:
        volume.write(new_file(volume, b"f"), 0, b"x")
        taken = volume.dirty_data()  # somebody took it, and has not synced it yet
        volume.commit()
        assert media.unsynced == set()
        taken.run()


def test_the_name_of_a_layer_is_synced_once_and_again_when_it_is_another_file(path: Path) -> None:
    class Directories(HostMedia):
        synced = 0
        fails = False

        def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
            if self.fails:
                raise MediaError(errno.ENOSPC, "the disk of the test")
            self.synced += len(directories)

    media = Directories()
    with open_volume(path, media=media) as volume:
        ino = new_file(volume, b"f")

        def syncs() -> int:
            before = media.synced
            volume.write(ino, 0, b"x" * BLOCK)
            volume.commit()
            return media.synced - before

        assert [syncs(), syncs()] == [1, 0]
        volume.seal("s")
        assert [syncs(), syncs()] == [1, 0]  # another epoch's layer
        volume.setattr(ino, size=0)
        volume.commit()
        while volume.reclaim_step(16):
            pass
        assert not list((path / "layers").rglob(f"{ino}.2"))
        volume.commit()
        assert [syncs(), syncs()] == [1, 0]
        volume.seal("t")
        media.fails = True
        volume.write(ino, 0, b"x" * BLOCK)
        work = volume.dirty_data()
        with pytest.raises(MediaError):
            work.run()
        media.fails = False
        before = media.synced
        volume.dirty_data().run()
        assert media.synced == before + 1
        assert [syncs(), syncs()] == [0, 0]
        volume.seal("u")
        volume.write(ino, 0, b"x" * BLOCK)
        under_way = volume.dirty_data()
        before = media.synced
        volume.commit()  # does not rely on what another one has not finished
        assert media.synced > before
        under_way.run()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_write_that_is_refused_changes_nothing_at_whichever_it_is(
    pool: Pool, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at_once(monkeypatch)
    for refuse_at in range(1, 60, 3):
        create_volume(pool, f"v{refuse_at}", size=1 << 40)
        path = volume_path(pool, f"v{refuse_at}")
        chance = random.Random(7)
        contents: dict[Ino, bytearray] = {}
        refused = 0
        with open_volume(path, media=WatchedMedia(refuse_at, error)) as volume:
            for number in range(60):
                if number % 9 == 0:
                    contents[new_file(volume, b"%d" % number)] = bytearray()
                if number % 13 == 12:
                    volume.seal(f"s{number}")
                ino = chance.choice(list(contents))
                offset, data = chance.randrange(30_000), chance.randbytes(6000)
                before = contents[ino]
                try:
                    volume.write(ino, offset, data)
                except MediaError as exc:
                    refused += exc.errno == error
                    size = volume.getattr(ino).size
                    if size != len(before):
                        pytest.fail(f"the size moved from {len(before)} to {size}")
                else:
                    before.extend(bytes(max(0, offset + len(data) - len(before))))
                    before[offset : offset + len(data)] = data
            for ino, content in contents.items():
                assert volume.read(ino, 0, 1 << 20) == content
        assert refused == 1
        assert check_volume(path) == []


def test_a_directory_does_not_move_below_itself(path: Path) -> None:
    with open_volume(path) as volume:
        outer = volume.mkdir(ROOT_INO, b"outer", 0o755, uid=0, gid=0).ino
        inner = volume.mkdir(outer, b"inner", 0o755, uid=0, gid=0).ino
        for target in (outer, inner):
            with pytest.raises(FsError) as caught:
                volume.rename(ROOT_INO, b"outer", target, b"x")
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(FsError) as caught:
            volume.rename(outer, b"inner", ROOT_INO, b"outer", 2)
        assert caught.value.errno == errno.EINVAL
    assert check_volume(path) == []


def test_the_log_is_moved_into_the_tables_when_it_is_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasfs.volume.store.CHECKPOINT_BYTES", MIB)
    log = path / "meta.db-wal"
    volume = open_volume(path)
    longest = 0
    for number in range(40):
        for count in range(50):
            ino = new_file(volume, b"%d-%d" % (number, count))
            volume.setxattr(ino, b"user.k", bytes(2000))
        volume.dirty_data().run()
        volume.commit_nowait()
        longest = max(longest, log.stat().st_size)
        volume.sync_log()
        if volume.checkpoint_needed():
            volume.checkpoint()
            assert not volume.checkpoint_needed()
    assert MIB < longest < 3 * MIB
    volume.abandon()
    with open_volume(path) as volume:
        assert len(volume.readdir(ROOT_INO, 0, 10_000)) == 2000
    assert check_volume(path) == []


def test_after_a_statement_failed_no_commit_is_acknowledged(path: Path) -> None:
    """SQLite itself runs out of pages in the middle of a change."""
    volume = open_volume(path)
    kept = new_file(volume, b"kept")
    volume.commit()
    written = new_file(volume, b"acknowledged to a writer, not synced")
    volume.write(written, 0, b"x")
    pages = volume._store.db.execute("PRAGMA page_count").fetchone()[0]
    volume._store.db.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(MediaError) as refused:
        fill_with_attributes(volume, kept)
    assert refused.value.errno == errno.ENOSPC
    assert volume.changed  # so whoever commits in the background asks, and hears of it
    for acknowledge in (volume.commit, lambda: volume.seal("s"), volume.commit):
        with pytest.raises((MediaError, FsError)):
            acknowledge()
    assert not volume.writable
    assert volume.lookup(ROOT_INO, b"kept").ino == kept
    volume.close()
    with open_volume(path) as volume:
        assert [entry.name for entry, _ in volume.readdir(ROOT_INO, 0, 10)] == [b"kept"]
        assert volume.snapshots() == []
    assert check_volume(path) == []


def fill_with_attributes(volume: Volume, ino: Ino) -> None:
    for number in range(1000):
        volume.setxattr(ino, b"user.%d" % number, bytes(3000))


def test_after_a_failed_sync_no_later_commit_is_acknowledged(path: Path) -> None:
    """The host drops pages that it could not write: a second sync would tell that all is well."""

    class FailingOnce(WatchedMedia):
        failed = False

        def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
            if paths and not self.failed:
                self.failed = True
                raise MediaError(errno.EIO, "the disk of the test")
            super().sync_files(paths, directories)

    volume = open_volume(path, media=FailingOnce())
    volume.write(new_file(volume, b"f"), 0, b"x")
    with pytest.raises(MediaError):
        volume.commit()
    for acknowledge in (volume.commit, lambda: volume.seal("s")):
        with pytest.raises((MediaError, FsError)):
            acknowledge()
    volume.close()
    with open_volume(path) as volume:
        assert volume.readdir(ROOT_INO, 0, 10) == []
    assert check_volume(path) == []
