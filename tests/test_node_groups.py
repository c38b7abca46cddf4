"""Many groups on one link: one that is slow, shut, sick or stuck does not hold the others."""

from __future__ import annotations

import fcntl
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from nasfs.node.client import Client, replication_url
from nasfs.node.messages import (
    GroupCreate,
    GroupView,
    ReplicationCreate,
    ReplicationView,
    SnapshotCreate,
    VolumeCreate,
    VolumeView,
)
from nasfs.node.places import Places
from nasfs.volume import check_volume
from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair
from tests.test_node_failover import pair as pair  # the fixture
from tests.test_node_link import CLOSED, MIB, has, show, write
from tests.test_soak_nodes import processes_of

pytestmark = pytest.mark.mount

SENDER = "nasfs.node.sending.send"
MANY = 64


def make(node: NodeWorld, group: str, *volumes: str) -> None:
    """A replicated group of volumes that nobody mounts."""
    client = Client(Places(node.root))
    for volume in volumes:
        client.post("/v1/volumes", VolumeView, VolumeCreate(f"tank/{volume}", 20 * MIB))
    names = tuple(f"tank/{volume}" for volume in volumes)
    client.post("/v1/groups", GroupView, GroupCreate(group, names))
    client.post("/v1/replications", ReplicationView, ReplicationCreate(group, "safe"))


def sender_of(node: NodeWorld, group: str) -> list[int]:
    return [pid for pid in processes_of(node, SENDER) if pid in processes_of(node, group)]


def test_no_group_holds_another(pair: Pair) -> None:
    a, b = pair.a, pair.b
    for group in ("shut", "paused", "sick", "stuck", "free"):
        make(a, group, group)
        wait_until(lambda group=group: show(a, group)["finished_attempts"], "it was looked at")  # type: ignore[misc]
    a.run("replication", "link", "--transfers", "4")
    write(a.mountpoint("tank/home") / "large", 2 * MIB)
    a.run("replication", "set", "office", "--rate", "16K")
    a.run("replication", "window", "add", "shut", *CLOSED)
    a.run("replication", "pause", "paused")
    (stuck,) = sender_of(a, "stuck")
    os.kill(stuck, signal.SIGSTOP)  # as if its disk hung
    with (b.root / "pool/sick/lock").open("r+b") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            for group in ("office", "shut", "paused", "sick", "stuck"):
                a.run("snapshot", "create", f"{group}@one")
            wait_until(lambda: show(a)["phase"] == "sending", "the slow one is under way")
            wait_until(lambda: show(a, "sick")["state"] == "waiting", "the sick one fails")
            wait_until(lambda: show(a, "stuck")["state"] == "running", "the stuck one has its turn")
            for name in ("one", "two", "three"):
                a.run("snapshot", "create", f"free@{name}")
                wait_until(partial(has, a, "free", name), f"{name} arrives")
            assert show(a)["state"] == "running"
            assert "outside its windows" in show(a, "shut")["reason"]
            assert [show(a, g)["common"] for g in ("shut", "paused", "sick", "stuck")] == [None] * 4
        finally:
            fcntl.flock(owner, fcntl.LOCK_UN)
    # One that does not even stop when it is told to loses its turn, too.
    a.run("replication", "pause", "office")
    a.run("replication", "link", "--transfers", "1")
    a.run("replication", "window", "add", "stuck", *CLOSED)
    wait_until(lambda: show(a, "stuck")["state"] == "waiting", "the stuck one is ended")
    wait_until(lambda: not Path(f"/proc/{stuck}").exists(), "and gone")
    a.run("snapshot", "create", "free@four")
    wait_until(partial(has, a, "free", "four"), "four arrives", deadline_s=90)
    a.run("replication", "link", "--transfers", "8")
    a.run("replication", "set", "office", "--rate", "off")
    for group in ("shut", "stuck"):
        a.run("replication", "window", "remove", group, "--all")
    for group in ("office", "paused"):
        a.run("replication", "resume", group)
    a.run("replication", "run", "sick")
    for group in ("office", "shut", "paused", "sick", "stuck"):
        wait_until(partial(has, a, group, "one"), f"{group} arrives", deadline_s=60)


@pytest.mark.soak
def test_64_groups_and_a_group_of_64_volumes(pair: Pair) -> None:
    a, b = pair.a, pair.b
    groups = [f"g{number}" for number in range(MANY - 2)]
    for group in groups:
        make(a, group, f"v-{group}")
    make(a, "wide", *(f"w{number}" for number in range(MANY)))
    client = Client(Places(a.root))
    for round_ in ("one", "two"):
        for group in (*groups, "wide"):
            client.post("/v1/snapshots", list[object], SnapshotCreate(f"{group}@{round_}"))
        for group in (*groups, "wide"):
            wait_until(partial(has, a, group, round_), f"{group}@{round_}", deadline_s=300)
    assert client.get(replication_url("wide"), ReplicationView).reason == ""
    wait_until(lambda: len(processes_of(a, SENDER)) <= 4, "the others have ended")
    for number in range(MANY):
        assert check_volume(b.root / f"pool/w{number}") == []
