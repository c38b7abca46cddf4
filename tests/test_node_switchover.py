"""Roles that change while both nodes live: switchover, failback join, failback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from nasfs.fuse.mountpoint import find_mount
from tests.node_world import NodeWorld, wait_until
from tests.role_world import LOSE, Pair, made_pair
from tests.test_node_failover import picture

pytestmark = pytest.mark.mount


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Group office, of volumes tank/home and tank/work on A, is replicated to pool safe on B."""
    with made_pair(tmp_path) as made:
        yield made


def role(node: NodeWorld) -> tuple[str, int]:
    view = node.json("group", "show", "office")
    assert view["under_way"] == ""
    return view["role"], view["term"]


def test_there_and_back_again_without_a_loss(pair: Pair) -> None:
    a, b = pair.a, pair.b
    here, there = a.mountpoint("tank/home"), b.mountpoint("safe/home")
    (here / "old").write_text("replicated")
    pair.replicate("one")
    (here / "new").write_text("never replicated before")
    (a.mountpoint("tank/work") / "w").write_text("in the other volume")
    expected = picture(here)
    plan = b.run("failover", "office", "--dry-run")
    assert "have a become passive in term 2" in plan
    assert "nothing is lost" in plan
    b.run("failover", "office")
    assert (role(a), role(b)) == (("passive", 2), ("active", 2))
    assert find_mount(here) is None
    assert picture(there) == expected
    assert (b.mountpoint("safe/work") / "w").read_text() == "in the other volume"
    assert "not the original primary" in b.fails(3, "failback", "office")
    had = len(a.json("snapshot", "list", "tank/home"))
    assert a.json("replication", "reception", "office")["keep_least"] == had  # none is retired

    (there / "made on b").write_text("x")
    b.run("snapshot", "create", "office@on-b")
    b.run("replication", "run", "office", "--wait")
    assert a.json("group", "show", "office")["last_snapshot"] == "on-b"

    a.run("failback", "office")
    assert (role(a), role(b)) == (("active", 3), ("passive", 3))
    assert (here / "made on b").read_text() == "x"
    assert find_mount(there) is None
    a.run("snapshot", "create", "office@again")
    a.run("replication", "run", "office", "--wait")
    assert b.json("group", "show", "office")["last_snapshot"] == "again"
    for node, volume in ((a, "tank/home"), (b, "safe/home")):
        node.run("volume", "check", volume)


def test_files_in_use_prevent_it_and_all_is_as_before(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    here = a.mountpoint("tank/work")
    handle = os.open(here / "open", os.O_CREAT | os.O_WRONLY)
    try:
        said = b.fails(3, "failover", "office")
        assert f"(process {os.getpid()})" in said
        assert "--force" in said
        assert (role(a), role(b)) == (("active", 1), ("passive", 1))
        for volume in ("tank/home", "tank/work"):
            wait_until(partial(find_mount, a.mountpoint(volume)), "it is mounted again")
        os.write(handle, b"goes on")
        a.run("snapshot", "create", "office@two")
        b.run("failover", "office", "--force")
    finally:
        with suppress(OSError):  # its mount was taken away
            os.close(handle)
    assert (role(a), role(b)) == (("passive", 2), ("active", 2))
    assert (b.mountpoint("safe/work") / "open").read_text() == "goes on"


def test_shares_that_cannot_be_brought_prevent_it_before_anybody_is_cut_off(pair: Pair) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    staging = b.root / "var/lib/nasfs/staging"
    shutil.rmtree(staging)
    staging.touch()  # nothing can be put there
    mounted = find_mount(a.mountpoint("tank/home"))
    said = b.fails(3, "failover", "office")
    assert "the shares of office can't be brought" in said
    assert "--force" in said
    assert (role(a), role(b)) == (("active", 1), ("passive", 1))
    assert find_mount(a.mountpoint("tank/home")) == mounted
    assert "shares can't be merged" in b.nasfs("failover", "office", "--force").stderr
    assert (role(a), role(b)) == (("passive", 2), ("active", 2))
    assert "shares can't be merged" in b.run("status")


def test_the_old_primary_joins_and_keeps_what_only_it_had(pair: Pair) -> None:
    a, b = pair.a, pair.b
    here, there = a.mountpoint("tank/home"), b.mountpoint("safe/home")
    (here / "both").write_text("common")
    pair.replicate("one")
    (here / "mine").write_text("never replicated")
    (here / "both").write_text("changed on a")
    a.run("replication", "pause", "office")
    a.run("snapshot", "create", "office@only-a")
    with (here / "later").open("w") as handle:
        handle.write("after the last snapshot")
        handle.flush()
        os.fsync(handle)
    a.kill_all()
    b.run("failover", "office", *LOSE)
    (there / "both").write_text("changed on b")
    assert "does not answer" in b.fails(3, "failback-join", "office")

    a.start()
    wait_until(lambda: a.json("group", "show", "office")["role"] == "stale", "stepping down")
    assert "failback-join" in a.fails(3, "failback", "office")
    said = b.run("failback-join", "office")
    assert (role(a), role(b)) == (("passive", 2), ("active", 2))
    kept = next(word for word in said.split() if word.startswith("tank/home@diverged-"))
    assert "tank/work@" not in said  # nothing was changed there
    found = a.json("snapshot", "diff", "tank/home@one", kept.partition("/home")[2])
    assert [(entry["change"], entry["path"]) for entry in found] == [
        ("changed", "both"), ("added", "later"), ("added", "mine"),
    ]  # fmt: skip
    assert "divergence" in a.fails(3, "snapshot", "destroy", kept)
    assert a.json("group", "show", "office")["last_snapshot"] == "one"

    b.run("snapshot", "create", "office@two")
    b.run("replication", "run", "office", "--wait")
    sent = b.json("replication", "history", "office")
    assert all(past["bytes"] < 1 << 16 for past in sent)  # a delta, no full copy
    a.run("failback", "office")
    assert (here / "both").read_text() == "changed on b"
    assert not (here / "mine").exists()
    a.run("snapshot", "restore", kept, "mine")
    assert (here / "mine").read_text() == "never replicated"
    for node, volume in ((a, "tank/home"), (b, "safe/home")):
        node.run("volume", "check", volume)


def test_a_group_goes_back_on_both_sites(pair: Pair) -> None:
    a, b = pair.a, pair.b
    home, work = a.mountpoint("tank/home"), a.mountpoint("tank/work")
    (home / "f").write_text("first")
    (work / "w").write_text("first")
    pair.replicate("one")
    b.fails(3, "rollback", "office@one")
    assert "goes back as a whole" in a.fails(3, "rollback", "tank/home@one")
    assert "no complete snap group" in a.fails(3, "rollback", "office@none")
    (home / "f").write_text("second")
    (work / "w").unlink()
    pair.replicate("two")
    a.run("replication", "pause", "office")
    (home / "g").write_text("third")
    a.run("snapshot", "create", "office@three")
    plan = a.run("rollback", "office@one", "--dry-run")
    assert "make tank/work what it was at @one" in plan
    assert "b goes back, too" in plan
    (home / "late").write_text("not in any snapshot")
    before = picture(home)
    with (home / "f").open() as handle:  # files in use do not prevent it
        said = a.run("rollback", "office@one")
        handle.seek(0)
        assert handle.read() == "first"
    kept = next(word for word in said.split() if word.startswith("office@before-")).split("@")[1]
    assert sorted(path.name for path in home.iterdir()) == ["f"]
    assert (work / "w").read_text() == "first"
    assert picture(home / ".snapshots" / kept) == before
    a.run("replication", "resume", "office")
    a.run("replication", "run", "office", "--wait")
    newest = b.json("group", "show", "office")["last_snapshot"]
    assert newest == kept.replace("before-", "after-")
    sent = {past["snapshot"]: past["bytes"] for past in a.json("replication", "history", "office")}
    assert max(sent.values()) < 1 << 16
    b.run("failover", "office")  # the other site went back with it
    assert picture(b.mountpoint("safe/home")) == picture(b.mountpoint("safe/home/.snapshots/one"))
    assert (b.mountpoint("safe/work") / "w").read_text() == "first"
    b.run("rollback", f"office@{kept}")  # and forward again, on the other site
    assert (b.mountpoint("safe/home") / "late").read_text() == "not in any snapshot"
    for node, volume in ((a, "tank/home"), (b, "safe/home"), (b, "safe/work")):
        node.run("volume", "check", volume)
