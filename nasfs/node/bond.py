"""What the node knows durably of its bond with the partner: pairing, replications, journals."""

from __future__ import annotations

from collections.abc import Callable

from nasfs.errors import Refused
from replication.endpoint import PeerIdentity

from .database import Database
from .records import Invitation, Journal, Reception, Replication, Transfer

_REPLICATION = (
    "grp, to_pool, provision, max_snapshots, compression, paused, priority, rate, windows,"
    " max_lag_s, rpo_s, split"
)
_TRANSFER = (
    'grp, state, reason, hint, exit_code, attempts, changed_ns, done_ns, "rows", bytes,'
    " wire_bytes, seconds"
)


class Bond:
    """Peer, invitation, replications, transfers and journals in node.db."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.change = database.change

    # pairing

    def peer(self) -> PeerIdentity | None:
        row = self.database.row("SELECT uuid, name, address, certificate FROM peer")
        return PeerIdentity(*row) if row else None

    def set_peer(self, peer: PeerIdentity) -> None:
        """Remember the partner; the same one again updates its name, address and certificate.

        Raises:
            Refused: there is another partner.
        """
        with self.change():
            known = self.peer()
            if known and known.uuid != peer.uuid:
                raise Refused(
                    f"this node is paired with {known.name} already",
                    hint="a pair has exactly two nodes; end it first: nasfs pair remove",
                )
            self.database.do(
                "INSERT OR REPLACE INTO peer VALUES (1, ?, ?, ?, ?)",
                peer.uuid, peer.name, peer.address, peer.certificate,
            )  # fmt: skip

    def forget_peer(self) -> None:
        with self.change():
            self.database.do("DELETE FROM peer")
            self.database.do("DELETE FROM invitation")

    def set_invitation(self, invitation: Invitation) -> None:
        """Remember a new code's digest; an older code is void from now on."""
        self.database.do(
            "INSERT OR REPLACE INTO invitation VALUES (1, ?, ?)",
            invitation.digest, invitation.expires_ns,
        )  # fmt: skip

    def accept_pairing(
        self, candidate: PeerIdentity, check: Callable[[Invitation | None], None]
    ) -> None:
        """Use the code up and remember the partner, in one durable step.

        Args:
            check: raises NotAuthenticated unless the candidate knows the invitation's secret.

        Raises:
            Refused: there is another partner.
        """
        with self.change():
            row = self.database.row("SELECT digest, expires_ns FROM invitation")
            check(Invitation(*row) if row else None)
            self.set_peer(candidate)
            self.database.do("DELETE FROM invitation")

    # replications

    def replications(self) -> list[Replication]:
        rows = self.database.rows(f"SELECT {_REPLICATION} FROM replication ORDER BY grp")
        return [Replication(*row) for row in rows]

    def replication(self, group_uuid: str) -> Replication | None:
        row = self.database.row(f"SELECT {_REPLICATION} FROM replication WHERE grp = ?", group_uuid)
        return Replication(*row) if row else None

    def add_replication(self, made: Replication, remote_names: dict[str, str]) -> None:
        """*remote_names*: volume UUID to the volume's name on the partner, for each member."""
        with self.change():
            if self.replication(made.group):
                raise Refused(
                    "the group is replicated already",
                    hint="nasfs replication show GROUP; or: nasfs replication delete GROUP",
                )
            self._write(made)
            for volume, name in remote_names.items():
                self.database.do("INSERT OR REPLACE INTO remote_name VALUES (?, ?)", volume, name)

    def set_replication(self, made: Replication) -> None:
        """Change how a group is replicated (nothing, if it was deleted meanwhile)."""
        with self.change():
            if self.replication(made.group):
                self._write(made)

    def _write(self, made: Replication) -> None:
        values = [getattr(made, field) for field in Replication.__struct_fields__]
        names = _REPLICATION.split(", ")
        rest = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        self.database.do(
            f"INSERT INTO replication ({_REPLICATION}) VALUES ({', '.join('?' * len(names))})"
            f" ON CONFLICT (grp) DO UPDATE SET {rest}",
            *values,
        )

    def remote_names(self) -> dict[str, str]:
        return dict(self.database.rows("SELECT volume, name FROM remote_name"))

    def set_paused(self, group_uuid: str, paused: bool) -> None:
        self.database.do("UPDATE replication SET paused = ? WHERE grp = ?", int(paused), group_uuid)

    def delete_replication(self, group_uuid: str) -> None:
        with self.change():
            self.database.do(
                "DELETE FROM remote_name WHERE volume IN (SELECT uuid FROM volume WHERE grp = ?)",
                group_uuid,
            )
            self.database.do("DELETE FROM replication WHERE grp = ?", group_uuid)
            self.database.do("DELETE FROM followed WHERE grp = ?", group_uuid)

    # receptions

    def set_reception(self, group_uuid: str, max_snapshots: int) -> None:
        """What the sender of a group asks for; what this node itself says of it stays."""
        self.database.do(
            "INSERT INTO reception (grp, max_snapshots) VALUES (?, ?)"
            " ON CONFLICT (grp) DO UPDATE SET max_snapshots = excluded.max_snapshots",
            group_uuid, max_snapshots,
        )  # fmt: skip

    def set_own_retention(self, group_uuid: str, keep_least: int, keep_most: int) -> None:
        """What this node itself says, of a group that it receives."""
        self.database.do(
            "UPDATE reception SET keep_least = ?, keep_most = ? WHERE grp = ?",
            keep_least, keep_most, group_uuid,
        )  # fmt: skip

    def reception(self, group_uuid: str) -> Reception | None:
        """None if this node does not receive the group."""
        row = self.database.row(
            "SELECT grp, max_snapshots, keep_least, keep_most FROM reception WHERE grp = ?",
            group_uuid,
        )
        return Reception(*row) if row else None

    def delete_reception(self, group_uuid: str) -> None:
        self.database.do("DELETE FROM reception WHERE grp = ?", group_uuid)

    # transfers

    def transfer(self, group_uuid: str) -> Transfer | None:
        row = self.database.row(f"SELECT {_TRANSFER} FROM transfer WHERE grp = ?", group_uuid)
        return Transfer(*row) if row else None

    def set_transfer(self, transfer: Transfer) -> None:
        """Remember how a group's replication stands (nothing, if it was deleted meanwhile)."""
        with self.change():
            if self.replication(transfer.group) is None:
                return
            values = [getattr(transfer, field) for field in Transfer.__struct_fields__]
            marks = ", ".join("?" * len(values))
            self.database.do(
                f"INSERT OR REPLACE INTO transfer ({_TRANSFER}) VALUES ({marks})", *values
            )

    # coming back

    def waiting(self, group_uuid: str) -> tuple[int, int]:
        """The term in which a group came back, and since when it waits (ns); zeros: it does not."""
        row = self.database.row("SELECT term, since_ns FROM waiting WHERE grp = ?", group_uuid)
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def begin_to_wait(self, group_uuid: str, term: int, since_ns: int) -> None:
        self.database.do(
            "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?)", group_uuid, term, since_ns
        )

    def end_waiting(self, group_uuid: str, term: int) -> bool:
        """A word was heard about that term; False if the group did not wait for one."""
        return bool(
            self.database.do("DELETE FROM waiting WHERE grp = ? AND term = ?", group_uuid, term)
        )

    def followed_in(self, group_uuid: str) -> int:
        """The newest term in which the partner was asked to be passive; 0: it never was."""
        row = self.database.row("SELECT term FROM followed WHERE grp = ?", group_uuid)
        return int(row[0]) if row else 0

    def set_followed(self, group_uuid: str, term: int) -> None:
        self.database.do("INSERT OR REPLACE INTO followed VALUES (?, ?)", group_uuid, term)

    def looked_back(self) -> str:
        """The daemon that has last marked what came back; empty: none has."""
        row = self.database.row("SELECT daemon FROM looked_back")
        return str(row[0]) if row else ""

    def set_looked_back(self, daemon: str) -> None:
        self.database.do("INSERT OR REPLACE INTO looked_back VALUES (1, ?)", daemon)

    # plans under way

    def journal(self, group_uuid: str) -> Journal | None:
        row = self.database.row(
            "SELECT grp, kind, body, next_step FROM journal WHERE grp = ?", group_uuid
        )
        return Journal(*row) if row else None

    def begin_journal(self, journal: Journal) -> None:
        self.database.do(
            "INSERT INTO journal VALUES (?, ?, ?, ?)",
            journal.group, journal.kind, journal.body, journal.next_step,
        )  # fmt: skip

    def step_done(self, group_uuid: str, next_step: int) -> None:
        self.database.do(
            "UPDATE journal SET next_step = ? WHERE grp = ? AND next_step < ?",
            next_step, group_uuid, next_step,
        )  # fmt: skip

    def note_in_journal(self, group_uuid: str, kind: str, body: bytes) -> None:
        """Remember more of a plan under way (nothing, if another or none is under way)."""
        self.database.do(
            "UPDATE journal SET body = ? WHERE grp = ? AND kind = ?", body, group_uuid, kind
        )

    def go_back_to(self, group_uuid: str, next_step: int) -> None:
        """Steps that are done are to be done again."""
        self.database.do("UPDATE journal SET next_step = ? WHERE grp = ?", next_step, group_uuid)

    def end_journal(self, group_uuid: str) -> None:
        self.database.do("DELETE FROM journal WHERE grp = ?", group_uuid)
