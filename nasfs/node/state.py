"""What the node knows durably of itself: pools, volumes, groups with their roles, events.

The daemon and its children share it through short transactions.  A role changes only by
compare-and-set on the group's term: whoever comes second learns it, and nothing is changed.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from nasfs.errors import Failed, NasError, Refused

from .database import Database
from .records import Event, Group, Pool, VolumeRow
from .words import VolumeName

log = logging.getLogger(__name__)

EVENTS_KEPT = 10_000
_VOLUME = "uuid, pool, name, mountpoint, wanted, coalesce(grp, '')"


@dataclass(eq=False)
class TermChanged(NasError):
    """Somebody else changed the group's role in the meantime."""

    exit_code: ClassVar[int] = 3
    group: str
    expected: int
    hint: str = "look at it again: nasfs group show GROUP"

    def __str__(self) -> str:
        return f"group {self.group} is no longer in term {self.expected}; nothing was changed"


class State:
    """Pools, volumes, groups and events in node.db."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.change = database.change

    # the node

    def node_uuid(self) -> str:
        """This node's identity; empty before ``node init``."""
        row = self.database.row("SELECT uuid FROM node")
        return str(row[0]) if row else ""

    def set_node_uuid(self, node_uuid: str) -> None:
        self.database.do("INSERT OR IGNORE INTO node VALUES (1, ?)", node_uuid)

    # pools

    def pools(self) -> list[Pool]:
        rows = self.database.rows("SELECT uuid, name, path FROM pool ORDER BY name")
        return [Pool(*row) for row in rows]

    def pool(self, name: str) -> Pool:
        """By name.  Raises Failed if there is none."""
        row = self.database.row("SELECT uuid, name, path FROM pool WHERE name = ?", name)
        if row is None:
            raise Failed(f"there is no pool {name}", hint="nasfs pool list shows the pools")
        return Pool(*row)

    def add_pool(self, pool: Pool) -> None:
        try:
            self.database.do("INSERT INTO pool VALUES (?, ?, ?)", pool.uuid, pool.name, pool.path)
        except sqlite3.IntegrityError as exc:
            raise Failed(
                f"a pool {pool.name}, or one at {pool.path}, exists already",
                hint="nasfs pool list shows the pools",
            ) from exc

    # volumes

    def volumes(self) -> list[VolumeRow]:
        rows = self.database.rows(f"SELECT {_VOLUME} FROM volume ORDER BY pool, name")
        return [VolumeRow(*row) for row in rows]

    def volume(self, name: VolumeName) -> VolumeRow:
        """By name.  Raises Failed if there is no such pool or volume."""
        pool = self.pool(name.pool)
        row = self.database.row(
            f"SELECT {_VOLUME} FROM volume WHERE pool = ? AND name = ?", pool.uuid, name.volume
        )
        if row is None:
            raise Failed(f"there is no volume {name}", hint="nasfs volume list shows the volumes")
        return VolumeRow(*row)

    def find_volume(self, volume_uuid: str) -> VolumeRow | None:
        row = self.database.row(f"SELECT {_VOLUME} FROM volume WHERE uuid = ?", volume_uuid)
        return VolumeRow(*row) if row else None

    def volume_name(self, row: VolumeRow) -> VolumeName:
        found = self.database.row("SELECT name FROM pool WHERE uuid = ?", row.pool)
        return VolumeName(str(found[0]) if found else row.pool, row.name)

    def add_volume(self, row: VolumeRow) -> None:
        """Raises Failed if a volume of that name or UUID is known."""
        try:
            self.database.do(
                "INSERT INTO volume VALUES (?, ?, ?, ?, ?, nullif(?, ''))",
                row.uuid, row.pool, row.name, row.mountpoint, row.wanted, row.group,
            )  # fmt: skip
        except sqlite3.IntegrityError as exc:
            raise Failed(f"volume {self.volume_name(row)} exists already") from exc

    def forget_volume(self, volume_uuid: str) -> None:
        self.database.do("DELETE FROM volume WHERE uuid = ?", volume_uuid)

    def rename_volume(self, volume_uuid: str, name: str) -> None:
        self.database.do("UPDATE volume SET name = ? WHERE uuid = ?", name, volume_uuid)

    def set_wanted(self, volume_uuid: str, wanted: bool) -> None:
        self.database.do("UPDATE volume SET wanted = ? WHERE uuid = ?", int(wanted), volume_uuid)

    def set_mountpoint(self, volume_uuid: str, mountpoint: str) -> None:
        self.database.do("UPDATE volume SET mountpoint = ? WHERE uuid = ?", mountpoint, volume_uuid)

    # groups

    def groups(self) -> list[Group]:
        rows = self.database.rows(
            "SELECT uuid, name, role, term, home FROM consistency_group ORDER BY name"
        )
        return [Group(*row) for row in rows]

    def group(self, name: str) -> Group:
        """By name.  Raises Failed if there is none."""
        row = self.database.row(
            "SELECT uuid, name, role, term, home FROM consistency_group WHERE name = ?", name
        )
        if row is None:
            raise Failed(f"there is no group {name}", hint="nasfs group list shows the groups")
        return Group(*row)

    def find_group(self, group_uuid: str) -> Group | None:
        row = self.database.row(
            "SELECT uuid, name, role, term, home FROM consistency_group WHERE uuid = ?", group_uuid
        )
        return Group(*row) if row else None

    def add_group(self, group: Group) -> None:
        try:
            self.database.do(
                "INSERT INTO consistency_group (uuid, name, role, term, home)"
                " VALUES (?, ?, ?, ?, ?)",
                group.uuid, group.name, group.role, group.term, group.home,
            )  # fmt: skip
        except sqlite3.IntegrityError as exc:
            raise Failed(
                f"group {group.name} exists already", hint="nasfs group list shows the groups"
            ) from exc

    def forget_group(self, group_uuid: str) -> None:
        with self.change():
            self.database.do("UPDATE volume SET grp = NULL WHERE grp = ?", group_uuid)
            self.database.do("DELETE FROM journal WHERE grp = ?", group_uuid)
            self.database.do("DELETE FROM replication WHERE grp = ?", group_uuid)
            self.database.do("DELETE FROM consistency_group WHERE uuid = ?", group_uuid)

    def members(self, group_uuid: str) -> list[VolumeRow]:
        """A group's volumes, by UUID: the same order on both nodes."""
        rows = self.database.rows(
            f"SELECT {_VOLUME} FROM volume WHERE grp = ? ORDER BY uuid", group_uuid
        )
        return [VolumeRow(*row) for row in rows]

    def join_group(self, volumes: Iterable[VolumeRow], group_uuid: str) -> None:
        """Put volumes into a group, all or none.  Raises Refused if one is in another."""
        with self.change():
            for row in volumes:
                changed = self.database.do(
                    "UPDATE volume SET grp = ? WHERE uuid = ? AND (grp IS NULL OR grp = ?)",
                    group_uuid, row.uuid, group_uuid,
                )  # fmt: skip
                if not changed:
                    raise Refused(f"volume {self.volume_name(row)} is in another group already")

    def leave_group(self, volume_uuid: str) -> None:
        self.database.do("UPDATE volume SET grp = NULL WHERE uuid = ?", volume_uuid)

    def change_role(self, group: Group, *, role: str, term: int) -> None:
        """Give a group a role in *term*, if it is still in the term in which the caller saw it.

        Raises:
            TermChanged: it is not.
        """
        assert term >= group.term, "terms only rise"
        changed = self.database.do(
            "UPDATE consistency_group SET role = ?, term = ? WHERE uuid = ? AND term = ?",
            role, term, group.uuid, group.term,
        )  # fmt: skip
        if not changed:
            raise TermChanged(group.name, group.term)

    def come_home(self, group_uuid: str) -> None:
        """This node is the group's original primary from now on."""
        self.database.do("UPDATE consistency_group SET home = 1 WHERE uuid = ?", group_uuid)

    def step_down(self, group_uuid: str) -> bool:
        """The partner knows a higher term: an active group becomes stale.  True if it was active.

        Its own term stays: it is the newest in which this node was active.
        """
        return bool(
            self.database.do(
                "UPDATE consistency_group SET role = 'stale'"
                " WHERE uuid = ? AND role IN ('active', 'failed-over')",
                group_uuid,
            )
        )

    # snap groups

    def decide_snap_group(self, snap_group: str, group_uuid: str) -> None:
        """All its snapshots are sealed: it exists from now on, even if they are not offered yet."""
        self.database.do("INSERT INTO snap_group VALUES (?, ?)", snap_group, group_uuid)

    def decided_snap_groups(self) -> set[str]:
        """Those that may have snapshots which are not offered yet."""
        return {row[0] for row in self.database.rows("SELECT uuid FROM snap_group")}

    def forget_snap_group(self, snap_group: str) -> None:
        """All its snapshots are offered."""
        self.database.do("DELETE FROM snap_group WHERE uuid = ?", snap_group)

    # events

    def note(self, actor: str, kind: str, subject: str, detail: str = "") -> None:
        """Remember who did what.

        By itself, what can't be written is only logged: it has happened, and is no failure.
        """
        try:
            with self.change():
                self.database.do(
                    "INSERT INTO event (time_ns, actor, kind, subject, detail)"
                    " VALUES (?, ?, ?, ?, ?)",
                    time.time_ns(), actor, kind, subject, detail,
                )  # fmt: skip
                self.database.do(
                    "DELETE FROM event WHERE number <= (SELECT max(number) FROM event) - ?",
                    EVENTS_KEPT,
                )
        except Failed as exc:
            if self.database.is_changing:
                raise
            log.error("%s of %s (%s) is not among the events: %s", kind, subject, detail, exc)

    def events(self, after: int = 0, limit: int = 200) -> list[Event]:
        """The newest *limit* events with a number above *after*, oldest first."""
        rows = self.database.rows(
            "SELECT * FROM (SELECT number, time_ns, actor, kind, subject, detail FROM event"
            " WHERE number > ? ORDER BY number DESC LIMIT ?) ORDER BY number",
            after, limit,
        )  # fmt: skip
        return [Event(*row) for row in rows]


def new_uuid() -> str:
    return str(uuid.uuid4())
