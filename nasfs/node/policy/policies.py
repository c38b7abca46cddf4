"""The snapshot policies in node.db: what they are, what they did last, and what they made.

Who made a snapshot is remembered by its GUID: a snapshot that a person named like ours is never
ours, and a renamed one of ours still is.  Before one is taken its name is *claimed*, so that one
that was sealed while the daemon was killed is found again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

import msgspec

from nasfs.errors import Failed
from nasfs.schedule.policy import PolicySpec

from ..database import Database
from ..state import new_uuid

MAX_POLICIES = 32
"""Of one target."""

_POLICY = (
    "uuid, name, coalesce(volume, ''), coalesce(grp, ''), spec, paused, last_ns, result, detail,"
    " result_ns, done_ns, failures"
)


class PolicyRow(msgspec.Struct, frozen=True):
    """A policy of a volume or a group, and how its latest run ended."""

    uuid: str
    name: str
    volume: str
    """The volume's UUID; empty for a group's policy."""
    group: str
    """The group's UUID; empty for a volume's policy."""
    spec: str
    """`PolicySpec` as JSON."""
    paused: int
    last_ns: int
    """The occurrence that was dealt with last; at first, when the policy was made."""
    result: str
    """Of the latest run: ``none``, ``done``, ``failed``, ``skipped`` or ``missed``."""
    detail: str
    result_ns: int
    done_ns: int
    """When it took a snapshot last; 0: never."""
    failures: int
    """Runs that failed since it took a snapshot."""

    @property
    def written(self) -> PolicySpec:
        return msgspec.json.decode(self.spec, type=PolicySpec)


def new_policy(
    name: str, *, spec: str, volume: str = "", group: str = "", uuid: str = ""
) -> PolicyRow:
    """One that has done nothing yet; nothing before now was missed."""
    return PolicyRow(
        uuid=uuid or new_uuid(),
        name=name,
        volume=volume,
        group=group,
        spec=spec,
        paused=0,
        last_ns=time.time_ns(),
        result="none",
        detail="",
        result_ns=0,
        done_ns=0,
        failures=0,
    )


class RunRow(msgspec.Struct, frozen=True):
    """A run that has begun: after a crash its `after` hook is still to be run."""

    policy: str
    occurrence_ns: int
    """0: it was asked for by hand."""
    began_ns: int
    snapshot: str
    """The name, once it is claimed."""


class Claim(msgspec.Struct, frozen=True):
    """A snapshot of this name, made after this time in these volumes, is the policy's."""

    policy: str
    name: str
    since_ns: int
    volumes: str
    """JSON: their UUIDs."""
    run: int
    """As in `Made`: given now, so that one that is found late keeps its place."""

    @property
    def volume_uuids(self) -> tuple[str, ...]:
        return msgspec.json.decode(self.volumes, type=tuple[str, ...])


class Made(msgspec.Struct, frozen=True):
    """One volume's snapshot of one run of a policy."""

    guid: str
    policy: str
    volume: str
    run: int
    """Rises with every run; the snapshots of one run are kept or destroyed together."""


class Policies:
    """The tables policy, policy_run, claim and made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # policies

    def all(self) -> list[PolicyRow]:
        rows = self._database.rows(f"SELECT {_POLICY} FROM policy ORDER BY name, uuid")
        return [PolicyRow(*row) for row in rows]

    def of_group(self, group_uuid: str) -> list[PolicyRow]:
        return [row for row in self.all() if row.group == group_uuid]

    def get(self, uuid: str) -> PolicyRow | None:
        row = self._database.row(f"SELECT {_POLICY} FROM policy WHERE uuid = ?", uuid)
        return PolicyRow(*row) if row else None

    def add(self, row: PolicyRow) -> None:
        """Raises Failed if its target has a policy of that name."""
        try:
            self._database.do(
                "INSERT INTO policy VALUES"
                " (?, ?, nullif(?, ''), nullif(?, ''), ?, ?, ?, ?, ?, ?, ?, ?)",
                *msgspec.structs.astuple(row),
            )
        except sqlite3.IntegrityError as exc:
            raise Failed(
                f"there is a policy {row.name} already", hint="nasfs schedule list shows them"
            ) from exc

    def forget(self, uuid: str) -> None:
        """Its snapshots stay, and are nobody's from now on."""
        self._database.do("DELETE FROM policy WHERE uuid = ?", uuid)

    def set_spec(self, uuid: str, spec: str) -> None:
        self._database.do("UPDATE policy SET spec = ? WHERE uuid = ?", spec, uuid)

    def set_paused(self, uuid: str, paused: bool, last_ns: int) -> None:
        """What passed while it was paused was not missed: *last_ns* is when it goes on."""
        self._database.do(
            "UPDATE policy SET paused = ?, last_ns = ? WHERE uuid = ?", int(paused), last_ns, uuid
        )

    def set_last(self, uuid: str, last_ns: int) -> None:
        """This occurrence, and all before it, are dealt with."""
        self._database.do("UPDATE policy SET last_ns = ? WHERE uuid = ?", last_ns, uuid)

    # runs

    def begin(self, run: RunRow) -> None:
        self._database.do(
            "INSERT OR REPLACE INTO policy_run VALUES (?, ?, ?, ?)", *msgspec.structs.astuple(run)
        )

    def under_way(self, uuid: str) -> RunRow | None:
        row = self._database.row(
            "SELECT policy, occurrence_ns, began_ns, snapshot FROM policy_run WHERE policy = ?",
            uuid,
        )
        return RunRow(*row) if row else None

    def end(self, uuid: str, *, result: str, detail: str, last_ns: int, done: bool) -> None:
        """A run has ended.

        Args:
            last_ns: its occurrence; 0: none, it was asked for by hand.
            done: it took a snapshot.
        """
        now = time.time_ns()
        with self._database.change():
            self._database.do("DELETE FROM policy_run WHERE policy = ?", uuid)
            self._database.do(
                "UPDATE policy SET result = ?, detail = ?, result_ns = ?,"
                " last_ns = max(last_ns, ?),"
                " done_ns = CASE WHEN ? THEN ? ELSE done_ns END,"
                " failures = CASE WHEN ? = 'failed' THEN failures + 1"
                "                 WHEN ? THEN 0 ELSE failures END WHERE uuid = ?",
                result, detail, now, last_ns, done, now, result, done, uuid,
            )  # fmt: skip

    # what they made

    def claim(self, policy: str, name: str, since_ns: int, volumes: Sequence[str]) -> None:
        """From now on a snapshot of this name is the policy's, whoever is killed meanwhile."""
        text = msgspec.json.encode(volumes).decode()
        with self._database.change():
            self._database.do(
                "INSERT OR REPLACE INTO claim SELECT ?, ?, ?, ?, 1 + max("
                " (SELECT coalesce(max(run), 0) FROM made),"
                " (SELECT coalesce(max(run), 0) FROM claim))",
                policy, name, since_ns, text,
            )  # fmt: skip
            self._database.do("UPDATE policy_run SET snapshot = ? WHERE policy = ?", name, policy)

    def claims(self, policy: str) -> list[Claim]:
        rows = self._database.rows(
            "SELECT policy, name, since_ns, volumes, run FROM claim WHERE policy = ? ORDER BY run",
            policy,
        )
        return [Claim(*row) for row in rows]

    def drop_claim(self, policy: str, name: str) -> None:
        self._database.do("DELETE FROM claim WHERE policy = ? AND name = ?", policy, name)

    def remember(self, policy: str, name: str, guids: Mapping[str, str]) -> None:
        """A claim was made good: the snapshots with these GUIDs (by volume) are the policy's."""
        with self._database.change():
            for volume, guid in guids.items():
                self._database.do(
                    "INSERT OR IGNORE INTO made SELECT ?, policy, ?, run FROM claim"
                    " WHERE policy = ? AND name = ?",
                    guid, volume, policy, name,
                )  # fmt: skip  # nothing, if the policy was removed meanwhile
            self.drop_claim(policy, name)

    def made(self, policy: str) -> list[Made]:
        """By run, oldest first."""
        rows = self._database.rows(
            "SELECT guid, policy, volume, run FROM made WHERE policy = ? ORDER BY run", policy
        )
        return [Made(*row) for row in rows]

    def newest_run(self, policy: str) -> list[Made]:
        """What the latest of its runs has left, of those that have left something."""
        rows = self._database.rows(
            "SELECT guid, policy, volume, run FROM made WHERE policy = ? AND run ="
            " (SELECT max(run) FROM made WHERE policy = ?)",
            policy, policy,
        )  # fmt: skip
        return [Made(*row) for row in rows]

    def count_runs(self, policy: str) -> int:
        """How many runs of it have left something."""
        row = self._database.row("SELECT count(DISTINCT run) FROM made WHERE policy = ?", policy)
        return int(row[0]) if row else 0

    def forget_made(self, guids: Sequence[str]) -> None:
        """They are gone."""
        with self._database.change():
            for guid in guids:
                self._database.do("DELETE FROM made WHERE guid = ?", guid)
