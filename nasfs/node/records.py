"""What node.db remembers, as values.  Fields are in the order of the columns."""

from __future__ import annotations

import msgspec

HOLDER = "replication"
"""The owner of the holds that keep what the next deltas are computed from."""


class Pool(msgspec.Struct, frozen=True):
    uuid: str
    name: str
    path: str


class VolumeRow(msgspec.Struct, frozen=True):
    """A volume of this node, and where it shall be mounted."""

    uuid: str
    pool: str
    """The pool's UUID."""
    name: str
    mountpoint: str
    wanted: int
    """1: the daemon keeps it mounted (if its group's role allows that)."""
    group: str
    """The group's UUID; empty for none."""


class Group(msgspec.Struct, frozen=True):
    """A consistency group, its role here and the term in which it has it."""

    uuid: str
    name: str
    role: str
    term: int
    home: int = 1
    """1: it was made here, this node is its original primary; 0: the partner is."""


class Invitation(msgspec.Struct, frozen=True):
    """A pairing code that was given out: only its digest is kept."""

    digest: bytes
    expires_ns: int


class Replication(msgspec.Struct, frozen=True):
    """How a group of this node is replicated to the partner."""

    group: str
    to_pool: str
    provision: str
    max_snapshots: int
    compression: str
    paused: int
    priority: int = 100
    """Per cent of the link, and of the time, that it may have."""
    rate: int = 0
    """Bytes a second; 0: no limit."""
    windows: str = ""
    """One in each line, as `replication.link` writes them; none: always."""
    max_lag_s: int = 0
    """When it is behind by more, snap groups between are left out; 0: never."""
    rpo_s: int = 0
    """So old may the newest copy become; 0: nobody said."""
    split: int = 0
    """1: the sites were parted by hand."""
    lanes: int = 0
    """Connections for the data of large deltas, 1 to 8; 0: as many as the link's delay asks for."""
    encryption: str = "on"
    """``off``: the data of large deltas travels in the clear, with digests over TLS."""


class Reception(msgspec.Struct, frozen=True):
    """How many snapshots of each volume this node keeps of a group that it receives."""

    group: str
    max_snapshots: int
    """What the sender asks for."""
    keep_least: int = 0
    """This node's own: never fewer, whatever the sender asks; 0: nothing said."""
    keep_most: int = 0
    """This node's own: never more; 0: nothing said."""

    @property
    def keeps(self) -> int:
        asked = min(self.max_snapshots, self.keep_most or self.max_snapshots)
        return max(1, asked, self.keep_least)


class Link(msgspec.Struct, frozen=True):
    """What all transfers to the partner share."""

    rate: int = 0
    """Bytes a second of all of them together; 0: no limit."""
    transfers: int = 8
    """So many groups at a time; the others take turns."""


class Common(msgspec.Struct, frozen=True):
    """The newest snap group that both sides have whole, as of the latest attempt."""

    group: str
    snap_group: str
    name: str
    time_ns: int
    skew_ns: int
    """How far the partner's clock is ahead."""


class PastTransfer(msgspec.Struct, frozen=True):
    """One attempt that sent something or failed."""

    number: int
    group: str
    began_ns: int
    ended_ns: int
    result: str
    """``done``, ``failed`` or ``held`` (broken off on purpose)."""
    detail: str
    snapshot: str
    snapshots: int
    rows: int
    bytes: int
    wire_bytes: int


class Transfer(msgspec.Struct, frozen=True):
    """The latest attempt to replicate a group, and the latest success."""

    group: str
    state: str
    """``idle``, ``running``, ``waiting`` (will be tried again) or ``stopped`` (needs a person)."""
    reason: str
    hint: str
    exit_code: int
    attempts: int
    changed_ns: int
    done_ns: int
    """When the latest successful attempt ended; 0: never."""
    rows: int
    bytes: int
    wire_bytes: int
    seconds: float


YIELD = "hand-over"
"""Kind of the journal of a primary that hands its group over: nothing is written here."""
REJOIN = "rejoin"
"""Kind of the journal of an old primary that becomes a secondary."""
RELEASE = "release"
"""Kind of the journal of a group whose copies become ordinary volumes."""
ROLLBACK = "rollback"
"""Kind of the journal of a group's rollback: some of its volumes may have gone back."""


class Journal(msgspec.Struct, frozen=True):
    """A plan under way: after a crash it goes on at `next_step`."""

    group: str
    kind: str
    body: bytes
    next_step: int


class Event(msgspec.Struct, frozen=True):
    """Who did what, or what failed."""

    number: int
    time_ns: int
    actor: str
    kind: str
    subject: str
    detail: str
