"""Near-continuous: a snapshot every second on a volume under load, thinned as they age."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from filesystems import roomy_directory, say
from kept import take_down

from nasfs.fuse.control import ControlClient
from nasfs.fuse.mount import mount_in_background, unmount
from nasfs.volume import check_volume, create_pool, create_volume, volume_path

KIB, MIB = 1024, 1024 * 1024
FILE = 64 * MIB
TIERS = ((1, 600), (10, 3600), (60, 86_400))
"""(one of so many is kept, up to this age in seconds)"""


@dataclass(frozen=True, slots=True)
class Line:
    """What happened within one report; times in milliseconds."""

    seconds: float
    kept: int
    taken: int
    seal_median: float
    seal_worst: float
    destroy_worst: float
    late_worst: float
    """How long after its time a snapshot was begun."""
    writes_a_second: float
    write_worst: float
    memory_mib: float
    metadata_mib: float


class Load(threading.Thread):
    """Overwrites a part of one file at random and replaces small files.

    Args:
        pace: so many writes a second, at most; 0: as fast as it can.
    """

    def __init__(self, root: Path, pace: float = 0) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._pause = 1 / pace if pace else 0.0
        self._chance = random.Random(4)
        self._done = threading.Event()
        self.count = 0
        self.worst = 0.0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            fd = os.open(self._root / "file", os.O_RDWR)
            try:
                while not self._done.is_set():
                    began = time.perf_counter()
                    self._one(fd)
                    self.worst = max(self.worst, time.perf_counter() - began)
                    self.count += 1
                    if self._pause:
                        self._done.wait(self._pause)
            finally:
                os.close(fd)
        except BaseException as exc:
            self.failure = exc

    def _one(self, fd: int) -> None:
        if self.count % 10:
            offset = self._chance.randrange(FILE // (4 * KIB)) * 4 * KIB
            os.pwrite(fd, self._chance.randbytes(4 * KIB), offset)
        else:
            fresh = self._root / "fresh"
            fresh.write_bytes(self._chance.randbytes(3000))
            fresh.rename(self._root / f"f{self._chance.randrange(200)}")

    def stop(self) -> None:
        self._done.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def doomed(times: Sequence[float], now: float, tiers: Sequence[tuple[float, float]]) -> list[float]:
    """Which of the snapshots taken at *times* (ascending) thinning takes.

    In each stretch of a tier's length the first one stays; older than all tiers none does.
    """
    gone: list[float] = []
    seen: set[tuple[float, int]] = set()
    for taken in times:
        tier = next((tier for tier in tiers if now - taken <= tier[1]), None)
        stretch = None if tier is None else (tier[0], int(taken // tier[0]))
        if stretch is None or stretch in seen:
            gone.append(taken)
        else:
            seen.add(stretch)
    return gone


def run(
    control: ControlClient,
    load: Load,
    path: Path,
    pid: int,
    *,
    seconds: float,
    every: float,
    tiers: Sequence[tuple[float, float]],
    report: float,
) -> list[Line]:
    lines: list[Line] = []
    kept: dict[float, str] = {}
    seals: list[float] = []
    destroys: list[float] = [0.0]
    lates: list[float] = [0.0]
    began = last = time.monotonic()
    written, number = load.count, 0
    while time.monotonic() - began < seconds:
        due = began + number * every
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        lates.append(now - due)
        control.call("snapshot", name=f"s{number:07}")
        seals.append(time.monotonic() - now)
        kept[now - began] = f"s{number:07}"
        number += 1
        gone = doomed(list(kept), time.monotonic() - began, tiers)
        if gone:
            at = time.monotonic()
            control.call("snapshot_destroy", names=[kept.pop(taken) for taken in gone])
            destroys.append(time.monotonic() - at)
        if load.failure is not None:
            break
        now = time.monotonic()
        if now - last >= report:
            line = Line(
                now - began,
                len(kept),
                number,
                statistics.median(seals) * 1e3,
                max(seals) * 1e3,
                max(destroys) * 1e3,
                max(lates) * 1e3,
                (load.count - written) / (now - last),
                load.worst * 1e3,
                memory_mib(pid),
                sum(file.stat().st_size for file in path.glob("meta.db*")) / MIB,
            )
            lines.append(line)
            say("".join(f"{value:>10.1f}" for value in asdict(line).values()))
            last, written, load.worst = now, load.count, 0.0
            seals, destroys, lates = [], [0.0], [0.0]
    return lines


def memory_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all (3600: the long form)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two snapshots")
    parser.add_argument(
        "--age", type=float, default=0,
        help="let the tiers end so many times sooner (default: the whole run is an hour)",
    )  # fmt: skip
    parser.add_argument(
        "--writes", type=float, default=0, help="a second, at most (default: as many as it can)"
    )
    parser.add_argument("--report", type=float, default=0, help="seconds (default: ten in all)")
    parser.add_argument("--dir", type=Path, help="where (default: memory, if there is enough)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    if (
        options.seconds <= 0
        or options.every <= 0
        or min(options.age, options.report, options.writes) < 0
    ):
        parser.error("these are numbers above 0")
    return options


def main() -> None:
    options = parse_options()
    shorter = options.age or max(1.0, 3600 / options.seconds)
    tiers = [(every * options.every, age / shorter) for every, age in TIERS]
    needed = FILE * 3 + int(options.seconds) * 16 * MIB
    with (
        tempfile.TemporaryDirectory(
            prefix="nasfs-continuous-", dir=options.dir or roomy_directory(needed)
        ) as name,
        ExitStack() as up,
    ):
        home = Path(name)
        (home / "mnt").mkdir()
        pool = create_pool(home / "pool")
        create_volume(pool, "v", size=1 << 42)
        path = volume_path(pool, "v")
        pid = mount_in_background(
            path,
            home / "mnt",
            control=home / "control",
            fsname="continuous",
            log_file=home / "log",
            timeout_s=60,
        )
        up.callback(take_down, home / "mnt")
        (home / "mnt/file").write_bytes(b"f" * FILE)
        load = Load(home / "mnt", options.writes)
        load.start()
        say("".join(f"{word:>10}" for word in HEADS))
        try:
            lines = run(
                ControlClient(home / "control"),
                load,
                path,
                pid,
                seconds=options.seconds,
                every=options.every,
                tiers=tiers,
                report=options.report or options.seconds / 10,
            )
        finally:
            load.stop()
        unmount(home / "mnt", timeout_s=600)
        findings = check_volume(path)
    say(f"check: {len(findings)} findings")
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))
    if findings:
        raise SystemExit("\n".join(map(str, findings)))


HEADS = (
    "seconds", "kept", "taken", "seal", "worst", "destroy", "late", "writes/s", "worst", "MiB",
    "meta MiB",
)  # fmt: skip

if __name__ == "__main__":
    main()
