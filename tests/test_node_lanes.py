"""Two nodes: lanes and encryption of bulk data as people set them, past a line that listens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nasfs.node.context import Node
from nasfs.node.places import Places
from tests.test_lanes import MARK, Line
from tests.test_node_failover import Pair
from tests.test_node_failover import pair as pair  # the fixture
from tests.test_node_follow import there as there  # the fixture

pytestmark = pytest.mark.mount

SIZE = 12 << 20
"""Enough for lanes."""


@pytest.fixture
def line(pair: Pair) -> Iterator[Line]:
    """Between the two nodes."""
    with Node.open(Places.find(str(pair.a.root))) as node:
        peer = node.bond.peer()
        assert peer is not None
        made = Line(peer.address)
        node.bond.set_peer(replace(peer, address=made.address))
    yield made
    made.close()


def test_encryption_and_lanes_are_set_for_each_group(pair: Pair, line: Line, there: Path) -> None:
    a, b = pair.a, pair.b
    for wrong in (("--lanes", "9"), ("--lanes", "many"), ("--encryption", "some")):
        a.fails(2, "replication", "set", "office", *wrong)
    shown = a.json("replication", "show", "office")
    assert (shown["lanes"], shown["encryption"]) == ("auto", "on")
    data = MARK * (SIZE // len(MARK))

    def heard() -> tuple[int, bool, bool]:
        """Lanes since the last look; whether data was heard, on them and elsewhere."""
        lanes = line.lanes
        others = [there for there in line.heard if there not in lanes]
        line.heard = []
        return len(lanes), *(any(MARK in there for there in part) for part in (lanes, others))  # type: ignore[return-value]

    def send(name: str, *options: str) -> tuple[int, bool, bool]:
        a.run("replication", "set", "office", "--compression", "off", *options)
        (a.mountpoint("tank/home") / name).write_bytes(data)
        pair.replicate(name)
        return heard()

    assert send("one", "--lanes", "1") == (0, False, False)
    assert send("two", "--lanes", "3") == (3, False, False)
    assert send("three", "--encryption", "off") == (3, True, False)
    assert send("four", "--lanes", "1") == (1, True, False)
    shown = a.json("replication", "show", "office")
    assert (shown["lanes"], shown["encryption"]) == ("1", "off")
    b.run("mount", "safe/home", str(there))
    for name in ("one", "two", "three", "four"):
        assert (there / name).read_bytes() == data
