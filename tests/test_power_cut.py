"""The power goes, for real: a pool on a loop-mounted XFS whose log is cut off without a flush.

A writer works on the engine and tells what it is about to do, and what was acknowledged.  Then the
file system is shut down (`xfs_io -c shutdown`: what was not synced is gone), mounted again, and the
volume opened: every acknowledged commit and snapshot is there, no file shows bytes that were never
written to it, the invariants hold.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import (
    ROOT_INO,
    FsError,
    View,
    Volume,
    check_volume,
    create_pool,
    create_volume,
    open_volume,
)

WRITER = """
import json, random, stat, sys
from pathlib import Path
import nasfs.volume.store
from nasfs.volume import *
nasfs.volume.store.CHECKPOINT_BYTES = 1 << 18  # so that checkpoints are cut, too
volume, chance, number = open_volume(Path(sys.argv[1])), random.Random(int(sys.argv[3])), 0
log = open(sys.argv[2], "w", buffering=1)
def tell(*words):
    log.write(json.dumps(words) + "\\n")
def new(name):
    return volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino
while True:
    number += 1
    name = b"f%d" % chance.randrange(25)
    data = (b"%d-%s " % (number, sys.argv[3].encode())) * chance.randrange(1, 2500)
    tell("write", name.decode(), data.split()[0].decode(), len(data))
    try:
        ino = volume.lookup(ROOT_INO, name).ino
    except FsError:
        ino = new(name)
    match chance.randrange(4):
        case 0:
            volume.write(new(b"tmp"), 0, data)
            volume.rename(ROOT_INO, b"tmp", ROOT_INO, name)
        case 1:
            volume.unlink(ROOT_INO, name)
            volume.write(new(name), 0, data)
        case _:
            volume.setattr(ino, size=0)
            volume.write(ino, 0, data)
    match chance.randrange(12):
        case 0 | 1 | 2 | 3:
            volume.commit()
            tell("committed")
        case 4:
            tell("sealing")
            snapshot = volume.seal(f"{sys.argv[3]}-{number}")
            tell("sealed", snapshot.name)
            if len(volume.snapshots()) > 5:
                volume.destroy_snapshot(volume.snapshots()[0].name)
        case 5:
            volume.reclaim_step(30)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted XFS of its own; `cut` takes its power."""
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    place.mkdir()
    run("mkfs.xfs", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(place))
    yield place
    run("umount", str(place))


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def cut(disk: Path) -> None:
    """What was not synced is lost; then the disk comes back."""
    run("xfs_io", "-x", "-c", "shutdown", str(disk))


def content(view: View, name: str) -> bytes:
    """A file's bytes; empty if it is not there."""
    try:
        inode = view.lookup(ROOT_INO, name.encode())
    except FsError:
        return b""
    return view.read(inode.ino, 0, inode.size)


class History:
    """What the writer told: its intentions, and what was acknowledged."""

    def __init__(self) -> None:
        self.words: dict[str, set[bytes]] = {}
        """By file: everything that was ever about to be written to it."""
        self.durable: dict[str, tuple[bytes, int]] = {}
        self.since: set[str] = set()
        """Files that were touched after the last acknowledgement."""
        self.sealed: list[str] = []

    def read(self, log: Path) -> int:
        """Take in one writer's log; how many acknowledgements it has."""
        latest = dict(self.durable)
        acknowledged = 0
        self.since = set()
        for line in log.read_text().splitlines():
            try:
                kind, *rest = json.loads(line)
            except ValueError:  # the writer was killed in the middle of a line
                break
            if kind == "write":
                name, word, length = rest
                self.words.setdefault(name, set()).add(word.encode())
                latest[name] = (word.encode(), length)
                self.since.add(name)
            elif kind in ("committed", "sealed"):
                self.durable, self.since = dict(latest), set()
                acknowledged += 1
                self.sealed += rest
        return acknowledged

    def verify(self, volume: Volume) -> None:
        for name, (word, length) in self.durable.items():
            found = content(volume, name)
            if name not in self.since:
                assert (found[: len(word)], len(found)) == (word, length), name
                assert set(found.split()) == {word}, name
        for view in (volume, *(volume.view(s.epoch) for s in volume.snapshots())):
            for name, words in self.words.items():
                pieces = content(view, name).split()
                # Where an unsynced write met an older one, at the edge of a block, words run
                # together; bytes of another file would be hundreds of foreign words.
                foreign = [p for p in pieces if not any(p in w or w in p for w in words)]
                assert len(foreign) <= 8, (name, foreign[:5])
        names = {snapshot.name for snapshot in volume.snapshots()}
        assert set(self.sealed[-4:]) <= names


@pytest.mark.parametrize("cuts", [4, pytest.param(100, marks=pytest.mark.soak)])
def test_a_power_cut_takes_nothing_that_was_acknowledged(
    tmp_path: Path, disk: Path, cuts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    create_volume(create_pool(disk / "pool"), "v", size=1 << 40)
    path = disk / "pool" / "v"
    log, history, chance = tmp_path / "log", History(), random.Random(cuts)
    acknowledged = 0
    for number in range(cuts):
        log.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, log, str(number)], stderr=subprocess.DEVNULL
        )
        wanted = chance.randrange(2, 60)
        while writer.poll() is None and count_acknowledged(log) < wanted:
            pass
        assert writer.poll() is None, "the writer ended by itself"
        cut(disk)
        writer.kill()
        writer.wait()
        run("umount", str(disk))
        run("mount", "-o", "loop", str(tmp_path / "image"), str(disk))
        acknowledged += history.read(log)
        with open_volume(path) as volume:
            history.verify(volume)
            history.durable = {
                name: (found.split()[0], len(found))
                for name in history.words
                if len(set((found := content(volume, name)).split())) == 1
            }
            while volume.reclaim_step() or volume.changed:
                volume.commit()
        assert check_volume(path) == []
    with capsys.disabled():
        print(f"\n{cuts} power cuts, {acknowledged} acknowledgements kept")


def count_acknowledged(log: Path) -> int:
    text = log.read_text() if log.exists() else ""
    return text.count('["committed"') + text.count('["sealed"')
