"""Replication over a bad wire: whatever happens to it and to the processes, the two sites converge.

Two nodes in network name spaces, a limited wire between them, a writer that never stops, a snapshot
every second.  The wire is cut, slowed down and reset, windows open and close, the rate changes,
daemons, senders and receivers are killed.  What the partner has acknowledged is never taken back;
in the end both mounts are compared, by what any program sees of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nasfs.errors import NasError
from nasfs.node.client import Client, replication_url
from nasfs.node.messages import ReplicationView
from nasfs.node.places import Places
from nasfs.volume import check_volume
from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import INO_MASK, LOSE
from tests.test_node_link import CLOSED
from tests.test_soak_nodes import processes_of
from tests.wire_world import ADDRESSES, Wire, wire

pytestmark = pytest.mark.mount

MIB = 1 << 20
PORT = 7600
WINDOW = 24 * MIB
"""So much may be on its way without an acknowledgement when something breaks."""
RSS_MAX = 200 * MIB
KINDS = ("cut", "reset", "kill a", "kill b", "sender", "receiver", "window", "rate", "slow")

WRITER = """
import os, random, sys, time
top, chance = sys.argv[1], random.Random(int(sys.argv[2]))
def any_path():
    return os.path.join(top, "d%d" % chance.randrange(4), "f%d" % chance.randrange(60))
def step():
    path = any_path()
    match chance.randrange(10):
        case 0 | 1 | 2:
            with open(path, "wb") as file:
                file.write(chance.randbytes(chance.randrange(40_000)))
        case 3:
            with open(path, "ab") as file:
                file.write(b"more" * chance.randrange(2000))
        case 4:
            os.unlink(path)
        case 5:
            os.rename(path, any_path())
        case 6:
            os.chown(path, chance.randrange(9), chance.randrange(9))
            os.chmod(path, chance.randrange(0o1000))
        case 7:
            os.setxattr(path, "user.n%d" % chance.randrange(3), chance.randbytes(20))
        case 8:
            chance.choice([os.link, os.symlink])(path, any_path())
        case 9:
            with open(os.path.join(top, "large"), "r+b") as file:
                file.seek(chance.randrange(0, os.fstat(file.fileno()).st_size, 4096))
                file.write(chance.randbytes(chance.choice([4096, 50_000])))
for number in range(4):
    os.makedirs(os.path.join(top, "d%d" % number), exist_ok=True)
while True:
    time.sleep(0.01)
    try:
        step()
    except OSError as exc:
        if exc.errno not in (2, 17, 40, 95):  # not there, there already, a loop of links
            raise
"""


@dataclass
class Sites:
    """Group office, of volume tank/home on A, replicated to pool safe on B, over the wire."""

    a: NodeWorld
    b: NodeWorld
    wire: Wire
    chance: random.Random
    strikes: int = 0
    memory: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _coming: list[str] = field(default_factory=list)
    _acknowledged: dict[str, int] = field(default_factory=dict)
    """Bytes that B told to be durable, by snapshot."""

    def progress(self) -> object:
        """Something that changes whenever B has more; what it had told is still true."""
        try:
            url = replication_url("office")
            view = Client(Places(self.a.root)).get(url, ReplicationView)
        except NasError:
            return None
        if view.state == "running" and view.phase in ("sending", "sealing"):
            before = self._acknowledged.get(view.snapshot, 0)
            assert view.bytes_done >= before, f"{view.snapshot}: B had {before} bytes already"
            self._acknowledged[view.snapshot] = view.bytes_done
        return view.common, sum(self._acknowledged.values())

    def measure_memory(self) -> None:
        for node in (self.a, self.b):
            for word in ("run", "mount", "nasfs.node.sending.send", "nasfs.node.receiving.receive"):
                for pid in processes_of(node, word):
                    self.memory[word].append(resident(pid))

    def strike(self, *, long: bool) -> str:
        """Something happens to wire or processes; what it was."""
        self.strikes += 1
        if not self._coming:
            self._coming = list(KINDS)
            self.chance.shuffle(self._coming)
        kind = self._coming.pop()
        match kind:
            case "cut":
                self.wire.cut()
                silence = self.chance.random() < 0.2 and long  # so long that it is given up
                time.sleep(25 if silence else self.chance.uniform(0.1, 2))
                self.wire.mend()
            case "reset":
                self.wire.reset()
            case "kill a" | "kill b":
                node = self.a if kind == "kill a" else self.b
                node.kill()
                node.start()
            case "sender":
                kill_all(processes_of(self.a, "nasfs.node.sending.send"))
            case "receiver":
                kill_all(processes_of(self.b, "nasfs.node.receiving.receive"))
            case "window":
                self.a.run("replication", "window", "add", "office", *CLOSED)
                wait_until(lambda: self.view("state") == "waiting", "the window is closed")
                self.a.run("replication", "window", "remove", "office", "--all")
            case "rate":
                rate = self.chance.choice(["1M", "3M", "off"])
                self.a.run("replication", "set", "office", "--rate", rate)
            case "slow":
                self.wire.limit(self.chance.choice(["10mbit", "40mbit", "200mbit"]))
        return kind

    def view(self, name: str) -> object:
        return self.a.json("replication", "show", "office")[name]

    def settle(self) -> None:
        """Nothing is in the way any more."""
        self.wire.limit("400mbit")
        self.a.run("replication", "set", "office", "--rate", "off")

    def replicate(self) -> bool:
        return self.a.nasfs("replication", "run", "office", "--wait").returncode == 0


def resident(pid: int) -> int:
    """Bytes; 0 if the process is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """What is below a directory, with all that a program can see of it but access times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        at = path.lstat()
        body = ""
        if stat.S_ISREG(at.st_mode):
            body = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(at.st_mode):
            body = os.readlink(path)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }
        found[str(path.relative_to(root))] = (
            at.st_ino & INO_MASK, at.st_mode, at.st_nlink, at.st_uid, at.st_gid,
            at.st_size if not stat.S_ISDIR(at.st_mode) else 0,
            at.st_mtime_ns, at.st_ctime_ns, at.st_rdev, attributes, body,
        )  # fmt: skip
    return found


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with wire() as made:
        nodes = [
            NodeWorld(
                tmp_path / name, name, address=f"{ADDRESSES[end]}:{PORT}", inside=made.inside(end)
            )
            for end, name in enumerate("ab")
        ]
        try:
            for node, pool in zip(nodes, ("tank", "safe"), strict=True):
                node.start()
                node.run("pool", "create", pool, str(node.root / "pool"))
            a, b = nodes
            a.run("pair", "join", b.run("pair", "invite").strip())
            a.volume("tank/home", "1G")
            a.run("group", "create", "office", "tank/home")
            yield Sites(a, b, made, random.Random(7))
        finally:
            for node in nodes:
                node.close()


@pytest.mark.parametrize("rounds", [len(KINDS), pytest.param(150, marks=pytest.mark.soak)])
def test_the_sites_converge_whatever_happens(
    sites: Sites, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, chance = sites.a, sites.b, sites.chance
    here, large = a.mountpoint("tank/home"), 12 if rounds < 100 else 100
    (here / "large").write_bytes(chance.randbytes(large * MIB))
    sites.wire.limit("20mbit")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, here, "1"])
    struck: list[str] = []
    try:
        a.run("replication", "create", "office", "--to-pool", "safe", "--compression", "off")
        a.run("snapshot", "create", "office@first")
        wait_until(lambda: sites.progress() is not None, "the first copy begins")
        a.run("schedule", "add", "office", "often", "--every", "1s", "--keep", "5")
        for _ in range(rounds):
            before = sites.progress()
            wait_until(
                lambda before=before: sites.progress() not in (None, before),  # type: ignore[misc]
                f"it gets on after {struck[-1:]}: {a.json('replication', 'show', 'office')}",
                deadline_s=180,
            )
            if sites.view("common") is None:
                assert_little_is_sent_again(sites, large * MIB)
            struck.append(sites.strike(long=rounds > 100))
            sites.measure_memory()
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    sites.settle()
    a.run("schedule", "remove", "office", "often")
    wait_until(lambda: a.nasfs("snapshot", "create", "office@last").returncode == 0, "the last one")
    wait_until(sites.replicate, "everything arrives", deadline_s=300)
    assert_memory_is_flat(sites)
    expected = picture(here / ".snapshots/last")
    a.kill_all()
    b.run("failover", "office", *LOSE)
    assert picture(b.mountpoint("safe/home")) == expected
    for volume in (a.root / "pool/home", b.root / "pool/home"):
        assert check_volume(volume) == []
    with capsys.disabled():
        highest = {word: max(seen) // MIB for word, seen in sites.memory.items()}
        print(f"\n{len(expected)} paths are equal; MiB of memory: {highest}; {', '.join(struck)}")


def assert_little_is_sent_again(sites: Sites, size: int) -> None:
    """While the first copy is under way: at most a window for each time that something broke."""
    assert sites.wire.sent(0) < 1.2 * size + sites.strikes * WINDOW


def assert_memory_is_flat(sites: Sites) -> None:
    for word, seen in sites.memory.items():
        assert max(seen) < RSS_MAX, word
        half = len(seen) // 2
        if half > 50:
            assert max(seen[half:]) < 1.25 * max(seen[:half]) + 16 * MIB, word


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [60, 600])
def test_an_rpo_of_5_seconds_is_kept(
    sites: Sites, seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot every 2 s under load, and nothing in the way: B's copy is never older than 5 s."""
    a = sites.a
    here = a.mountpoint("tank/home")
    (here / "large").write_bytes(sites.chance.randbytes(8 * MIB))
    a.run("replication", "create", "office", "--to-pool", "safe", "--rpo", "5s")
    a.run("schedule", "add", "office", "often", "--every", "2s", "--keep", "10")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, here, "1"])
    try:
        wait_until(lambda: sites.view("rpo") == "met", "the first copy is there")
        ages, ends = [], time.monotonic() + seconds
        while time.monotonic() < ends:
            ages.append(sites.view("age_s"))
            sites.measure_memory()
            time.sleep(0.1)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    known = [age for age in ages if isinstance(age, float)]
    late = [age for age in known if age > 5]
    assert len(known) == len(ages)
    assert not late, f"{len(late)} of {len(ages)} looks: {late[:10]}"
    assert_memory_is_flat(sites)
    with capsys.disabled():
        print(f"\n{len(ages)} looks; the oldest copy was {max(known)} s old")
