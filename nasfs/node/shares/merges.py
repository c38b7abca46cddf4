"""What merges of staged shares made on this node, kept in node.db until it is taken back."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from nasfs.errors import Failed, NasError
from nasfs.fuse.identity import IdentityMap
from sharecfg.accounts import Group, User
from sharecfg.model import Share
from sharecfg.steps import Change
from sharecfg.unmerge import apply_changes

from ..context import Node
from .sharing import activate

T = TypeVar("T")

one_at_a_time = threading.Lock()
"""Held by who merges or hands back."""


class Merge(msgspec.Struct, frozen=True):
    """What a merge made here, or was about to make; no secrets."""

    origin: str = ""
    groups: tuple[Group, ...] = ()
    users: tuple[User, ...] = ()
    members: tuple[tuple[str, str], ...] = ()
    """Group and user."""
    smb_accounts: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    needs: frozenset[str] = frozenset()
    """Users and groups that the group's files and shares refer to, whoever made them."""
    identities: IdentityMap = IdentityMap()
    """What the mounts of the group translate."""
    problems: tuple[str, ...] = ()


def merge_of(node: Node, group_uuid: str) -> Merge:
    """What is in force of a group; nothing, if nothing is."""
    row = node.database.row("SELECT body FROM merge WHERE grp = ?", group_uuid)
    return msgspec.json.decode(row[0], type=Merge) if row else Merge()


def keep(node: Node, group_uuid: str, merge: Merge) -> None:
    if merge in (Merge(), Merge(origin=merge.origin)):
        node.database.do("DELETE FROM merge WHERE grp = ?", group_uuid)
        return
    body = msgspec.json.encode(merge).decode()
    node.database.do("INSERT OR REPLACE INTO merge VALUES (?, ?)", group_uuid, body)


def identity_map(node: Node, volume_uuid: str) -> IdentityMap | None:
    """What a mount of the volume translates; None: nothing."""
    row = node.state.find_volume(volume_uuid)
    found = merge_of(node, row.group).identities if row and row.group else IdentityMap()
    return None if found.is_empty else found


def attention(node: Node) -> list[str]:
    """Sentences about merges that did not go well."""
    return [
        f"shares of group {group.name}: {problem}"
        for group in node.state.groups()
        for problem in merge_of(node, group.uuid).problems
    ]


def applied(shares: tuple[Share, ...], changes: Iterable[Change]) -> tuple[Share, ...]:
    try:
        return apply_changes(shares, changes)
    except ValueError as exc:
        raise Failed(f"{exc}", hint="give the command again") from exc


def more(known: tuple[T, ...], new: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*known, *new)))


def serve(node: Node) -> list[str]:
    """Tell the servers, now that volumes are mounted.  What is to be known; never fails."""
    try:
        return activate(node)
    except NasError as exc:
        return [str(exc)]
