"""NFS by a real Ganesha: who may mount, and handles that outlive servers, mounts and a failover."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.ganesha import INSIDE, OUTSIDE, ganesha, is_here
from tests.node_world import NodeWorld
from tests.role_world import LOSE, made_pair

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not is_here(), reason="nfs-ganesha-vfs is not installed"),
]


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


@pytest.mark.skipif(shutil.which("nfs-cat") is None, reason="libnfs-utils is not installed")
def test_a_client_that_others_wrote_reads_and_writes_by_both_versions(tmp_path: Path) -> None:
    node = NodeWorld(tmp_path / "a", "a")
    content = os.urandom(300_001)
    source = tmp_path / "source"
    source.write_bytes(content)
    try:
        node.start()
        node.run("pool", "create", "tank", str(node.root / "pool"))
        home = node.volume("tank/home")
        (home / "d").mkdir()
        (home / "d/file").write_bytes(content)
        conf = files_of(node)[1]
        conf.parent.mkdir()
        conf.touch()
        clients = "10.9.0.0/24:rw,no_root_squash"
        node.run("share", "add", "office", "tank/home:/d", "--nfs", clients)
        with ganesha(*files_of(node), "office", version3=True) as server:

            def url(path: str, version: int, address: str = INSIDE) -> str:
                export = f"{home}/d" if version == 3 else "/office"
                return f"nfs://{address}{export}{path}?version={version}"

            for version in (3, 4):
                listed = server.libnfs("nfs-ls", url("", version))
                assert b"300001 file" in listed.stdout, listed.stderr + server.log.encode()
                assert server.libnfs("nfs-cat", url("/file", version)).stdout == content
            copied = server.libnfs("nfs-cp", str(source), url("/copy", 3))
            assert copied.returncode == 0, copied.stderr
            assert (home / "d/copy").read_bytes() == content
            (home / "d/file").write_bytes(b"changed here")  # and seen there at once
            assert server.libnfs("nfs-cat", url("/file", 3)).stdout == b"changed here"
            for version in (3, 4):
                refused = server.libnfs("nfs-cat", url("/file", version, OUTSIDE))
                assert refused.returncode != 0
                assert b"changed" not in refused.stdout
    finally:
        node.close()
