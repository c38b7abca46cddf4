"""What the API takes and gives about shares.  In a `Share` here, `volume` is POOL/VOLUME."""

from __future__ import annotations

import msgspec

from sharecfg.model import Share

from ..messages import Request


class ShareCreate(Request, frozen=True):
    share: Share
    dry_run: bool = False


class ShareSet(Request, frozen=True):
    """Another form, for a share that still is `old`."""

    old: Share
    new: Share
    dry_run: bool = False


class ShareImport(Request, frozen=True):
    file: str
    """What to call it in complaints."""
    format: str
    """``yaml``, ``smb.conf``, ``exports`` or ``ganesha``."""
    text: str
    replace: bool = False
    dry_run: bool = False


class ShareConnect(Request, frozen=True):
    server: str
    dry_run: bool = False


class ShareView(msgspec.Struct, frozen=True):
    share: Share
    volume_uuid: str
    path: str
    state: str
    """``served``, or why it is not."""
    notes: tuple[str, ...] = ()


class ImportView(msgspec.Struct, frozen=True):
    taken: tuple[ShareView, ...]
    left: tuple[str, ...]
    """What was not taken, and why."""
    notes: tuple[str, ...] = ()


class ConnectView(msgspec.Struct, frozen=True):
    file: str
    line: str
    changed: bool
    notes: tuple[str, ...] = ()
