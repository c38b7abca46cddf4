"""Syncing while more is written: a commit finds little left, and no failure goes unnoticed."""

from __future__ import annotations

import errno
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nasfs.volume import ROOT_INO, Ino, Pool, Volume, create_volume, open_volume, volume_path
from nasfs.volume.errors import MediaError
from nasfs.volume.media import HostMedia
from nasfs.volume.sync_ahead import WORTH_BYTES, SyncAhead
from replication.endpoint import Progress
from replication.local import VolumeSink, VolumeSource

PIECE = bytes(WORTH_BYTES)


class Slow(HostMedia):
    """Notes the layers of each sync, which waits until `go`; then it fails if it is told to."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.fails = False
        self.synced: list[set[str]] = []

    def sync_files(self, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        self.began.set()
        assert self.go.wait(60)
        if self.fails:
            raise MediaError(errno.EIO, "a layer")
        super().sync_files(paths, directories)
        self.synced.append({path.name for path in paths})


@pytest.fixture
def media() -> Slow:
    return Slow()


@pytest.fixture
def volume(pool: Pool, media: Slow) -> Iterator[Volume]:
    create_volume(pool, "v", size=1 << 30)
    media.go.set()
    with open_volume(volume_path(pool, "v"), media=media) as volume:
        media.go.clear()
        media.began.clear()
        media.synced.clear()
        yield volume
        media.go.set()
        media.fails = False


def write(volume: Volume, name: bytes) -> Ino:
    ino = volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, uid=0, gid=0).ino
    volume.write(ino, 0, PIECE)
    return ino


def test_what_was_synced_is_not_synced_again(volume: Volume, media: Slow) -> None:
    ahead = SyncAhead(volume)
    first = write(volume, b"first")
    ahead.wrote(len(PIECE))
    assert media.began.wait(60)
    second = write(volume, b"second")  # while the first one is on its way
    ahead.wrote(len(PIECE))
    media.go.set()
    ahead.finish()
    volume.commit()
    assert media.synced == [{f"{first}.{volume.epoch}"}, {f"{second}.{volume.epoch}"}]
    ahead.close()


def test_a_little_is_left_to_the_commit(volume: Volume, media: Slow) -> None:
    ahead = SyncAhead(volume)
    write(volume, b"little")
    ahead.wrote(WORTH_BYTES - 1)
    ahead.finish()
    ahead.close()
    assert not media.began.is_set()


def test_what_a_commit_synced_counts_no_more(volume: Volume, media: Slow) -> None:
    ahead = SyncAhead(volume)
    write(volume, b"little")
    ahead.wrote(WORTH_BYTES - 1)
    media.go.set()
    volume.commit()
    ahead.committed()
    media.began.clear()
    ahead.wrote(WORTH_BYTES - 1)
    ahead.finish()
    ahead.close()
    assert not media.began.is_set()


def go_on_writing(ahead: SyncAhead) -> None:
    for _ in range(600):
        time.sleep(0.1)
        ahead.wrote(len(PIECE))


@pytest.mark.parametrize("by", ["commit", "next piece"])
def test_a_sync_that_failed_is_told_before_anything_is_committed(
    volume: Volume, media: Slow, by: str
) -> None:
    ahead = SyncAhead(volume)
    write(volume, b"lost")
    media.fails = True
    media.go.set()
    ahead.wrote(len(PIECE))
    until_told = ahead.finish if by == "commit" else lambda: go_on_writing(ahead)
    with pytest.raises(MediaError):
        until_told()
    media.fails = False
    assert not volume.writable
    with pytest.raises(MediaError):  # a second sync would say that all is well
        volume.commit()
    ahead.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_receiver_syncs_while_it_applies(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    create_volume(pool, "from", size=1 << 30)
    with open_volume(volume_path(pool, "from")) as volume:
        write(volume, b"file")
        volume.seal("one", guid="g", snap_group="s")
    create_volume(pool, "to", size=1 << 30)
    source, sink = VolumeSource(volume_path(pool, "from")), VolumeSink(volume_path(pool, "to"))
    target = source.snapshots()[0]
    progress = Progress(None, target, source.total(None, target.guid))
    sink.begin(progress)
    synced = threading.Event()
    sync_files = HostMedia.sync_files

    def sync(media: HostMedia, paths: Sequence[Path], directories: Sequence[Path]) -> None:
        synced.set()
        if fails:
            raise MediaError(errno.EIO, "a layer")
        sync_files(media, paths, directories)

    monkeypatch.setattr(HostMedia, "sync_files", sync)
    for batch in source.read_delta(None, target.guid, b""):
        sink.apply(batch)
    assert synced.wait(60)
    if fails:
        with pytest.raises(MediaError, match="a layer"):
            sink.commit(progress)
    else:
        sink.seal(target)
        assert sink.snapshots() == [target]
    sink.close()
    source.close()
