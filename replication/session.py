"""The order of messages: one transition table, which both ends use.  No I/O.

Each side runs a `Session` and tells it every frame that it sends and gets.  The client is who
connected, whatever it wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from .errors import LocalProtocolError, RemoteProtocolError
from .frames import Kind


class Side(Enum):
    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class State(Enum):
    START = "start"
    GREETED = "greeted"
    READY = "ready"
    PAIRING = "pairing"
    CREATING = "creating"
    ASKING = "asking"
    OPERATING = "operating"
    OFFERING = "offering"
    OFFERED = "offered"
    BEGINNING = "beginning"
    TRANSFER = "transfer"
    SEALING = "sealing"
    CLOSED = "closed"


_C, _S = Side.CLIENT, Side.SERVER

_REQUESTS = {
    Kind.CREATE: State.CREATING,
    Kind.STATUS_QUERY: State.ASKING,
    Kind.OPERATE: State.OPERATING,
    Kind.OFFER: State.OFFERING,
}
"""Between two transfers the client may ask for anything; what it offered before is then over."""

NEXT: Mapping[tuple[State, Side, Kind], State] = {
    (State.START, _C, Kind.HELLO): State.GREETED,
    (State.GREETED, _S, Kind.HELLO): State.READY,
    (State.READY, _C, Kind.PAIR): State.PAIRING,
    (State.PAIRING, _S, Kind.PAIRED): State.READY,
    (State.CREATING, _S, Kind.CREATED): State.READY,
    (State.ASKING, _S, Kind.STATUS): State.READY,
    (State.OPERATING, _S, Kind.OPERATED): State.READY,
    (State.OFFERING, _S, Kind.STATE): State.OFFERED,
    (State.OFFERED, _C, Kind.BEGIN): State.BEGINNING,
    (State.BEGINNING, _S, Kind.RESUME): State.TRANSFER,
    (State.TRANSFER, _C, Kind.ROWS): State.TRANSFER,
    (State.TRANSFER, _C, Kind.DATA): State.TRANSFER,
    (State.TRANSFER, _S, Kind.ACK): State.TRANSFER,
    (State.TRANSFER, _C, Kind.LANES): State.TRANSFER,
    (State.TRANSFER, _S, Kind.DOOR): State.TRANSFER,
    (State.TRANSFER, _C, Kind.LANED): State.TRANSFER,
    (State.TRANSFER, _C, Kind.SEAL): State.SEALING,
    (State.SEALING, _S, Kind.ACK): State.SEALING,
    (State.SEALING, _S, Kind.SEALED): State.OFFERED,
    **{
        (rest, _C, kind): following
        for rest in (State.READY, State.OFFERED)
        for kind, following in _REQUESTS.items()
    },
}
"""Who may send what, when, and what follows.  `advance` adds Ping and Refusal."""

AT_REST = frozenset({State.START, State.READY, State.OFFERED})
"""Where the client may go away without breaking anything off."""


def advance(state: State, side: Side, kind: Kind) -> State | None:
    """The state after *side* sent a frame of *kind*; None: it must not."""
    if kind is Kind.REFUSAL and state is not State.CLOSED:
        return State.CLOSED
    if kind is Kind.PING and state not in (State.START, State.GREETED, State.CLOSED):
        return state
    return NEXT.get((state, side, kind))


class Session:
    """Where a conversation is.  Not for two threads at once."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.state = State.START

    def sent(self, kind: Kind) -> None:
        """Raises LocalProtocolError if this side must not send that now."""
        following = advance(self.state, self.side, kind)
        if following is None:
            raise LocalProtocolError(f"{kind.name} sent while {self.state.value}")
        self.state = following

    def received(self, kind: Kind) -> None:
        """Raises RemoteProtocolError if the peer must not send that now."""
        following = advance(self.state, self.side.other, kind)
        if following is None:
            raise RemoteProtocolError(f"{kind.name} is not allowed while {self.state.value}")
        self.state = following
