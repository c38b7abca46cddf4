"""NFS in a test failover: the clones by a Ganesha of its own, tried by a client of libnfs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.role_world import Pair, made_pair
from tests.test_test_failover import fill, gone

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("ganesha.nfsd", "nfs-cat")),
        reason="needs nfs-ganesha-vfs and libnfs-utils",
    ),
]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with made_pair(tmp_path, "home", "mail") as made:
        yield made


def server_of(node_root: Path) -> int:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == b"ganesha.nfsd" and os.fsencode(node_root) in b" ".join(words):
                return int(name)
    raise AssertionError("no Ganesha")


def test_shares_are_exported_by_a_ganesha_of_its_own(pair: Pair) -> None:
    a, b = pair.a, pair.b
    home, mail = a.mountpoint("tank/home"), a.mountpoint("tank/mail")
    fill(home)
    (mail / "letter").write_text("dear sir")
    a.run("share", "add", "docs", "tank/home", "--nfs", "10.0.0.0/8:rw")
    a.run("share", "add", "look", "tank/mail", "--nfs", "*:ro")
    pair.replicate("one")  # they travel with it
    plan = b.run("test-failover", "start", "office", "--prefix", "t-", "--dry-run")
    assert "serve t-docs, t-look by a Ganesha of its own" in plan
    done = b.nasfs("test-failover", "start", "office", "--prefix", "t-", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    view = json.loads(done.stdout)
    assert [(one["name"], one["nfs"]) for one in view["shares"]] == [
        ("t-docs", "/t-docs"), ("t-look", "/t-look"),
    ]  # fmt: skip
    results = {(probe["where"], probe["what"]): probe["result"] for probe in view["probes"]}
    for where, what in (
        ("t-docs", "NFS list"), ("t-docs", "NFS read"), ("t-docs", "NFS write"),
        ("t-look", "NFS list"), ("t-look", "NFS read"),
    ):  # fmt: skip
        assert results[where, what] == "ok"
    assert ("t-look", "NFS write") not in results

    port = view["nfs"].rpartition(":")[2]
    url = f"nfs://127.0.0.1/t-look/letter?version=4&nfsport={port}"
    got = subprocess.run(["nfs-cat", url], capture_output=True, text=True, check=True, timeout=60)
    assert got.stdout == "dear sir"
    os.kill(server_of(b.root), signal.SIGKILL)
    assert "its Ganesha is gone" in b.run("test-failover", "show", "office")
    b.run("test-failover", "stop", "office")
    gone(b)
    assert sorted(path.name for path in home.iterdir()) == ["own", "team"]
