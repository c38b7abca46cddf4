"""Small writes that wait in memory: seen at once, landed in order, bounded, none lost alone."""

from __future__ import annotations

import errno
import random
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Ino,
    MediaError,
    Pool,
    Volume,
    behind,
    check_volume,
    create_volume,
    open_volume,
    volume_path,
)
from nasfs.volume.media import HostMedia

from .test_volume_model import layer_bytes


class FullMedia(HostMedia):
    """A disk that refuses writes while it is told to."""

    def __init__(self) -> None:
        self.error = 0
        self.writes = 0
        self.free = 1 << 40
        self.go_on = threading.Event()
        """Writes in other threads than the first wait for it."""
        self.go_on.set()

    def write(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert self.go_on.wait(30)
        if self.error:
            super().write(fd, [b"".join(parts)[:100]], offset)  # there was room for that much
            raise MediaError(self.error, "the disk of the test")
        self.writes += 1
        super().write(fd, parts, offset)

    def free_bytes(self, directory: Path) -> tuple[int, int]:
        return self.free, 1 << 40


@pytest.fixture
def media() -> FullMedia:
    return FullMedia()


@pytest.fixture
def path(pool: Pool) -> Path:
    create_volume(pool, "v", size=1 << 40)
    return volume_path(pool, "v")


def new_file(volume: Volume, name: bytes = b"f") -> Ino:
    return volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino


def content(volume: Volume, ino: Ino) -> bytes:
    return volume.read(ino, 0, 1 << 30)


def test_small_writes_reach_the_host_with_the_commit_in_one_call_and_are_seen_before(
    path: Path, media: FullMedia
) -> None:
    with open_volume(path, media=media) as volume:
        ino = new_file(volume)
        for number in range(50):
            volume.write(ino, number * BLOCK, b"%4d" % number * 1024)
        assert volume.getattr(ino).blocks == 50
        assert media.writes == 0
        volume.commit()
        assert media.writes == 1
        volume.write(ino, 50 * BLOCK, b"more")
        assert volume.read(ino, 49 * BLOCK, BLOCK + 4) == b"  49" * 1024 + b"more"
    with open_volume(path) as volume:
        assert content(volume, ino)[-8:] == b"  49more"


def test_large_writes_and_writes_in_place_do_not_wait(path: Path, media: FullMedia) -> None:
    with open_volume(path, media=media) as volume:
        ino = new_file(volume)
        volume.write(ino, 0, bytes(2 * behind.SMALL_BYTES))
        assert media.writes == 1
        volume.write(ino, 0, b"in place")
        assert media.writes == 2
        volume.write(ino, 1 << 20, b"waits")
        volume.write(ino, (1 << 20) + 1, b"waits behind it")
        assert media.writes == 2
        volume.write(ino, 0, b"in place again")
        assert media.writes == 3
        volume.write(ino, 1 << 20, bytes(1 << 20))  # lands both first
        assert media.writes == 6
        assert volume.read(ino, 0, 14) == b"in place again"
        assert volume.read(ino, 1 << 20, 5) == bytes(5)


def test_a_file_that_goes_before_the_commit_was_never_on_the_disk(
    path: Path, media: FullMedia
) -> None:
    with open_volume(path, media=media) as volume:
        volume.write(new_file(volume), 0, b"x" * BLOCK)
        volume.unlink(ROOT_INO, b"f")
        volume.commit()
        while volume.reclaim_step():
            pass
        assert volume.statfs().used == 0
        assert media.writes == 0
    assert not [file for file in (path / "layers").rglob("*") if file.is_file()]
    assert check_volume(path) == []


@pytest.mark.parametrize(("most_bytes", "most_layers"), [(40 * BLOCK, 100), (1 << 20, 8)])
def test_what_waits_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int, most_layers: int
) -> None:
    monkeypatch.setattr(behind, "LIMIT_BYTES", most_bytes)
    monkeypatch.setattr(behind, "LIMIT_LAYERS", most_layers)
    seen_bytes, seen_layers = [], []
    with open_volume(path) as volume:
        inos = [new_file(volume, b"%d" % number) for number in range(20)]
        for turn in range(10):
            for ino in inos:
                volume.write(ino, turn * BLOCK, b"%d" % turn * BLOCK)
                seen_bytes.append(volume._layers.waiting_bytes)
                seen_layers.append(len(volume._layers._behind.logs))
        assert max(seen_bytes) == most_bytes + BLOCK or max(seen_layers) == most_layers + 1
        assert max(seen_bytes) <= most_bytes + BLOCK
        assert max(seen_layers) <= most_layers + 1
        for ino in inos:
            assert content(volume, ino) == b"".join(b"%d" % turn * BLOCK for turn in range(10))


def test_nothing_waits_while_the_disk_is_nearly_full(path: Path, media: FullMedia) -> None:
    with open_volume(path, media=media) as volume:
        ino = new_file(volume)
        volume.write(ino, 0, b"waits")
        assert media.writes == 0
        media.free = 100 << 20
        for number in range(1, 100):  # it asks the disk every few MiB
            volume.write(ino, number * behind.SMALL_BYTES, bytes(behind.SMALL_BYTES))
        assert volume._layers.waiting_bytes == 0
        before = media.writes
        volume.write(ino, 1 << 30, b"at once")
        assert media.writes == before + 1
        assert volume.read(ino, 0, 5) == b"waits"


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_is_there_whatever_is_done_while_a_thread_writes(
    path: Path, media: FullMedia, seed: int
) -> None:
    """Against plain byte strings: writes, reads, truncates, removals and snapshots between."""
    chance = random.Random(seed)
    files: dict[Ino, bytearray] = {}
    sealed: dict[str, dict[Ino, bytes]] = {}
    with open_volume(path, media=media) as volume:

        def change() -> None:
            what = chance.choices(
                ["write", "create", "truncate", "read", "unlink"], (12, 2, 2, 4, 1)
            )
            if what == ["create"] or not files:
                number = len(files) + chance.randrange(1 << 40)
                files[new_file(volume, b"%d" % number)] = bytearray()
                return
            ino = chance.choice(list(files))
            mine = files[ino]
            if what == ["write"]:
                offset = chance.choice([len(mine), chance.randrange(200_000)])
                data = chance.randbytes(chance.choice([10, BLOCK, 9000, 70_000]))
                volume.write(ino, offset, data)
                mine.extend(bytes(max(0, offset + len(data) - len(mine))))
                mine[offset : offset + len(data)] = data
            elif what == ["truncate"]:
                size = chance.randrange(100_000)
                volume.setattr(ino, size=size)
                del mine[size:]
                mine.extend(bytes(size - len(mine)))
            elif what == ["read"]:
                start = chance.randrange(len(mine) + 1)
                assert volume.read(ino, start, 20_000) == mine[start : start + 20_000]
            else:
                entries = volume.readdir(ROOT_INO, 0, 1000)
                name = next(entry.name for entry, inode in entries if inode.ino == ino)
                volume.unlink(ROOT_INO, name)
                del files[ino]

        for turn in range(40):
            for _ in range(15):
                change()
            work = volume.dirty_data()
            media.go_on.clear()
            thread = threading.Thread(target=work.run)
            thread.start()
            threading.Timer(0.002, media.go_on.set).start()  # whoever needs it waits so long
            for _ in range(5):
                change()
            media.go_on.set()
            thread.join()
            if turn % 5 == 4:
                volume.seal(f"s{turn}")
                sealed[f"s{turn}"] = {ino: bytes(mine) for ino, mine in files.items()}
            while volume.reclaim_step(3):
                pass
        for name, then in sealed.items():
            view = volume.view(volume.snapshot(name).epoch)
            assert {ino: view.read(ino, 0, 1 << 30) for ino in then} == then
    with open_volume(path) as volume:
        assert {ino: content(volume, ino) for ino in files} == files
        while volume.reclaim_step():
            pass
        volume.commit()
        used = volume.statfs().used
    assert check_volume(path) == []
    assert layer_bytes(path) == used


def test_a_full_disk_refuses_the_commit_and_loses_nothing(path: Path, media: FullMedia) -> None:
    with open_volume(path, media=media) as volume:
        ino, other = new_file(volume), new_file(volume, b"other")
        volume.write(ino, 0, b"committed")
        volume.commit()
        volume.seal("s")
        volume.write(ino, BLOCK, b"one" * 1000)
        volume.write(other, 0, b"two")
        media.error = errno.ENOSPC
        for _ in range(2):
            with pytest.raises(MediaError, match="No space left"):
                volume.commit()
            assert volume.writable
            volume.write(ino, BLOCK + 1, b"three")  # behind what waits already
            assert volume.read(ino, BLOCK, 8) == b"othreeon"
            assert volume.read(other, 0, 10) == b"two"
        with pytest.raises(MediaError):
            volume.seal("t")
        assert volume.find_snapshot("t") is None
        taken = volume.dirty_data()
        volume.write(ino, BLOCK + 2, b"H")  # while a thread has what came before
        with pytest.raises(MediaError) as refused:
            taken.run()
        volume.data_refused(taken, refused.value)
        media.error = 0
        volume.commit()
        volume.seal("t")
    with open_volume(path) as volume:
        assert volume.read(ino, BLOCK, 8) == b"otHreeon"
        assert volume.read(other, 0, 10) == b"two"
    assert check_volume(path) == []


def test_a_disk_that_fails_makes_the_volume_read_only_as_of_its_last_commit(
    path: Path, media: FullMedia
) -> None:
    volume = open_volume(path, media=media)
    ino = new_file(volume)
    volume.write(ino, 0, b"committed")
    volume.commit()
    volume.seal("s")
    volume.write(ino, 0, b"later one")
    media.error = errno.EIO
    with pytest.raises(MediaError):
        volume.commit()
    assert not volume.writable
    assert volume._layers.waiting_bytes == 0
    assert content(volume, ino) == b"committed"
    media.error = 0
    volume.close()
    with open_volume(path) as volume:
        assert content(volume, ino) == b"committed"
    assert check_volume(path) == []


def test_a_commit_on_the_loop_waits_for_what_a_thread_has_taken(
    path: Path, media: FullMedia
) -> None:
    with open_volume(path, media=media) as volume:
        ino = new_file(volume)
        volume.write(ino, 0, b"one" * 2000)
        taken = volume.dirty_data()  # its thread has not begun
        volume.write(ino, 0, b"two")
        volume.commit()
        assert volume.read(ino, 0, 6) == b"twoone"
        taken.run()
        assert volume.read(ino, 0, 6) == b"twoone"


def test_a_log_keeps_the_order_and_joins_what_adjoins() -> None:
    log = behind.WriteLog()
    for offset, data in ((0, b"aaaa"), (4, b"bbbb"), (2, b"cc"), (100, b"z")):
        log.add([data], offset, len(data))
    assert [(offset, b"".join(parts)) for offset, parts in log._pieces] == [
        (0, b"aaaabbbb"),
        (2, b"cc"),
        (100, b"z"),
    ]
    buffer = bytearray(b"-" * 10)
    log.lay_over(memoryview(buffer), 1)
    assert buffer == b"accbbbb---"
    assert log.touches(BLOCK - 1, BLOCK)  # it is in that block
    assert not log.touches(BLOCK, 2 * BLOCK)
