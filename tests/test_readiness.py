"""Readiness: whether a failover would work now, and what it would lose, told beforehand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nasfs.node.context import Node
from nasfs.node.places import Places
from nasfs.node.shares.staging import stage
from sharecfg.model import Nfs, NfsClient, Share, Smb
from sharecfg.payload import Payload, encode_payload
from tests.node_world import NodeWorld, wait_until
from tests.role_world import Pair, made_pair

pytestmark = pytest.mark.mount


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home", "mail") as made:
        yield made


def look(node: NodeWorld, code: int) -> dict[str, Any]:
    """What it says; the exit code must be that."""
    done = node.nasfs("readiness", "office", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    view: dict[str, Any] = json.loads(done.stdout)
    assert view["ready"] == (code == 0)
    return view


def results(view: dict[str, Any]) -> dict[str, str]:
    """Of each check, the worst."""
    order = ("ok", "warning", "problem")
    found: dict[str, str] = {}
    for check in view["checks"]:
        before = found.get(check["what"], "ok")
        found[check["what"]] = max(before, check["result"], key=order.index)
    return found


def test_what_would_be_lost(pair: Pair) -> None:
    a, b = pair.a, pair.b
    assert results(look(b, 1))["snap group"] == "problem"  # nothing has arrived
    pair.replicate("one")
    view = look(b, 0)
    assert view["last_snapshot"] == "one"
    assert view["loss"] | {"as_of": ""} == {
        "as_of": "", "snap_groups": 0, "files": 0, "bytes": 0, "written_since": False,
    }  # fmt: skip
    assert results(view)["test failover"] == "warning"
    a.run("replication", "pause", "office")
    home = a.mountpoint("tank/home")
    (home / "lost").write_bytes(bytes(range(256)) * 32)
    (home / "lost too").write_bytes(b"x" * 4096)
    a.run("snapshot", "create", "office@two")
    (home / "later").write_text("in no snap group")
    loss = look(b, 0)["loss"]
    assert loss | {"as_of": ""} == {
        "as_of": "", "snap_groups": 1, "files": 2, "bytes": 3 * 4096, "written_since": True,
    }  # fmt: skip
    assert "1 snap group with 2 files, 12K, and what was written after" in b.run(
        "readiness", "office"
    )
    b.run("test-failover", "start", "office")
    a.kill_all()
    view = look(b, 0)
    assert not view["peer_reachable"]
    assert results(view)["partner"] == "warning"
    assert view["loss"] | {"as_of": ""} == loss | {"as_of": ""}  # as it said last
    assert view["last_test"]["running"]
    assert view["last_test"]["ok"]
    assert view["last_test"]["serving_s"] > 0
    b.run("test-failover", "stop", "office")
    assert not look(b, 0)["last_test"]["running"]
    b.run("failover", "office", "--force", "--lose-unreplicated")
    assert "is asked where the group is passive" in b.fails(3, "readiness", "office")


def test_what_a_failover_needs_is_asked_and_counted_ahead(pair: Pair) -> None:
    pair.replicate("one")
    pair.b.stop()
    pair.b.start()  # the first time it asks is when it starts
    with Node.open(Places(pair.b.root)) as node:
        group = node.state.group("office").uuid
        wait_until(lambda: node.drills.heard(group), "the partner is asked")
        counted = "SELECT count(*) FROM identity_count"
        wait_until(lambda: node.database.row(counted) == (2,), "whose the files are is counted")


def test_what_is_in_the_way(pair: Pair) -> None:
    b = pair.b
    pair.replicate("one")
    place = b.mountpoint("safe/home")
    place.parent.mkdir(parents=True)
    place.touch()
    assert results(look(b, 1))["safe/home's mount point"] == "problem"
    place.unlink()
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    view = look(b, 1)
    subprocess.run(["umount", str(place)], check=True)
    assert "is busy" in view["problems"][0]
    (place / "file").touch()
    assert results(look(b, 0))["safe/home's mount point"] == "warning"
    (place / "file").unlink()

    with Node.open(Places(b.root)) as node:
        group = node.state.group("office")
        rows = node.state.members(group.uuid)
        shares = (
            Share(name="docs", volume=rows[0].uuid, smb=Smb()),
            Share(name="nfs", volume=rows[0].uuid, nfs=Nfs(clients=(NfsClient(who="*"),))),
        )
        stage(node, group, encode_payload(Payload(shares=shares)), "one")
        meta = node.volume_path(rows[0]) / "meta.db"
        name = str(node.state.volume_name(rows[0]))
    found = results(look(b, 1))
    assert (found["Samba"], found["NFS"]) == ("problem", "problem")
    (b.root / "etc/samba").mkdir()
    (b.root / "etc/samba/smb.conf").write_text("[global]\n")
    assert "does not include" in str(look(b, 1)["problems"])
    b.run("share", "connect", "smb")
    assert "smbd does not run" in str(look(b, 1)["problems"])

    body = meta.read_bytes()
    meta.write_bytes(b"nothing of a database")
    view = look(b, 1)
    meta.write_bytes(body)
    assert results(view)[name] == "problem"
    assert view["last_snapshot"] is None
