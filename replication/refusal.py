"""Errors as they travel: a `NasError` of one side becomes the right class on the other.  Pure."""

from __future__ import annotations

from nasfs.errors import NasError, Refused

from .errors import (
    DigestMismatch,
    Diverged,
    Fenced,
    NotAuthenticated,
    PeerBusy,
    PeerFailed,
    RefusedByPeer,
    RemoteProtocolError,
    VersionMismatch,
)
from .wire import PROTOCOL, Refusal


def to_refusal(error: NasError) -> Refusal:
    """What the peer is told about *error*."""
    refusal = _with_fields(error)
    return Refusal(
        refusal.code,
        refusal.message[:4096],
        error.hint[:4096],
        refusal.subject[:255],
        refusal.number,
        refusal.other,
    )


def _with_fields(error: NasError) -> Refusal:
    match error:
        case PeerBusy(reason=reason):
            return Refusal("busy", reason)
        case VersionMismatch(theirs=theirs):
            return Refusal("version", str(error), number=PROTOCOL, other=theirs)
        case Fenced(ours=ours, theirs=theirs):
            return Refusal("fenced", str(error), number=theirs, other=ours)
        case NotAuthenticated(reason=reason):
            return Refusal("not-authenticated", reason)
        case DigestMismatch(snapshot=snapshot):
            return Refusal("digest", str(error), subject=snapshot)
        case Diverged(volume=volume, reason=reason):
            return Refusal("diverged", reason, subject=volume)
        case RemoteProtocolError(reason=reason):
            return Refusal("protocol", reason)
        case Refused(message=message):
            return Refusal("refused", message)
        case _:
            return Refusal("failed", str(error))


def to_error(refusal: Refusal) -> NasError:
    """The error to raise for what the peer told; an unknown code is a plain refusal."""
    match refusal.code:
        case "busy":
            return PeerBusy(refusal.message)
        case "version":
            return VersionMismatch(ours=PROTOCOL, theirs=refusal.number)
        case "fenced":
            return Fenced(refusal.other, refusal.number, refusal.hint)
        case "not-authenticated":
            return NotAuthenticated(refusal.message, refusal.hint)
        case "digest":
            return DigestMismatch(refusal.subject, refusal.hint)
        case "diverged":
            return Diverged(refusal.subject, refusal.message, refusal.hint)
        case "protocol":
            return RemoteProtocolError(f"it says that we did: {refusal.message}")
        case "failed":
            return PeerFailed(refusal.message, refusal.hint)
        case _:
            return RefusedByPeer(refusal.message, refusal.hint)
