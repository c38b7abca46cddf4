"""Several exported volumes of one node: each has a Ganesha of its own, and handles outlive all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests import nfs4
from tests.ganesha import is_here
from tests.node_world import NodeWorld, free_port, wait_until
from tests.role_world import LOSE, made_pair

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not is_here(), reason="nfs-ganesha-vfs is not installed"),
]

VOLUMES = ("home", "work")
CLIENTS = "127.0.0.0/8:rw,no_root_squash"


def nfs(port: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`nfs4` as a client of the Ganesha at that port."""
    return subprocess.run(
        [sys.executable, nfs4.__file__, f"127.0.0.1:{port}", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(port: int, *words: str) -> str:
    done = nfs(port, *words)
    assert done.returncode == 0, f"{port} {words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def have_ganesha(node: NodeWorld) -> None:
    """Its administrator's, which does not run, and where nasfs's own shall listen."""
    conf = node.root / "etc/ganesha/ganesha.conf"
    conf.parent.mkdir()
    conf.touch()
    config = node.root / "etc/nasfs/nasfs.yaml"
    known = yaml.safe_load(config.read_text())
    known["shares"] = {"ganesha_address": "127.0.0.1"}
    config.write_text(yaml.safe_dump(known))
    node.stop()
    node.start()


def pids(node: NodeWorld) -> dict[int, int]:
    """Of the Ganeshas that run, by their ports."""
    found = {}
    for path in node.root.glob("run/nasfs/ganesha-*.pid"):
        pid = int(path.read_text())
        if Path(f"/proc/{pid}").exists():
            found[int(path.stem.partition("-")[2])] = pid
    return found


def serves(port: int, share: str) -> bool:
    return nfs(port, "handle", share).returncode == 0


def test_handles_of_two_volumes_outlive_mounts_ganeshas_and_a_failover(tmp_path: Path) -> None:
    with made_pair(tmp_path, *VOLUMES) as pair:
        a, b = pair.a, pair.b
        for node in (a, b):
            have_ganesha(node)
        for volume in VOLUMES:
            shown = partial(a.json, "volume", "show", f"tank/{volume}")
            wait_until(lambda shown=shown: shown()["mount_pid"], "the partner said a word")  # type: ignore[misc]
        ports = {volume: free_port() for volume in VOLUMES}
        handles = {}
        for volume, port in ports.items():
            with (a.mountpoint(f"tank/{volume}") / "file").open("w") as file:
                file.write(f"of {volume}")
                file.flush()
                os.fsync(file.fileno())  # its mount is going to be killed
            words = ("--nfs", CLIENTS, "--nfs-port", str(port))
            a.run("share", "add", volume, f"tank/{volume}", *words)
            wait_until(partial(serves, port, volume), f"{volume} is served")
            handles[volume] = ask(port, "handle", f"{volume}/file")

        def check() -> None:
            for volume, port in ports.items():
                wait_until(partial(serves, port, f"{volume}/file"), f"{volume} is served", 60)
                assert ask(port, "handle", f"{volume}/file") == handles[volume]
                assert ask(port, "read", handles[volume]) == f"of {volume}"

        check()
        inos = {(a.mountpoint(f"tank/{volume}") / "file").stat().st_ino for volume in VOLUMES}
        assert len(inos) == 1, "a handle of the one would fit the other, if one Ganesha had both"
        for volume in VOLUMES:
            other = ports[VOLUMES[1 - VOLUMES.index(volume)]]
            assert nfs(other, "read", handles[volume]).returncode == 1

        before = pids(a)  # a mount anew, beside one that stays
        a.run("volume", "unmount", "tank/home")
        assert pids(a).keys() == {ports["work"]}
        a.run("volume", "mount", "tank/home")
        check()
        assert pids(a)[ports["work"]] == before[ports["work"]]
        assert pids(a)[ports["home"]] != before[ports["home"]]

        old = pids(a)[ports["work"]]
        mount = a.json("volume", "show", "tank/work")["mount_pid"]
        os.kill(mount, signal.SIGKILL)  # it dies, and its Ganesha with it
        wait_until(lambda: pids(a).get(ports["work"], old) != old, "another Ganesha")
        check()

        for pid in pids(a).values():
            os.kill(pid, signal.SIGKILL)
        check()

        before = pids(a)
        a.kill()  # the daemon alone
        a.start()
        check()
        assert pids(a) == before, "they outlive the daemon"

        pair.replicate("one")
        a.kill_all()
        b.run("failover", "office", *LOSE)
        check()
        b.stop()
        assert pids(b) == {}, "they end with the mounts"


def test_the_second_volume_that_is_exported_gets_a_port(tmp_path: Path) -> None:
    node = NodeWorld(tmp_path / "a", "a")
    try:
        node.start()
        node.run("pool", "create", "tank", str(node.root / "pool"))
        have_ganesha(node)
        for volume in ("home", "work", "more"):
            node.volume(f"tank/{volume}", mount=False)

        def port(share: str) -> int:
            return int(node.json("share", "show", share)["share"]["nfs"].get("port", 0))

        def add(share: str, place: str) -> int:
            node.run("share", "add", share, place, "--nfs", CLIENTS)
            return port(share)

        conf = node.root / "etc/ganesha/ganesha.conf"
        conf.unlink()  # the kernel's server has no such ports
        assert add("home", "tank/home") == add("work", "tank/work") == 0
        conf.touch()
        wait_until(lambda: port("work") == 2050, "a Ganesha has come")
        assert add("top", "tank/home:/top") == 0
        assert add("below", "tank/work:/below") == 2050
        assert add("more", "tank/more") == 2051
        for odd in ("2050", "2049", "80", "70000"):
            assert "port" in node.fails(2, "share", "set", "more", "--nfs-port", odd)
        assert "serves one" in node.fails(3, "share", "set", "more", "--nfs-port", "0")
        node.run("share", "set", "work", "--nfs-port", "3000")
        assert port("work") == port("below") == 3000
    finally:
        node.close()
