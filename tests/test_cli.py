"""The command: exit codes, messages and JSON, with a real daemon."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.cli.progress import check_display
from nasfs.node.children import environment
from nasfs.node.sockets import short_path
from tests.node_world import NodeWorld, wait_until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWorld]:
    """One daemon for all tests of the module; each uses its own names."""
    base = tmp_path_factory.mktemp("cli")
    world = NodeWorld(base / "a", "a")
    try:
        world.start()
        world.run("pool", "create", "tank", str(base / "pool"))
        yield world
    finally:
        world.close()


def test_help_is_quick_and_imports_no_engine() -> None:
    script = (
        "import sys; sys.argv = ['nasfs', '--help']\n"
        "import nasfs.cli.main as main\n"
        "try: main.run()\n"
        "except SystemExit: pass\n"
        "heavy = {'http.client', 'trio', 'nasfs.volume', 'cryptography', 'msgspec', 'rich'}\n"
        "sys.exit(f'{heavy & sys.modules.keys()} imported' if heavy & sys.modules.keys() else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "node",
        "pool",
        "volume",
        "snapshot",
        "group",
        "pair",
        "replication",
        "failover",
        "schedule",
    ):
        assert word in done.stdout


def test_version(node: NodeWorld) -> None:
    assert node.run("version").startswith("nasfs ")
    assert "version" in node.json("version")


def test_usage_errors(node: NodeWorld) -> None:
    node.fails(2, "volume", "create")
    node.fails(2, "volume", "create", "tank/x")
    node.fails(2, "nonsense")
    node.fails(2, "volume", "list", "--nonsense")
    node.fails(2, "volume", "create", "nopool", "--size", "1G")
    node.fails(2, "volume", "create", "tank/x", "--size", "10Q")
    node.fails(2, "volume", "create", "tank/x", "--size", "1G", "--provision", "fat")
    node.fails(2, "volume", "create", "tank/../x", "--size", "1G")
    node.fails(2, "snapshot", "create", "tank/x")
    node.fails(2, "pair", "join", "hello")
    node.fails(2, "events", "--limit", "many")


def test_without_a_node(tmp_path: Path) -> None:
    world = NodeWorld.__new__(NodeWorld)
    world.root = tmp_path / "nowhere"
    assert "nasfs --root" in world.fails(4, "pool", "list")
    assert "no node" in world.fails(1, "node", "run")
    assert "no node" in world.fails(1, "mount", "tank/home", str(tmp_path))
    world.run("node", "init")
    assert "does not run" in world.fails(4, "status")


def test_init_again_keeps_the_identity(tmp_path: Path) -> None:
    world = NodeWorld(tmp_path / "n", "n")
    before = world.json("node", "init")
    after = world.json("node", "init", "--name", "other")
    assert after == {**before, "name": "other"}
    key = tmp_path / "n/var/lib/nasfs/node.key"
    assert key.stat().st_mode & 0o777 == 0o600
    world.fails(2, "node", "init", "--listen", "nowhere")
    world.fails(2, "node", "init", "--name", "two words")
    assert world.json("node", "init") == after


def test_pools(node: NodeWorld, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    assert "not empty" in node.fails(1, "pool", "create", "full", str(tmp_path / "full"))
    node.fails(1, "pool", "create", "tank", str(tmp_path / "other"))
    node.fails(1, "pool", "create", "file", str(tmp_path / "full/file/below"))
    node.fails(1, "pool", "show", "full")
    assert [pool["name"] for pool in node.json("pool", "list")] == ["tank"]
    assert node.json("pool", "show", "tank")["size"] > 0
    assert not (tmp_path / "other").exists()


def test_a_lost_pool_is_told(node: NodeWorld, tmp_path: Path) -> None:
    node.run("pool", "create", "gone", str(tmp_path / "gone"))
    node.run("volume", "create", "gone/v", "--size", "10M")
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    assert node.json("pool", "show", "gone")["problem"]
    assert node.json("volume", "show", "gone/v")["problem"]
    node.fails(1, "volume", "create", "gone/w", "--size", "10M")
    node.fails(1, "volume", "check", "gone/v")
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    node.run("volume", "check", "gone/v")


def test_volumes(node: NodeWorld, tmp_path: Path) -> None:
    node.run("volume", "create", "tank/v", "--size", "1.5G", "--mountpoint", str(tmp_path / "m"))
    node.fails(1, "volume", "create", "tank/v", "--size", "1G")
    node.fails(1, "volume", "create", "tank/w", "--size", "1G", "--mountpoint", str(tmp_path / "m"))
    view = node.json("volume", "show", "tank/v")
    assert view["size"] == 3 << 29
    assert view["mountpoint"] == str(tmp_path / "m")
    assert view["mount_state"] == "unmounted"
    node.fails(2, "volume", "rename", "tank/v", "elsewhere/v")
    node.run("volume", "rename", "tank/v", "tank/renamed")
    assert node.json("volume", "show", "tank/renamed")["uuid"] == view["uuid"]
    assert "--lose-data" in node.fails(3, "volume", "destroy", "tank/renamed")
    node.run("volume", "destroy", "tank/renamed", "--lose-data")
    node.fails(1, "volume", "show", "tank/renamed")
    assert "tank/v" not in node.run("volume", "list")


def test_resizing(node: NodeWorld) -> None:
    node.run("volume", "create", "tank/r", "--size", "10M")
    node.fails(2, "volume", "resize", "tank/r")
    node.fails(2, "volume", "resize", "tank/r", "much")
    node.fails(2, "volume", "resize", "tank/r", "1K")
    node.fails(1, "volume", "resize", "tank/none", "1G")
    assert node.json("volume", "resize", "tank/r", "1.5G")["size"] == 3 << 29
    node.run("volume", "resize", "tank/r", "5M")
    assert node.json("volume", "show", "tank/r")["size"] == 5 << 20
    last = node.json("events", "--limit", "1")[0]
    assert (last["kind"], last["detail"]) == ("volume resized", "1.5G to 5M")


def test_exact_volumes(node: NodeWorld) -> None:
    words = ("volume", "create", "tank/e", "--provision", "exact", "--size")
    error = node.fails(1, *words, "1T")
    assert "to guarantee" in error
    assert "hint: choose a smaller size" in error
    node.fails(1, "volume", "show", "tank/e")
    node.run(*words, "10M")
    view = node.json("volume", "show", "tank/e")
    assert (view["provision"], view["used"], view["unreserved"]) == ("exact", 0, 0)
    assert view["reserved"] >= 10 << 20
    assert "reserved" in node.run("volume", "show", "tank/e")
    (row,) = [line for line in node.run("volume", "list").splitlines() if "tank/e" in line]
    assert " exact " in row
    assert "1.0 TiB" in node.fails(1, "volume", "resize", "tank/e", "1T")
    node.run("volume", "resize", "tank/e", "20M")
    assert node.json("volume", "show", "tank/e")["reserved"] >= 20 << 20
    node.run("volume", "destroy", "tank/e", "--lose-data")


def test_snapshots_of_an_unmounted_volume(node: NodeWorld) -> None:
    node.run("volume", "create", "tank/s", "--size", "10M")
    for name in ("one", "two"):
        node.run("snapshot", "create", f"tank/s@{name}")
    node.fails(1, "snapshot", "create", "tank/s@one")
    node.fails(1, "snapshot", "show", "tank/s@none")
    node.run("snapshot", "hold", "tank/s@one", "--reason", "audit")
    assert node.json("snapshot", "show", "tank/s@one")["holds"] == [
        {"owner": "admin", "reason": "audit"}
    ]
    assert "held by admin" in node.fails(3, "snapshot", "destroy", "tank/s@two", "tank/s@one")
    assert len(node.json("snapshot", "list", "tank/s")) == 2
    node.run("snapshot", "release", "tank/s@one")
    plan = node.run("snapshot", "destroy", "tank/s@one", "--dry-run")
    assert plan == "destroy tank/s@one\n"
    node.run("snapshot", "destroy", "tank/s@one")
    node.run("snapshot", "rename", "tank/s@two", "renamed")
    (view,) = node.json("snapshot", "list", "tank/s")
    assert view["name"] == "tank/s@renamed"
    assert view["time"].endswith("Z")


def test_own_and_shared_bytes_of_snapshots_add_up(node: NodeWorld) -> None:
    root = node.volume("tank/space")
    block = 4096
    (root / "f").write_bytes(b"1" * 10 * block)
    node.run("snapshot", "create", "tank/space@one")
    with open(root / "f", "r+b") as file:
        file.write(b"2" * 3 * block)
    node.run("snapshot", "create", "tank/space@two")
    with open(root / "f", "r+b") as file:
        file.write(b"3" * block)
        file.flush()
        os.fsync(file.fileno())

    def figures() -> list[tuple[int, int]]:
        listed = node.json("snapshot", "list", "tank/space")
        return [(view["own"] // block, view["shared"] // block) for view in listed]

    assert figures() == [(3, 7), (1, 9)]
    used = node.json("volume", "show", "tank/space")["used"] // block
    assert used == 10 + 3 + 1
    node.run("snapshot", "destroy", "tank/space@two")
    wait_until(
        lambda: node.json("volume", "show", "tank/space")["used"] == (used - 1) * block,
        "what it alone had is back",
    )
    wait_until(lambda: figures() == [(3, 7)], "the other has what it had")
    assert "12K" in node.run("snapshot", "list", "tank/space")


def test_groups(node: NodeWorld) -> None:
    for name in ("g1", "g2"):
        node.run("volume", "create", f"tank/{name}", "--size", "10M")
    node.run("group", "create", "both", "tank/g1")
    node.fails(1, "group", "create", "both", "tank/g2")
    node.fails(3, "group", "create", "other", "tank/g1", "tank/g2")
    node.fails(1, "group", "show", "other")
    node.run("group", "add", "both", "tank/g2")
    node.run("snapshot", "create", "both@x")
    views = node.json("snapshot", "list", "both")
    assert len(views) == 2
    assert len({view["snap_group"] for view in views}) == 1
    node.run("snapshot", "create", "tank/g2@y")
    node.fails(1, "snapshot", "create", "both@y")  # all or none
    assert len(node.json("snapshot", "list", "tank/g1")) == 1
    assert node.json("group", "show", "both")["last_snapshot"] == "x"
    node.fails(3, "volume", "destroy", "tank/g1", "--lose-data")
    node.fails(3, "readiness", "both")
    node.fails(3, "failover", "both")
    node.fails(3, "replication", "create", "both", "--to-pool", "safe")  # no partner
    node.run("group", "remove", "both", "tank/g1")
    node.run("group", "destroy", "both")
    assert len(node.json("snapshot", "list", "tank/g2")) == 2


def test_status_and_events(node: NodeWorld) -> None:
    status = node.json("status")
    assert status["node"]["name"] == "a"
    assert status["peer"] is None
    assert "node a" in node.run("status")
    node.run("volume", "create", "tank/seen", "--size", "10M")
    last = node.json("events", "--limit", "1")
    assert (last[0]["kind"], last[0]["subject"]) == ("volume created", "tank/seen")
    assert "tank/seen" in node.run("events")


def test_events_are_followed(node: NodeWorld) -> None:
    words = ("--root", str(node.root), "events", "--follow", "--json", "--limit", "1")
    with subprocess.Popen(
        [sys.executable, "-m", "nasfs.cli.main", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout
        first = json.loads(follower.stdout.readline())
        node.run("volume", "create", "tank/later", "--size", "1G")
        second = json.loads(follower.stdout.readline())
        follower.send_signal(signal.SIGINT)
    assert second["number"] == first["number"] + 1
    assert second["subject"] == "tank/later"


def test_explain(node: NodeWorld) -> None:
    node.run("volume", "create", "tank/why", "--size", "1G")
    node.run("group", "create", "why", "tank/why")
    node.run("schedule", "add", "why", "p", "--every", "1d", "--keep", "1")
    scheduled = node.run("schedule", "run", "why", "p").strip()
    node.run("snapshot", "create", "why@mine")
    node.run("snapshot", "hold", "tank/why@mine", "--reason", "the audit")
    everything = node.run("explain", "why")
    assert "why: active on this node, in term 1" in everything
    assert f"{scheduled}: stays: number 1 of the newest 1" in everything
    assert "in group why" in node.run("explain", "tank/why")
    member = f"tank/why@{scheduled.partition('@')[2]}"
    assert "number 1 of" in node.run("explain", member)
    held, policy = node.json("explain", "why@mine")
    assert held["reason"] == "held by admin: the audit"
    assert "snapshot release tank/why@mine --owner admin" in held["hint"]
    assert policy == {
        "about": "tank/why@mine", "reason": "stays: no policy made it", "hint": ""
    }  # fmt: skip
    for unknown in ("nix", "tank/nix", "why@nix", "tank/why@nix"):
        node.fails(1, "explain", unknown)


def test_bad_requests_of_the_api(node: NodeWorld) -> None:
    def ask(request: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            with short_path(node.root / "run/nasfs/api.sock") as name:
                sock.connect(name)
            sock.sendall(request)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            return answer

    def post(body: bytes) -> bytes:
        head = b"POST /v1/pools HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        return ask(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    for body in (b"{", b'{"name": 5, "path": "/x"}', b'{"name": "n", "path": "/x", "z": 1}', b"[]"):
        answer = post(body)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b'"exit_code":2' in answer
    answer = ask(b"GET /v1/nonsense HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"message"' in answer


def test_check_lists_what_is_broken_and_repairs_what_follows_from_the_rest(
    node: NodeWorld,
) -> None:
    node.run("volume", "create", "tank/broken", "--size", "10M")
    check = ("volume", "check", "tank/broken")
    assert node.run(*check) == "tank/broken: clean\n"
    assert node.json(*check) == []
    assert node.run(*check, "--repair") == "tank/broken: clean\n"
    assert node.json(*check, "--repair") == {"repairs": [], "findings": []}
    node.fails(2, *check, "--dry-run")

    pool = node.json("pool", "show", "tank")["path"]
    database = sqlite3.connect(Path(pool) / "broken/meta.db")
    database.execute("UPDATE volume SET inodes = 9")
    database.execute("INSERT INTO dirent VALUES (1, CAST('x' AS BLOB), 1, 3, 999, 32768)")
    database.commit()
    database.close()
    done = node.nasfs(*check)
    assert done.returncode == 1
    assert "I8: 9 inodes are counted, 1 are there\n" in done.stdout
    done = node.nasfs(*check, "--repair", "--dry-run")
    assert done.returncode == 1
    assert "would repair I8: inodes is 1\n" in done.stdout
    done = node.nasfs(*check, "--repair", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["repairs"] == [{"invariant": "I8", "detail": "inodes is 1"}]
    assert [finding["invariant"] for finding in found["findings"]] == ["I3"]
    done = node.nasfs(*check, "--repair")
    assert done.returncode == 1
    assert "x' of inode 1 names inode 999" in done.stdout
    assert "does not follow from the rest" in done.stderr
    last = node.json("events", "--limit", "1")[0]
    assert (last["kind"], last["subject"]) == ("volume repaired", "tank/broken")


@pytest.mark.mount
def test_a_mounted_volume_is_checked_and_not_repaired(node: NodeWorld) -> None:
    node.volume("tank/mounted", "10M")
    assert node.run("volume", "check", "tank/mounted") == "tank/mounted: clean\n"
    error = node.fails(3, "volume", "check", "tank/mounted", "--repair")
    assert "nasfs volume unmount tank/mounted" in error
    node.run("volume", "unmount", "tank/mounted")
    node.run("volume", "check", "tank/mounted", "--repair")


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for terminal, quiet, shown in (
        (Terminal(), False, True),
        (Terminal(), True, False),
        (io.StringIO(), False, False),
    ):
        monkeypatch.setattr(sys, "stderr", terminal)
        with check_display(quiet=quiet) as show:
            show("block maps", 5, 10)
        assert ("block maps" in terminal.getvalue()) == shown
