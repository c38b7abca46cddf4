"""Two nodes on one machine: pairing, replication, the loss of one, failover, fencing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasfs.fuse.mountpoint import find_mount
from tests.node_world import NodeWorld, wait_until

pytestmark = pytest.mark.mount

LOSE = ("--force", "--lose-unreplicated")


@dataclass
class Pair:
    a: NodeWorld
    b: NodeWorld

    def replicate(self, snapshot: str) -> None:
        self.a.run("snapshot", "create", f"office@{snapshot}")
        self.a.run("replication", "run", "office", "--wait")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two paired nodes; group office, of volume tank/home on A, is replicated to pool safe on B."""
    worlds = [NodeWorld(tmp_path / name, name) for name in ("a", "b")]
    try:
        for world, pool in zip(worlds, ("tank", "safe"), strict=True):
            world.start()
            world.run("pool", "create", pool, str(world.root / "pool"))
        a, b = worlds
        a.run("pair", "join", b.run("pair", "invite").strip())
        a.volume("tank/home")
        a.run("group", "create", "office", "tank/home")
        a.run("replication", "create", "office", "--to-pool", "safe")
        yield Pair(a, b)
    finally:
        for world in worlds:
            world.close()


INO_MASK = (1 << 40) - 1
"""The part of an inode number that is the same in every view of a volume."""


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """What is below a directory: inode numbers, types, modes, times, links, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        at = path.lstat()
        body = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        link = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (
            at.st_ino & INO_MASK, at.st_mode, at.st_nlink, at.st_mtime_ns, at.st_uid, body, link,
        )  # fmt: skip
    return found


def test_failover_after_the_loss_of_the_primary(pair: Pair) -> None:
    a, b = pair.a, pair.b
    here, there = a.mountpoint("tank/home"), b.mountpoint("safe/home")
    shutil.copytree(Path(__file__).parent, here / "tests")
    os.link(here / "tests/__init__.py", here / "hard")
    (here / "soft").symlink_to("hard")
    pair.replicate("one")
    shutil.move(here / "tests", here / "moved")
    (here / "moved/conftest.py").write_text("changed")
    a.run("snapshot", "create", "office@two")  # goes by itself
    wait_until(
        lambda: b.json("group", "show", "office")["last_snapshot"] == "two", "the automatic run"
    )
    expected = picture(here / ".snapshots/two")
    (here / "lost").write_text("after the newest snap group")
    assert "is passive here" in b.fails(3, "volume", "mount", "safe/home")
    assert b.json("readiness", "office")["ready"]
    a.kill_all()
    b.fails(3, "failover", "office")  # the loss is not accepted
    plan = b.run("failover", "office", "--dry-run")
    assert "roll safe/home back to @two" in plan
    assert b.json("group", "show", "office")["term"] == 1
    b.run("failover", "office", *LOSE)
    view = b.json("group", "show", "office")
    assert (view["role"], view["term"]) == ("failed-over", 2)
    assert picture(there) == expected
    (there / "new").write_text("life goes on")
    b.run("snapshot", "create", "office@three")
    b.fails(3, "failover", "office", *LOSE)  # it is active here already

    a.start()  # the old primary learns of the higher term and steps down
    wait_until(lambda: a.json("group", "show", "office")["role"] == "stale", "stepping down")
    assert find_mount(here) is None
    a.fails(3, "snapshot", "create", "office@never")
    a.fails(3, "volume", "mount", "tank/home")
    a.fails(3, "replication", "run", "office")
    b.run("volume", "unmount", "safe/home")
    for node, volume in ((a, "tank/home"), (b, "safe/home")):
        node.run("volume", "check", volume)


def test_a_failover_that_was_interrupted_goes_on(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("kept")
    pair.replicate("one")
    a.kill_all()
    there = b.mountpoint("safe/home")
    there.parent.mkdir(parents=True)
    there.write_text("in the way")
    assert "not a directory" in b.fails(1, "failover", "office", *LOSE)
    status = b.json("status")
    assert any("not finished" in sentence for sentence in status["attention"])
    b.kill()
    b.start()
    there.unlink()
    b.run("failover", "office")
    assert (there / "f").read_text() == "kept"
    assert b.json("group", "show", "office")["term"] == 2


def test_replication_waits_for_the_partner_and_goes_on(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    b.kill()
    (a.mountpoint("tank/home") / "f").write_text("x")
    a.run("snapshot", "create", "office@two")
    assert "not reachable" in a.fails(4, "replication", "run", "office", "--wait")
    view = a.json("replication", "show", "office")
    assert view["state"] == "waiting"
    assert view["waiting_snapshots"] == 1
    b.start()
    deltas = a.json("replication", "run", "office", "--dry-run")
    assert [(delta["base"], delta["target"]) for delta in deltas] == [("one", "two")]
    a.run("replication", "run", "office", "--wait")
    assert a.json("replication", "run", "office", "--dry-run") == []


def test_common_snapshots_are_held_and_surplus_ones_retired(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.run("replication", "delete", "office")
    a.run("replication", "create", "office", "--to-pool", "safe", "--max-snapshots", "2")
    for name in ("one", "two", "three"):
        pair.replicate(name)
    assert "held by replication" in a.fails(3, "snapshot", "destroy", "tank/home@three")
    release = ("snapshot", "release", "tank/home@three", "--owner", "replication")
    assert "next delta" in a.fails(3, *release)
    a.run("snapshot", "destroy", "tank/home@one", "tank/home@two")
    wait_until(
        lambda: (
            [view["name"] for view in b.json("snapshot", "list", "office")]
            == ["safe/home@two", "safe/home@three"]
        ),
        "the surplus snapshot is retired",
    )
    assert "newest" in b.fails(3, "snapshot", "destroy", "safe/home@three")
    pair.replicate("four")
    a.run("replication", "delete", "office")
    a.run("snapshot", "release", "tank/home@four", "--owner", "replication")
    a.run("snapshot", "destroy", "tank/home@four")


def test_pausing(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.run("replication", "pause", "office")
    a.run("snapshot", "create", "office@one")
    assert "paused" in a.fails(3, "replication", "run", "office")
    assert b.json("group", "show", "office")["last_snapshot"] is None
    b.fails(3, "failover", "office", *LOSE)  # nothing complete has arrived
    a.run("replication", "resume", "office")
    a.run("replication", "run", "office", "--wait")
    assert b.json("group", "show", "office")["last_snapshot"] == "one"


def test_a_copy_follows_the_size_of_its_volume(pair: Pair) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    pair.replicate("one")
    assert "resize it there" in b.fails(3, "volume", "resize", "safe/home", "200M")
    a.run("volume", "resize", "tank/home", "200M")
    (here / "large").write_bytes(os.urandom(150 << 20))  # more than the copy could hold before
    pair.replicate("two")
    assert b.json("volume", "show", "safe/home")["size"] == 200 << 20
    (here / "large").unlink()
    a.run("snapshot", "destroy", "tank/home@one")
    assert "can't shrink" in a.fails(3, "volume", "resize", "tank/home", "20M")  # @two is held
    pair.replicate("three")
    a.run("snapshot", "destroy", "tank/home@two")
    wait_until(
        lambda: a.nasfs("volume", "resize", "tank/home", "20M").returncode == 0,
        "the space of the snapshot comes back",
    )
    pair.replicate("four")
    view = b.json("volume", "show", "safe/home")
    assert view["size"] == view["used"] == 150 << 20  # it keeps @two, so it can't follow
    for name in ("one", "two", "three"):
        b.run("snapshot", "destroy", f"safe/home@{name}")
    pair.replicate("five")
    assert b.json("volume", "show", "safe/home")["size"] == 20 << 20
    for node, volume in ((a, "tank/home"), (b, "safe/home")):
        node.run("volume", "check", volume)


def test_an_exact_copy_of_a_thin_volume(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.run("replication", "delete", "office")
    a.volume("tank/second", "8M")
    a.run("group", "create", "two", "tank/second")
    words = ("replication", "create", "two", "--to-pool", "safe", "--provision")
    a.fails(2, *words, "fat")
    a.run(*words, "exact")
    (a.mountpoint("tank/second") / "f").write_bytes(os.urandom(5 << 20))
    a.run("snapshot", "create", "two@s")
    a.run("replication", "run", "two", "--wait")
    view = b.json("volume", "show", "safe/second")
    assert (view["provision"], view["used"], view["unreserved"]) == ("exact", 5 << 20, 0)
    assert view["reserved"] >= 3 << 20
    assert a.json("volume", "show", "tank/second")["provision"] == "thin"
    a.run("volume", "resize", "tank/second", "1T")
    a.run("snapshot", "create", "two@t")
    assert "to guarantee" in a.fails(1, "replication", "run", "two", "--wait")
    a.run("volume", "resize", "tank/second", "10M")
    a.run("replication", "run", "two", "--wait")
    assert b.json("group", "show", "two")["last_snapshot"] == "t"
    b.run("volume", "check", "safe/second")


def test_what_is_replicated_is_protected(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    for words in (
        ("group", "destroy", "office"),
        ("group", "remove", "office", "tank/home"),
        ("volume", "destroy", "tank/home", "--lose-data"),
        ("pair", "remove"),
    ):
        a.fails(3, *words)
    for words in (
        ("group", "destroy", "office"),
        ("snapshot", "create", "safe/home@mine"),
        ("volume", "destroy", "safe/home", "--lose-data"),
        ("pair", "remove"),
    ):
        b.fails(3, *words)


def test_bad_replications(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.volume("tank/second", mount=False)
    a.run("group", "create", "g", "tank/second")
    assert "no pool" in a.fails(3, "replication", "create", "g", "--to-pool", "none")
    b.volume("safe/second", mount=False)
    assert "another volume" in a.fails(3, "replication", "create", "g", "--to-pool", "safe")
    a.fails(2, "replication", "create", "g", "--to-pool", "safe", "--compression", "10")
    a.fails(2, "replication", "create", "g", "--to-pool", "safe", "--max-snapshots", "0")
    a.fails(2, "replication", "create", "g", "--to-pool", "safe", "--volume", "tank/second")
    a.fails(3, "replication", "create", "office", "--to-pool", "safe")
    assert [view["group"] for view in a.json("replication", "list")] == ["office"]
    assert [view["name"] for view in b.json("group", "list")] == ["office"]
    a.run(
        "replication", "create", "g", "--to-pool", "safe", "--volume", "tank/second=third",
        "--compression", "off",
    )  # fmt: skip
    assert b.json("group", "show", "g")["volumes"] == ["safe/third"]


def test_pairs_have_two_nodes(pair: Pair, tmp_path: Path) -> None:
    third = NodeWorld(tmp_path / "c", "c")
    try:
        third.start()
        assert "paired with b" in pair.a.fails(3, "pair", "invite")
        code = third.run("pair", "invite").strip()
        assert "paired with a" in pair.b.fails(3, "pair", "join", code)
        wrong = code[:-10] + ("aaaaa" if code[-10:-5] != "aaaaa" else "bbbbb") + code[-5:]
        assert "typo" in third.fails(2, "pair", "join", wrong)
        assert third.json("pair", "show")["peer"] is None
    finally:
        third.close()


def test_codes_are_good_for_one_use(tmp_path: Path) -> None:
    worlds = [NodeWorld(tmp_path / name, name) for name in ("a", "b")]
    a, b = worlds
    try:
        a.start()
        b.start()
        void = b.run("pair", "invite").strip()
        code = b.run("pair", "invite").strip()
        a.fails(1, "pair", "join", void)  # a newer one took its place
        a.run("pair", "join", code)
        assert a.json("pair", "show")["peer"]["name"] == "b"
        assert b.json("pair", "show")["peer"]["name"] == "a"
        a.run("pair", "remove")
        a.fails(1, "pair", "join", code)  # used up
        b.kill()
        a.fails(4, "pair", "join", code)
    finally:
        for world in worlds:
            world.close()
