"""A failover by stages, of a group with few files and of one with many: planned, and forced."""

from __future__ import annotations

import argparse
import json
import sqlite3
import stat
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from filesystems import say
from sites import Site, wait_until

from nasfs.volume import ROOT_INO, open_pool, open_volume, volume_path

A_DIRECTORY = 1000
FIRST_UID = 5000
WORTH_COUNTING = 10_000
"""Fewer files are counted at once, by the failover itself."""
COUNTED_S = 300.0
LOSE = ("--force", "--lose-unreplicated")


def fill(path: Path, files: int, users: int) -> None:
    """So many files in directories of 1,000, of these users in turn; some have some bytes."""
    with open_volume(path) as volume:
        volume.setattr(ROOT_INO, mode=0o755)
        for number in range(files):
            uid = FIRST_UID + number % users
            if number % A_DIRECTORY == 0:
                place = volume.mkdir(ROOT_INO, b"d%d" % number, 0o755, uid=uid, gid=uid).ino
            mode = stat.S_IFREG | 0o644
            made = volume.mknod(place, b"f%d" % number, mode, uid=uid, gid=uid)
            if number % 100 == 0:
                volume.write(made.ino, 0, b"a few bytes\n")
        volume.commit()


class Group:
    """Group office: volumes of tank on a, each with a share of its own, replicated to safe on b."""

    def __init__(self, a: Site, b: Site, *, files: int, volumes: int, users: int) -> None:
        self.a, self.b = a, b
        self._names = [f"v{number}" for number in range(volumes)]
        for number in range(users):
            a.add_user(f"u{number}", FIRST_UID + number)
        for site, pool in ((a, "tank"), (b, "safe")):
            site.start()
            site.run("pool", "create", pool, str(site.root / "pool"))
        a.run("pair", "join", b.run("pair", "invite").strip())
        pool = open_pool(a.root / "pool")
        for name in self._names:
            a.run("volume", "create", f"tank/{name}", "--size", "10G")
            fill(volume_path(pool, name), files // volumes, users)
            a.run("volume", "mount", f"tank/{name}")
        a.run("group", "create", "office", *(f"tank/{name}" for name in self._names))
        for number, name in enumerate(self._names):
            user = f"u{number % users}"
            a.run("share", "add", f"share-{name}", f"tank/{name}", "--user", user)
        a.run("replication", "create", "office", "--to-pool", "safe")
        self.replicate("first")
        if files >= WORTH_COUNTING:
            wait_until(self._is_counted, "b knows whose the files are", COUNTED_S)

    def _is_counted(self) -> bool:
        """Within a minute or so of the first copy; a failover before that does it itself."""
        with closing(sqlite3.connect(self.b.root / "var/lib/nasfs/node.db")) as db:
            counted = db.execute("SELECT count(*) FROM identity_count").fetchone()[0]
        return int(counted) == len(self._names)

    def replicate(self, snapshot: str) -> None:
        self.a.run("snapshot", "create", f"office@{snapshot}")
        self.a.run("replication", "run", "office", "--wait")

    def change_a_little(self, site: Site, pool: str, what: str) -> None:
        """A file in each volume."""
        for name in self._names:
            (site.seen(site.root / "srv/nasfs" / pool / name) / what).write_text(what)

    def check(self, site: Site, pool: str, what: str) -> None:
        """Every volume and share is served, with what was written last."""
        for name in self._names:
            place = site.seen(site.root / "srv/nasfs" / pool / name)
            if (place / what).read_text() != what:
                raise RuntimeError(f"{name} lacks what was written")
        served = {share["share"]["name"]: share["state"] for share in site.json("share", "list")}
        if served != {f"share-{name}": "served" for name in self._names}:
            raise RuntimeError(f"shares: {served}")


def timed(site: Site, *words: str) -> dict[str, float]:
    """Seconds of each kind of stage, and of the whole command, as a person waits for it."""
    began = time.monotonic()
    plan: dict[str, Any] = site.json(*words)
    whole = time.monotonic() - began
    stages: dict[str, float] = {}
    for step in plan["steps"]:
        stages[step["action"]] = stages.get(step["action"], 0.0) + step["seconds"]
    stages["looking and planning"] = plan["seconds"] - sum(stages.values())
    stages["the operation"] = plan["seconds"]
    stages["the command"] = whole
    return stages


def measure(home: Path, *, files: int, volumes: int, users: int) -> dict[str, dict[str, float]]:
    """Stages of a planned failover, of the failback, and of a forced failover."""
    home.mkdir()
    with ExitStack() as up:
        a, b = (Site(home, name) for name in "ab")
        for site in (a, b):
            up.callback(site.close)
        began = time.monotonic()
        group = Group(a, b, files=files, volumes=volumes, users=users)
        say(f"{files:,} files in {volumes} volumes, made and replicated in"
            f" {time.monotonic() - began:.0f} s")  # fmt: skip
        figures = {}
        group.change_a_little(a, "tank", "on-a")
        figures["failover"] = timed(b, "failover", "office")
        group.check(b, "safe", "on-a")
        group.change_a_little(b, "safe", "on-b")
        figures["failback"] = timed(a, "failback", "office")
        group.check(a, "tank", "on-b")
        group.change_a_little(a, "tank", "last")
        group.replicate("second")
        a.lose()
        figures["by force"] = timed(b, "failover", "office", *LOSE)
        group.check(b, "safe", "last")
    say(", ".join(f"{kind} {stages['the operation']:.1f} s" for kind, stages in figures.items()))
    return figures


def show(columns: dict[int, dict[str, dict[str, float]]]) -> None:
    heads = "".join(f"{f'{files:,} files':>18}" for files in columns)
    for kind in next(iter(columns.values())):
        say(f"\n{kind + ', seconds':40}{heads}")
        stages = dict.fromkeys(name for column in columns.values() for name in column[kind])
        for name in stages:
            cells = "".join(f"{column[kind].get(name, 0.0):>18.2f}" for column in columns.values())
            say(f"{name:40}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", default="10000,1000000", metavar="N,N,...")
    parser.add_argument("--volumes", type=int, default=10)
    parser.add_argument("--users", type=int, default=20, help="that the shares and files name")
    parser.add_argument("--dir", type=Path, help="where (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    try:
        counts = [int(count) for count in options.files.split(",")]
    except ValueError:
        parser.error(f"{options.files!r} is not a list of numbers")
    if options.volumes < 1 or options.users < 1 or min(counts) < options.volumes:
        parser.error("at least one volume, one user, and a file in each volume")
    with tempfile.TemporaryDirectory(prefix="nasfs-failover-", dir=options.dir) as home:
        Path(home).chmod(0o711)
        columns = {
            files: measure(
                Path(home) / str(files), files=files, volumes=options.volumes, users=options.users
            )
            for files in counts
        }
    show(columns)
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1))


if __name__ == "__main__":
    sys.exit(main())
