"""Shares and accounts travel with a snap group, and are staged; nothing that is live is touched."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.errors import Failed
from nasfs.node.context import Node
from nasfs.node.places import Places
from nasfs.node.records import Group
from nasfs.node.setup import init_node
from nasfs.node.shares.smb_accounts import Samba
from nasfs.node.shares.staging import KEPT, forget, history, payload_of, stage, staged_directory
from sharecfg.payload import Payload, encode_payload
from tests.node_world import NodeWorld, wait_until
from tests.smb import make_accounts

pytestmark = pytest.mark.mount


class Sites:
    """Two paired nodes with a Samba each; group office, of tank/home on A, goes to B."""

    def __init__(self, base: Path) -> None:
        self.a, self.b = (NodeWorld(base / name, name) for name in ("a", "b"))

    def begin(self) -> None:
        for world, pool in ((self.a, "tank"), (self.b, "safe")):
            etc = world.root / "etc/samba"
            etc.mkdir()
            home = world.root / "smb"
            home.mkdir()
            make_accounts(home, etc / "smb.conf", {"games": "from a"} if world is self.a else {})
            world.start()
            world.run("pool", "create", pool, str(world.root / "pool"))
        self.a.run("pair", "join", self.b.run("pair", "invite").strip())
        self.a.volume("tank/home")
        self.a.run("group", "create", "office", "tank/home")
        self.a.run("replication", "create", "office", "--to-pool", "safe")

    def replicate(self, name: str) -> None:
        self.a.run("snapshot", "create", f"office@{name}")
        self.a.run("replication", "run", "office", "--wait")


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    made = Sites(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.a.close()
        made.b.close()


def test_what_travels_is_staged_and_shown_without_secrets(sites: Sites) -> None:
    a, b = sites.a, sites.b
    assert "nothing is staged" in b.fails(1, "share", "staged", "office")
    file = a.mountpoint("tank/home") / "file"
    file.touch()
    os.chown(file, 9, 13)  # news, proxy: of every Debian
    a.run("share", "add", "office", "tank/home", "--user", "games", "--nfs", "10.0.0.0/8:rw")
    sites.replicate("one")
    view = b.json("share", "staged", "office")
    assert [(s["name"], s["volume"]) for s in view["shares"]] == [("office", "safe/home")]
    assert {user["name"] for user in view["users"]} == {"games", "news"}
    assert "proxy" in {group["name"] for group in view["groups"]}
    assert view["smb_accounts"] == ["games"]
    assert (view["snapshot"], view["number"]) == ("one", 1)
    assert "share office: only there" in view["differences"]
    assert "SMB account games: only there" in view["differences"]
    assert any(line.startswith("machine SID") for line in view["differences"])
    with Node.open(Places(a.root)) as node:
        samba = Samba.of(node)
        assert samba is not None
        ((account),) = samba.accounts()
    secret = account.hashes.split(":")[1]
    assert len(secret) == 32
    said = b.run("share", "staged", "office") + json.dumps(view) + b.log() + a.log()
    said += b.run("events") + a.run("events")
    assert secret not in said
    with Node.open(Places(b.root)) as node:
        directory = staged_directory(node, node.state.group("office"))
    (path,) = directory.iterdir()
    assert secret in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b.json("share", "list") == []
    assert not (b.root / "etc/nasfs/shares/samba.conf").exists()


def test_only_what_changed_comes_again_and_a_short_history_stays(sites: Sites) -> None:
    a, b = sites.a, sites.b
    a.run("share", "add", "office", "tank/home", "--user", "games")
    sites.replicate("zero")
    sites.replicate("again")
    assert b.json("share", "staged", "office")["snapshot"] == "zero"
    a.run("share", "set", "office", "--comment", "new")  # a change goes by itself
    wait_until(
        lambda: b.json("share", "staged", "office")["shares"][0].get("comment") == "new",
        "the partner knows the change",
    )
    view = b.json("share", "staged", "office")
    assert view["shares"][0]["comment"] == "new"
    assert [entry["number"] for entry in view["history"]] == [2, 1]
    older = b.json("share", "staged", "office", "--number", "1")
    assert "comment" not in older["shares"][0]
    assert "there is no 7 in" in b.fails(1, "share", "staged", "office", "--number", "7")
    with Node.open(Places(b.root)) as node:
        path = max(staged_directory(node, node.state.group("office")).iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    assert "damaged" in b.fails(1, "share", "staged", "office")
    sites.replicate("heals")
    assert b.json("share", "staged", "office")["shares"][0]["comment"] == "new"


def sid(number: int) -> str:
    return f"S-1-5-21-1-1-{number}"


def test_a_short_history_stays(tmp_path: Path) -> None:
    places = Places.find(tmp_path)
    init_node(places, name="n", listen="")
    with Node.open(places) as node:
        group = Group("1-2-3", "office", "passive", 1)
        sent = [encode_payload(Payload(machine_sid=sid(number))) for number in range(KEPT + 2)]
        for data in sent:
            stage(node, group, data, "s")
        found = history(node, group)
        assert [one.number for one in found] == list(range(KEPT + 2, 2, -1))
        assert payload_of(node, group, found[-1]).machine_sid == sid(2)
        assert payload_of(node, group, found[0]).machine_sid == sid(KEPT + 1)
        forget(node, group.uuid)
        assert history(node, group) == []
        with pytest.raises(Failed):
            stage(node, group, b"nasfs-shares 99\n{}", "s")


def test_shares_that_cannot_be_told_do_not_hold_up_the_data(sites: Sites) -> None:
    a, b = sites.a, sites.b
    a.run("share", "add", "office", "tank/home", "--user", "games")
    (b.root / "var/lib/nasfs/staging").write_text("in the way")
    sites.replicate("one")
    assert b.json("group", "show", "office")["last_snapshot"] == "one"
    said = [line for line in a.json("status")["attention"] if "have not reached" in line]
    assert len(said) == 1
    assert "have not reached" in a.run("replication", "explain", "office")
    (b.root / "var/lib/nasfs/staging").unlink()
    sites.replicate("two")
    wait_until(lambda: not a.json("status")["attention"], "all is well")
    assert [share["name"] for share in b.json("share", "staged", "office")["shares"]] == ["office"]
