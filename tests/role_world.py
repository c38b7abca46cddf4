"""A pair of real nodes with a replicated group, for tests of roles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.node_world import NodeWorld

LOSE = ("--force", "--lose-unreplicated")


@dataclass
class Pair:
    a: NodeWorld
    b: NodeWorld

    def replicate(self, snapshot: str) -> None:
        self.a.run("snapshot", "create", f"office@{snapshot}")
        self.a.run("replication", "run", "office", "--wait")


@contextmanager
def made_pair(where: Path, *volumes: str, daemon: str = "nasfs.cli.main") -> Iterator[Pair]:
    """Two paired nodes; group office, of *volumes* in tank on A, goes to pool safe on B."""
    worlds = [NodeWorld(where / name, name) for name in ("a", "b")]
    for world in worlds:
        world.module = daemon
    try:
        for world, pool in zip(worlds, ("tank", "safe"), strict=True):
            world.start()
            world.run("pool", "create", pool, str(world.root / "pool"))
        a, b = worlds
        a.run("pair", "join", b.run("pair", "invite").strip())
        names = [f"tank/{name}" for name in volumes or ("home", "work")]
        for name in names:
            a.volume(name)
        a.run("group", "create", "office", *names)
        a.run("replication", "create", "office", "--to-pool", "safe")
        yield Pair(a, b)
    finally:
        for world in worlds:
            world.close()
