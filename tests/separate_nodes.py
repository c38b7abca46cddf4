"""Nodes on one machine that have users and groups of their own, and perhaps a network.

Each lives in a mount name space with a private copy of /etc, so that it may make accounts as on a
machine of its own; nothing of it reaches this one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from nasfs.node.children import environment
from tests.node_world import NodeWorld, wait_until
from tests.smb import SmbServer, make_accounts, running

_HOLD = 'mount --bind "$0" /etc && touch "$1" && exec sleep infinity'


class SeparateNode(NodeWorld):
    """A node with an /etc of its own; what it mounts is seen below `seen`.

    Args:
        address: of the node, in a network of its own that `plug` makes; empty: in this one.
        plug: is given the process that holds the node's name spaces.
    """

    def __init__(
        self,
        base: Path,
        name: str,
        *,
        address: str = "",
        plug: Callable[[int], object] = lambda pid: None,
    ) -> None:
        self.etc = base / f"etc-{name}"
        shutil.copytree("/etc", self.etc, symlinks=True)
        ready = base / f"ready-{name}"
        self._spaces = ["-m", "-n"] if address else ["-m"]
        words = ["unshare", *self._spaces, "--propagation", "private", "sh", "-c", _HOLD]
        self._holder = subprocess.Popen([*words, str(self.etc), str(ready)])
        try:
            wait_until(ready.exists, "a private /etc")
            plug(self._holder.pid)
            super().__init__(base / name, name, address=address)
        except BaseException:
            self._end()
            raise

    @property
    def inside(self) -> list[str]:
        """Before a command: it runs where this node does."""
        return ["nsenter", "-t", str(self._holder.pid), *self._spaces, "--"]

    def seen(self, path: Path) -> Path:
        """A path of the node's, as this process can open it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def inner(self, volume: str) -> Path:
        """Where a volume is mounted, as the node's own programs can open it."""
        return super().mountpoint(volume)

    def mountpoint(self, volume: str) -> Path:
        return self.seen(super().mountpoint(volume))

    def shell(self, *words: str, input: str = "") -> str:
        """A program of the system, where this node lives."""
        done = subprocess.run(
            [*self.inside, *words], input=input, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def have_samba(self, passwords: Mapping[str, str]) -> None:
        """A Samba of its own, whose smb.conf includes what the node writes; it does not run yet."""
        self.smb.mkdir(mode=0o755)
        make_accounts(self.smb, self.smb_conf, {})
        for user, password in passwords.items():
            words = ("smbpasswd", "-c", str(self.smb_conf), "-s", "-a", user)
            self.shell(*words, input=f"{password}\n{password}\n")
        told = f"include = {self.root}/etc/nasfs/shares/samba.conf\n"
        own = self.root / "etc/nasfs/shares/samba.conf"
        own.parent.mkdir()
        own.touch()
        with self.smb_conf.open("a") as config:
            config.write(told)
        config_file = self.root / "etc/nasfs/nasfs.yaml"
        known = yaml.safe_load(config_file.read_text())
        known["shares"] = {"smb_conf": str(self.smb_conf)}
        config_file.write_text(yaml.safe_dump(known))

    @property
    def smb(self) -> Path:
        return self.root / "smb"

    @property
    def smb_conf(self) -> Path:
        return self.smb / "smb.conf"

    @contextmanager
    def smbd(self) -> Iterator[SmbServer]:
        with running(self.smb, self.smb_conf, self.inside) as server:
            yield server

    def start(self) -> None:
        with (self.root / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [
                    *self.inside, sys.executable, "-m", "nasfs.cli.main",
                    "--root", str(self.root), "node", "run",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )  # fmt: skip
        wait_until(self._is_up, f"daemon of {self.name}\n{self.log()}")

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._end()

    def _end(self) -> None:
        self._holder.kill()
        self._holder.wait()


@contextmanager
def separate_pair(
    base: Path,
    users: Sequence[Sequence[tuple[str, int]]],
    passwords: Sequence[Mapping[str, str]] | None = None,
) -> Iterator[tuple[SeparateNode, SeparateNode]]:
    """Paired nodes a and b; group office, of tank/home on a, is replicated to pool safe on b.

    Args:
        users: names and numbers that each of them has beside what this machine has.
        passwords: of accounts of Samba on each; None: there is no Samba.
    """
    nodes: list[SeparateNode] = []
    try:
        for name, pool, accounts in zip("ab", ("tank", "safe"), users, strict=True):
            node = SeparateNode(base, name)
            nodes.append(node)
            for user, number in accounts:
                node.shell("useradd", "-u", str(number), "-U", "-M", user)
            if passwords is not None:
                node.have_samba(passwords[len(nodes) - 1])
            node.start()
            node.run("pool", "create", pool, str(node.root / "pool"))
        a, b = nodes
        a.run("pair", "join", b.run("pair", "invite").strip())
        a.volume("tank/home")
        a.run("group", "create", "office", "tank/home")
        a.run("replication", "create", "office", "--to-pool", "safe")
        yield a, b
    finally:
        for node in nodes:
            node.close()


def replicate(node: NodeWorld, snapshot: str) -> None:
    node.run("snapshot", "create", f"office@{snapshot}")
    node.run("replication", "run", "office", "--wait")
