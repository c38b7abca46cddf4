"""Taking back what a merge of staged shares made, when the group is no longer active here.

It may be called again at any time: it does what is left.  Shares go back in one transaction;
accounts go unless another group's merge needs them, each by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from msgspec.structs import replace

from nasfs.errors import Failed, NasError
from nasfs.fuse.identity import IdentityMap
from sharecfg.accounts import Group as LocalGroup
from sharecfg.unmerge import plan_undo

from ..context import Node
from ..inventory import WRITABLE_ROLES
from ..records import Group
from . import account_tools as tools
from .merges import Merge, applied, keep, merge_of, more, one_at_a_time, serve
from .smb_accounts import Samba

log = logging.getLogger(__name__)

T = TypeVar("T")


def hand_back(node: Node, group: Group) -> list[str]:
    """Take the merge back; what did not go well is returned and stays to be done; never fails."""
    try:
        with one_at_a_time:
            now = node.state.find_group(group.uuid)
            if now is None or now.role in WRITABLE_ROLES:  # it has just been taken over again
                return []
            return _hand_back(node, group)
    except NasError as exc:
        log.warning("shares of %s are not handed back: %s", group.name, exc)
        return [str(exc)]


def _hand_back(node: Node, group: Group) -> list[str]:
    before = merge_of(node, group.uuid)
    if before == Merge():
        return []
    merge, told = _undo_shares(node, group, before)
    merge = _leave_to_others(node, group, merge)
    problems: list[str] = []
    samba = Samba.of(node)
    smb = _those_left(
        problems, merge.smb_accounts, lambda name: samba.take_away(name) if samba else None
    )
    members = _those_left(problems, merge.members, lambda pair: tools.remove_member(*pair))
    users = _those_left(problems, merge.users, tools.remove_user)

    def remove_group(one: LocalGroup) -> None:
        if any(user.gid == one.gid for user in users):
            raise Failed("it is the group of a user who stays")
        tools.remove_group(one)

    groups = _those_left(problems, merge.groups, remove_group)
    left = Merge(
        merge.origin, groups, users, members, smb, problems=tuple(problems)
    )  # fmt: skip
    keep(node, group.uuid, left)
    if left != before:  # else it was tried again, in vain
        node.note("shares handed back", group.name, "; ".join([*told, *problems]))
    return [*told, *problems]


def _those_left(
    problems: list[str], made: tuple[T, ...], take_away: Callable[[T], None]
) -> tuple[T, ...]:
    """Those of *made* that could not be taken away; *problems* gets why."""
    left = []
    for one in made:
        try:
            take_away(one)
        except NasError as exc:
            problems.append(f"{getattr(one, 'name', one)} is not taken away: {exc}")
            left.append(one)
    return tuple(left)


def _undo_shares(node: Node, group: Group, merge: Merge) -> tuple[Merge, list[str]]:
    """In one transaction with the record: the old shares, or those before the merge."""
    with node.state.change():
        before = node.shares.all()
        changes, conflicts = plan_undo(before, merge.changes, origin=merge.origin)
        node.shares.change(before, applied(before, changes))
        merge = replace(merge, changes=(), needs=frozenset(), identities=IdentityMap())
        keep(node, group.uuid, merge)
    told = [str(conflict) for conflict in conflicts]
    if changes:
        told += serve(node)
    return merge, told


def _leave_to_others(node: Node, group: Group, merge: Merge) -> Merge:
    """Accounts that another group's merge needs as well are from now on its to take away."""
    for other in node.state.groups():
        if other.uuid == group.uuid:
            continue
        theirs = merge_of(node, other.uuid)
        if not theirs.needs:
            continue
        users = tuple(user for user in merge.users if user.name in theirs.needs)
        groups = tuple(one for one in merge.groups if one.name in theirs.needs)
        members = tuple(pair for pair in merge.members if set(pair) <= theirs.needs)
        smb = tuple(name for name in merge.smb_accounts if name in theirs.needs)
        with node.state.change():
            keep(
                node,
                other.uuid,
                replace(
                    theirs,
                    users=more(theirs.users, users),
                    groups=more(theirs.groups, groups),
                    members=more(theirs.members, members),
                    smb_accounts=more(theirs.smb_accounts, smb),
                ),
            )
            merge = replace(
                merge,
                users=tuple(user for user in merge.users if user not in users),
                groups=tuple(one for one in merge.groups if one not in groups),
                members=tuple(pair for pair in merge.members if pair not in members),
                smb_accounts=tuple(name for name in merge.smb_accounts if name not in smb),
            )
            keep(node, group.uuid, merge)
    return merge
