"""Two nodes without a common snapshot, or with a damaged copy: what differs goes, nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair, picture
from tests.test_node_failover import pair as pair  # the fixture
from tests.test_node_verify import execute, flip, layer, verified, volume_dir

pytestmark = pytest.mark.mount

MIB = 1 << 20


def shown(node: NodeWorld, snapshot: str, at: Path) -> dict[str, tuple[object, ...]]:
    """What a snapshot of B's copy holds."""
    at.mkdir(exist_ok=True)
    node.run("mount", "safe/home", str(at), "--snapshot", snapshot)
    try:
        return picture(at)
    finally:
        node.run("unmount", str(at))


def snapshots(node: NodeWorld, volume: str) -> list[str]:
    return [view["name"].partition("@")[2] for view in node.json("snapshot", "list", volume)]


def test_without_a_common_snapshot_only_what_differs_is_sent(pair: Pair, tmp_path: Path) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    (here / "same").write_bytes(os.urandom(6 * MIB))
    (here / "changed").write_bytes(os.urandom(MIB))
    (here / "longer").write_bytes(b"x" * 100)
    (here / "shorter").write_bytes(os.urandom(MIB))
    shutil.copytree(Path(__file__).parent / "posix", here / "posix")
    pair.replicate("one")
    old = shown(b, "one", tmp_path / "old")
    a.run("replication", "split", "office")
    with (here / "changed").open("r+b") as file:
        file.seek(500_000)
        file.write(b"changed")
    os.truncate(here / "longer", 20_000)
    os.truncate(here / "shorter", 5000)
    os.setxattr(here / "same", "user.new", b"1")
    shutil.rmtree(here / "posix")
    (here / "new").write_bytes(os.urandom(300_000))
    a.run("snapshot", "create", "office@two")
    execute(a, "DELETE FROM hold")  # for instance by an older release
    a.run("snapshot", "destroy", "tank/home@one")
    a.run("replication", "join", "office")
    wait_until(lambda: a.json("replication", "show", "office")["state"] == "stopped", "diverged")
    view = a.json("replication", "show", "office")
    assert "no snapshot is common" in view["reason"]
    assert "--rebase" in view["hint"]
    assert snapshots(b, "safe/home") == ["one"]
    found = a.json("replication", "run", "office", "--rebase", "--dry-run")["findings"]
    assert {"changed", "longer", "shorter", "same", "new"} <= {f["path"] for f in found}
    a.run("replication", "run", "office", "--rebase", "--wait")
    assert snapshots(b, "safe/home") == ["one", "two"]
    assert shown(b, "one", tmp_path / "old") == old
    assert shown(b, "two", tmp_path / "new") == picture(here)
    assert a.json("replication", "history", "office")[0]["bytes"] < MIB
    assert verified(a, 0) == []
    b.run("volume", "check", "safe/home")
    (here / "later").write_text("the next delta is an ordinary one")
    pair.replicate("three")
    assert verified(a, 0) == []


def test_a_repair_sends_what_differs_and_changes_no_snapshot(pair: Pair, tmp_path: Path) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    for name in ("flipped", "row", "lost"):
        (here / name).write_bytes(os.urandom(50_000))
    (here / "large").write_bytes(os.urandom(6 * MIB))
    inos = {path.name: path.stat().st_ino for path in here.iterdir()}
    pair.replicate("one")
    flip(layer(b, inos["flipped"]), 20_000)
    execute(b, "UPDATE inode SET mode = mode + 1 WHERE ino = ?", inos["row"])
    layer(b, inos["lost"]).unlink()
    damaged = (layer(b, inos["flipped"]).read_bytes(), layer(b, inos["flipped"]).name)
    assert {path for path, _, _ in verified(a, 1)} == {"flipped", "row", "lost"}
    said = a.run("replication", "verify", "office", "--repair")
    assert "equal on both sites" in said
    assert verified(a, 0) == []
    assert a.json("replication", "history", "office")[0]["bytes"] < MIB
    (repair,) = [name for name in snapshots(b, "safe/home") if name.startswith("repair-")]
    assert shown(b, repair, tmp_path / "new") == picture(here)
    home = volume_dir(b) / "layers" / f"{inos['flipped'] % 256:02x}"
    assert (home / damaged[1]).read_bytes() == damaged[0]
    assert {path for path, _, _ in verified(a, 1, "--snapshot", "one")} == {
        "flipped", "row", "lost",
    }  # fmt: skip
    assert "goes with neither" in a.fails(
        2, "replication", "verify", "office", "--repair", "--snapshot", "one"
    )
    assert "equal" in a.run("replication", "verify", "office", "--repair")  # nothing to do
    assert len(snapshots(b, "safe/home")) == 2


def test_each_volume_of_a_group_is_compared_and_repaired(pair: Pair) -> None:
    a, b = pair.a, pair.b
    for name in ("one", "two"):
        (a.volume(f"tank/{name}") / "f").write_bytes(os.urandom(20_000))
    a.run("group", "create", "both", "tank/one", "tank/two")
    a.run("replication", "create", "both", "--to-pool", "safe")
    a.run("snapshot", "create", "both@first")
    a.run("replication", "run", "both", "--wait")
    said = a.run("replication", "verify", "both")
    assert "equal on both sites (2 volumes" in said
    for name in ("one", "two"):
        (only,) = (b.root / "pool" / name / "layers").glob("*/*.*")
        flip(only, 9000)
    done = a.nasfs("replication", "verify", "both")
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()[:2]) == [
        f"tank/{name}: f: data: blocks 2" for name in ("one", "two")
    ]
    assert "2 differences" in done.stdout
    assert "equal on both sites" in a.run("replication", "verify", "both", "--repair")
    assert a.json("replication", "show", "both")["common"].startswith("repair-")
    execute(b, "UPDATE inode SET uid = 7 WHERE ino >= 256", volume="one")
    a.run("replication", "pause", "both")
    before = snapshots(a, "both")
    done = a.nasfs("replication", "verify", "both", "--repair")
    assert (done.returncode, "is paused" in done.stderr) == (3, True)
    assert snapshots(a, "both") == before  # nothing half done


def test_a_repair_waits_for_a_transfer_that_is_under_way(pair: Pair) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    (here / "f").write_bytes(os.urandom(20_000))
    pair.replicate("one")
    flip(layer(b, (here / "f").stat().st_ino), 100)
    a.run("replication", "set", "office", "--rate", "1M")
    (here / "large").write_bytes(os.urandom(6 * MIB))
    a.run("snapshot", "create", "office@two")
    wait_until(lambda: a.json("replication", "show", "office")["bytes_done"] > MIB, "it is sent")
    assert "equal on both sites" in a.run("replication", "verify", "office", "--repair")
    assert snapshots(b, "safe/home")[:2] == ["one", "two"]
    assert verified(a, 0) == []
