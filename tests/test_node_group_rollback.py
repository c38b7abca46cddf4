"""A group goes back to whatever snapshot: the partner follows by deltas, or by comparing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node_world import NodeWorld, wait_until
from tests.role_world import Pair, made_pair
from tests.test_node_failover import picture
from tests.test_node_rebase import snapshots
from tests.test_node_verify import execute

pytestmark = pytest.mark.mount

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home") as made:
        yield made


def home(pair: Pair) -> Path:
    return pair.a.mountpoint("tank/home")


def show(pair: Pair) -> dict[str, Any]:
    view: dict[str, Any] = pair.a.json("replication", "show", "office")
    return view


def sent(node: NodeWorld) -> int:
    """Bytes of file data, in all."""
    return sum(past["bytes"] for past in node.json("replication", "history", "office"))


def under_way(pair: Pair) -> None:
    """Snap group two, with 2 MiB that don't compress, is on its way; one is there."""
    (home(pair) / "file").write_text("one")
    pair.replicate("one")
    (home(pair) / "file").write_text("two")
    (home(pair) / "large").write_bytes(os.urandom(2 * MIB))
    pair.a.run("replication", "set", "office", "--rate", "200K", "--compression", "off")
    pair.a.run("snapshot", "create", "office@two")
    wait_until(lambda: show(pair)["phase"] == "sending", "it is on its way")
    assert show(pair)["snapshot"] == "two"


def arrives(pair: Pair) -> int:
    """The partner becomes what A is now, and both are sound.

    Returns:
        How many bytes of file data were sent by then, in all.
    """
    pair.a.run("replication", "set", "office", "--rate", "off")
    pair.a.run("replication", "run", "office", "--wait")
    wanted, count = picture(home(pair)), sent(pair.a)
    pair.b.run("failover", "office")
    assert picture(pair.b.mountpoint("safe/home")) == wanted
    for node, volume in ((pair.a, "tank/home"), (pair.b, "safe/home")):
        node.run("volume", "check", volume)
    return count


def test_what_is_on_its_way_and_not_affected_goes_on(pair: Pair) -> None:
    under_way(pair)
    (home(pair) / "file").write_text("late")
    attempts = show(pair)["finished_attempts"]
    pair.a.run("rollback", "office@two")
    now = show(pair)
    assert (now["snapshot"], now["state"], now["finished_attempts"]) == ("two", "running", attempts)
    assert (home(pair) / "file").read_text() == "two"
    assert 2 * MIB <= arrives(pair) < 3 * MIB, "nothing of it was sent again"
    assert "two" in snapshots(pair.b, "safe/home")


def test_what_is_on_its_way_is_gone_back_behind(pair: Pair) -> None:
    under_way(pair)
    pair.a.run("rollback", "office@one")
    assert sorted(os.listdir(home(pair))) == ["file"]
    arrives(pair)


def test_the_partner_has_retired_what_is_gone_back_to(pair: Pair) -> None:
    for number in range(4):
        (home(pair) / "file").write_text(f"{number}")
        (home(pair) / f"only in {number}").write_bytes(os.urandom(100_000))
        pair.replicate(f"s{number}")
        (home(pair) / f"only in {number}").unlink()
    pair.a.run("replication", "set", "office", "--max-snapshots", "1")
    (home(pair) / "more").write_text("more")
    pair.replicate("s4")
    wait_until(lambda: "s1" not in snapshots(pair.b, "safe/home"), "the partner retires it")
    before = sent(pair.a)
    pair.a.run("rollback", "office@s1")
    assert (home(pair) / "only in 1").stat().st_size == 100_000
    assert arrives(pair) - before < 200_000, "what differs, and no more"


def test_the_partner_is_away(pair: Pair) -> None:
    (home(pair) / "file").write_text("one")
    pair.replicate("one")
    (home(pair) / "file").write_text("two")
    pair.replicate("two")
    pair.b.stop()
    pair.a.run("rollback", "office@one")
    assert (home(pair) / "file").read_text() == "one"
    pair.b.start()
    arrives(pair)


def test_nothing_is_common_any_more(pair: Pair) -> None:
    (home(pair) / "file").write_text("one")
    (home(pair) / "same").write_bytes(os.urandom(2 * MIB))
    pair.replicate("one")
    pair.a.run("replication", "split", "office")
    (home(pair) / "file").write_text("two")
    pair.a.run("snapshot", "create", "office@two")
    (home(pair) / "file").write_text("three")
    execute(pair.a, "DELETE FROM hold")  # for instance by an older release
    pair.a.run("snapshot", "destroy", "tank/home@one")
    pair.a.run("rollback", "office@two")
    pair.a.run("replication", "join", "office")
    wait_until(lambda: show(pair)["state"] == "stopped", "it says that it can't")
    assert "--rebase" in show(pair)["hint"]
    before = sent(pair.a)
    pair.a.run("replication", "run", "office", "--rebase", "--wait")
    assert "one" in snapshots(pair.b, "safe/home"), "the old copy is kept"
    assert sent(pair.a) - before < MIB
    arrives(pair)
