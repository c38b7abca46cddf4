"""What the API takes and gives about the link, the account and the other side of replications."""

from __future__ import annotations

import msgspec

from ..messages import Request


class ReplicationSet(Request, frozen=True):
    """What is given is changed; ``off`` takes a rate, a lag or an RPO away."""

    compression: str | None = None
    max_snapshots: int | None = None
    priority: int | None = None
    rate: str | None = None
    max_lag: str | None = None
    rpo: str | None = None
    lanes: str | None = None
    encryption: str | None = None


class ReplicationRun(Request, frozen=True):
    rebase: bool = False
    """By what differs in the contents, whatever the two sites have in common."""


class WindowAdd(Request, frozen=True):
    window: str
    """``mon-fri 20:00-06:00 rate=50M zone=Europe/Berlin``"""


class WindowRemove(Request, frozen=True):
    number: int
    """Counted from 1, as they are listed; 0: all."""


class WindowView(msgspec.Struct, frozen=True):
    number: int
    days: str
    start: str
    stop: str
    rate: int
    """Bytes a second; 0: no limit."""
    zone: str
    open: bool
    changes: str | None
    """When it opens or closes next."""


class LinkSet(Request, frozen=True):
    rate: str | None = None
    transfers: int | None = None


class LinkView(msgspec.Struct, frozen=True):
    rate: int
    """Bytes a second of all transfers together; 0: no limit."""
    transfers: int
    """So many groups at a time."""
    sending: tuple[str, ...]
    """Groups that have their turn now."""


class PastView(msgspec.Struct, frozen=True):
    """One transfer that ended."""

    group: str
    began: str | None
    ended: str | None
    result: str
    """``done``, ``failed`` or ``held`` (broken off on purpose)."""
    detail: str
    snapshot: str
    snapshots: int
    rows: int
    bytes: int
    wire_bytes: int
    seconds: float


class ReasonView(msgspec.Struct, frozen=True):
    """One thing that keeps a group from being up to date, and what to do about it."""

    reason: str
    hint: str


class ReceptionSet(Request, frozen=True):
    """What this node itself says of a group that it receives; 0 takes it back."""

    keep_least: int | None = None
    keep_most: int | None = None


class ReceptionView(msgspec.Struct, frozen=True):
    group: str
    role: str
    asked: int
    """What the sender asks to keep of each volume."""
    keep_least: int
    keep_most: int
    keeps: int
    """What follows from all three."""
    snapshots: int
    """Snap groups that are here whole."""
    newest: str | None
    newest_time: str | None
