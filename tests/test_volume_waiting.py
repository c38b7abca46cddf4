"""A volume that is told not to wait for the disk: nothing is half done, and a second try works."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pyfuse3
import pytest

from nasfs.fuse.operations import Operations
from nasfs.fuse.snapdir import Trees
from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Ino,
    MediaError,
    Pool,
    Volume,
    WouldWait,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.media import HostMedia


class ColdMedia(HostMedia):
    """The host's disk, of which nothing is in memory but what was read before."""

    def __init__(self) -> None:
        self.warm: set[str] = set()
        self.broken = False

    def read(self, fd: int, length: int, offset: int) -> bytes:
        if self.broken:
            raise MediaError(5, "the disk of the test")
        self.warm.add(os.readlink(f"/proc/self/fd/{fd}"))
        return super().read(fd, length, offset)

    def read_into(self, fd: int, buffer: memoryview, offset: int, *, wait: bool) -> int | None:
        if not wait and os.readlink(f"/proc/self/fd/{fd}") not in self.warm:
            return None
        return super().read_into(fd, buffer, offset, wait=wait)


@pytest.fixture
def media() -> ColdMedia:
    return ColdMedia()


@pytest.fixture
def path(pool: Pool) -> Path:
    create_volume(pool, "v", size=1 << 30)
    return volume_path(pool, "v")


def with_file(path: Path, media: ColdMedia, content: bytes) -> tuple[Volume, Ino]:
    volume = open_volume(path, media=media)
    ino = volume.mknod(ROOT_INO, b"f", stat.S_IFREG | 0o644, uid=0, gid=0).ino
    volume.write(ino, 0, content)
    volume.wait_for_disk(False)
    return volume, ino


def test_a_read_says_what_to_fetch(path: Path, media: ColdMedia) -> None:
    content = os.urandom(3 * BLOCK + 5)
    volume, ino = with_file(path, media, content)
    with volume:
        with pytest.raises(WouldWait) as missing:
            volume.read(ino, 0, 1 << 20)
        missing.value.fetch()
        assert volume.read(ino, 0, 1 << 20) == content


@pytest.mark.parametrize("size", [BLOCK - 10, 2 * BLOCK + 17])
def test_a_change_that_has_to_read_first_changes_nothing_until_it_can(
    path: Path, media: ColdMedia, size: int
) -> None:
    content = os.urandom(size)
    volume, ino = with_file(path, media, content)
    with volume:
        sealed = volume.seal("s").epoch
        before = volume.getattr(ino), volume.statfs()
        for change in (
            lambda: volume.write(ino, 100, b"in the middle"),  # redirects a block, in part
            lambda: volume.write(ino, 10 * BLOCK, b"behind"),  # zeros up to the end of the block
            lambda: volume.setattr(ino, size=20 * BLOCK),
        ):
            with pytest.raises(WouldWait) as missing:
                change()
            assert (volume.getattr(ino), volume.statfs()) == before
        missing.value.fetch()
        volume.write(ino, 100, b"in the middle")
        volume.wait_for_disk(True)
        assert volume.read(ino, 0, 1 << 20) == content[:100] + b"in the middle" + content[113:]
        assert volume.view(sealed).read(ino, 0, 1 << 20) == content


def test_a_layer_that_went_meanwhile_is_not_fetched(path: Path, media: ColdMedia) -> None:
    volume, ino = with_file(path, media, b"x" * BLOCK)
    with volume:
        with pytest.raises(WouldWait) as missing:
            volume.read(ino, 0, BLOCK)
        volume.unlink(ROOT_INO, b"f")
        volume.commit()
        while volume.reclaim_step():
            pass
        missing.value.fetch()


async def test_a_request_waits_in_a_thread_and_is_answered(path: Path, media: ColdMedia) -> None:
    content = os.urandom(2 * BLOCK)
    volume, ino = with_file(path, media, content)
    with volume:
        operations = Operations(volume, Trees.live(volume), None)
        handle = pyfuse3.FileHandleT(ino)
        assert bytes(await operations.read(handle, BLOCK, BLOCK)) == content[BLOCK:]
        more = await operations.read(handle, 0, 4 << 20)  # more than the buffer held so far
        assert bytes(more) == content


async def test_a_disk_that_fails_meanwhile_fails_the_request(path: Path, media: ColdMedia) -> None:
    volume, ino = with_file(path, media, b"x" * BLOCK)
    with volume:
        operations = Operations(volume, Trees.live(volume), None)
        media.broken = True
        with pytest.raises(pyfuse3.FUSEError) as failed:
            await operations.read(pyfuse3.FileHandleT(ino), 0, BLOCK)
        assert failed.value.errno == 5
