"""What snapshots cost: with ten times as many files, and with ten times as many snapshots."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.volume import (
    BLOCK,
    ROOT_INO,
    Access,
    Epoch,
    Ino,
    Snapshot,
    Volume,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)

A_DIRECTORY = 1000
CHANGED = 1000
"""Changes before the seal and the delta that are to cost what changed."""
BETWEEN = 20
"""Changes between two of the many snapshots."""
SAMPLES = 20
LEAST = 50
"""Snapshots that there must be: some are destroyed again."""


@dataclass(frozen=True, slots=True)
class World:
    """A volume that is filled, open for writing and for reading beside it."""

    path: Path
    volume: Volume
    reader: Volume
    directories: list[Ino]
    files: list[Ino]
    chance: random.Random

    def change(self, count: int) -> None:
        """Some attributes and a little data of that many files."""
        for ino in self.chance.sample(self.files, min(count, len(self.files))):
            self.volume.setattr(ino, mode=self.chance.choice([0o600, 0o640, 0o644]))
        self.volume.write(self.chance.choice(self.files), 0, self.chance.randbytes(BLOCK))

    def pick(self) -> tuple[Snapshot, Snapshot]:
        """Neighbours among the snapshots, older and newer."""
        snapshots = self.volume.snapshots()
        at = self.chance.randrange(len(snapshots) - 1)
        return snapshots[at], snapshots[at + 1]


def milliseconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


# Each returns its time in milliseconds; all that goes before it in its function is not counted.


def seal(world: World) -> float:
    world.change(BETWEEN)
    world.volume.commit()
    return milliseconds(lambda: world.volume.seal(f"more-{world.volume.epoch}"))


def list_all(world: World) -> float:
    """By a reader that knows nothing yet."""

    def listing() -> None:
        with open_volume(world.path, Access.READ_ONLY) as other:
            other.snapshots()

    return milliseconds(listing)


def find(world: World) -> float:
    name = world.pick()[0].name
    return milliseconds(lambda: world.volume.snapshot(name))


def browse(world: World) -> float:
    """A directory of 1,000 files as of a snapshot: every entry with its attributes, one read."""
    snapshot, directory = world.pick()[0], world.chance.choice(world.directories)

    def look() -> None:
        view = world.volume.view(snapshot.epoch)
        after = 0
        while page := view.readdir(directory, after, 512):
            after, last = page[-1][0].cookie, page[-1][1].ino
        view.read(last, 0, BLOCK)

    return milliseconds(look)


def delta(world: World) -> float:
    """What changed between neighbours: rows and extents."""
    older, newer = world.pick()
    return milliseconds(lambda: read_delta(world.reader, older.epoch, newer.epoch))


def destroy(world: World) -> float:
    """No longer offered, durable."""
    name = world.pick()[0].name
    try:
        return milliseconds(lambda: world.volume.destroy_snapshot(name))
    finally:
        reclaim(world)


def destroy_and_reclaim(world: World) -> float:
    """And all its space back."""
    world.volume.destroy_snapshot(world.pick()[0].name)
    return milliseconds(lambda: reclaim(world))


OPERATIONS: dict[str, Callable[[World], float]] = {
    "seal": seal,
    "list all snapshots": list_all,
    "find one by name": find,
    "browse an old directory": browse,
    "delta of neighbours": delta,
    "destroy": destroy,
    "reclaim": destroy_and_reclaim,
}


def reclaim(world: World) -> None:
    while world.volume.reclaim_step() or world.volume.changed:
        world.volume.commit()


def read_delta(reader: Volume, base: Epoch, target: Epoch) -> tuple[int, int]:
    """How many rows and extents there are."""
    found = reader.delta(base, target)
    return sum(1 for _ in found.rows()), sum(1 for _ in found.extents())


def measure(home: Path, files: int, snapshots: int) -> dict[str, float]:
    """Figures of a fresh volume; times in milliseconds, of what is repeated the median."""
    pool = create_pool(home / f"pool-{files}-{snapshots}")
    create_volume(pool, "v", size=1 << 42)
    path = volume_path(pool, "v")
    figures: dict[str, float] = {"files": files, "snapshots": snapshots}
    with filled(path, files, figures) as world:
        volume = world.volume
        figures["first seal"] = milliseconds(lambda: volume.seal("one"))
        world.change(CHANGED)
        volume.commit()
        figures[f"seal after {CHANGED} changes"] = milliseconds(lambda: volume.seal("two"))
        one, two = (snapshot.epoch for snapshot in volume.snapshots())
        figures["delta of everything"] = milliseconds(
            lambda: read_delta(world.reader, Epoch(0), one)
        )
        figures[f"delta of {CHANGED} changes"] = milliseconds(
            lambda: read_delta(world.reader, one, two)
        )
        began = time.perf_counter()
        for number in range(snapshots - 2):
            world.change(BETWEEN)
            volume.seal(f"s{number:06}")
        figures[f"{BETWEEN} changes and a seal"] = (
            (time.perf_counter() - began) / max(1, snapshots - 2) * 1e3
        )
        for name, operation in OPERATIONS.items():
            figures[name] = statistics.median(operation(world) for _ in range(SAMPLES))
    figures["open"] = milliseconds(lambda: open_volume(path).close())
    figures |= through_the_mount(home, path)
    return figures


@contextmanager
def filled(path: Path, files: int, figures: dict[str, float]) -> Iterator[World]:
    """The volume with so many files in directories of 1,000."""
    with open_volume(path) as volume:
        inos: list[Ino] = []
        directories: list[Ino] = []
        began = time.perf_counter()
        for number in range(files):
            if number % A_DIRECTORY == 0:
                made = volume.mkdir(ROOT_INO, b"d%d" % number, 0o755, uid=0, gid=0)
                directories.append(made.ino)
            made = volume.mknod(directories[-1], b"f%d" % number, 0o100644, uid=0, gid=0)
            inos.append(made.ino)
        figures["create, us a file"] = (time.perf_counter() - began) / files * 1e6
        volume.commit()
        with open_volume(path, Access.READ_ONLY) as reader:
            yield World(path, volume, reader, directories, inos, random.Random(1))


def through_the_mount(home: Path, path: Path) -> dict[str, float]:
    """`.snapshots` as a process sees it."""
    place = home / "mnt"
    place.mkdir(exist_ok=True)
    mount_in_background(path, place, fsname="bench", log_file=home / "log", timeout_s=60)
    try:
        listing = [milliseconds(lambda: os.listdir(place / ".snapshots")) for _ in range(3)]
        long = milliseconds(lambda: [entry.stat() for entry in os.scandir(place / ".snapshots")])
        names = sorted(os.listdir(place / ".snapshots"))
        chosen = random.Random(2).sample(names, min(SAMPLES, len(names)))
        found = [milliseconds(lambda n=name: os.stat(place / ".snapshots" / n)) for name in chosen]
        times = [milliseconds(lambda: os.listdir(place / ".snapshots/@GMT")) for _ in range(3)]
    finally:
        unmount(place)
    return {
        "ls .snapshots": statistics.median(listing),
        "ls -l .snapshots": long,
        "a look-up in .snapshots": statistics.median(found),
        "ls .snapshots/@GMT": statistics.median(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--snapshots", type=int, default=1_000)
    parser.add_argument("--dir", type=Path, help="where (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    few, many = max(CHANGED, options.files // 10), max(LEAST, options.snapshots)
    with tempfile.TemporaryDirectory(dir=options.dir) as home:
        measure(Path(home) / "warm", CHANGED, LEAST)
        columns = [
            measure(Path(home), few, many),
            measure(Path(home), max(CHANGED, options.files), many),
            measure(Path(home), few, many * 10),
        ]
    small, large, long = columns
    print(f"{'milliseconds':28}{'a':>12}{'b':>12}{'c':>12}{'b/a':>8}{'c/a':>8}")
    for name, base in small.items():
        ratios = "".join(f"{other[name] / base if base else 0:>8.2f}" for other in (large, long))
        figures = "".join(f"{column[name]:>12.2f}" for column in columns)
        print(f"{name:28}{figures}{ratios}")
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1))


if __name__ == "__main__":
    main()
