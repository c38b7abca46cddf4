"""Two paired nodes on one machine, one group replicated from A to B."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.node_world import NodeWorld


@dataclass
class Pair:
    """Group office, of volumes tank/home and tank/mail on A, goes to pool safe on B."""

    a: NodeWorld
    b: NodeWorld

    def replicate(self, snapshot: str) -> None:
        self.a.run("snapshot", "create", f"office@{snapshot}")
        self.a.run("replication", "run", "office", "--wait")


@contextmanager
def paired(
    root: Path, *, max_snapshots: int = 8, volumes: tuple[str, ...] = ("home", "mail")
) -> Iterator[Pair]:
    """Both daemons run, until the end of the block."""
    worlds = [NodeWorld(root / name, name) for name in ("a", "b")]
    try:
        for world, pool in zip(worlds, ("tank", "safe"), strict=True):
            world.start()
            world.run("pool", "create", pool, str(world.root / "pool"))
        a, b = worlds
        a.run("pair", "join", b.run("pair", "invite").strip())
        for volume in volumes:
            a.volume(f"tank/{volume}")
        a.run("group", "create", "office", *(f"tank/{volume}" for volume in volumes))
        a.run(
            "replication", "create", "office", "--to-pool", "safe",
            "--max-snapshots", str(max_snapshots),
        )  # fmt: skip
        yield Pair(a, b)
    finally:
        for world in worlds:
            world.close()
