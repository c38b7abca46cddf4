"""Where a node keeps its things.  With a root, all lies below it: many nodes, one machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "NASFS_ROOT"


@dataclass(frozen=True, slots=True)
class Places:
    """Paths of one node; *root* None means the system's own places."""

    root: Path | None = None

    @classmethod
    def find(cls, root: str | Path | None) -> Places:
        """From the option ``--root``, else from the environment, else the system's places."""
        given = str(root) if root else os.environ.get(ROOT_VARIABLE, "")
        return cls(Path(given).absolute() if given else None)

    def _below(self, path: str) -> Path:
        return (self.root or Path("/")) / path

    @property
    def config(self) -> Path:
        return self._below("etc/nasfs/nasfs.yaml")

    @property
    def state(self) -> Path:
        return self._below("var/lib/nasfs")

    @property
    def database(self) -> Path:
        return self.state / "node.db"

    @property
    def key(self) -> Path:
        return self.state / "node.key"

    @property
    def certificate(self) -> Path:
        return self.state / "node.crt"

    @property
    def run(self) -> Path:
        return self._below("run/nasfs")

    @property
    def api_socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def daemon_lock(self) -> Path:
        return self.run / "daemon.lock"

    def control_socket(self, volume_uuid: str) -> Path:
        """Where the mount process of a volume listens."""
        return self.run / f"{volume_uuid}.sock"

    def mount_log(self, volume_uuid: str) -> Path:
        """What the latest mount process of a volume said."""
        return self.run / f"{volume_uuid}.log"

    def receiver_pid(self, volume_uuid: str) -> Path:
        """Who receives into a passive volume at present."""
        return self.run / f"{volume_uuid}.receiver"

    def sender_lock(self, group_uuid: str) -> Path:
        return self.run / f"{group_uuid}.sender"

    def default_mountpoint(self, pool: str, volume: str) -> Path:
        return self._below("srv/nasfs") / pool / volume

    def test_mountpoint(self, group: str) -> Path:
        """Below it are the clones of a test failover."""
        return self._below("srv/nasfs-test") / group

    def words(self) -> list[str]:
        """The options that make another nasfs process use the same places."""
        return ["--root", str(self.root)] if self.root else []

    def make(self) -> None:
        """Create the directories; state and sockets are root's alone."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        for directory in (self.state, self.run):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
