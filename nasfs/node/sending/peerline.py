"""In a send process: the connection to the partner, kept from one transfer to the next.

While nothing is sent, somebody has to `mind` it about every second: so a connection that broke
meanwhile is noticed before the next transfer relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from replication.client import peer_status
from replication.connection import Connection
from replication.endpoint import GroupSpec, GroupStatus, PeerIdentity
from replication.errors import PeerUnreachable, ReplicationError

from ..context import Node
from ..pairing import connect_peer


class PeerLine:
    """At most one connection on which nothing is under way.

    Attributes:
        kept: the connection that was taken last is not a new one; it may have broken unnoticed.
        agreed: what the partner was asked to have last, and said yes to; None: ask it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._spare: Connection | None = None
        self.kept = False
        self._made_for: tuple[PeerIdentity | None, int] = (None, 0)
        self.agreed: GroupSpec | None = None

    @property
    def level(self) -> int:
        """Of compression: that of the latest connection."""
        return self._made_for[1]

    def take(self, level: int) -> Connection:
        """The spare connection if it is as good as a new one, else a new one.

        Raises:
            Refused: this node has no partner.
            PeerUnreachable, NotAuthenticated, VersionMismatch: no connection.
        """
        wanted = self._node.bond.peer(), level
        if wanted != self._made_for:  # another address, certificate, compression
            self.close()
        self.mind()
        spare, self._spare = self._spare, None
        self.kept = spare is not None
        if spare is None:
            spare = connect_peer(self._node, level=level)
            self._made_for = wanted
        return spare

    @contextmanager
    def lend(self, level: int) -> Iterator[Connection]:
        """`take` it for a few questions, and have it back if they went well."""
        connection = self.take(level)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)

    def give_back(self, connection: Connection) -> None:
        """Nothing is under way on it."""
        self.close()
        self._spare = connection

    def rest(self, group_uuid: str) -> GroupStatus | None:
        """Nothing more is sent for now: the partner closes the volume that it had open for us.

        What it has then; None: the connection broke.
        """
        if self._spare is None:
            return None
        try:
            return peer_status(self._spare, group_uuid)
        except ReplicationError:
            self.close()
            return None

    def mind(self) -> None:
        """Hear what the partner says meanwhile; a connection that broke is given up."""
        if self._spare is None:
            return
        try:
            if self._spare.receive_within(0.0) is not None:
                raise PeerUnreachable(self._spare.peer, "it said what nobody asked for")
            if self._spare.silent_s > self._spare.timeout_s / 2:
                raise PeerUnreachable(self._spare.peer, "it is silent")
        except ReplicationError:
            self.close()

    def close(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
