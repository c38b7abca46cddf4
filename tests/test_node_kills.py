"""Daemons that are killed behind every step of every change of roles, and the command given again.

One pair goes back and forth: each change of roles is killed at another point than the one before.
The steps are counted by the plan itself, so that no step can be forgotten here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
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


class Site:
    """A node, the mount point of its copy, and the command that makes it the primary."""

    def __init__(self, node: NodeWorld, volume: str, command: str) -> None:
        self.node = node
        self.volume = volume
        self.command = command

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

    def died(self) -> None:
        """Wait until the daemon has killed itself, and start it again."""
        assert self.node.daemon is not None
        self.node.daemon.wait(60)
        self.node.daemon = None

    def has_died(self) -> bool:
        return not (self.node.root / "die-at").exists()


def sites(pair: Pair) -> tuple[Site, Site]:
    return Site(pair.a, "tank/home", "failback"), Site(pair.b, "safe/home", "failover")


def one_serves_at_most(*both: Site) -> None:
    """By what people can do: at most one of the two is mounted."""
    assert sum(find_mount(site.mountpoint) is not None for site in both) <= 1


def goes_on(site: Site, *words: str) -> None:
    """The command given again, perhaps twice: what was taken back is planned anew."""
    for last in (False, False, True):
        done = site.node.nasfs(*words)
        if done.returncode == 0 or "it is the primary already" in done.stderr:
            return
        assert not last, done.stderr
        assert done.returncode in (1, 3, 4), done.stderr


def change_over(old: Site, new: Site, point: str, count: int, dying: Site, record: str) -> bool:
    """The roles change although *dying* is killed there; False if it never comes there."""
    old.write(record)
    arm(dying.node.root, point, count)
    done = new.node.nasfs(new.command, "office")
    if not dying.has_died():
        assert done.returncode == 0, done.stderr
        (dying.node.root / "die-at").unlink()
    else:
        dying.died()
        one_serves_at_most(old, new)
        dying.node.start()
        if new.role not in ("active",) or new.node.json("group", "show", "office")["under_way"]:
            goes_on(new, new.command, "office")
    assert (old.role, new.role) == ("passive", "active")
    one_serves_at_most(old, new)
    assert record in new.records()
    return dying.node.daemon is not None and done.returncode != 0


def test_a_change_of_roles_survives_a_kill_behind_every_step(pair: Pair) -> None:
    old, new = sites(pair)
    records = set()
    kills = 0
    for count in itertools.count(1):
        records.add(f"step-{count}")
        killed = change_over(old, new, "step", count, new, f"step-{count}")
        assert records <= new.records()
        old, new = new, old
        kills += killed
        if not killed:
            break
    assert kills == 10  # as many as the plan for one volume has steps
    for point in HANDING_OVER:
        records.add(f"handing over: {point}")
        assert change_over(old, new, point, 1, old, f"handing over: {point}")
        assert records <= new.records()
        old, new = new, old
    for site in (old, new):
        site.node.run("volume", "check", site.volume)


def test_a_join_survives_a_kill_behind_every_step_of_both_nodes(pair: Pair) -> None:
    old, new = sites(pair)
    points = [("step", n, True) for n in (1, 2, 3)] + [(p, 1, False) for p in REJOINING]
    for number, (point, count, is_ours) in enumerate(points):
        old.node.run("replication", "run", "office", "--wait")
        old.write(f"lost-{number}")
        old.node.kill_all()
        new.node.run("failover", "office", *LOSE)
        new.write(f"new-{number}")
        old.node.start()
        wait_until(lambda site=old: site.role == "stale", "stepping down")  # type: ignore[misc]
        dying = new if is_ours else old
        arm(dying.node.root, point, count)
        done = new.node.nasfs("failback-join", "office")
        assert done.returncode == 4, (point, count, done.stderr)
        dying.died()
        dying.node.start()
        wait_until(lambda: True, "")
        assert find_mount(old.mountpoint) is None
        new.node.run("failback-join", "office")
        assert (old.role, new.role) == ("passive", "active")
        views = old.node.json("snapshot", "list", old.volume)
        kept = [v["name"] for v in views if "@diverged-" in v["name"]][-1]
        found = old.node.json(
            "snapshot",
            "diff",
            kept.replace(kept.partition("@")[2], "first"),
            "@" + kept.partition("@")[2],
        )
        assert f"lost-{number}" in {entry["path"] for entry in found}
        new.node.run("snapshot", "create", f"office@after-{number}")
        new.node.run("replication", "run", "office", "--wait")
        assert old.node.json("group", "show", "office")["last_snapshot"] == f"after-{number}"
        old, new = new, old
    for site in (old, new):
        site.node.run("volume", "check", site.volume)
