"""Test failovers in node.db: which are under way, what they stand on, and what came of them.

Everything that a test makes lies at places that follow from its row, and the row is durable before
anything is made: so whoever finds the row can take all of it away, whoever was killed when.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import msgspec

from nasfs.volume import Volume

from ..database import Database

HOLDER = "test-failover"
"""The owner of the holds under a test."""
REPORTS_KEPT = 100
"""Of each group."""


class Phase(Enum):
    """How far a test is; whatever it is, `stop` ends it."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    RELEASING = "releasing"
    """Nothing is left of it but holds, on volumes that a receiver has in its hands."""


class Stage(msgspec.Struct, frozen=True):
    """A part of the way, and how long it took."""

    name: str
    seconds: float


class Probe(msgspec.Struct, frozen=True):
    """Something that was tried on the clones."""

    where: str
    """A volume, or a share."""
    what: str
    result: str
    """``ok``, ``failed``, or ``not tried``."""
    detail: str = ""
    seconds: float = 0.0


class DrillVolume(msgspec.Struct, frozen=True):
    uuid: str
    name: str
    """POOL/VOLUME."""
    guid: str
    """Of its snapshot."""


class DrillShare(msgspec.Struct, frozen=True):
    name: str
    """As the test serves it."""
    volume: str
    path: str
    note: str = ""
    """Why it is not served by SMB; empty: it is."""
    nfs: str = ""
    """Where NFSv4 clients see it; empty: it is not served by NFS."""


class Drill(msgspec.Struct, frozen=True):
    """One test failover."""

    id: str
    """Eight hexadecimal digits: part of every path and command line that belongs to it."""
    group: str
    """The group's UUID."""
    name: str
    phase: Phase
    snap_group: str
    snapshot: str
    snapshot_ns: int
    volumes: tuple[DrillVolume, ...]
    mountpoint: str
    """Below it are the clones, as POOL/VOLUME."""
    space: str
    """Where what is written into the clones is kept."""
    home: str
    """Where the mounts below the clones have their places, and the smbd its configuration."""
    began_ns: int
    listen: str = "127.0.0.1"
    port: int = 0
    """Of the smbd; 0: any that is free, or none was started."""
    nfs_port: int = 0
    """Of the Ganesha; 0: none was started."""
    prefix: str = ""
    shares: tuple[DrillShare, ...] = ()
    stages: tuple[Stage, ...] = ()
    probes: tuple[Probe, ...] = ()
    problem: str = ""
    """Why it did not come up, or was broken off."""
    ended_ns: int = 0

    def clone(self, volume: DrillVolume) -> Path:
        """Where the writable clone is mounted."""
        return Path(self.mountpoint) / volume.name

    def lower(self, volume: DrillVolume) -> Path:
        """Where the snapshot is mounted."""
        return Path(self.home) / "lower" / volume.uuid

    def upper(self, volume: DrillVolume) -> Path:
        """What is written into the clone."""
        return Path(self.space) / "upper" / volume.uuid

    def work(self, volume: DrillVolume) -> Path:
        """The kernel's own, beside `upper`."""
        return Path(self.space) / "work" / volume.uuid

    @property
    def samba(self) -> Path:
        """State of the smbd, out of any root: names of its sockets must be short (107 bytes)."""
        return Path(f"/run/nasfs-test-{self.id}")

    @property
    def serving_s(self) -> float:
        """From the command until clients could work (seconds)."""
        return sum(stage.seconds for stage in self.stages if stage.name != "probes")


class Drills:
    """The tables drill and drill_report."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Drill]:
        rows = self._database.rows("SELECT body FROM drill ORDER BY id")
        return [msgspec.json.decode(row[0], type=Drill) for row in rows]

    def of_group(self, group_uuid: str) -> Drill | None:
        """The one that is not gone but for its holds."""
        for drill in self.all():
            if drill.group == group_uuid and drill.phase is not Phase.RELEASING:
                return drill
        return None

    def save(self, drill: Drill) -> None:
        """Durable on return."""
        body = msgspec.json.encode(drill).decode()
        self._database.do(
            "INSERT INTO drill VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            drill.id, body,
        )  # fmt: skip

    def forget(self, drill: Drill) -> None:
        self._database.do("DELETE FROM drill WHERE id = ?", drill.id)

    def leased(self, volume_uuid: str) -> dict[str, str]:
        """Snapshots (GUIDs) of a volume that tests stand on, and what to say of it."""
        found = {}
        for drill in self.all():
            if drill.phase is not Phase.RELEASING:
                for volume in drill.volumes:
                    if volume.uuid == volume_uuid:
                        found[volume.guid] = f"a test failover of group {drill.name} stands on it"
        return found

    def settle(self, volume: Volume) -> None:
        """Make the holds of a volume what its leases say; its owner calls this.

        Within a transaction of node.db, so that no test begins on what is just being destroyed.
        """
        leased = self.leased(volume.uuid)
        held = {
            guid
            for guid, holds in volume.all_holds().items()
            if any(hold.owner == HOLDER for hold in holds)
        }
        here = {snapshot.guid: snapshot.name for snapshot in volume.snapshots()}
        for guid in leased.keys() - held:
            if guid in here:
                volume.hold_nowait(here[guid], HOLDER, leased[guid])
        for guid in held - leased.keys():
            volume.release_hold_nowait(here[guid], HOLDER)
        volume.commit()

    # what the partner said of what it has not replicated

    def hear(self, group_uuid: str, body: str) -> None:
        self._database.do("INSERT OR REPLACE INTO partner_word VALUES (?, ?)", group_uuid, body)

    def heard(self, group_uuid: str) -> str:
        """Empty: nothing."""
        row = self._database.row("SELECT body FROM partner_word WHERE grp = ?", group_uuid)
        return str(row[0]) if row else ""

    # what came of them

    def report(self, drill: Drill) -> None:
        """Remember it as it ended."""
        body = msgspec.json.encode(drill).decode()
        with self._database.change():
            self._database.do(
                "INSERT INTO drill_report (grp, body) VALUES (?, ?)", drill.group, body
            )
            self._database.do(
                "DELETE FROM drill_report WHERE grp = ? AND number NOT IN (SELECT number FROM"
                " drill_report WHERE grp = ? ORDER BY number DESC LIMIT ?)",
                drill.group, drill.group, REPORTS_KEPT,
            )  # fmt: skip

    def last_report(self, group_uuid: str) -> Drill | None:
        """The latest that has ended."""
        row = self._database.row(
            "SELECT body FROM drill_report WHERE grp = ? ORDER BY number DESC LIMIT 1", group_uuid
        )
        return msgspec.json.decode(row[0], type=Drill) if row else None

    def reports(self) -> list[Drill]:
        """The latest that has ended, of each group."""
        rows = self._database.rows(
            "SELECT body FROM drill_report WHERE number IN"
            " (SELECT max(number) FROM drill_report GROUP BY grp) ORDER BY number"
        )
        return [msgspec.json.decode(row[0], type=Drill) for row in rows]
