"""What the API tells about readiness for a failover."""

from __future__ import annotations

import msgspec


class CheckView(msgspec.Struct, frozen=True):
    what: str
    result: str
    """``ok``, ``warning``, or ``problem``: then the group is not ready."""
    detail: str


class LossView(msgspec.Struct, frozen=True):
    """What is behind the newest complete snap group, as the active node said last."""

    as_of: str | None
    snap_groups: int
    files: int
    bytes: int
    written_since: bool
    """Something was written besides, that is in no snap group."""


class LastTestView(msgspec.Struct, frozen=True):
    began: str | None
    snapshot: str
    ok: bool
    running: bool
    serving_s: float


class ReadinessView(msgspec.Struct, frozen=True):
    """Would a failover work on this node now, and what would it lose."""

    group: str
    ready: bool
    role: str
    term: int
    peer_reachable: bool
    last_snapshot: str | None
    last_snapshot_time: str | None
    age_s: int | None
    """Everything that was written since so many seconds would be lost."""
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    checks: tuple[CheckView, ...]
    loss: LossView | None
    """None: not known."""
    last_test: LastTestView | None
