"""The power goes, for real, under the engine (tests/test_crash_mount.py: under a mount).

A writer works on the engine and tells what it is about to do, and what was acknowledged.  Then the
file system is shut down and mounted again, and the volume opened: every acknowledged commit and
snapshot is there, no file shows bytes that were never written to it, the invariants hold.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nasfs.volume import check_volume, create_pool, create_volume, open_volume

from .crash_history import reclaim_all
from .crash_power import Told, Writer, power_disk

WRITER = """
import json, random, stat, sys
from pathlib import Path
import nasfs.volume.store
from nasfs.volume import *
nasfs.volume.store.CHECKPOINT_BYTES = 1 << 18  # so that checkpoints are cut, too
volume, chance, number = open_volume(Path(sys.argv[1])), random.Random(int(sys.argv[2])), 0
def tell(*words):
    print(json.dumps(words))
def new(name):
    return volume.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, uid=0, gid=0).ino
while True:
    number += 1
    kind = chance.randrange(5)
    name = "rf"[kind > 1] + str(chance.randrange(15))
    word, count = f"{number}-{sys.argv[2]}", chance.randrange(1, 2500)
    data = (word + " ").encode() * count
    try:
        ino = volume.lookup(ROOT_INO, name.encode()).ino
    except FsError:
        ino = None
    if kind < 2:
        tell("replace", name, word, count)
        volume.write(new(b"tmp"), 0, data)
        volume.rename(ROOT_INO, b"tmp", ROOT_INO, name.encode())
    elif ino is not None and kind == 2:
        tell("unlink", name)
        volume.unlink(ROOT_INO, name.encode())
    else:
        tell("write", name, word, count)
        if ino is None:
            ino = new(name.encode())
        volume.setattr(ino, size=0)
        volume.write(ino, 0, data)
    match chance.randrange(12):
        case 0 | 1 | 2 | 3:
            volume.commit()
            tell("committed")
        case 4:
            snapshot = volume.seal(f"{sys.argv[2]}-{number}")
            tell("sealed", snapshot.name)
            if len(volume.snapshots()) > 5:
                tell("destroying", volume.snapshots()[0].name)
                volume.destroy_snapshot(volume.snapshots()[0].name)
        case 5:
            volume.reclaim_step(30)
"""


@pytest.mark.parametrize("cuts", [4, pytest.param(100, marks=pytest.mark.soak)])
def test_a_power_cut_takes_nothing_that_was_acknowledged(
    tmp_path: Path, cuts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told, chance = Told(), random.Random(cuts)
    with power_disk(tmp_path) as disk:
        create_volume(create_pool(disk.path / "pool"), "v", size=1 << 40)
        path = disk.path / "pool" / "v"
        for number in range(cuts):
            with Writer(WRITER, path, str(number)) as writer:
                writer.wait_acknowledged(chance.randrange(2, 60))
                disk.cut()
            disk.detach()
            disk.attach()
            told.read(writer)
            with open_volume(path) as volume:
                told.verify(volume)
                told.accept(volume)
                reclaim_all(volume)
            assert check_volume(path) == []
    with capsys.disabled():
        print(f"\n{cuts} power cuts, {told.acknowledged} acknowledgements kept")
