"""What the API takes and gives about the end of a replication."""

from __future__ import annotations

import msgspec

from .messages import Request


class ReplicationDelete(Request, frozen=True):
    force: bool = False
    """Although the partner can't be told, or both sides then have an active group."""
    dry_run: bool = False


class EndView(msgspec.Struct, frozen=True):
    """What has become of a replication, or would."""

    group: str
    here: tuple[str, ...]
    partner: tuple[str, ...]
    told: bool
    """Whether the partner knows of it."""


class PairEndView(msgspec.Struct, frozen=True):
    partner: str
    problem: str
    """Why the partner still knows this node; empty: it does not."""
