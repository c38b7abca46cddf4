"""The link is cut behind every step of every change of roles, and comes back.

Both nodes live on meanwhile, and clients try to write on both.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cut_link import Link, linked
from tests.dying_node import LEASE, PAUSED, pause
from tests.node_world import wait_until
from tests.role_world import LOSE, made_pair
from tests.step_world import Site, Walk
from tests.test_node_kills import HANDING_OVER, REJOINING

pytestmark = pytest.mark.mount

JOIN = ["have", "replicate", "become"]
"""Its steps, as their texts begin."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Site, Link]]:
    """Two nodes that give up waiting for each other after some seconds, and their link."""
    monkeypatch.setenv(LEASE, "10")
    with made_pair(tmp_path, "home", daemon="tests.dying_node") as pair, linked(pair) as link:
        pair.replicate("first")
        yield Site(pair.a, ("tank/home",)), Site(pair.b, ("safe/home",)), link


def pauses(walk: Walk, where: Site, point: str, count: int, then: Callable[[], None]) -> bool:
    """The command is given once; at that point *then* happens.  Whether it was done."""
    pause(where.node.root, point, count)
    command = walk.start()
    wait_until((where.node.root / PAUSED).exists, f"{point} {count} of {walk.words}")
    walk.pauses += 1
    walk.steps.append(walk.asked.next_step)
    then()
    walk.clients_write()
    (where.node.root / PAUSED).unlink()
    _, said = command.communicate(timeout=100)
    assert command.returncode in (0, 1, 3, 4), said
    walk.clients_write()
    return command.returncode == 0


def again(walk: Walk, role: str) -> None:
    """With the link: until it is done."""

    def done() -> bool:
        if walk.asked.role == role and not walk.asked.next_step:
            return True
        walk.clients_write()
        return walk.asked.node.nasfs(*walk.words).returncode == 0

    wait_until(done, f"{walk.words} is done", 90)


def replicates(site: Site) -> None:
    wait_until(
        lambda: site.node.nasfs("replication", "run", "office", "--wait").returncode == 0,
        "replication goes on",
    )


def test_a_switchover_until_nobody_is_needed(world: tuple[Site, Site, Link]) -> None:
    switch_over(world, range(1, 5), HANDING_OVER[-1:])


@pytest.mark.soak
def test_a_switchover_behind_every_step(world: tuple[Site, Site, Link]) -> None:
    plan = Walk(world[1], world[0], ("failover", "office")).plan()
    switch_over(world, range(1, len(plan) + 1), HANDING_OVER[1:])


def switch_over(
    world: tuple[Site, Site, Link], numbers: Iterable[int], points: Iterable[str]
) -> None:
    """There and back, cut behind these steps of the plan and then of the partner's answers."""
    asked, other = world[1], world[0]
    link = world[2]
    written: set[str] = set()
    plan = Walk(asked, other, ("failover", "office")).plan()
    for number in numbers:
        command = "failback" if asked is world[0] else "failover"
        walk = Walk(asked, other, (command, "office"), pauses=100 * number)
        done = pauses(walk, asked, "step", number, link.cut)
        assert done or number <= plan.index("stop receiving office")
        link.restore()
        again(walk, "active")
        wait_until(asked.is_mounted, "it serves")
        assert asked.write(f"behind {number}")
        written |= walk.written | {f"behind {number}"}
        assert written <= asked.records()
        replicates(asked)
        asked, other = other, asked
    for point in points:
        command = "failback" if asked is world[0] else "failover"
        walk = Walk(asked, other, (command, "office"), pauses=10_000)
        pauses(walk, other, point, 1, link.cut)
        link.restore()
        again(walk, "active")
        wait_until(asked.is_mounted, "it serves")
        assert written | walk.written <= asked.records()
        replicates(asked)
        asked, other = other, asked


def toggling(link: Link) -> Callable[[subprocess.Popen[str]], None]:
    """Cut and there in turns."""
    cuts = [link.cut, link.restore]

    def act(command: subprocess.Popen[str]) -> None:
        cuts[0]()
        cuts.reverse()

    return act


def test_both_sides_are_forced_and_meet(world: tuple[Site, Site, Link]) -> None:
    a, b, link = world
    link.cut()
    b.node.run("failover", "office", *LOSE)
    assert a.write("only a")
    assert b.write("only b")
    a.node.kill_all()
    a.node.start()
    assert not a.is_mounted()
    a.node.run("failover", "office", "--without-partner")  # a person is wrong a second time
    wait_until(a.is_mounted, "it goes on")
    assert a.write("more of a")
    link.restore()
    wait_until(lambda: a.role == "stale", "the lower term ends")
    wait_until(lambda: not a.write("late"), "it serves nothing")
    walk = Walk(b, a, ("failback-join", "office"))
    pauses(walk, a, REJOINING[1], 1, link.cut)  # it goes on alone, and nobody hears of it
    link.restore()
    again(walk, "active")
    assert (a.role, b.role) == ("passive", "active")
    assert {"only a", "more of a"} <= only_in(a, "diverged-")
    assert b.records() == {"only b"} | walk.written
    b.node.run("snapshot", "create", "office@both")
    replicates(b)

    # And the other way round: what was the secondary takes over by force, at every step of which
    # the link is there or not.
    link.cut()
    walk = Walk(a, b, ("failover", "office", *LOSE), both=True)
    plan = walk.plan()
    walk.run(toggling(link), done=lambda: a.role == "failed-over" and not a.next_step)
    assert walk.steps == plan
    wait_until(a.is_mounted, "it serves")
    assert a.write("new on a")
    link.restore()
    wait_until(lambda: b.role == "stale", "the lower term ends")
    walk = Walk(a, b, ("failback-join", "office"), pauses=100)
    link.cut()
    assert "does not answer" in a.node.fails(3, *walk.words)
    link.restore()
    assert pauses(walk, a, "step", 1, link.cut), "the rest of it needs nobody"
    link.restore()
    assert (a.role, b.role) == ("active", "passive")
    assert {"only b", "new on a"} | walk.written <= a.records()
    replicates(a)
    for site in (a, b):
        site.node.run("volume", "check", site.volumes[0])


def test_a_join_while_the_partner_steps_back(world: tuple[Site, Site, Link]) -> None:
    join_again_and_again(world, [("other", point, 1) for point in REJOINING[1:3]])


@pytest.mark.soak
def test_a_join_behind_every_step(world: tuple[Site, Site, Link]) -> None:
    steps = [("asked", "step", number) for number in range(1, len(JOIN) + 1)]
    join_again_and_again(world, [*steps, *(("other", point, 1) for point in REJOINING)])


def join_again_and_again(
    world: tuple[Site, Site, Link], points: Iterable[tuple[str, str, int]]
) -> None:
    """Each time one takes over by force while both live, and the join is cut at such a point."""
    other, asked, link = world
    written: set[str] = set()
    for number, (whose, point, count) in enumerate(points):
        link.cut()
        asked.node.run("failover", "office", *LOSE)
        wait_until(asked.is_mounted, "it serves")
        lost, kept = f"lost {number}", f"kept {number}"
        assert other.write(lost)
        assert asked.write(kept)
        link.restore()
        wait_until(partial(_steps_down, other), "the lower term ends")
        walk = Walk(asked, other, ("failback-join", "office"), pauses=100 * number)
        assert list(map(_action, walk.plan())) == JOIN
        pauses(walk, asked if whose == "asked" else other, point, count, link.cut)
        link.restore()
        again(walk, "active")
        assert (other.role, asked.role) == ("passive", "active")
        assert lost in only_in(other, "diverged-")
        written |= {kept} | walk.written
        assert asked.records() == written
        asked.node.run("snapshot", "create", f"office@after-{number}")
        replicates(asked)
        asked, other = other, asked
    for site in (asked, other):
        site.node.run("volume", "check", site.volumes[0])


def _steps_down(site: Site) -> bool:
    return site.role == "stale" and not site.is_mounted()


def _action(step: str) -> str:
    return step.split()[0]


def test_an_end_of_which_the_partner_could_not_tell(world: tuple[Site, Site, Link]) -> None:
    a, b, link = world
    walk = Walk(a, b, ("replication", "delete", "office"))
    link.cut()
    assert "can't be told" in a.node.fails(4, *walk.words)
    assert (a.role, b.role) == ("active", "passive")
    link.restore()
    assert not pauses(walk, b, "parting", 1, link.cut)
    assert a.node.json("replication", "list")
    link.restore()
    wait_until(lambda: b.node.json("group", "list") == [], "it has ended its side alone")
    a.node.run(*walk.words)
    assert a.node.json("replication", "list") == []
    assert a.write("on")


def only_in(site: Site, prefix: str) -> set[str]:
    """The files that the newest snapshot of what only this node had has beside the first one's."""
    (volume,) = site.volumes
    kept = [
        view["name"].partition("@")[2]
        for view in site.node.json("snapshot", "list", volume)
        if f"@{prefix}" in view["name"]
    ]
    found = site.node.json("snapshot", "diff", f"{volume}@first", f"@{kept[-1]}")
    return {entry["path"] for entry in found}
