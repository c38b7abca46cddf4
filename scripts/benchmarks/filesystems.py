"""File system workloads: ours beside others, interleaved in one run."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from candidates import CANDIDATES, MKFS, PACKAGES, USUAL, Candidate, Missing, Storage
from machine import touch_memory
from report import OURS, Figure, Pick, Table, cost
from workloads import WORKLOADS, Run, Skipped

GIB = 1 << 30
IMAGE = 16 * GIB
"""Bytes that an image may grow to."""

NEEDED = GIB
"""Bytes that a candidate comes to hold, at scale 1."""


def measure(
    workload: str, name: str, candidate: Candidate, scratch: Path, *, scale: float
) -> Figure:
    """Do a workload once, in an empty directory that is gone afterwards.

    Raises:
        Skipped: it cannot be done here.
    """
    home, kept = candidate.root / "run", candidate.root / "kept"
    home.mkdir()
    kept.mkdir(exist_ok=True)
    run = Run(
        home,
        kept,
        scratch,
        scale=scale,
        snapshot=candidate.snapshot,
        cpu=candidate.cpu_seconds,
    )
    try:
        WORKLOADS[workload](run)
    finally:
        shutil.rmtree(home)
    run.settle()
    return Figure(workload, name, run.operations, run.seconds, run.cpu_seconds)


def say(line: str) -> None:
    print(line, flush=True)


def rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def run_all(
    candidates: dict[str, Candidate],
    workloads: Sequence[str],
    scratch: Path,
    *,
    rounds: int,
    scale: float,
    pick: Pick,
    cpu: bool,
    figures: list[Figure],
) -> None:
    """Adds to *figures*; the candidates take turns, and the turns rotate."""
    table = Table(list(candidates), cpu=cpu, show=say)
    table.head()
    for number, workload in enumerate(workloads):
        of: dict[str, list[Figure]] = {name: [] for name in candidates}
        try:
            for turn in range(rounds):
                for name in rotated(list(candidates), number + turn):
                    of[name].append(measure(workload, name, candidates[name], scratch, scale=scale))
        except Skipped as exc:
            say(f"{workload:17}is left out: {exc}")
            continue
        table.add(workload, {name: cost(mine, pick) for name, mine in of.items()})
        figures += [figure for mine in of.values() for figure in mine]
    table.foot()


def roomy_directory(needed: int) -> Path:
    """Memory, so that a disk does not hide what is measured; else the disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and min(memory_free(), shutil.disk_usage(memory).free) > 2 * needed:
        return memory
    return Path("/var/tmp")


def memory_free() -> int:
    """Bytes that the kernel would give out, caches included (proc_meminfo(5))."""
    found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _chosen(text: str, known: Sequence[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; known are {', '.join(known)}")
    return names


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="workloads:\n"
        + "".join(f"  {name:16} {work.__doc__}\n" for name, work in WORKLOADS.items())
        + "candidates:\n"
        + "".join(f"  {name:16} {make.__doc__}\n" for name, make in CANDIDATES.items()),
    )
    parser.add_argument(
        "--only", type=lambda t: _chosen(t, list(WORKLOADS)), metavar="WORKLOAD,..."
    )
    parser.add_argument(
        "--candidates",
        type=lambda t: _chosen(t, list(CANDIDATES)),
        metavar="NAME,...",
        help=f"default: {','.join(USUAL)}",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often (default: 3)")
    parser.add_argument("--best", action="store_true", help="the best round, not the median")
    parser.add_argument("--scale", type=float, default=1.0, help="how much to do (default: 1)")
    parser.add_argument("--dir", type=Path, help="where images are made (default: memory)")
    parser.add_argument(
        "--image",
        choices=[*MKFS, "none"],
        default="xfs",
        help="the file system in the images; none: plain directories of DIR (default: xfs)",
    )
    parser.add_argument("--cpu", action="store_true", help="show the serving process's time, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    parser.add_argument(
        "--install", action="store_true", help="install the others from Debian first"
    )
    options = parser.parse_args(arguments)
    options.only = options.only or list(WORKLOADS)
    options.candidates = options.candidates or USUAL
    return options


class Interrupts:
    """SIGINT and SIGTERM end the run, but never between mounting something and knowing it."""

    def __init__(self) -> None:
        self._holding = False
        self._asked = False
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked = True
        if not self._holding:
            sys.exit("interrupted")

    @contextmanager
    def held(self) -> Iterator[None]:
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            sys.exit("interrupted")

    def ignore(self) -> None:
        self._holding = True


def open_all(
    names: Sequence[str], storage: Storage, stack: ExitStack, interrupts: Interrupts
) -> dict[str, Candidate]:
    """The candidates that can be had here, mounted; says which ones cannot."""
    found = {}
    for name in names:
        try:
            with interrupts.held():
                found[name] = stack.enter_context(CANDIDATES[name](storage))
                stack.callback(interrupts.ignore)  # what is mounted is unmounted
        except Missing as exc:
            say(f"{name} is left out: {exc}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    interrupts = Interrupts()
    if options.install:
        subprocess.run(["apt-get", "install", "-y", *PACKAGES], check=True)
    needed = round(NEEDED * options.scale * len(options.candidates))
    home = (options.dir or roomy_directory(needed)).resolve()
    say(
        f"{options.image} images in {home}, {options.rounds} rounds, scale {options.scale:g}; "
        f"ratio: how many times faster {OURS} is"
    )
    figures: list[Figure] = []
    try:
        with ExitStack() as stack:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=home))
            shared = stack.enter_context(ExitStack())
            fstype = "" if options.image == "none" else options.image
            storage = Storage(Path(place), fstype, IMAGE, shared)
            candidates = open_all(options.candidates, storage, stack, interrupts)
            touch_memory(min(needed, memory_free() // 2))
            run_all(
                candidates,
                options.only,
                storage.directory("scratch"),
                rounds=options.rounds,
                scale=options.scale,
                pick=min if options.best else statistics.median,
                cpu=options.cpu,
                figures=figures,
            )
    finally:
        if options.json:
            settings = {
                "scale": options.scale,
                "image": options.image,
                "kernel": os.uname().release,
            }
            saved = {"settings": settings, "figures": [asdict(figure) for figure in figures]}
            options.json.write_text(json.dumps(saved, indent=1))


if __name__ == "__main__":
    main()
