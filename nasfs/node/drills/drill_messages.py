"""What the API takes and gives about test failovers."""

from __future__ import annotations

import msgspec

from ..messages import Request
from .drill_table import DrillShare, Probe, Stage


class DrillStart(Request, frozen=True):
    snapshot: str = ""
    """Name of a snap group; empty: the newest that is complete."""
    prefix: str = ""
    """Before the names of the shares."""
    listen: str = "127.0.0.1"
    port: int = 0
    mountpoint: str = ""
    """Where the clones appear; empty: the node's own place for them."""
    space: str = ""
    """Where what is written into them is kept; empty: in the node's state directory."""
    dry_run: bool = False


class CloneView(msgspec.Struct, frozen=True):
    volume: str
    path: str
    state: str
    """``mounted``, or why it can't be used."""


class DrillView(msgspec.Struct, frozen=True):
    """A test failover: planned, running or over."""

    group: str
    state: str
    """``planned``, ``starting``, ``running``, ``broken``, ``stopping``, ``ended`` or ``failed``."""
    ok: bool
    """It serves, or did, and every probe that was tried went well."""
    snapshot: str
    snapshot_time: str | None
    age_s: int
    """How much would have been lost, when it began (seconds)."""
    began: str | None
    ended: str | None
    clones: tuple[CloneView, ...]
    listen: str
    """Of the test's smbd: ADDRESS:PORT; empty: there is none."""
    shares: tuple[DrillShare, ...]
    stages: tuple[Stage, ...]
    probes: tuple[Probe, ...]
    serving_s: float
    """From the command until clients could work (seconds)."""
    problems: tuple[str, ...]
    nfs: str = ""
    """Of the test's Ganesha: ADDRESS:PORT; empty: there is none."""
    plan: tuple[str, ...] = ()
    """What `start` does, or is doing."""
