"""NFS by a real Ganesha: who may mount, and handles that outlive servers, mounts and a failover."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ganesha import OUTSIDE, ganesha, is_here
from tests.node_world import NodeWorld
from tests.role_world import made_pair

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not is_here(), reason="nfs-ganesha-vfs is not installed"),
]

LOSE = ("--force", "--lose-unreplicated")


def files_of(node: NodeWorld) -> tuple[Path, Path, Path]:
    etc = node.root / "etc"
    return node.root / "nfs", etc / "ganesha/ganesha.conf", etc / "nasfs/shares/ganesha.conf"


def test_handles_outlive_ganesha_the_mount_and_a_failover(tmp_path: Path) -> None:
    with made_pair(tmp_path, "home") as pair:
        a, b = pair.a, pair.b
        for node in (a, b):
            conf = files_of(node)[1]
            conf.parent.mkdir()
            conf.touch()
        (a.mountpoint("tank/home") / "d").mkdir()
        (a.mountpoint("tank/home") / "d/file").write_text("first")
        a.run(
            "share", "add", "office", "tank/home", "--nfs", "10.9.0.0/24:rw,no_root_squash",
        )  # fmt: skip
        with ganesha(*files_of(a), "office") as server:
            handle = server.ask("handle", "office/d/file")
            assert server.ask("read", handle) == "first"
            assert server.nfs(OUTSIDE, "handle", "office/d/file").returncode == 1
            assert server.nfs(OUTSIDE, "read", handle).returncode == 1
            server.ask("write", handle, "SECOND")
            assert (a.mountpoint("tank/home") / "d/file").read_text() == "SECOND"
            (a.mountpoint("tank/home") / "d/file").write_text("third")  # seen at once
            assert server.ask("read", handle) == "third"
        a.run("volume", "unmount", "tank/home")
        a.run("volume", "mount", "tank/home")
        with ganesha(*files_of(a), "office") as server:
            assert server.ask("read", handle) == "third"
            assert server.ask("handle", "office/d/file") == handle
        pair.replicate("one")
        a.kill_all()
        b.run("failover", "office", *LOSE)
        with ganesha(*files_of(b), "office") as server:
            assert server.ask("handle", "office/d/file") == handle
            assert server.ask("read", handle) == "third"
            server.ask("write", handle, "after")
            assert (b.mountpoint("safe/home") / "d/file").read_text() == "after"
            assert server.nfs(OUTSIDE, "handle", "office/d/file").returncode == 1
