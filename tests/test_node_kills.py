"""Daemons that are killed behind every step of every change of roles, and the command given again.

The steps are those of the plan that ``--dry-run`` prints, so that none can be forgotten here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasfs.fuse.mountpoint import find_mount
from nasfs.node.children import environment
from tests.dying_node import LEASE, PAUSED, arm, pause
from tests.node_world import NodeWorld, wait_until
from tests.role_world import LOSE, Pair, made_pair

pytestmark = pytest.mark.mount

HANDING_OVER = ("drain begun", "shares and mounts ended", "last snap group", "granted")
REJOINING = ("rejoin begun", "stopped", "gone back", "rejoined")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home", daemon="tests.dying_node") as made:
        made.replicate("first")
        yield made


@pytest.fixture
def hasty_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Drained and not asked for some seconds, its nodes take a group back."""
    monkeypatch.setenv(LEASE, "10")
    with made_pair(tmp_path, "home", daemon="tests.dying_node") as made:
        made.replicate("first")
        yield made


@dataclass
class Site:
    """A node and its copy of the volume."""

    node: NodeWorld
    volume: str

    @property
    def mountpoint(self) -> Path:
        return self.node.mountpoint(self.volume)

    @property
    def role(self) -> str:
        return str(self.node.json("group", "show", "office")["role"])

    def write(self, record: str) -> None:
        """Acknowledged: on the disk when this returns."""
        with (self.mountpoint / record).open("w") as file:
            file.write(record)
            file.flush()
            os.fsync(file)

    def records(self) -> set[str]:
        return {path.name for path in self.mountpoint.iterdir()}


def sites(pair: Pair) -> tuple[Site, Site]:
    return Site(pair.a, "tank/home"), Site(pair.b, "safe/home")


def one_serves_at_most(*both: Site) -> None:
    """By what people can do: at most one of the two is mounted."""
    assert sum(find_mount(site.mountpoint) is not None for site in both) <= 1


def dies(dying: Site, point: str, count: int, asked: Site, *words: str) -> None:
    """The command on *asked* is given, *dying* dies there, and comes back."""
    arm(dying.node.root, point, count)
    done = asked.node.nasfs(*words)
    assert not (dying.node.root / "die-at").exists(), (point, done.stdout, done.stderr)
    assert done.returncode in (1, 3, 4), (point, done.stdout, done.stderr)
    assert dying.node.daemon is not None
    dying.node.daemon.wait(60)
    dying.node.daemon = None
    dying.node.start()


def next_step(site: Site) -> str:
    return str(site.node.json("group", "show", "office")["next_step"])


def dies_behind_every_step(site: Site, *words: str) -> list[str]:
    """The command is given until it is done, and dies behind each step; the steps.

    A step of which it was not noted that it is done is done again, and so are those before the
    partner has agreed, but the first.
    """
    plan = [step["text"] for step in site.node.json(*words, "--dry-run")["steps"]]
    seen = []
    for number, text in enumerate(plan):
        count = min(number, 1) + 1
        if "become passive in term" in text:
            count = 3
        dies(site, "step", count, site, *words)
        seen.append(next_step(site))
    assert seen == plan
    assert site.node.json("status")["attention"]
    site.node.run(*words)
    return seen


def test_every_change_of_roles_survives_a_kill_behind_every_step(pair: Pair) -> None:
    a, b = sites(pair)
    a.write("before")
    dies_behind_every_step(b, "failover", "office")
    one_serves_at_most(a, b)
    assert (a.role, b.role) == ("passive", "active")
    assert "before" in b.records()

    b.write("on b")
    for point in HANDING_OVER:  # the other side dies
        dies(b, point, 1, a, "failback", "office")
        one_serves_at_most(a, b)
        if point != "granted":
            wait_until(lambda: find_mount(b.mountpoint), "it goes on as the primary")
            b.write(point)
    a.node.run("failback", "office")
    assert (a.role, b.role) == ("active", "passive")
    assert {"before", "on b", *HANDING_OVER[:-1]} <= a.records()
    one_serves_at_most(a, b)

    a.write("lost")
    a.node.kill_all()
    b.node.run("failover", "office", *LOSE)
    b.write("new")
    a.node.start()
    wait_until(lambda: a.role == "stale", "stepping down")
    for point in REJOINING:
        dies(a, point, 1, b, "failback-join", "office")
        assert find_mount(a.mountpoint) is None
    dies_behind_every_step(b, "failback-join", "office")
    assert (a.role, b.role) == ("passive", "active")
    newest = a.node.json("snapshot", "list", a.volume)
    kept = next(view["name"] for view in newest if "@diverged-" in view["name"])
    found = a.node.json("snapshot", "diff", "tank/home@first", f"@{kept.partition('@')[2]}")
    assert "lost" in {entry["path"] for entry in found}
    b.node.run("snapshot", "create", "office@after")
    b.node.run("replication", "run", "office", "--wait")
    assert a.node.json("group", "show", "office")["last_snapshot"] == "after"
    a.node.run("failback", "office")
    assert "new" in a.records()
    for site in (a, b):
        site.node.run("volume", "check", site.volume)


def test_a_group_rollback_survives_a_kill_behind_every_step(tmp_path: Path) -> None:
    with made_pair(tmp_path, "home", "work", daemon="tests.dying_node") as pair:
        a, b = sites(pair)
        work = Site(pair.a, "tank/work")
        pair.replicate("first")
        a.write("second")
        work.write("second")
        pair.replicate("second")
        arm(a.node.root, "step", 1)
        assert a.node.nasfs("rollback", "office@first").returncode == 4
        assert a.node.daemon is not None
        a.node.daemon.wait(60)
        a.node.daemon = None
        work.write("late")  # volumes are mounted all the time
        a.node.start()
        assert "rollback is not finished" in a.node.fails(3, "snapshot", "create", "office@no")
        held = a.node.fails(3, "snapshot", "destroy", "tank/work@first")
        assert "is held by rollback" in held
        assert "not finished" in a.node.fails(3, "rollback", "office@second")
        called_off = a.node.fails(3, "failover", "office", "--call-off")
        assert "too late" in called_off
        for told in (called_off, *a.node.json("status")["attention"][:1]):
            assert "finish it: nasfs rollback office@first" in told
        assert "not finished" in b.node.fails(3, "failover", "office")
        assert b.role == "passive"
        for _ in range(3):
            dies(a, "step", 2, a, "rollback", "office@first")
        said = a.node.json("rollback", "office@first")
        assert all(step["done"] for step in said["steps"])
        group, late = said["kept"]
        assert a.records() == work.records() == set()
        assert "second" in {p.name for p in (a.mountpoint / ".snapshots" / group[7:]).iterdir()}
        inside = work.mountpoint / ".snapshots" / late.partition("@")[2]
        assert {path.name for path in inside.iterdir()} == {"second", "late"}
        a.node.run("replication", "run", "office", "--wait")
        for name in ("second", "first"):  # nothing holds them any more
            a.node.run("snapshot", "destroy", f"tank/home@{name}")
        b.node.run("failover", "office")
        assert b.records() == set()


def slow_last_snap_group(old: Site, new: Site, *words: str) -> subprocess.Popen[bytes]:
    """The command, which waits for a snap group that takes its time."""
    pause(new.node.root, "step")
    asked = subprocess.Popen(
        [sys.executable, "-m", "nasfs.cli.main", "--root", str(new.node.root), *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment(),
    )
    wait_until((new.node.root / PAUSED).exists, "the first step")
    (old.mountpoint / "large").write_bytes(os.urandom(4 << 20))
    old.node.run("replication", "set", "office", "--rate", "20K")
    (new.node.root / PAUSED).unlink()
    wait_until(lambda: next_step(new).startswith("wait until the last"), "the primary is drained")
    assert find_mount(old.mountpoint) is None
    return asked


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_switchover_is_called_off_on_either_node(pair: Pair, where: str) -> None:
    a, b = sites(pair)
    asked = slow_last_snap_group(a, b, "failover", "office")
    assert "being handed over" in a.node.fails(3, "volume", "mount", a.volume)
    assert "being handed over" in a.node.fails(3, "snapshot", "create", "office@no")
    if where == "here":  # who gave the command is gone; the node goes on without it
        asked.kill()
        asked.wait()
        b.node.run("failover", "office", "--call-off")
    else:
        a.node.run("failover", "office", "--call-off")
        assert asked.wait(60) == 3
    wait_until(lambda: find_mount(a.mountpoint), "it is mounted again")
    a.write("goes on")
    assert (a.role, b.role) == ("active", "passive")
    assert next_step(a) == next_step(b) == ""
    assert "nothing is under way" in b.node.fails(3, "failover", "office", "--call-off")
    a.node.run("replication", "set", "office", "--rate", "off")
    b.node.run("failover", "office")
    assert {"large", "goes on"} <= b.records()


def test_a_drained_primary_that_nobody_asks_goes_on(hasty_pair: Pair) -> None:
    a, b = sites(hasty_pair)
    asked = slow_last_snap_group(a, b, "failover", "office")
    b.node.kill()
    assert asked.wait(60) == 4
    wait_until(lambda: find_mount(a.mountpoint), "it is mounted again")
    a.write("goes on")
    a.node.run("replication", "set", "office", "--rate", "off")
    b.node.start()
    assert "not finished" in b.node.json("status")["attention"][0]
    b.node.run("failover", "office")  # as if it had just begun
    assert "goes on" in b.records()


def test_two_primaries_that_meet_keep_both_histories(pair: Pair) -> None:
    a, b = sites(pair)
    b.node.run("failover", "office")
    b.write("common")
    b.node.run("snapshot", "create", "office@common")
    b.node.run("replication", "run", "office", "--wait")
    b.node.kill_all()
    a.node.run("failover", "office", *LOSE)  # the original primary, by force, too
    a.write("only a")
    a.node.kill_all()
    b.node.start()  # it can't know, and somebody says that it is still the primary
    b.node.run("failover", "office", "--without-partner")
    wait_until(lambda: b.node.json("volume", "show", b.volume)["mount_state"] == "mounted", "it is")
    b.write("only b")
    a.node.start()
    wait_until(lambda: b.role == "stale", "the lower term ends")
    wait_until(lambda: find_mount(b.mountpoint) is None, "it serves nothing any more")
    assert a.role == "failed-over"
    (kept,) = a.node.json("failback-join", "office")["kept"]
    assert (a.role, b.role) == ("active", "passive")
    found = b.node.json("snapshot", "diff", "safe/home@common", f"@{kept.partition('@')[2]}")
    assert [entry["path"] for entry in found] == ["only b"]
    assert {"common", "only a"} <= a.records()
