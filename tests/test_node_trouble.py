"""Two nodes in trouble: each kind ends in a state that is told, and that somebody can leave.

Another version, another clock: the partner's processes are the real ones, with one number changed
when their interpreter starts.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair
from tests.test_node_failover import pair as pair  # the fixture
from tests.test_node_link import explained, has, show, write
from tests.test_node_verify import execute, verified

pytestmark = pytest.mark.mount

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "nasfs-test", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def told(node: NodeWorld, state: str, reason: str, group: str = "office") -> Any:
    """The group's replication, once it is in that state for that reason; all pages say so."""

    def is_so() -> bool:
        views.append(show(node, group))
        return views[-1]["state"] == state and reason in views[-1]["reason"]

    # One after the other: between them it may be tried again.
    views: list[Any] = []
    wait_until(is_so, f"{state}: {reason}")
    wait_until(lambda: reason in explained(node, group), "explain")
    wait_until(
        lambda: any(reason in sentence for sentence in node.json("status")["attention"]), "status"
    )
    return views[-1]


def restart(node: NodeWorld, monkeypatch: pytest.MonkeyPatch, change: str, where: Path) -> None:
    """Start the daemon anew, with a statement that every process of it runs first."""
    node.stop()
    where.mkdir(exist_ok=True)
    (where / "sitecustomize.py").write_text(change)
    with monkeypatch.context() as patch:
        known = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(where), known]))
        node.start()


def test_a_full_disk_there_is_told_and_waited_for(pair: Pair, small_disk: Path) -> None:
    a, b = pair.a, pair.b
    b.run("pool", "create", "small", str(small_disk / "pool"))
    here = a.volume("tank/more")
    a.run("group", "create", "second", "tank/more")
    a.run("replication", "create", "second", "--to-pool", "small")
    write(here / "fits", MIB)
    a.run("snapshot", "create", "second@one")
    wait_until(lambda: has(a, "second", "one"), "the first fits")
    write(here / "large", 60 * MIB)
    a.run("snapshot", "create", "second@two")
    view = told(a, "waiting", "No space left on device", "second")
    assert view["attempts"] >= 1
    assert "free space" in view["hint"]
    assert b.json("replication", "reception", "second")["newest"] == "one"
    b.run("volume", "check", "small/more")
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    a.run("replication", "run", "second", "--wait")
    assert b.json("replication", "reception", "second")["newest"] == "two"
    assert a.nasfs("replication", "verify", "second").returncode == 0


def test_a_full_disk_of_the_state_is_told_and_outlived(tmp_path: Path, small_disk: Path) -> None:
    node = NodeWorld(small_disk / "a", "a")
    try:
        node.start()
        node.run("pool", "create", "tank", str(tmp_path / "pool"))
        node.volume("tank/home")
        node.run("group", "create", "office", "tank/home")
        node.run("snapshot", "create", "office@before")
        assert node.json("status")["attention"] == []
        fill = small_disk / "fill"
        with suppress(OSError), fill.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        (said,) = node.json("status")["attention"]
        assert said.startswith(f"the disk of {node.root}/var/lib/nasfs has 0B left")
        done = node.nasfs("snapshot", "create", "office@full")
        there = [view["name"] for view in node.json("snapshot", "list", "tank/home")]
        assert ("tank/home@full" in there) == (done.returncode == 0), done.stderr
        fill.unlink()
        assert node.json("status")["attention"] == []
        node.run("snapshot", "create", "office@after")
        assert node.daemon is not None
        assert node.daemon.poll() is None
    finally:
        node.close()


def test_another_version_there_is_told(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair.a, pair.b
    pair.replicate("one")
    change = "import replication.wire\nreplication.wire.PROTOCOL += 1\n"
    restart(b, monkeypatch, change, tmp_path / "changed")
    a.run("snapshot", "create", "office@two")
    view = told(a, "stopped", "the peer speaks protocol version")
    assert "same release" in view["hint"]
    assert "protocol version" in a.fails(1, "replication", "run", "office", "--wait")
    b.stop()
    b.start()  # with the right one
    a.run("replication", "run", "office", "--wait")
    assert has(a, "office", "two")


def test_another_clock_there_is_told(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair.a, pair.b
    change = "import time\nnow = time.time_ns\ntime.time_ns = lambda: now() + 3600 * 10**9\n"
    restart(b, monkeypatch, change, tmp_path / "changed")
    pair.replicate("one")  # it goes nevertheless
    assert 3590 < show(a)["clock_skew_s"] < 3610
    assert "clock differs by 36" in explained(a)
    assert any("clock" in sentence for sentence in a.json("status")["attention"])
    b.stop()
    b.start()
    pair.replicate("two")
    assert abs(show(a)["clock_skew_s"]) < 5
    assert "clock" not in explained(a)


def test_another_certificate_there_is_told(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("kept")
    pair.replicate("one")
    b.stop()
    for name in ("node.key", "node.crt"):
        (b.root / "var/lib/nasfs" / name).unlink()
    b.run("node", "init", "--name", "b", "--listen", b.address)
    b.start()
    a.run("snapshot", "create", "office@two")
    view = told(a, "stopped", "shows another certificate than at pairing")
    assert "paired again" in view["hint"]
    assert "certificate" in a.fails(1, "replication", "verify", "office")
    # The administrator knows why, and pairs them again: nothing is sent twice.
    for node in (a, b):
        node.run("pair", "remove", "--force")
    a.run("pair", "join", b.run("pair", "invite").strip())
    a.run("replication", "create", "office", "--to-pool", "safe")
    a.run("replication", "run", "office", "--wait")
    assert has(a, "office", "two")
    assert b.json("replication", "reception", "office")["snapshots"] == 2
    assert verified(a, 0) == []


def test_a_snapshot_under_way_is_not_destroyed_and_one_that_is_gone_not_missed(pair: Pair) -> None:
    a, b = pair.a, pair.b
    write(a.mountpoint("tank/home") / "large", 64 * MIB)  # more than is read ahead
    a.run("replication", "set", "office", "--rate", "1M")
    a.run("snapshot", "create", "office@one")
    wait_until(lambda: show(a)["bytes_done"] > MIB, "some of it is there")
    execute(a, "DELETE FROM hold")  # by a tool that knows better
    assert "held by reader" in a.fails(3, "snapshot", "destroy", "tank/home@one")
    a.run("replication", "pause", "office")
    wait_until(lambda: show(a)["state"] != "running", "it stops")
    execute_if_any(a, "DELETE FROM hold")
    a.run("snapshot", "destroy", "tank/home@one")
    (a.mountpoint("tank/home") / "new").write_text("new")
    a.run("snapshot", "create", "office@two")
    a.run("replication", "set", "office", "--rate", "off")
    a.run("replication", "resume", "office")
    wait_until(lambda: has(a, "office", "two"), "it is planned anew")
    assert b.json("replication", "reception", "office")["snapshots"] == 1
    assert verified(a, 0) == []


def execute_if_any(node: NodeWorld, statement: str) -> None:
    try:
        execute(node, statement)
    except AssertionError:
        return
