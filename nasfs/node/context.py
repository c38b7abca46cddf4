"""A node as its operations see it: places, configuration, durable state, what is mounted now."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Self

from nasfs.errors import Failed

from .bond import Bond
from .config import Config, read_config
from .database import Database
from .drills.drill_table import Drills
from .places import Places
from .policy.policies import Policies
from .records import VolumeRow
from .sending.traffic_state import TrafficState
from .shares.share_table import Shares
from .state import State


class MountPhase(Enum):
    """How a volume's mount stands."""

    UNMOUNTED = "unmounted"
    WAITING = "waiting"
    """For a word from the partner; it is not mounted."""
    STARTING = "starting"
    MOUNTED = "mounted"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class MountState:
    """What the supervisor knows of one mount."""

    phase: MountPhase = MountPhase.UNMOUNTED
    pid: int = 0
    problem: str = ""
    restarts: int = 0
    mountpoint: str = ""
    """Where it is mounted, if it is."""


@dataclass
class SnapGroupWork:
    """What a process does about snap groups."""

    under_way: set[str] = field(default_factory=set)
    """GUIDs of those that are being taken."""
    unsettled: bool = True
    """Some volume may have a pending snapshot that nobody is taking any more."""


@dataclass
class Node:
    """Shared by all operations of one process; `mounts` is kept by the supervisor."""

    places: Places
    config: Config
    database: Database
    mounts: dict[str, MountState] = field(default_factory=dict)
    snap_groups: SnapGroupWork = field(default_factory=SnapGroupWork)
    actor: str = "admin"
    """Who acts, in the event log; empty: nobody who leaves a note."""

    def __post_init__(self) -> None:
        self.state = State(self.database)
        self.bond = Bond(self.database)
        self.policies = Policies(self.database)
        self.traffic = TrafficState(self.database)
        self.shares = Shares(self.database)
        self.drills = Drills(self.database)

    def acting(self, actor: str) -> Node:
        """The same node, as somebody else."""
        return replace(self, actor=actor)

    @classmethod
    def open(cls, places: Places) -> Self:
        """Raises Failed if there is no node at these places yet."""
        if not places.database.exists():
            where = f" below {places.root}" if places.root else ""
            raise Failed(
                f"there is no node{where} yet", hint="make one: nasfs node init --listen HOST:PORT"
            )
        return cls(places, read_config(places.config), Database(places.database))

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def volume_path(self, row: VolumeRow) -> Path:
        """The volume's directory in its pool."""
        for pool in self.state.pools():
            if pool.uuid == row.pool:
                return Path(pool.path) / row.name
        raise Failed(f"the pool of volume {row.name} is not known any more")

    def mountpoint(self, row: VolumeRow) -> Path:
        """Where the volume is, or would be, mounted."""
        if row.mountpoint:
            return Path(row.mountpoint)
        name = self.state.volume_name(row)
        return self.places.default_mountpoint(name.pool, name.volume)

    def note(self, kind: str, subject: object, detail: str = "") -> None:
        """Into the event log."""
        if self.actor:
            self.state.note(self.actor, kind, str(subject), detail)
