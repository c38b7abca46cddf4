"""Users and groups that files refer to: counted, named, and compared with the partner's."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import msgspec

from nasfs.errors import Failed, NasError, Refused
from nasfs.fuse.identity import IdentityMap
from nasfs.volume import IdentityCounts
from replication.client import operate
from sharecfg.accounts import names_in
from sharecfg.identities import (
    Asked,
    Compared,
    Names,
    Resolved,
    compare,
    directory_findings,
)

from ..context import Node
from ..inventory import WRITABLE_ROLES
from ..pairing import connect_peer
from ..records import Group, VolumeRow
from ..words import parse_volume
from . import staging
from .identity_counts import volume_counts
from .local_accounts import read_accounts, read_directory
from .merges import merge_of

OPERATION = "identities"


class IdentityView(msgspec.Struct, frozen=True):
    """A number that files use."""

    kind: str
    """``user`` or ``group``"""
    number: int
    name: str
    """Empty: nobody has the number."""
    source: str
    """``local``, ``directory``, or empty."""
    files: int
    """Inodes that it owns, or that have it."""
    acl_entries: int


class ComparedView(msgspec.Struct, frozen=True):
    kind: str
    number: int
    name: str
    name_there: str
    number_there: int | None
    meaning: str
    wrong: bool
    told: str


class IdentityCheckView(msgspec.Struct, frozen=True):
    group: str
    active: str
    """Name of the node where it is active; *there* is the other one."""
    passive: str
    compared: tuple[ComparedView, ...]
    directory: tuple[str, ...]
    """Differences in where names come from."""
    directory_wrong: bool
    ok: bool


def identity_list(node: Node, target: str) -> list[IdentityView]:
    """Everybody whom the newest snapshots of a volume (POOL/VOLUME) or group refer to."""
    rows = [node.state.volume(parse_volume(target))] if "/" in target else _rows(node, target)
    counted = [volume_counts(node, row) for row in rows]
    asked = _asked(counted, frozenset(), frozenset())
    names = resolve(node, asked, merge_of(node, rows[0].group or "").identities if rows else None)
    return [
        IdentityView(
            kind=kind,
            number=number,
            name=(name := of.by_number.get(number, "")),
            source=("local" if name in of.local else "directory") if name else "",
            files=sum(files(counts).get(number, 0) for counts in counted),
            acl_entries=sum(entries(counts).get(number, 0) for counts in counted),
        )
        for kind, numbers, of, files, entries in (
            ("user", asked.uids, names.users, _owners, _acl_users),
            ("group", asked.gids, names.groups, _groups, _acl_groups),
        )
        for number in numbers
    ]


def _owners(counts: IdentityCounts) -> dict[int, int]:
    return counts.owners


def _acl_users(counts: IdentityCounts) -> dict[int, int]:
    return counts.acl_users


def _groups(counts: IdentityCounts) -> dict[int, int]:
    return counts.groups


def _acl_groups(counts: IdentityCounts) -> dict[int, int]:
    return counts.acl_groups


def _rows(node: Node, name: str) -> list[VolumeRow]:
    return node.state.members(node.state.group(name).uuid)


def _asked(
    counted: list[IdentityCounts], users: AbstractSet[str], groups: AbstractSet[str]
) -> Asked:
    return Asked(
        uids=tuple(sorted({uid for counts in counted for uid in counts.uids()})),
        gids=tuple(sorted({gid for counts in counted for gid in counts.gids()})),
        users=tuple(sorted(users)),
        groups=tuple(sorted(groups)),
    )


# resolving


def resolve(node: Node, asked: Asked, identities: IdentityMap | None = None) -> Resolved:
    """As this node's name service does, directories included.

    Args:
        identities: what mounts translate: what is asked and answered is what is stored.
    """
    local = read_accounts()
    to = identities or IdentityMap()
    users = {n: name for n in asked.uids if (name := _name(pwd.getpwuid, to.uids.to_here(n)))}
    groups = {n: name for n in asked.gids if (name := _name(grp.getgrgid, to.gids.to_here(n)))}
    user_names = {*asked.users, *users.values()}
    group_names = {*asked.groups, *groups.values()}
    uids = {n: to.uids.to_stored(uid) for n in user_names if (uid := _uid(n)) is not None}
    gids = {n: to.gids.to_stored(gid) for n in group_names if (gid := _gid(n)) is not None}
    return Resolved(
        users=Names(
            by_number={**users, **{uid: name for name, uid in uids.items() if uid not in users}},
            by_name=uids,
            local=frozenset(name for name in user_names if local.user(name)),
        ),
        groups=Names(
            by_number={**groups, **{gid: name for name, gid in gids.items() if gid not in groups}},
            by_name=gids,
            local=frozenset(name for name in group_names if local.group(name)),
        ),
        directory=read_directory(node),
    )


def _name(look: Callable[[int], pwd.struct_passwd | grp.struct_group], number: int) -> str:
    try:
        return look(number)[0]
    except (KeyError, OverflowError):
        return ""


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def answer(node: Node, group: Group, body: bytes) -> bytes:
    """Answers ``identities``: an `Asked` with a `Resolved`."""
    try:
        asked = msgspec.msgpack.decode(body, type=Asked)
    except msgspec.DecodeError as exc:
        raise Refused("the partner does not understand whom it is asked for") from exc
    return msgspec.msgpack.encode(resolve(node, asked, merge_of(node, group.uuid).identities))


def _ask(node: Node, group: Group, asked: Asked) -> Resolved:
    with connect_peer(node) as connection:
        said = operate(connection, group.uuid, OPERATION, msgspec.msgpack.encode(asked))
    try:
        return msgspec.msgpack.decode(said, type=Resolved)
    except msgspec.DecodeError as exc:
        raise Failed("the partner's answer is not understood") from exc


# comparing


def identity_check(node: Node, name: str) -> IdentityCheckView:
    """Whom the files and shares of a group mean on both nodes.

    Raises:
        Refused: this node has no partner.
        PeerUnreachable: it does not answer.
    """
    group = node.state.group(name)
    peer = node.bond.peer()
    here = group.role in WRITABLE_ROLES
    counted = [volume_counts(node, row) for row in node.state.members(group.uuid)]
    users, groups = _named(node, group, here)
    asked = _asked(counted, users, groups)
    maps = merge_of(node, group.uuid).identities
    active = resolve(node, asked, maps) if here else _ask(node, group, asked)
    again = msgspec.structs.replace(
        asked,
        users=tuple({*users, *active.users.by_name}),
        groups=tuple({*groups, *active.groups.by_name}),
    )
    passive = _ask(node, group, again) if here else resolve(node, again, maps)
    found = [
        *compare("user", asked.uids, users, active.users, passive.users),
        *compare("group", asked.gids, groups, active.groups, passive.groups),
    ]
    lines, matters = directory_findings(active, passive, found)
    names = (node.config.name, peer.name if peer else "")
    return IdentityCheckView(
        group=name,
        active=names[0] if here else names[1],
        passive=names[1] if here else names[0],
        compared=tuple(_view(one) for one in found),
        directory=lines,
        directory_wrong=matters,
        ok=not matters and not any(one.wrong for one in found),
    )


def _named(node: Node, group: Group, here: bool) -> tuple[frozenset[str], frozenset[str]]:
    """Whom the shares name: this node's, or the staged ones."""
    if here:
        rows = node.state.members(group.uuid)
        return names_in(share for row in rows for share in node.shares.of_volume(row.uuid))
    try:
        staged = staging.newest(node, group)
    except NasError:
        staged = None
    return names_in(staged[1].shares if staged else ())


def _view(one: Compared) -> ComparedView:
    return ComparedView(
        one.kind, one.number, one.name, one.name_there, one.number_there, one.meaning.value,
        one.wrong, str(one),
    )  # fmt: skip
