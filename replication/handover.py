"""What two nodes say to each other while roles change, and who may agree to what.  Pure.

The bodies of `wire.Operate` and `Operated`, and the rules by which the partner answers.  Each
question may be asked again after an answer was lost, and then ends in the same state.

Until `HandOver` is granted the primary can take the group back by itself, at any time: who hands
over compares the token and the last snap group first.  From then on only the other node goes on.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from nasfs.errors import Refused

from .endpoint import Count, Id, Label
from .errors import Fenced, RemoteProtocolError
from .roles import Role

CATCH_UP: Final = "catch-up"
DRAIN: Final = "drain"
HAND_OVER: Final = "hand-over"
SENDING: Final = "sending"
KEEP: Final = "keep"
REJOIN: Final = "rejoin"

Labels = Annotated[dict[Id, Label], msgspec.Meta(max_length=64)]


class CatchUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take a snap group and send it, while people go on: less is left for the last one."""

    token: Id
    term: Count


class CaughtUp(msgspec.Struct, frozen=True):
    snap_group: Id
    name: Label


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let nobody change the group any more, take its last snap group, and send it to me."""

    token: Id
    """Of this change of roles; whoever comes with another one is refused meanwhile."""
    term: Count
    """In which I will be the primary."""
    force: bool = False
    """Although files are in use, or the shares can't be brought."""


class Terms(msgspec.Struct, frozen=True):
    """How a group was replicated, so that the other direction is replicated alike."""

    pool: Label
    """Of the node that hands over."""
    names: Labels
    """Volume UUID to the volume's name there."""
    provision: Label = "thin"
    max_snapshots: Count = 64
    compression: Label = "auto"
    priority: Count = 100
    rate: Count = 0
    windows: Annotated[str, msgspec.Meta(max_length=16_384)] = ""
    max_lag_s: Count = 0
    rpo_s: Count = 0
    lanes: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    encryption: Annotated[str, msgspec.Meta(pattern="^(on|off)$")] = "on"


class Drained(msgspec.Struct, frozen=True):
    """Nothing of the group changes here until `HandOver` or `Keep`, or until I take it back."""

    snap_group: Id
    name: Label
    terms: Terms
    next_inodes: Annotated[dict[Id, Count], msgspec.Meta(max_length=64)]
    """Volume UUID to the first inode number that was never given here."""


class Sending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far are you with what I wait for?

    Asked again and again: a primary that is drained and not asked takes the group back.
    """

    token: Id


class Sent(msgspec.Struct, frozen=True):
    state: Label
    """Of the replication: ``idle``, ``running``, ``waiting`` or ``stopped``."""
    reason: Annotated[str, msgspec.Meta(max_length=4096)]
    moved: Count
    """Another number whenever something was sent since."""
    drained: bool
    """For that token."""


class HandOver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """I have the last snap group: become passive in this term."""

    token: Id
    term: Count
    snap_group: Id


class HandedOver(msgspec.Struct, frozen=True):
    """I am passive in that term."""


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The change of roles is called off: go on as before."""

    token: Id
    term: Count


class Kept(msgspec.Struct, frozen=True):
    pass


class Rejoin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Become my secondary: go back to what we have in common, and keep what only you have."""

    term: Count
    """In which I am the primary."""
    common: Labels
    """Volume UUID to the GUID of its newest common snapshot."""


class Rejoined(msgspec.Struct, frozen=True):
    """I am passive; what only this node had is kept here as these snapshots."""

    terms: Terms
    kept: Annotated[list[Label], msgspec.Meta(max_length=64)]
    """POOL/VOLUME@SNAPSHOT; nothing for a volume that had not diverged."""


T = TypeVar("T", bound=msgspec.Struct)


def encode(body: msgspec.Struct) -> bytes:
    return msgspec.json.encode(body)


def decode(body: bytes, type_: type[T]) -> T:
    """Raises RemoteProtocolError."""
    try:
        return msgspec.json.decode(body, type=type_)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"malformed {type_.__name__}: {exc}") from exc


# who may agree to what


class Seat(msgspec.Struct, frozen=True):
    """A group on the node that is asked."""

    group: str
    role: Role
    term: int
    token: str = ""
    """Of the change of roles for which it is drained; empty: it is not."""
    snap_group: str = ""
    """The last one, once it was taken for that."""


def is_handed_over(seat: Seat, term: int) -> bool:
    """Whether the partner became primary in *term* with this node's consent."""
    return seat.role is Role.PASSIVE and seat.term == term


def check_drain(seat: Seat, token: str, term: int) -> None:
    """Raises Refused unless this node is the primary in the term before *term*, and free."""
    if seat.role is not Role.ACTIVE or seat.term != term - 1:
        raise Refused(
            f"group {seat.group} is {seat.role.value} in term {seat.term} there:"
            f" it can't be handed over for term {term}",
            hint=f"look at the roles on both nodes: nasfs group show {seat.group}",
        )
    if seat.token not in ("", token):
        raise Refused(f"group {seat.group} is being handed over there already")


def check_hand_over(seat: Seat, ask: HandOver) -> None:
    """Raises Refused unless nothing has changed here since that snap group was taken for it."""
    check_drain(seat, ask.token, ask.term)
    if seat.token != ask.token or seat.snap_group != ask.snap_group:
        raise Refused(f"the primary has taken group {seat.group} back meanwhile")


def check_keep(seat: Seat, ask: Keep) -> None:
    """Raises Refused if it is too late."""
    if is_handed_over(seat, ask.term):
        raise Refused(
            f"group {seat.group} has been handed over already",
            hint="give the same command again: it goes on",
        )


def check_rejoin(seat: Seat, ask: Rejoin) -> None:
    """Raises Fenced or Refused unless who asks is ahead of this node."""
    if seat.term > ask.term:
        raise Fenced(ours=ask.term, theirs=seat.term)
    if seat.term == ask.term and seat.role is not Role.PASSIVE:
        raise Refused(f"group {seat.group} is {seat.role.value} in the same term {seat.term} there")
