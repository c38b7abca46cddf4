"""What may happen behind every step of every change of roles: mount processes and commands die.

The steps are those of the plan that ``--dry-run`` prints, so that none can be forgotten here.  At
each of them clients try to write on both nodes: at most one lets them, and what was acknowledged
is there at the end.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.node_world import wait_until
from tests.role_world import LOSE, Pair, made_pair
from tests.step_world import Site, Walk
from tests.test_node_kills import HANDING_OVER, REJOINING

pytestmark = pytest.mark.mount

PAUSING = HANDING_OVER[1:]
"""At the first one the daemon would stand still, and answer nobody."""

Act = Callable[[subprocess.Popen[str]], None]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home", "work", daemon="tests.dying_node") as made:
        made.replicate("first")
        yield made


def sites(pair: Pair) -> tuple[Site, Site]:
    return (
        Site(pair.a, ("tank/home", "tank/work")),
        Site(pair.b, ("safe/home", "safe/work")),
    )


def walk(asked: Site, other: Site, act: Act, role: str, *words: str) -> Walk:
    """Behind each step of the plan *act* happens; in the end *asked* has that role, and serves."""
    made = Walk(asked, other, words)
    plan = made.plan()
    made.run(act, done=lambda: asked.role == role and not asked.next_step)
    assert set(made.steps) == set(plan), (made.steps, plan)
    wait_until(asked.is_mounted, "it serves")
    return made


def answers(asked: Site, other: Site, act: Act, points: tuple[str, ...], *words: str) -> Walk:
    """The same behind each step of the partner."""
    made = Walk(asked, other, words)
    made.run(act, done=lambda: asked.role == "active", where=other, points=points)
    assert made.pauses >= len(points)
    wait_until(asked.is_mounted, "it serves")
    return made


def are_equal(a: Site, b: Site) -> None:
    """Both are whole, and the same."""
    primary = a if a.role == "active" else b
    primary.node.run("snapshot", "create", "office@end")
    primary.node.run("replication", "run", "office", "--wait")
    assert "differ" not in primary.node.run("replication", "verify", "office")
    for site in (a, b):
        for volume in site.volumes:
            site.node.run("volume", "check", volume)


def cycle(pair: Pair, act: Callable[[Site, Site], Act]) -> None:
    """All changes of roles, one after the other."""
    a, b = sites(pair)
    made = walk(b, a, act(b, a), "active", "failover", "office")
    assert made.written <= b.records()
    made = answers(a, b, act(a, b), PAUSING, "failback", "office")
    assert made.written <= a.records()

    assert a.write("lost")
    a.node.kill_all()
    made = walk(b, a, act(b, a), "failed-over", "failover", "office", *LOSE)
    assert made.written <= b.records()
    a.node.start()
    wait_until(lambda: a.role == "stale", "stepping down")
    made = Walk(b, a, ("failback-join", "office"))
    made.run(act(b, a), done=lambda: b.role == "active", where=a, points=REJOINING)
    assert made.written <= b.records()
    (kept,) = {
        view["name"].partition("@")[2]
        for view in a.node.json("snapshot", "list", "tank/home")
        if "@diverged-" in view["name"]
    }
    found = a.node.json("snapshot", "diff", "tank/home@first", f"@{kept}")
    assert "lost" in {entry["path"] for entry in found}
    made = walk(a, b, act(a, b), "active", "failback", "office")
    assert made.written <= a.records()

    a.node.kill_all()
    b.node.run("failover", "office", *LOSE)
    a.node.start()
    wait_until(lambda: a.role == "stale", "stepping down")
    made = walk(b, a, act(b, a), "active", "failback-join", "office")
    assert made.written <= b.records()
    assert (a.role, b.role) == ("passive", "active")

    b.node.run("snapshot", "create", "office@good")
    b.write("to be undone")
    walk(b, a, act(b, a), "active", "rollback", "office@good")
    assert "to be undone" not in b.records()
    are_equal(a, b)


def test_mount_processes_die_behind_every_step(pair: Pair) -> None:
    def act(asked: Site, other: Site) -> Act:
        def kill(command: subprocess.Popen[str]) -> None:
            for site in (asked, other):
                if site.node.daemon is not None:
                    site.kill_mounts()

        return kill

    cycle(pair, act)


def test_the_command_dies_behind_every_step(pair: Pair) -> None:
    def act(asked: Site, other: Site) -> Act:
        return lambda command: command.kill()

    cycle(pair, act)
