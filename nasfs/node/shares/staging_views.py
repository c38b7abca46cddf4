"""The staging area as people see it: what came, when, and how it differs from what is here."""

from __future__ import annotations

import msgspec

from nasfs.errors import Failed
from sharecfg.accounts import Directory, Group, User
from sharecfg.model import Share
from sharecfg.payload import Payload, differences

from ..context import Node
from ..messages import when
from .local_accounts import read_accounts, read_directory
from .shares import volume_names
from .smb_accounts import Samba
from .staging import history, payload_of


class StagedEntry(msgspec.Struct, frozen=True):
    """What came at one time."""

    number: int
    time: str | None
    snapshot: str
    digest: str


class StagedView(msgspec.Struct, frozen=True):
    group: str
    number: int
    time: str | None
    """When it came."""
    snapshot: str
    """The newest complete snap group then."""
    digest: str
    shares: tuple[Share, ...]
    users: tuple[User, ...]
    groups: tuple[Group, ...]
    smb_accounts: tuple[str, ...]
    """Names alone."""
    machine_sid: str
    directory: Directory
    differences: tuple[str, ...]
    """From what is here, a line each."""
    history: tuple[StagedEntry, ...]


def staged_view(node: Node, name: str, number: str = "") -> StagedView:
    """What is staged of a group, the newest or that *number*; secrets are left out.

    Raises:
        Failed: nothing is, or it is damaged.
    """
    group = node.state.group(name)
    found = history(node, group)
    if not found:
        raise Failed(
            f"nothing is staged for group {name}",
            hint="the active node tells its shares after each replication: nasfs replication run",
        )
    chosen = next((one for one in found if str(one.number) == number), None)
    if not number:
        chosen = found[0]
    if chosen is None:
        numbers = ", ".join(str(one.number) for one in found)
        raise Failed(f"there is no {number} in the history", hint=f"there is: {numbers}")
    payload = payload_of(node, group, chosen)
    here = own(node, payload)
    names = volume_names(node)
    shares = tuple(
        msgspec.structs.replace(share, volume=names.get(share.volume, share.volume))
        for share in payload.shares
    )
    return StagedView(
        group=name,
        number=chosen.number,
        time=when(chosen.time_ns),
        snapshot=chosen.snapshot,
        digest=chosen.digest,
        shares=shares,
        users=payload.accounts.users,
        groups=payload.accounts.groups,
        smb_accounts=tuple(account.name for account in payload.smb_accounts),
        machine_sid=payload.machine_sid,
        directory=payload.directory,
        differences=tuple(differences(payload, here)),
        history=tuple(
            StagedEntry(one.number, when(one.time_ns), one.snapshot, one.digest) for one in found
        ),
    )


def own(node: Node, staged: Payload) -> Payload:
    """This node's, to compare: its shares of the same volumes and names, all its accounts."""
    volumes = {share.volume for share in staged.shares}
    keys = {share.key for share in staged.shares}
    samba = Samba.of(node)
    return Payload(
        shares=tuple(s for s in node.shares.all() if s.volume in volumes or s.key in keys),
        accounts=read_accounts(),
        smb_accounts=samba.accounts() if samba else (),
        machine_sid=samba.machine_sid() if samba else "",
        directory=read_directory(node),
    )
