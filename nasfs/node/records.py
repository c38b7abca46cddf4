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
