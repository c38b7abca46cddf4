"""Nodes on one machine that have users and groups of their own.

Each lives in a mount name space with a private copy of /etc, so that it may make accounts as on a
machine of its own; nothing of it reaches this one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nasfs.node.children import environment
from tests.node_world import NodeWorld, wait_until

_HOLD = 'mount --bind "$0" /etc && touch "$1" && exec sleep infinity'


class SeparateNode(NodeWorld):
    """A node with an /etc of its own; what it mounts is seen below `seen`."""

    def __init__(self, base: Path, name: str) -> None:
        self.etc = base / f"etc-{name}"
        shutil.copytree("/etc", self.etc, symlinks=True)
        ready = base / f"ready-{name}"
        words = ["unshare", "-m", "--propagation", "private", "sh", "-c", _HOLD]
        self._holder = subprocess.Popen([*words, str(self.etc), str(ready)])
        try:
            wait_until(ready.exists, "a private /etc")
            super().__init__(base / name, name)
        except BaseException:
            self._end()
            raise

    @property
    def inside(self) -> list[str]:
        """Before a command: it runs where this node does."""
        return ["nsenter", "-t", str(self._holder.pid), "-m", "--"]

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
    base: Path, users: Sequence[Sequence[tuple[str, int]]]
) -> Iterator[tuple[SeparateNode, SeparateNode]]:
    """Paired nodes a and b; group office, of tank/home on a, is replicated to pool safe on b.

    Args:
        users: names and numbers that each of them has beside what this machine has.
    """
    nodes: list[SeparateNode] = []
    try:
        for name, pool, accounts in zip("ab", ("tank", "safe"), users, strict=True):
            node = SeparateNode(base, name)
            nodes.append(node)
            for user, number in accounts:
                node.shell("useradd", "-u", str(number), "-U", "-M", user)
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
