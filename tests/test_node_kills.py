"""Daemons that are killed behind every step of every change of roles, and the command given again.

The steps are those of the plan that ``--dry-run`` prints, so that none can be forgotten here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasfs.fuse.mountpoint import find_mount
from tests.dying_node import arm
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
    done = asked.node.nasfs(*words, "office")
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
    plan = [step["text"] for step in site.node.json(*words, "office", "--dry-run")["steps"]]
    seen = []
    for number, text in enumerate(plan):
        count = min(number, 1) + 1
        if "become passive in term" in text:
            count = 3
        dies(site, "step", count, site, *words)
        seen.append(next_step(site))
    assert seen == plan
    assert site.node.json("status")["attention"]
    site.node.run(*words, "office")
    return seen


def test_every_change_of_roles_survives_a_kill_behind_every_step(pair: Pair) -> None:
    a, b = sites(pair)
    a.write("before")
    dies_behind_every_step(b, "failover")
    one_serves_at_most(a, b)
    assert (a.role, b.role) == ("passive", "active")
    assert "before" in b.records()

    b.write("on b")
    for point in HANDING_OVER:  # the other side dies
        dies(b, point, 1, a, "failback")
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
        dies(a, point, 1, b, "failback-join")
        assert find_mount(a.mountpoint) is None
    dies_behind_every_step(b, "failback-join")
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
