"""The end of a replication and of a pair: both sides know of it, and keep what they have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.node.children import environment
from nasfs.node.context import Node
from nasfs.node.places import Places
from nasfs.volume import Access, open_volume
from tests.node_world import NodeWorld, wait_until
from tests.pair_world import Pair, paired

pytestmark = pytest.mark.mount

COPIES = ("safe/home", "safe/mail")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with paired(tmp_path) as made:
        yield made


def holds(node: NodeWorld) -> list[str]:
    """Who holds what on a node."""
    found = []
    with Node.open(Places(node.root)) as opened:
        for row in opened.state.volumes():
            with open_volume(opened.volume_path(row), Access.READ_ONLY) as volume:
                for held in volume.all_holds().values():
                    found += [f"{row.name}: {hold.owner}" for hold in held]
    return found


def is_ordinary(node: NodeWorld, content: str) -> None:
    """The copies are volumes like any other, with what the newest snap group has."""
    assert node.json("group", "list") == []
    assert holds(node) == []
    for volume in COPIES:
        node.run("volume", "mount", volume)
        (node.mountpoint(volume) / "own").write_text("of this node")
        node.run("snapshot", "create", f"{volume}@mine")
        node.run("volume", "check", volume)
    assert (node.mountpoint("safe/home") / "f").read_text() == content


def test_both_sides_are_told(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("first")
    pair.replicate("one")
    b.run("test-failover", "start", "office")
    plan = a.json("replication", "delete", "office", "--dry-run")
    assert "go back to @one" in plan["partner"][0]
    assert b.json("group", "show", "office")["role"] == "passive"
    assert a.json("replication", "show", "office")
    said = a.run("replication", "delete", "office")
    assert "partner: safe/" in said
    assert holds(a) == []
    assert b.json("group", "list") == []
    assert not (b.root / "srv/nasfs-test").exists()
    assert any(e["kind"] == "replication ended" for e in b.json("events"))
    is_ordinary(b, "first")
    assert a.json("group", "show", "office")["role"] == "active"
    assert "not replicated" in a.fails(1, "replication", "delete", "office")

    create = ("replication", "create", "office", "--to-pool", "safe")
    assert "is mounted" in a.fails(3, *create)  # what was written there is not lost by it
    for volume in COPIES:
        b.run("volume", "unmount", volume)
    assert "would be lost" in a.fails(3, *create)
    for volume in COPIES:
        b.run("snapshot", "rollback", f"{volume}@one")
        b.run("volume", "mount", volume)
        (b.mountpoint(volume) / "since").touch()
        b.run("volume", "unmount", volume)
    assert "would be lost" in a.fails(3, *create)
    for volume in COPIES:
        b.run("snapshot", "rollback", f"{volume}@one")
    a.run(*create)
    pair.replicate("two")
    assert b.json("group", "show", "office")["last_snapshot"] == "two"
    assert "safe/home@mine" in [view["name"] for view in b.json("snapshot", "list", "safe/home")]

    a.run("replication", "delete", "office")
    a.run("pair", "remove")
    for node in (a, b):
        assert node.json("pair", "show")["peer"] is None


def test_the_other_side_ends_it(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("first")
    pair.replicate("one")
    b.run("replication", "delete", "office")
    assert a.json("replication", "list") == []
    assert holds(a) == []
    is_ordinary(b, "first")


def test_without_the_partner(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("first")
    pair.replicate("one")
    b.kill()
    assert "can't be told" in a.fails(4, "replication", "delete", "office")
    assert a.json("replication", "list")
    done = a.nasfs("replication", "delete", "office", "--force")
    assert done.returncode == 0
    assert "the partner does not know" in done.stderr
    assert holds(a) == []
    b.start()
    assert b.json("group", "show", "office")["role"] == "passive"
    b.run("replication", "delete", "office")  # now it is told, and has nothing to do
    is_ordinary(b, "first")


def test_half_of_a_delta_is_forgotten(pair: Pair) -> None:
    a, b = pair.a, pair.b
    home = a.mountpoint("tank/home")
    (home / "f").write_text("first")
    pair.replicate("one")
    a.run("replication", "set", "office", "--rate", "256K")
    (home / "f").write_text("second")
    (home / "large").write_bytes(os.urandom(8 << 20))
    a.run("snapshot", "create", "office@two")
    pool = b.root / "pool/home/layers"

    def arriving() -> bool:
        return sum(path.stat().st_blocks for path in pool.rglob("*") if path.is_file()) > 1000

    wait_until(arriving, "a part has arrived")
    a.kill_all()
    b.fails(4, "replication", "delete", "office")
    b.run("replication", "delete", "office", "--force")
    is_ordinary(b, "first")
    assert not (b.mountpoint("safe/home") / "large").exists()


def test_an_end_that_was_interrupted_goes_on(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("first")
    pair.replicate("one")
    with Node.open(Places(b.root)) as node:
        path = node.volume_path(node.state.members(node.state.group("office").uuid)[0])
    a.kill()
    with open_volume(path):  # somebody has it in his hands: the end does not come through
        words = ["--root", str(b.root), "replication", "delete", "office", "--force"]
        asking = subprocess.Popen(
            [sys.executable, "-m", "nasfs.cli.main", *words], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(
            lambda: "release is not finished" in str(b.json("status")["attention"]), "it began"
        )
        b.kill()
        assert asking.wait() == 4
    b.start()
    assert "is being deleted" in b.fails(3, "failover", "office")
    assert "under way" in b.fails(3, "test-failover", "start", "office")
    a.start()
    pair.a.run("snapshot", "create", "office@two")  # nothing is received any more
    assert a.nasfs("replication", "run", "office", "--wait").returncode != 0
    b.run("replication", "delete", "office")
    is_ordinary(b, "first")
    assert holds(a) == []


def test_two_that_both_wrote(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("first")
    pair.replicate("one")
    a.kill_all()
    b.run("failover", "office", "--force", "--lose-unreplicated")
    a.start()
    wait_until(lambda: a.json("group", "show", "office")["role"] == "stale", "stepping down")
    for node in (a, b):
        assert "failback-join" in node.fails(3, "replication", "delete", "office")
    a.run("replication", "delete", "office", "--force")
    for node, volume in ((a, "tank/home"), (b, "safe/home")):
        assert node.json("group", "show", "office")["role"] == "active"
        wait_until((node.mountpoint(volume) / "f").exists, "it is mounted")
        assert holds(node) == []
        assert node.json("replication", "list") == []


def test_the_pair_ends_by_force(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("first")
    pair.replicate("one")
    assert "office" in a.fails(3, "pair", "remove")
    a.run("pair", "remove", "--force")
    for node in (a, b):
        assert node.json("pair", "show")["peer"] is None
    assert holds(a) == []
    is_ordinary(b, "first")
    a.run("pair", "join", b.run("pair", "invite").strip())  # and a new one can be made
    b.kill()
    done = a.nasfs("pair", "remove")
    assert done.returncode == 0
    assert "still knows this one" in done.stderr
