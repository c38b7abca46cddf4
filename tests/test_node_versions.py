"""Diff, restore and rollback by command: real daemons, real mounts, volumes that nobody mounts."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nasfs.node.sockets import short_path
from tests.node_world import NodeWorld

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWorld]:
    """One daemon for all tests of the module; each uses its own volume."""
    base = tmp_path_factory.mktemp("versions")
    world = NodeWorld(base / "a", "a")
    try:
        world.start()
        world.run("pool", "create", "tank", str(base / "pool"))
        yield world
    finally:
        world.close()


def test_a_diff_against_what_is_now_holds_all_that_returned_before(node: NodeWorld) -> None:
    root = node.volume("tank/d1")
    (root / "kept").write_text("as it was")
    (root / "old").write_text("x")
    (root / "dir").mkdir()
    (root / "dir/inside").write_text("x")
    node.run("snapshot", "create", "tank/d1@a")
    assert node.run("snapshot", "diff", "tank/d1@a") == ""
    assert node.json("snapshot", "diff", "tank/d1@a") == []
    (root / "old").rename(root / "new")
    (root / "dir").rename(root / "moved")
    (root / "moved/inside").write_text("longer")
    (root / "added").touch()
    (root / "kept").chmod(0o600)
    text = "+ added\nM kept\tmode\nR dir -> moved\nM moved/inside\tdata\nR old -> new\n"
    assert node.run("snapshot", "diff", "tank/d1@a") == text
    assert node.run("snapshot", "diff", "tank/d1@a", "live") == text
    node.run("snapshot", "create", "tank/d1@b")
    (root / "kept").unlink()
    assert node.run("snapshot", "diff", "tank/d1@a", "@b") == text
    assert node.run("snapshot", "diff", "tank/d1@b", "tank/d1@a").startswith("- added\n")
    node.run("volume", "unmount", "tank/d1")
    assert node.run("snapshot", "diff", "tank/d1@b") == "- kept\n"


def test_odd_names_are_escaped_for_people_and_exact_in_json(node: NodeWorld) -> None:
    root = node.volume("tank/d2")
    node.run("snapshot", "create", "tank/d2@a")
    for name in (b"new\nline", b"\xff", b"a -> b", b"back\\slash", "ä".encode()):
        (root / os.fsdecode(name)).touch()
    assert node.run("snapshot", "diff", "tank/d2@a").splitlines() == [
        "+ a\\x20-> b", "+ back\\\\slash", "+ new\\x0aline", "+ ä", "+ \\xff",
    ]  # fmt: skip
    found = node.json("snapshot", "diff", "tank/d2@a")
    assert [entry["path"] for entry in found] == [
        "a -> b", "back\\slash", "new\nline", "ä", "\\xff",
    ]  # fmt: skip
    assert [entry["path_raw"] for entry in found] == [None, None, None, None, "/w=="]
    assert found[0].keys() == {
        "change", "type", "path", "path_raw", "old_path", "old_path_raw", "what", "inode",
    }  # fmt: skip


def test_what_can_not_be_compared_is_told(node: NodeWorld) -> None:
    node.volume("tank/d3", mount=False)
    node.volume("tank/d4", mount=False)
    for name in ("tank/d3@a", "tank/d4@a"):
        node.run("snapshot", "create", name)
    assert "no snapshot b" in node.fails(1, "snapshot", "diff", "tank/d3@b")
    assert "no snapshot b" in node.fails(1, "snapshot", "diff", "tank/d3@a", "@b")
    assert "not a snapshot of tank/d3" in node.fails(
        2, "snapshot", "diff", "tank/d3@a", "tank/d4@a"
    )
    node.fails(2, "snapshot", "diff", "tank/d3")
    node.fails(2, "snapshot", "diff", "office@a")
    node.fails(1, "snapshot", "diff", "tank/none@a")


def test_many_entries_come_as_a_stream_that_ends_with_its_counts(node: NodeWorld) -> None:
    root = node.volume("tank/d5")
    node.run("snapshot", "create", "tank/d5@a")
    for number in range(1700):
        (root / f"{number:04}").touch()
    assert len(node.json("snapshot", "diff", "tank/d5@a")) == 1700
    lines = [json.loads(line) for line in ask(node, "/v1/snapshots/diff?old=tank/d5@a")]
    assert lines[-1] == {"end": {"added": 1700, "removed": 0, "renamed": 0, "changed": 0}}
    assert [line["path"] for line in lines[:-1]] == [f"{n:04}" for n in range(1700)]


def ask(node: NodeWorld, path: str) -> list[bytes]:
    """The lines of an answer, by plain HTTP/1.0, as a script would get them."""
    with (
        short_path(node.root / "run/nasfs/api.sock") as place,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.connect(place)
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    return body.splitlines()


@pytest.mark.parametrize("mounted", [True, False])
def test_a_volume_goes_back_and_keeps_what_it_was(node: NodeWorld, mounted: bool) -> None:
    name = f"tank/r{mounted:d}"
    root = node.volume(name)
    (root / "f").write_text("old")
    node.run("snapshot", "create", f"{name}@a")
    (root / "f").write_text("new")
    (root / "g").touch()
    if not mounted:
        node.run("volume", "unmount", name)
    plan = node.run("snapshot", "rollback", f"{name}@a", "--dry-run").splitlines()
    assert plan[0].startswith(f"keep what is there now as {name}@before-rollback-2")
    assert plan[1] == (f"go back to {name}@a, undoing 1 added, 0 removed, 0 renamed and 1 changed")
    assert len(node.json("snapshot", "list", name)) == 1
    kept = node.json("snapshot", "rollback", f"{name}@a")["kept_as"]
    assert node.run("snapshot", "rollback", f"{name}@a").startswith("what was there before is kept")
    if not mounted:
        node.run("volume", "mount", name)
    assert tree(root).keys() == {"f"}
    assert (root / "f").read_text() == "old"
    before = root / ".snapshots" / kept.partition("@")[2]
    assert ((before / "f").read_text(), (before / "g").exists()) == ("new", True)
    node.run("volume", "unmount", name)
    node.run("volume", "check", name)
    kinds = [event["kind"] for event in node.json("events")]
    assert kinds.count("volume rolled back") >= 2


@pytest.mark.parametrize("mounted", [True, False])
def test_files_come_back(node: NodeWorld, mounted: bool) -> None:
    name = f"tank/f{mounted:d}"
    root = node.volume(name)
    (root / "docs/sub").mkdir(parents=True)
    (root / "docs/a").write_text("old")
    (root / "docs/sub/b").write_bytes(b"x" * 10_000)
    (root / os.fsdecode(b"\xff")).write_text("odd")
    node.run("snapshot", "create", f"{name}@s")
    before = tree(root)
    (root / "docs/a").write_text("newer")
    (root / "docs/sub/b").unlink()
    (root / "docs/c").touch()
    (root / os.fsdecode(b"\xff")).unlink()
    changed = tree(root)
    if not mounted:
        node.run("volume", "unmount", name)
    error = node.fails(3, "snapshot", "restore", f"{name}@s", "docs")
    assert "docs is there already" in error
    assert "--replace" in error
    plan = node.json("snapshot", "restore", f"{name}@s", "/docs/", "--replace", "--dry-run")
    assert (plan["files"], plan["directories"], plan["replaced"]) == (2, 2, 4)
    assert (plan["shared_bytes"], plan["copied_bytes"]) == (4 * 4096, 0)
    assert plan["kept_as"].startswith(f"{name}@before-restore-2")
    words = node.run("snapshot", "restore", f"{name}@s", "docs", "--replace", "--dry-run")
    assert words.startswith("would restore docs: 2 files, 2 directories; 16K shared")
    assert len(node.json("snapshot", "list", name)) == 1
    done = node.json("snapshot", "restore", f"{name}@s", "docs", "--replace")
    assert {**done, "kept_as": ""} == {**plan, "path": "docs", "kept_as": ""}
    copied = node.run("snapshot", "restore", f"{name}@s", "docs/a", "--to", "a")
    assert copied == "restored a: 1 files, 0 directories; 0B shared with the snapshot, 4K copied\n"
    odd = node.json("snapshot", "restore", f"{name}@s", os.fsdecode(b"\xff"))
    assert (odd["to"], odd["kept_as"]) == ("\\xff", None)
    if not mounted:
        node.run("volume", "mount", name)
    now = tree(root)
    assert now.pop("a")[-1] == b"old"
    assert now == before
    kept = root / ".snapshots" / done["kept_as"].partition("@")[2]
    assert tree(kept) == changed
    lost = node.run("snapshot", "restore", f"{name}@s", "docs/a", "--replace", "--no-snapshot")
    assert "1 files and directories there went" in lost
    assert len(node.json("snapshot", "list", name)) == 2
    node.run("volume", "unmount", name)
    node.run("volume", "check", name)
    assert "files restored" in [event["kind"] for event in node.json("events")]


def test_what_can_not_be_restored_is_told_and_changes_nothing(node: NodeWorld) -> None:
    root = node.volume("tank/fx")
    (root / "f").write_text("x")
    node.run("snapshot", "create", "tank/fx@s")
    before = tree(root)
    for code, *words in (
        (1, "tank/fx@s", "none"),
        (1, "tank/fx@none", "f"),
        (1, "tank/none@s", "f"),
        (1, "tank/fx@s", "f", "--to", "none/f"),
        (2, "tank/fx@s", "../f"),
        (2, "tank/fx@s", "f", "--to", ".snapshots/f"),
        (2, "tank/fx@s", "f", "--no-snapshot"),
        (2, "group@s", "f"),
        (2, "tank/fx", "f"),
        (3, "tank/fx@s", "f"),
        (3, "tank/fx@s", "/", "--replace"),
    ):
        error = node.fails(int(code), "snapshot", "restore", *map(str, words))
        assert "hint: " in error or code == 1, words
    assert tree(root) == before
    assert len(node.json("snapshot", "list", "tank/fx")) == 1


def test_the_root_lists_snapshots_if_the_volume_says_so(node: NodeWorld) -> None:
    root = node.volume("tank/l")
    assert os.listdir(root) == []
    assert "hidden" in node.run("volume", "show", "tank/l")
    node.run("volume", "set", "tank/l", "--list-snapshots", "on")
    assert os.listdir(root) == [".snapshots"]
    assert node.json("volume", "show", "tank/l")["list_snapshots"] is True
    node.run("volume", "unmount", "tank/l")
    node.run("volume", "mount", "tank/l")
    assert os.listdir(root) == [".snapshots"]
    node.run("volume", "unmount", "tank/l")
    node.run("volume", "set", "tank/l", "--list-snapshots", "off")
    node.run("volume", "mount", "tank/l")
    assert os.listdir(root) == []
    node.fails(2, "volume", "set", "tank/l")
    node.fails(2, "volume", "set", "tank/l", "--list-snapshots", "maybe")
    node.fails(2, "volume", "set", "tank/l", "--list-snapshots", "on", "--mountpoint", "/a/../b")
    assert os.listdir(root) == []


def test_a_volume_of_a_group_does_not_go_back_alone(node: NodeWorld) -> None:
    node.volume("tank/rg", mount=False)
    node.run("group", "create", "rgroup", "tank/rg")
    node.run("snapshot", "create", "rgroup@a")
    error = node.fails(3, "snapshot", "rollback", "tank/rg@a")
    assert "goes back as a whole" in error
    assert "hint: " in error
    node.fails(2, "snapshot", "rollback", "rgroup@a")
    assert len(node.json("snapshot", "list", "tank/rg")) == 1
    node.fails(1, "snapshot", "rollback", "tank/none@a")


def tree(root: Path) -> dict[str, Any]:
    """What a person sees below a directory."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        stats = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(root))] = (
            stats.st_mode, stats.st_uid, stats.st_gid, stats.st_nlink, stats.st_mtime_ns, content,
        )  # fmt: skip
    return found
