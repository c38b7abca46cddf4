"""The shares and accounts of a group on their way to the partner.

Two questions of the operation ``stage``: does the partner have the payload of that digest; if
not, here it is.  Asked after each attempt to replicate the group, over the connection that is
always encrypted.  What goes wrong is remembered and told; the data does not wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec
import zstandard

from nasfs.errors import Failed, NasError, Refused
from replication.client import operate
from replication.connection import Connection
from sharecfg.accounts import Accounts, Group, User, names_in
from sharecfg.collisions import with_numbers
from sharecfg.model import Share
from sharecfg.payload import Payload, SmbAccount, decode_payload, digest, encode_payload

from .. import records
from ..context import Node
from ..groups import newest_snap_group
from ..policy.following import policies_of, tell_daemon
from .identity_counts import volume_counts
from .local_accounts import NOBODY, read_accounts, read_directory
from .merges import merge_of
from .smb_accounts import Samba
from .staging import newest_digest, stage

log = logging.getLogger(__name__)

OPERATION = "stage"
MAX_BYTES = 1_000_000
"""Of a payload, compressed: what one question may carry."""
MAX_UNPACKED = 64 << 20


class Offer(msgspec.Struct, frozen=True):
    digest: str
    payload: bytes = b""
    """zstandard; empty: asking whether it is known."""


class Taken(msgspec.Struct, frozen=True):
    known: bool


class Travel(msgspec.Struct, frozen=True):
    """How the latest attempt to tell the partner ended."""

    digest: str = ""
    """Of what the partner has; empty: nothing yet."""
    time_ns: int = 0
    problem: str = ""


# the active side


def capture(node: Node, group: records.Group) -> Payload:
    """The shares of the group's volumes, who they and the files refer to, and the policies; now.

    Raises:
        NasError: accounts, or Samba's, cannot be read.
    """
    rows = node.state.members(group.uuid)
    shares = tuple(share for row in rows for share in node.shares.of_volume(row.uuid))
    samba = Samba.of(node) if any(share.smb for share in shares) else None
    everybody = samba.accounts() if samba else ()
    uids: set[int] = set()
    gids: set[int] = set()
    for row in rows:
        counts = volume_counts(node, row)
        uids |= counts.uids()
        gids |= counts.gids()
    open_to_all = any(share.smb and share.smb.enabled and not share.smb.users for share in shares)
    identities = merge_of(node, group.uuid).identities
    accounts = referred(
        with_numbers(read_accounts(), identities.uids.to_stored, identities.gids.to_stored),
        shares, uids, gids,
        {one.name for one in everybody} if open_to_all else set(), everybody,
    )  # fmt: skip
    names = {user.name for user in accounts.users}
    return Payload(
        shares=tuple(sorted(shares, key=lambda share: share.key)),
        accounts=accounts,
        smb_accounts=tuple(
            msgspec.structs.replace(one, rid=identities.rids.to_stored(one.rid))
            for one in everybody
            if one.name in names
        ),
        machine_sid=identities.machine_stored or (samba.machine_sid() if samba else ""),
        directory=read_directory(node),
        policies=policies_of(node, group),
    )


def referred(
    local: Accounts,
    shares: tuple[Share, ...],
    uids: set[int],
    gids: set[int],
    more: set[str],
    smb: tuple[SmbAccount, ...],
) -> Accounts:
    """The local accounts that are named or whose numbers are used, with their groups' members.

    Args:
        more: users who may come although nobody names them.
    """
    user_names, group_names = names_in(shares)
    group_names |= {name for name in user_names if local.user(name) is None}
    wanted = {g.name for g in local.groups if g.gid in gids or g.name in group_names}
    listed = {name for g in local.groups if g.name in wanted for name in g.members}
    of_group = {g.gid for g in local.groups if g.name in group_names}
    users = [
        user
        for user in local.users
        if user.uid not in NOBODY
        and (
            user.uid in uids
            or user.name in user_names | more | listed
            or user.gid in of_group  # its primary group: group(5) does not list it
        )
    ]
    primary = {user.gid for user in users}
    here = {user.name for user in users}
    groups = [
        group
        for group in local.groups
        if group.gid not in NOBODY
        and (group.name in wanted or group.gid in primary or here & set(group.members))
    ]
    has_smb = {account.name for account in smb}
    return Accounts(
        users=tuple(_user(user, user.name in has_smb) for user in users),
        groups=tuple(_group(group, here) for group in groups),
    )


def _user(user: User, smb: bool) -> User:
    return msgspec.structs.replace(user, smb=smb)


def _group(group: Group, users: set[str]) -> Group:
    return msgspec.structs.replace(group, members=tuple(n for n in group.members if n in users))


def tell_partner(
    node: Node,
    group: records.Group,
    connect: Callable[[], AbstractContextManager[Connection]],
    staged: Callable[[], str] = str,
) -> Travel:
    """Have the partner stage the group's shares as they are now; how it went.  Never fails.

    Args:
        connect: lends a connection to it.
        staged: the digest of what it has, as it says itself; empty: it is asked.
    """
    before = travel_of(node, group.uuid)
    try:
        data = encode_payload(capture(node, group))
        known = digest(data)
        if staged() != known:
            with connect() as connection:
                _offer(connection, group, data)
        travel = Travel(known, time.time_ns())
    except NasError as exc:
        travel = Travel(before.digest, time.time_ns(), str(exc))
        log.warning("shares of %s: %s", group.name, exc)
        if travel.problem != before.problem:
            node.state.note("daemon", "shares not staged", group.name, travel.problem)
    is_news = (travel.digest, travel.problem) != (before.digest, before.problem)
    remember = node.database.do if is_news else node.database.do_soon
    remember(
        "INSERT OR REPLACE INTO share_travel VALUES (?, ?, ?, ?)",
        group.uuid, travel.digest, travel.time_ns, travel.problem,
    )  # fmt: skip
    return travel


def _offer(connection: Connection, group: records.Group, data: bytes) -> None:
    packed = zstandard.ZstdCompressor().compress(data)
    if len(packed) > MAX_BYTES:
        raise Failed(f"shares and accounts are {len(packed)} bytes, {MAX_BYTES} can be sent")
    for offer in (Offer(digest(data)), Offer(digest(data), packed)):
        body = msgspec.msgpack.encode(offer)
        answer = operate(connection, group.uuid, OPERATION, body)
        try:
            if msgspec.msgpack.decode(answer, type=Taken).known:
                return
        except msgspec.DecodeError as exc:
            raise Failed("the partner's answer is not understood") from exc
    raise Failed("the partner did not take the shares")


def travel_of(node: Node, group_uuid: str) -> Travel:
    row = node.database.row(
        "SELECT digest, time_ns, problem FROM share_travel WHERE grp = ?", group_uuid
    )
    return Travel(*row) if row else Travel()


def attention(node: Node) -> list[str]:
    """Sentences about what of this node's shares has not reached the partner."""
    said = []
    for group in node.state.groups():
        problem = travel_of(node, group.uuid).problem
        if problem and group.role == "active" and node.bond.replication(group.uuid):
            said.append(f"shares of group {group.name} have not reached the partner: {problem}")
    return said


# the passive side


def take(node: Node, group: records.Group, body: bytes) -> bytes:
    """Answers ``stage``."""
    if group.role != "passive":
        raise Refused(f"group {group.name} is {group.role} on the partner")
    try:
        offer = msgspec.msgpack.decode(body, type=Offer)
    except msgspec.DecodeError as exc:
        raise Refused("the partner does not understand what is to be staged") from exc
    known = staged_digest(node, group) == offer.digest
    if not known and offer.payload:
        newest = newest_snap_group(node, node.state.members(group.uuid))
        stage(node, group, _unpacked(offer), newest[0] if newest else "")
        tell_daemon(node, group)
        known = True
    return msgspec.msgpack.encode(Taken(known))


def staged_digest(node: Node, group: records.Group) -> str:
    """Of what is staged here of a group; empty: nothing is, or it is damaged, to be sent again."""
    try:
        return newest_digest(node, group)
    except Failed:
        return ""


def _unpacked(offer: Offer) -> bytes:
    try:
        if zstandard.frame_content_size(offer.payload) > MAX_UNPACKED:
            raise Refused("shares and accounts are too large")
        data = zstandard.ZstdDecompressor().decompress(offer.payload, max_output_size=MAX_UNPACKED)
    except zstandard.ZstdError as exc:
        raise Refused("what is to be staged is damaged") from exc
    if digest(data) != offer.digest:
        raise Refused("what is to be staged is damaged: its digest is another")
    decode_payload(data)
    return data
