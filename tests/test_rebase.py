"""Comparing two volumes and sending what differs, without nodes: any two histories, all damage."""

from __future__ import annotations

import random
import stat
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest

from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Access,
    FsError,
    Ino,
    Pool,
    Volume,
    check_volume,
    create_volume,
    open_volume,
    volume_path,
)
from replication.endpoint import Progress, SnapshotRef
from replication.errors import RemoteProtocolError
from replication.local import VolumeSink
from replication.rebase import RebaseSource
from replication.verify import Difference, compare
from replication.wire import chain_start
from replication.witness import LocalWitness, RemoteWitness, read_question

NAMES = [b"a", b"b", b"c", b"d"]
SIZES = [0, 100, BLOCK, 3 * BLOCK + 7, 300_000, 5 << 20]


def scramble(volume: Volume, dice: random.Random, steps: int) -> None:
    """Random changes; few names and places, so that two volumes have much in common by chance."""
    directories = [ROOT_INO]
    for _ in range(steps):
        parent, name = dice.choice(directories), dice.choice(NAMES)
        with suppress(FsError):
            match dice.randrange(8):
                case 0:
                    directories.append(volume.mkdir(parent, name, 0o755, uid=0, gid=0).ino)
                case 1 | 2:
                    made = volume.mknod(parent, name, stat.S_IFREG | 0o644, uid=0, gid=0)
                    write(volume, made.ino, dice)
                case 3:
                    volume.unlink(parent, name)
                case 4:
                    volume.rename(parent, name, dice.choice(directories), dice.choice(NAMES), 0)
                case 5:
                    volume.symlink(parent, name, dice.choice(NAMES), uid=0, gid=0)
                case 6:
                    ino = volume.lookup(parent, name).ino
                    volume.setxattr(ino, b"user." + dice.choice(NAMES), dice.choice(NAMES))
                case _:
                    found = volume.lookup(parent, name)
                    if found.is_file:
                        write(volume, found.ino, dice)
        directories = [ino for ino in directories if is_directory(volume, ino)]


def is_directory(volume: Volume, ino: Ino) -> bool:
    try:
        return volume.getattr(ino).is_dir
    except FsError:  # it is gone
        return False


def write(volume: Volume, ino: Ino, dice: random.Random) -> None:
    size = dice.choice(SIZES)
    volume.setattr(ino, size=size)
    if size:
        offset = dice.randrange(size)
        fill = dice.choice([b"\0", b"x", b"y"])
        volume.write(ino, offset, fill * min(dice.choice([50, 5000, 200_000]), size - offset))


def differences(ours: Path, one: str, theirs: Path, two: str) -> list[Difference]:
    """The partner's answers go through its own encoding."""
    with closing(LocalWitness(ours, one)) as here, closing(LocalWitness(theirs, two)) as there:
        remote = RemoteWitness(lambda body: there.answer(read_question(body)), "volume", two)
        found = list(compare(here, remote))
        assert found == list(compare(here, there))
        return found


def rebase(ours: Path, target: str, theirs: Path, base: str) -> None:
    """Send it in one go, as a sender and a receiver would."""
    sink = VolumeSink(theirs)
    with closing(sink):
        ref = next(ref for ref in sink.snapshots() if ref.name == base)
        with (
            closing(LocalWitness(theirs, base)) as there,
            closing(RebaseSource(LocalWitness(ours, target), ref, there)) as source,
        ):
            last = source.snapshots()[-1]
            total = source.total(ref.guid, last.guid)
            digest = chain_start(ref.guid, last.guid)
            sink.begin(Progress(ref.guid, last, total, digest=digest))
            batches = list(source.read_delta(ref.guid, last.guid, b""))
            for number, batch in enumerate(batches):
                rest = list(source.read_delta(ref.guid, last.guid, batch.cursor))
                assert rest == batches[number + 1 :]  # it goes on behind any of them
                sink.apply(batch)
            sink.commit(Progress(ref.guid, last, total, done=total, digest=digest))
            sink.seal(SnapshotRef(last.guid, last.name, last.time_ns, "group"))


@pytest.mark.parametrize("seed", range(12))
def test_any_volume_becomes_equal_to_any_other(pool: Pool, seed: int) -> None:
    dice = random.Random(seed)
    paths = []
    for name in ("ours", "theirs"):
        create_volume(pool, name, size=1 << 40, uuid="00000000-0000-0000-0000-000000000001")
        paths.append(volume_path(pool, name))
        with open_volume(paths[-1]) as volume:
            for number in range(2):
                scramble(volume, dice, 60)
                volume.seal(f"{name}-{number}", snap_group="group")
    ours, theirs = paths
    before = differences(theirs, "theirs-0", theirs, "theirs-1")
    assert differences(ours, "ours-1", theirs, "theirs-1")
    rebase(ours, "ours-1", theirs, "theirs-1")
    assert differences(ours, "ours-1", theirs, "ours-1") == []
    assert differences(theirs, "theirs-0", theirs, "theirs-1") == before
    assert check_volume(theirs) == []
    with open_volume(theirs, Access.READ_ONLY) as volume:
        assert [snapshot.name for snapshot in volume.snapshots()][-2:] == ["theirs-1", "ours-1"]


def test_equal_volumes_have_no_difference_whatever_their_layers(pool: Pool) -> None:
    """Zeros and holes, small and large files, one write or many: the contents count."""
    for name, pieces in (("one", 1), ("two", 7)):
        create_volume(pool, name, size=1 << 40, uuid="00000000-0000-0000-0000-000000000001")
        with open_volume(volume_path(pool, name)) as volume:
            for number, size in enumerate((100, 7 * BLOCK, 300_000, 70 << 20)):
                made = volume.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG, uid=0, gid=0)
                volume.setattr(made.ino, size=size)
                if pieces == 1:
                    volume.write(made.ino, 0, bytes(min(size, 1 << 20)))
                for piece in range(pieces):
                    volume.write(made.ino, 50, b"piece")
                    volume.seal(f"{number}-{piece}")
                times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns"), 0)
                volume.setattr(made.ino, **times)
            volume.setattr(ROOT_INO, atime_ns=0, mtime_ns=0, ctime_ns=0)
            volume.seal("last")
    paths = [volume_path(pool, name) for name in ("one", "two")]
    found = differences(paths[0], "last", paths[1], "last")
    named = {field for difference in found for field in changed(difference)}
    assert named <= {"btime", "ctime"}


def changed(difference: Difference) -> set[str]:
    from replication.digests import FIELDS
    from replication.verify import InodeDiffers

    assert isinstance(difference, InodeDiffers), difference
    assert difference.ours is not None
    assert difference.theirs is not None
    both = zip(FIELDS, difference.ours.numbers, difference.theirs.numbers, strict=True)
    return {name for name, one, two in both if one != two}


def test_odd_questions_are_answered_or_refused(pool: Pool) -> None:
    create_volume(pool, "v", size=1 << 40)
    path = volume_path(pool, "v")
    with open_volume(path) as volume:
        volume.mknod(ROOT_INO, b"f", stat.S_IFREG, uid=0, gid=0)
        volume.seal("s")
    most = (1 << 48) - 1
    asked: list[dict[str, object]] = [
        {"type": "parts", "after": [most, -1, most]},
        {"type": "facts", "page": most, "after": most},
        {"type": "entries", "ino": most, "after": b"\xff" * 10_000},
        {"type": "blocks", "ino": most, "first": most, "stop": 0},
        {"type": "blocks", "ino": 256, "first": most, "stop": most},
        {"type": "blocks", "ino": ROOT_INO, "first": 0, "stop": most},
        {"type": "path", "ino": most},
    ]
    refused: list[dict[str, object]] = [
        {"type": "parts", "after": [1, 2]},
        {"type": "parts", "after": [-1, 0, 0]},
        {"type": "facts", "page": most + 1, "after": 0},
        {"type": "blocks", "ino": 256, "first": -1, "stop": 5},
        {"type": "nothing"},
        {},
    ]
    with closing(LocalWitness(path, "s")) as witness:
        for ask in asked:
            body = {"volume": "v", "snapshot": "s", "ask": ask}
            assert witness.answer(read_question(msgspec.msgpack.encode(body)))
    for ask in refused:
        body = {"volume": "v", "snapshot": "s", "ask": ask}
        with pytest.raises(RemoteProtocolError):
            read_question(msgspec.msgpack.encode(body))
