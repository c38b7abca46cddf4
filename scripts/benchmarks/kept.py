"""Writes while snapshots are kept: none, some, many, side by side, and right after a snapshot."""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from filesystems import roomy_directory, rotated, say
from machine import touch_memory

from nasfs.fuse.control import ControlClient
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.fuse.mountpoint import detach_dead, find_mount
from nasfs.volume import create_pool, create_volume, volume_path
from nasfs.volume.types import SnapshotState

KIB = 1024
MIB = 1024 * KIB
FILE = 128 * MIB
BETWEEN = 64
"""Blocks that change between two snapshots: the file is in pieces of all of them."""


@dataclass
class Kept:
    """A mounted volume with so many snapshots of a file that changed between them."""

    root: Path
    database: Path
    control: ControlClient
    snapshots: int
    chance: random.Random = field(default_factory=lambda: random.Random(3))
    numbers: count[int] = field(default_factory=count)

    @property
    def file(self) -> Path:
        return self.root / "file"

    def fill(self) -> None:
        self.file.write_bytes(b"f" * FILE)
        for _ in range(self.snapshots):
            self.overwrite(4 * KIB, BETWEEN)
            self.take()

    def take(self) -> str:
        name = f"s{next(self.numbers):06}"
        self.control.call("snapshot", name=name)
        return name

    def renew(self) -> None:
        """One more snapshot, and the oldest goes: what is written next is redirected.

        Where none is kept it goes again at once: that is the redirect without anything kept.
        """
        self.take()
        oldest = next(iter(sorted(os.listdir(self.root / ".snapshots"))))
        self.control.call("snapshot_destroy", names=[oldest])

    def rewrite(self) -> None:
        """All of the file is of the time after the newest snapshot."""
        with self.file.open("r+b") as file:
            for _ in range(FILE // MIB):
                file.write(self.chance.randbytes(MIB))

    def settle(self) -> None:
        """Nothing is left to be written or given back."""
        while True:
            self.control.call("commit")
            if not self._gives_back():
                return
            time.sleep(0.05)

    def _gives_back(self) -> bool:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            left = database.execute(
                "SELECT EXISTS (SELECT 1 FROM reclaim)"
                " OR EXISTS (SELECT 1 FROM snapshot WHERE state = ?)",
                (SnapshotState.DESTROYING.value,),
            ).fetchone()
        return bool(left[0])

    def overwrite(self, request: int, requests: int) -> None:
        data = self.chance.randbytes(request)
        fd = os.open(self.file, os.O_WRONLY)
        try:
            for _ in range(requests):
                os.pwrite(fd, data, self.chance.randrange(FILE // request) * request)
        finally:
            os.close(fd)

    def make_files(self, files: int) -> None:
        """Small files with their content; removed before the next time."""
        place = self.root / f"small-{next(self.numbers)}"
        place.mkdir()
        for number in range(files):
            (place / f"f{number}").write_bytes(b"small" * 600)

    def remove_files(self) -> None:
        for place in self.root.glob("small-*"):
            for file in place.iterdir():
                file.unlink()
            place.rmdir()


@dataclass(frozen=True, slots=True)
class Workload:
    work: Callable[[Kept, int], None]
    operations: int
    """At scale 1."""
    after_a_snapshot: bool = False


WORKLOADS = {
    "overwrite-4k": Workload(lambda kept, n: kept.overwrite(4 * KIB, n), 6000),
    "overwrite-64k": Workload(lambda kept, n: kept.overwrite(64 * KIB, n), 2000),
    "small-files": Workload(lambda kept, n: kept.make_files(n), 1000),
    "redirect-4k": Workload(lambda kept, n: kept.overwrite(4 * KIB, n), 6000, True),
    "redirect-64k": Workload(lambda kept, n: kept.overwrite(64 * KIB, n), 1000, True),
    "redirect-files": Workload(lambda kept, n: kept.make_files(n), 1000, True),
}
"""Those called redirect begin with a snapshot: every block goes to a new place, once.  The others
go on writing what was written since the newest snapshot."""


def measure(kept: Kept, workload: Workload, operations: int) -> float:
    """Microseconds of one operation, what it leaves to be committed included."""
    kept.remove_files()
    if workload.after_a_snapshot:
        kept.renew()
    kept.settle()
    began = time.perf_counter()
    workload.work(kept, operations)
    kept.control.call("commit")
    return (time.perf_counter() - began) / operations * 1e6


def compare(
    volumes: dict[int, Kept], chosen: Sequence[str], rounds: int, scale: float
) -> list[dict[str, object]]:
    """The volumes take turns, and the turns rotate; prints a line for each workload."""
    figures: list[dict[str, object]] = []
    amounts = list(volumes)
    heads = "".join(f"{f'{amount} kept':>12}{'ratio':>8}{'spread':>8}" for amount in amounts)
    say(f"{'us per operation':17}{heads}")
    for name in chosen:
        workload = WORKLOADS[name]
        operations = max(1, round(workload.operations * scale))
        times: dict[int, list[float]] = {amount: [] for amount in amounts}
        for kept in volumes.values():
            if not workload.after_a_snapshot:
                kept.rewrite()
            measure(kept, workload, operations)  # not counted: what was never written is slower
        for turn in range(rounds):
            for amount in rotated([*map(str, amounts)], turn):
                times[int(amount)].append(measure(volumes[int(amount)], workload, operations))
        cells = ""
        for amount, mine in times.items():
            # Of one turn each: what else the machine did meanwhile was much the same for all.
            ratios = [one / base for one, base in zip(mine, times[amounts[0]], strict=True)]
            spread = statistics.quantiles(ratios, n=4)[2] - statistics.quantiles(ratios, n=4)[0]
            cells += f"{statistics.median(mine):>12.1f}{statistics.median(ratios):>8.3f}"
            cells += f"{spread:>8.3f}"
            figures.append(
                {
                    "workload": name,
                    "kept": amount,
                    "operations": operations,
                    "us": mine,
                    "ratio": statistics.median(ratios),
                }
            )
        say(f"{name:17}{cells}")
    return figures


def mount(home: Path, amount: int, stack: ExitStack) -> Kept:
    place = home / str(amount)
    (place / "mnt").mkdir(parents=True)
    pool = create_pool(place / "pool")
    create_volume(pool, "v", size=1 << 42)
    mount_in_background(
        volume_path(pool, "v"),
        place / "mnt",
        control=place / "control",
        fsname=f"kept-{amount}",
        log_file=place / "log",
        timeout_s=60,
    )
    stack.callback(take_down, place / "mnt")
    database = volume_path(pool, "v") / "meta.db"
    kept = Kept(place / "mnt", database, ControlClient(place / "control"), amount)
    kept.fill()
    return kept


def take_down(place: Path) -> None:
    if find_mount(place) is not None:
        try:
            unmount(place)
        except Exception:
            detach_dead(place)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snapshots", default="0,50,500", metavar="N,N,...", help="kept")
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="of the operations in a round")
    parser.add_argument("--dir", type=Path, help="where (default: memory, if there is enough)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name]
    if unknown := [name for name in chosen if name not in WORKLOADS]:
        parser.error(f"{', '.join(unknown)}; known are {', '.join(WORKLOADS)}")
    try:
        amounts = [int(amount) for amount in options.snapshots.split(",")]
    except ValueError:
        parser.error(f"{options.snapshots!r} is not a list of numbers")
    if options.rounds < 2 or len(set(amounts)) < len(amounts) or min(amounts) < 0:
        parser.error("at least two rounds, and each number of snapshots once")
    needed = sum(FILE + amount * BETWEEN * 4 * KIB + 64 * MIB for amount in amounts)
    directory = options.dir or roomy_directory(needed)
    touch_memory(min(needed, 256 * MIB))
    with (
        tempfile.TemporaryDirectory(prefix="nasfs-kept-", dir=directory) as home,
        ExitStack() as up,
    ):
        volumes = {amount: mount(Path(home), amount, up) for amount in amounts}
        figures = compare(volumes, chosen, options.rounds, options.scale)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(main())
