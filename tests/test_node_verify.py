"""Two nodes: what `replication verify` finds on either side, on the disks and in the rows."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from nasfs.node.children import environment
from nasfs.volume import Access, open_volume
from tests.node_world import NodeWorld, wait_until
from tests.test_node_failover import Pair
from tests.test_node_failover import pair as pair  # the fixture

pytestmark = pytest.mark.mount

KIB = 1024


def volume_dir(node: NodeWorld) -> Path:
    return node.root / "pool/home"


def execute(node: NodeWorld, statement: str, *values: object, volume: str = "home") -> None:
    """Behind everybody's back, as a bug or a vandal would."""
    path = node.root / "pool" / volume / "meta.db"
    with closing(sqlite3.connect(path, timeout=10)) as db, db:
        assert db.execute(statement, values).rowcount == 1


def layer(node: NodeWorld, ino: int) -> Path:
    """The newest layer of an inode."""
    found = (volume_dir(node) / "layers" / f"{ino % 256:02x}").glob(f"{ino}.*")
    return max(found, key=lambda path: int(path.suffix[1:]))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))
        file.flush()
        os.fsync(file.fileno())


def verified(node: NodeWorld, code: int, *words: str) -> list[tuple[Any, ...]]:
    """What it found: path, what, detail; *code* is how it has to end."""
    done = node.nasfs("replication", "verify", "office", "--json", *words)
    assert done.returncode == code, done.stderr
    answer = json.loads(done.stdout)
    assert answer["result"]["differences"] == len(answer["findings"])
    return [(f["path"], f["what"], f["detail"]) for f in answer["findings"]]


def fill(root: Path) -> None:
    (root / "docs").mkdir()
    (root / "docs/small").write_bytes(os.urandom(10 * KIB))
    (root / "docs/large").write_bytes(os.urandom(700 * KIB))
    (root / "docs/sparse").touch()
    os.truncate(root / "docs/sparse", 1 << 40)
    with (root / "docs/sparse").open("r+b") as file:
        file.seek(100 << 20)
        file.write(b"in the middle")
    os.setxattr(root / "docs/small", "user.colour", b"blue")
    (root / "twice").write_text("two names")
    os.link(root / "twice", root / "hard")
    (root / "soft").symlink_to("hard")


def test_each_damage_is_found_on_either_side_and_named(pair: Pair) -> None:
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    fill(here)
    inos = {name: (here / name).lstat().st_ino for name in ("docs/small", "docs/large", "docs")}
    pair.replicate("one")
    (here / "docs/large").write_bytes(os.urandom(700 * KIB))
    with (here / "docs/large").open("r+b") as file:  # a map of several layers
        file.write(b"first")
    pair.replicate("two")
    assert verified(a, 0) == []
    assert verified(a, 0, "--snapshot", "one") == []
    assert "equal on both sites" in a.run("replication", "verify", "office")

    for node, side in ((a, "here"), (b, "there")):
        for name, ino, offset, block in (
            ("docs/small", inos["docs/small"], 5000, 1),
            ("docs/large", inos["docs/large"], 300_000, 73),
        ):
            path = layer(node, ino)
            flip(path, offset)
            assert verified(a, 1) == [(name, "data", f"blocks {block}")]
            flip(path, offset)
        size = layer(node, inos["docs/small"]).stat().st_size
        moved = layer(node, inos["docs/small"]).rename(node.root / "taken")
        assert verified(a, 1) == [("docs/small", "data", f"blocks 0-2, unreadable {side}")]
        assert size == moved.stat().st_size
        home = volume_dir(node) / "layers" / f"{inos['docs/small'] % 256:02x}"
        moved.rename(home / f"{inos['docs/small']}.1")

    for node, missing in ((b, "missing there"), (a, "missing here")):
        mode = "UPDATE inode SET mode = mode + ? WHERE ino = ?"
        execute(node, mode, 1, inos["docs/large"])
        ((path, what, detail),) = verified(a, 1)
        assert (path, what) == ("docs/large", "attribute")
        assert detail in ("mode 100644 here, 100645 there", "mode 100645 here, 100644 there")
        execute(node, mode, -1, inos["docs/large"])
        execute(node, "UPDATE xattr SET name = ? WHERE ino = ?", b"user.color", inos["docs/small"])
        assert sorted(verified(a, 1)) == sorted(
            [
                ("docs/small", "xattr", f"user.colour: {missing}"),
                ("docs/small", "xattr", f"user.color: {other(missing)}"),
            ]
        )
        execute(node, "UPDATE xattr SET name = ? WHERE ino = ?", b"user.colour", inos["docs/small"])
        execute(node, "UPDATE dirent SET name = ? WHERE name = ?", b"larger", b"large")
        assert sorted(verified(a, 1)) == sorted(
            [
                ("docs", "entry", f"large: {missing}"),
                ("docs", "entry", f"larger: {other(missing)}"),
            ]
        )
        execute(node, "UPDATE dirent SET name = ? WHERE name = ?", b"large", b"larger")
        execute(node, "UPDATE inode SET layer_end = 1 WHERE ino = ?", inos["docs/small"])
        assert verified(a, 1) == [("docs/small", "data", "blocks 1-2")]
        execute(node, "UPDATE inode SET layer_end = 3 WHERE ino = ?", inos["docs/small"])
    assert verified(a, 0) == []


def other(missing: str) -> str:
    return "missing here" if missing == "missing there" else "missing there"


def test_what_has_no_name_is_nowhere(pair: Pair) -> None:
    """Neither it nor its attributes are sent, and none of it is a difference."""
    a, b = pair.a, pair.b
    here = a.mountpoint("tank/home")
    with ExitStack() as kept:
        for snapshot in ("one", "two"):
            for name in ("open", "late"):
                path = here / f"{name}-{snapshot}"
                path.write_bytes(os.urandom(10_000))
                os.setxattr(path, "user.kept", b"1")
                kept.enter_context(path.open())
            (here / f"open-{snapshot}").unlink()
            if snapshot == "two":
                (here / "late-one").unlink()  # which the partner has
            pair.replicate(snapshot)
            assert verified(a, 0) == []
            b.run("volume", "check", "safe/home")


def test_what_can_not_be_compared_is_told(pair: Pair) -> None:
    a, b = pair.a, pair.b
    a.fails(1, "replication", "verify", "nothing")
    assert "in common" in a.fails(3, "replication", "verify", "office")
    (a.mountpoint("tank/home") / "f").write_text("x")
    pair.replicate("one")
    assert "no whole snap group two" in a.fails(
        1, "replication", "verify", "office", "--snapshot", "two"
    )
    a.run("replication", "pause", "office")
    a.run("snapshot", "create", "office@two")
    assert "does not have" in a.fails(1, "replication", "verify", "office", "--snapshot", "two")
    assert "is not replicated" in b.fails(1, "replication", "verify", "office")
    b.stop()
    assert "not reachable" in a.fails(4, "replication", "verify", "office")


def processes(module: str, root: Path) -> list[int]:
    """Of this node that run a module."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in words and os.fsencode(root) in words:
            found.append(int(entry.name))
    return found


def test_an_interrupted_comparison_leaves_nothing_behind(pair: Pair) -> None:
    a, b = pair.a, pair.b
    (a.mountpoint("tank/home") / "f").write_text("x")
    pair.replicate("one")
    assert b.daemon is not None
    b.daemon.send_signal(signal.SIGSTOP)  # so that it lasts
    try:
        command = subprocess.Popen(
            [*f"{sys.executable} -m nasfs.cli.main --root {a.root}".split(),
             "replication", "verify", "office"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_until(lambda: processes("nasfs.node.comparing.verify", a.root), "it compares")
        command.send_signal(signal.SIGINT)
        said, _ = command.communicate(timeout=30)
        assert command.returncode != 0
        assert b"Traceback" not in said
        wait_until(lambda: not processes("nasfs.node.comparing.verify", a.root), "its process ends")
    finally:
        b.daemon.send_signal(signal.SIGCONT)
    assert verified(a, 0) == []
    assert a.json("snapshot", "show", "tank/home@one")["holds"][0]["owner"] == "replication"


def test_what_is_read_is_not_destroyed(pair: Pair) -> None:
    a = pair.a
    a.run("snapshot", "create", "tank/home@one")
    with open_volume(volume_dir(a), Access.READ_ONLY) as volume:
        _, lease = volume.lease("one")
        holds = a.json("snapshot", "show", "tank/home@one")["holds"]
        assert [hold["owner"] for hold in holds] == ["reader"]
        assert "held by reader" in a.fails(3, "snapshot", "destroy", "tank/home@one")
        lease.release()
    a.run("snapshot", "destroy", "tank/home@one")
