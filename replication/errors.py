"""What can go wrong between two sites.  `transient` decides whether a sender tries again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nasfs.errors import NasError, Refused


class ReplicationError(NasError):
    """Root of them; a class is transient if the same attempt may work a little later."""

    transient: ClassVar[bool] = False


@dataclass(eq=False)
class PeerUnreachable(ReplicationError):
    """No connection, or it broke, or nothing came for too long."""

    exit_code: ClassVar[int] = 4
    transient: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"peer {self.peer} is not reachable: {self.reason}"


@dataclass(eq=False)
class PeerBusy(ReplicationError):
    """The peer works on that volume for an earlier connection."""

    transient: ClassVar[bool] = True
    reason: str

    def __str__(self) -> str:
        return f"the peer is busy: {self.reason}"


@dataclass(eq=False)
class LocalProtocolError(ReplicationError):
    """Our own code broke the protocol: a bug."""

    reason: str

    def __str__(self) -> str:
        return f"protocol broken on this side: {self.reason}"


@dataclass(eq=False)
class RemoteProtocolError(ReplicationError):
    """The peer sent what the protocol does not allow."""

    reason: str

    def __str__(self) -> str:
        return f"the peer broke the protocol: {self.reason}"


@dataclass(eq=False)
class VersionMismatch(ReplicationError):
    """The peer speaks another version of the protocol."""

    hint: str = "install the same release of nasfs on both nodes"
    ours: int = 0
    theirs: int = 0

    def __str__(self) -> str:
        return f"the peer speaks protocol version {self.theirs}, this node {self.ours}"


@dataclass(eq=False)
class NotAuthenticated(ReplicationError):
    """A certificate that is not the pinned one, or a code that is wrong, used or too old."""

    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class RefusedByPeer(ReplicationError):
    """The peer understood and said no; `reason` is its own sentence."""

    exit_code: ClassVar[int] = 3
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"refused by the peer: {self.reason}"


@dataclass(eq=False)
class PeerFailed(ReplicationError):
    """The peer tried and could not (a full disk, a damaged volume); `reason` is its sentence."""

    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"the peer failed: {self.reason}"


@dataclass(eq=False)
class Fenced(ReplicationError):
    """The receiver knows a higher term (`theirs`) than the sender (`ours`), whose role is over."""

    exit_code: ClassVar[int] = 3
    ours: int
    theirs: int
    hint: str = "the receiver has taken over; the sender keeps everything and must rejoin it"

    def __str__(self) -> str:
        return f"the sender's term {self.ours} is behind the receiver's term {self.theirs}"


@dataclass(eq=False)
class Diverged(ReplicationError):
    """The peer's newest snapshots are not among ours, or no snapshot is common."""

    exit_code: ClassVar[int] = 3
    volume: str
    reason: str
    hint: str = "nothing was changed on either side"

    def __str__(self) -> str:
        return f"volume {self.volume}: {self.reason}"


@dataclass(eq=False)
class DigestMismatch(ReplicationError):
    """What arrived is not what was sent; the snapshot is not published."""

    snapshot: str
    hint: str = "it is not published; what was verified before is kept: replicate again"

    def __str__(self) -> str:
        return f"snapshot {self.snapshot}: the digests of the two sides differ"


@dataclass(eq=False)
class DataLossNotAccepted(Refused):
    """A failover would lose what was not replicated, and nobody named that loss."""
