"""A pair under a writer, snapshots and kills of anything: what was acknowledged stays, B follows.

A writer appends numbered, fsynced records on A and churns other files; snapshots are taken and
replicated; meanwhile the mount process, either daemon, the sender or the receiver gets SIGKILL.
At the end every acknowledged record is there, and after a failover B equals A's last snapshot.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from nasfs.volume import check_volume
from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import LOSE, Pair, picture
from tests.test_node_failover import pair as pair  # the fixture

pytestmark = pytest.mark.mount

NOBODY = 65534

WRITER = """
import os, random, sys, time
from pathlib import Path
top, acknowledged, chance = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(5)
number = 0
told = acknowledged.open("a", buffering=1)
while True:
    try:
        with open(top / "log", "ab", buffering=0) as log:
            while True:
                number += 1
                log.write(b"%d\\n" % number)
                os.fsync(log.fileno())
                told.write(f"{number}\\n")
                other = top / f"f{chance.randrange(40)}"
                match chance.randrange(4):
                    case 0:
                        other.write_bytes(chance.randbytes(chance.randrange(30_000)))
                    case 1:
                        other.unlink(missing_ok=True)
                    case 2 if other.exists():
                        os.rename(other, top / f"f{chance.randrange(40)}")
                    case 3:
                        with open(other, "ab") as file:
                            file.write(b"more" * 500)
    except OSError:  # the mount process was killed; the daemon starts another
        time.sleep(0.02)
"""


def processes_of(node: NodeWorld, word: str) -> list[int]:
    """Processes that this node started, with *word* in their command line."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(node.root) in words and word.encode() in words:
            found.append(int(entry))
    return found


def strike(pair: Pair, chance: random.Random) -> str:
    """SIGKILL for something; says what.  Daemons are started again."""
    kind = chance.choice(["mount", "sender", "receiver", "daemon a", "daemon b"])
    if kind.startswith("daemon"):
        node = pair.a if kind.endswith("a") else pair.b
        node.kill()
        node.start()
        return kind
    node, word = {
        "mount": (pair.a, "mount"),
        "sender": (pair.a, "nasfs.node.sending.send"),
        "receiver": (pair.b, "nasfs.node.receiving.receive"),
    }[kind]
    for pid in processes_of(node, word):
        os.kill(pid, signal.SIGKILL)
    return kind


def try_snapshot(pair: Pair, name: str) -> None:
    """It may be refused while the mount process is coming back."""
    wait_until(
        lambda: pair.a.nasfs("snapshot", "create", f"office@{name}").returncode == 0,
        f"snapshot {name}",
    )


@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.soak)])
def test_kills_of_anything_lose_nothing(
    pair: Pair, tmp_path: Path, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(rounds)
    here, acknowledged = pair.a.mountpoint("tank/home"), tmp_path / "acknowledged"
    acknowledged.touch()
    for path in (here, acknowledged):
        os.chown(path, NOBODY, NOBODY)
    open_up(tmp_path)
    # Not as root, who may write into the bare directory while the mount process comes back.
    writer = subprocess.Popen(
        ["/usr/bin/python3", "-c", WRITER, here, acknowledged], user=NOBODY, group=NOBODY
    )
    struck = []
    try:
        for number in range(rounds):
            told_before = count(acknowledged)
            goes_on = partial(is_beyond, acknowledged, told_before + 20)
            wait_until(goes_on, "the writer goes on", deadline_s=120)  # a mount may back off
            try_snapshot(pair, f"s{number}")
            struck.append(strike(pair, chance))
    finally:
        writer.kill()
        writer.wait()
    wait_until(partial(is_back, here), "the mount is back", deadline_s=120)
    told = acknowledged.read_bytes().split()
    assert set(told) - set((here / "log").read_bytes().split()) == set()
    try_snapshot(pair, "last")
    wait_until(
        lambda: pair.a.nasfs("replication", "run", "office", "--wait").returncode == 0,
        "everything is replicated",
        deadline_s=120,
    )
    expected = picture(here / ".snapshots/last")
    pair.a.kill_all()
    pair.b.run("failover", "office", *LOSE)
    assert picture(pair.b.mountpoint("safe/home")) == expected
    assert check_volume(pair.a.root / "pool/home") == []
    assert check_volume(pair.b.root / "pool/home") == []
    with capsys.disabled():
        print(f"\n{len(told)} acknowledged records, struck: {', '.join(struck)}")


def is_beyond(acknowledged: Path, number: int) -> bool:
    return count(acknowledged) > number


def is_back(here: Path) -> bool:
    try:
        return here.is_mount() and (here / "log").stat().st_size > 0
    except OSError:  # a dead mount is still there
        return False


def open_up(path: Path) -> None:
    """Let other users reach what is below (pytest makes its directories private)."""
    for part in (path, *list(path.parents)[:2], path / "a"):
        part.chmod(part.stat().st_mode | 0o055)


def count(path: Path) -> int:
    """Whole lines in a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
