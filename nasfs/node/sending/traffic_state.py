"""What node.db remembers of the traffic to the partner: the link, what both have, what was sent."""

from __future__ import annotations

from ..database import Database
from ..records import Common, Link, PastTransfer

KEPT = 1000
"""Of each group so many past transfers are remembered."""

_PAST = (
    "number, grp, began_ns, ended_ns, result, detail, snapshot, snapshots,"
    ' "rows", bytes, wire_bytes'
)


class TrafficState:
    """The link's settings, common snap groups and past transfers in node.db."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def link(self) -> Link:
        row = self.database.row("SELECT rate, transfers FROM link")
        return Link(*row) if row else Link()

    def set_link(self, link: Link) -> None:
        self.database.do("INSERT OR REPLACE INTO link VALUES (1, ?, ?)", link.rate, link.transfers)

    def common(self, group_uuid: str) -> Common | None:
        """The newest snap group known to be whole on both sides; None: none yet."""
        row = self.database.row(
            "SELECT grp, snap_group, name, time_ns, skew_ns FROM common WHERE grp = ?", group_uuid
        )
        return Common(*row) if row else None

    def set_common(self, common: Common) -> None:
        """Remember it (nothing, if the replication was deleted meanwhile)."""
        self.database.do(
            "INSERT OR REPLACE INTO common SELECT ?, ?, ?, ?, ?"
            " WHERE EXISTS (SELECT 1 FROM replication WHERE grp = ?)",
            common.group, common.snap_group, common.name, common.time_ns, common.skew_ns,
            common.group,
        )  # fmt: skip

    def add_past(self, past: PastTransfer) -> None:
        """Remember an attempt; its number is chosen here, and the oldest are forgotten."""
        values = [getattr(past, name) for name in PastTransfer.__struct_fields__[1:]]
        with self.database.change():
            self.database.do(
                f"INSERT INTO transfer_history ({_PAST.partition(', ')[2]})"
                f" SELECT {', '.join('?' * len(values))}"
                " WHERE EXISTS (SELECT 1 FROM replication WHERE grp = ?)",
                *values, past.group,
            )  # fmt: skip
            self.database.do(
                "DELETE FROM transfer_history WHERE grp = ?1 AND number <= (SELECT number FROM"
                " transfer_history WHERE grp = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                past.group, KEPT,
            )  # fmt: skip

    def past(self, group_uuid: str, limit: int) -> list[PastTransfer]:
        """The latest ones, newest first."""
        rows = self.database.rows(
            f"SELECT {_PAST} FROM transfer_history WHERE grp = ? ORDER BY number DESC LIMIT ?",
            group_uuid, limit,
        )  # fmt: skip
        return [PastTransfer(*row) for row in rows]
