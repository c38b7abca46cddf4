"""What a comparison of two sites tells: one JSON object a line (see `lines`)."""

from __future__ import annotations

import msgspec

from ..messages import ErrorView, Request


class VerifyRequest(Request, frozen=True):
    snapshot: str = ""
    """Of this name; empty: the newest that both sites have."""
    newest: bool = False
    """This site's newest against the partner's newest, whether or not they are the same."""


class Comparing(msgspec.Struct, frozen=True, tag="comparing"):
    """How far it is."""

    volume: str
    snapshot: str
    bytes_done: int
    """Of file data, read from this site's disk."""
    bytes_total: int
    differences: int


class FindingView(msgspec.Struct, frozen=True, tag="finding"):
    """One thing that is not the same on both sites; "here" is the node that was asked."""

    volume: str
    path: str | None
    """From the volume's root, without a slash; null: nothing leads to that inode."""
    path_raw: str | None
    inode: int
    what: str
    """``data``, ``attribute``, ``xattr``, ``entry``, ``missing`` or ``other`` (another object)."""
    detail: str
    unreadable: str
    """Who can't read it: ``here``, ``there``, ``on both sides``, or empty."""


class VerifiedView(msgspec.Struct, frozen=True, tag="verified"):
    """All was compared."""

    volumes: int
    snapshot: str
    bytes: int
    """Of file data, read here."""
    differences: int


class FailedLine(msgspec.Struct, frozen=True, tag="failed"):
    """It could not be done, or not to the end."""

    error: ErrorView


Line = Comparing | FindingView | VerifiedView | FailedLine
