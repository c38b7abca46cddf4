"""A mounted volume under fio, dbench and stress-ng, with a snapshot every second.

Meanwhile two writers of our own work on the volume, too: one does the same random operations on a
plain directory and compares, the other writes numbered blocks, whose versions in each snapshot are
compared with what was written when it was asked for.  At the end everything is compared once
more, as it is, and again after unmounting, the volume's check and mounting.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import tools
from blocks import Blocks, Versions
from blocks import check as check_blocks
from mirror import Mirror, Picture, differences, picture
from world import Worker, World, mounted_world, xfs_disk

GIB = 1 << 30
DISK = 16 * GIB
"""What the image may grow to; it is sparse."""
SIZE = 12 * GIB
MARK_STEPS = 400
"""After so many operations of the mirror its tree is noted and a snapshot taken."""


class Snapshots:
    """Taken while others write, and what is known of each; random ones are destroyed again.

    `take` and `step_mirror` are for one thread each.
    """

    def __init__(
        self, world: World, blocks: Blocks, mirror: Mirror, chance: random.Random, *, keep: int
    ) -> None:
        self._world = world
        self._blocks = blocks
        self._mirror = mirror
        self._chance = chance
        self._keep = keep
        self._numbers = itertools.count()
        self._versions: dict[str, tuple[Versions, Versions]] = {}
        self._trees: dict[str, Picture] = {}
        self.seconds: list[float] = []
        """How long each took."""

    def take(self) -> None:
        """One while everybody writes."""
        oldest = self._blocks.written()
        name = self._create("second")
        self._versions[name] = oldest, self._blocks.begun()
        self._check_blocks(name)
        self._thin(self._versions)

    def step_mirror(self) -> None:
        """Some operations, then a snapshot of the tree as it is now: nobody else changes it."""
        for _ in range(MARK_STEPS):
            self._mirror.step()
        name = self._create("mark")
        self._trees[name] = picture(self._mirror.reference)
        self._thin(self._trees)

    def _create(self, kind: str) -> str:
        name = f"{kind}-{next(self._numbers)}"
        began = time.monotonic()
        self._world.control.call("snapshot", name=name)
        self.seconds.append(time.monotonic() - began)
        return name

    def _thin(self, known: dict[str, Any]) -> None:
        if len(known) > self._keep:
            victim = self._chance.choice(list(known))
            del known[victim]
            self._world.control.call("snapshot_destroy", names=[victim])

    def _check_blocks(self, name: str) -> None:
        path = self._world.snapshot(name) / self._blocks.path.name
        self._world.problems += check_blocks(path, *self._versions[name])

    def names(self) -> list[str]:
        return [*self._versions, *self._trees]

    def check(self) -> int:
        """All that is known of every snapshot; then each file of each is read: how many bytes."""
        listed = sorted(os.listdir(self._world.root / ".snapshots"))
        if listed != sorted(self.names()):
            self._world.problems.append(f"snapshots are {listed}, not {sorted(self.names())}")
        for name in self._versions:
            self._check_blocks(name)
        for name, tree in self._trees.items():
            found = picture(self._world.snapshot(name) / self._mirror.volume.name)
            self._world.problems += [f"{name}: {line}" for line in differences(found, tree)]
        return sum(read_all(self._world.snapshot(name)) for name in self.names())

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} taken in {statistics.median(self.seconds) * 1000:.0f} ms"
            f" (median) to {max(self.seconds) * 1000:.0f} ms, {len(self.names())} kept"
        )


def read_all(top: Path) -> int:
    """Read every file; how many bytes that are."""
    count = 0
    for directory, _, names in os.walk(top):
        for path in (Path(directory, name) for name in names):
            if path.is_file() and not path.is_symlink():
                with path.open("rb", buffering=0) as file:
                    while chunk := file.read(1 << 20):
                        count += len(chunk)
    return count


class Report:
    """Lines for people, as they come."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told = 0

    def say(self, title: str, figures: str = "", problem: str = "") -> None:
        """One result, with all problems since the last one."""
        if problem:
            self._world.problems.append(f"{title}: {problem}")
        fresh = self._world.problems[self._told :]
        self._told += len(fresh)
        print(f"{'FAILED' if fresh else 'ok':7}{title:44} {figures}", flush=True)
        for sentence in fresh:
            print(f"       {sentence}", flush=True)


def stress(home: Path, options: argparse.Namespace) -> list[str]:
    """Everything, once; what does not hold."""
    chance = random.Random(options.seed)
    with ExitStack() as stack:
        disk = stack.enter_context(xfs_disk(home, DISK))
        world = stack.enter_context(mounted_world(home, disk, size=SIZE))
        report = Report(world)
        blocks = stack.enter_context(
            closing(Blocks(world.root / "blocks", random.Random(chance.random())))
        )
        mirror = Mirror(
            world.root / "mirror", world.reference / "mirror", random.Random(chance.random())
        )
        snapshots = Snapshots(world, blocks, mirror, chance, keep=options.keep)
        with (
            Worker("blocks", world, blocks.step, pause_s=0.02) as writer,
            Worker("mirror", world, snapshots.step_mirror, pause_s=0.5) as changer,
            Worker("snapshots", world, snapshots.take, pause_s=1.0),
        ):
            if not options.tools:
                time.sleep(options.seconds)
            for name in options.tools:
                directory = world.root / name
                directory.mkdir()
                for outcome in tools.TOOLS[name](directory, options.seconds):
                    report.say(outcome.name, outcome.figures, outcome.problem)
                shutil.rmtree(directory)
        report.say("snapshots", str(snapshots))
        report.say(
            "writers", f"{writer.steps} of blocks, {changer.steps * MARK_STEPS} on two trees"
        )
        report.say("memory of the mount process", f"{world.memory() >> 20} MiB at most")
        compare(world, report, blocks, mirror, snapshots, "")
        blocks.close()
        world.unmount()
        world.check()
        report.say("volume check, log of the mount")
        world.mount()
        compare(world, report, blocks, mirror, snapshots, ", mounted again")
        world.unmount()
        return world.problems


def compare(
    world: World, report: Report, blocks: Blocks, mirror: Mirror, snapshots: Snapshots, when: str
) -> None:
    """While nobody writes: the two trees, the blocks, every snapshot."""
    world.problems += mirror.differences()
    world.problems += check_blocks(blocks.path, blocks.written(), blocks.begun())
    report.say(f"trees and blocks{when}")
    count = snapshots.check()
    report.say(f"every file of every snapshot{when}", f"{count >> 20} MiB")


def roomy_directory() -> Path:
    """Memory, so that a slow disk does not spare us anything; else the disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > DISK:
        return memory
    return Path("/var/tmp")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="stressors of stress-ng that are left out:\n"
        + "".join(f"  {name:12} {why}\n" for name, why in tools.STRESSORS_LEFT_OUT.items()),
    )
    parser.add_argument("--seconds", type=int, default=20, help="for each tool (default: 20)")
    parser.add_argument(
        "--tools",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(tools.TOOLS),
        metavar="NAME,...",
        help=f"default: {','.join(tools.TOOLS)}; empty: our own writers alone",
    )
    parser.add_argument("--keep", type=int, default=8, help="snapshots of each kind (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of our own writers (default: 0)")
    parser.add_argument("--dir", type=Path, help="where the disk's image is made (default: memory)")
    parser.add_argument("--install", action="store_true", help="install what is missing first")
    options = parser.parse_args(arguments)
    if unknown := set(options.tools) - set(tools.TOOLS):
        parser.error(f"no such tool: {', '.join(sorted(unknown))}")
    return options


def install(packages: Sequence[str]) -> None:
    for words in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", *words], check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> int:
    options = parse()
    lacking = [package for package in tools.missing() if package in options.tools]
    if lacking and options.install:
        install(lacking)
    elif lacking:
        print(f"error: not installed: {', '.join(lacking)}", file=sys.stderr)
        print("hint: stress --install installs them (Debian packages)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="stress-", dir=options.dir or roomy_directory()) as top:
        problems = stress(Path(top), options)
    print(f"{len(problems)} problems" if problems else "everything holds")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
