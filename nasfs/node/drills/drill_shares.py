"""Which shares and SMB accounts a test serves: those that a failover would make available here."""

from __future__ import annotations

import logging
import pwd
import shutil
from pathlib import Path

from msgspec.structs import replace

from nasfs.errors import NasError
from sharecfg.checks import pseudo_path
from sharecfg.model import Share
from sharecfg.payload import Payload, SmbAccount

from ..context import Node
from ..shares import staging
from ..shares.smb_accounts import Samba
from .drill_table import Drill

log = logging.getLogger(__name__)


def shares_of(node: Node, drill: Drill) -> tuple[Share, ...]:
    """Of the volumes of a test, by name: as the partner told last, else as they are known here."""
    wanted = {volume.uuid for volume in drill.volumes}
    staged = _staged(node, drill)
    found = {share.key: share for share in node.shares.all()}
    if staged is not None:
        found |= {share.key: share for share in staged.shares}
    return tuple(share for _, share in sorted(found.items()) if share.volume in wanted)


def exported_as(prefix: str, share: Share) -> str:
    """Where clients of a test see a share; empty: it is not served by NFS."""
    if share.nfs is None or not share.nfs.enabled or shutil.which("ganesha.nfsd") is None:
        return ""
    return pseudo_path(renamed(prefix, share))


def renamed(prefix: str, share: Share) -> Share:
    """As a test exports it."""
    assert share.nfs is not None
    if not prefix:
        return share
    return replace(share, name=prefix + share.name, nfs=replace(share.nfs, pseudo=""))


def take_staged_accounts(node: Node, drill: Drill, conf: Path) -> None:
    """Into the accounts of the test's smbd: those of the partner whose users are here.

    People then log in with the passwords that they have there.  Nothing of the node's changes.
    """
    samba = Samba(conf)
    known = samba.rids()
    for account in _accounts(node, drill):
        uid = _uid_here(node, drill, account.name)
        if account.name not in known and uid is not None:
            try:
                samba.take_in(account, uid)
            except NasError as exc:
                log.warning("test failover of %s: %s", drill.name, exc)


def missing_accounts(node: Node, drill: Drill) -> tuple[str, ...]:
    """Names of the partner's SMB accounts whose users a failover would first make here."""
    accounts = _accounts(node, drill)
    return tuple(one.name for one in accounts if _uid_here(node, drill, one.name) is None)


def _accounts(node: Node, drill: Drill) -> tuple[SmbAccount, ...]:
    staged = _staged(node, drill)
    return staged.smb_accounts if staged is not None else ()


def _uid_here(node: Node, drill: Drill, name: str) -> int | None:
    """The user's number, if that name means the same here as on the partner."""
    staged = _staged(node, drill)
    assert staged is not None
    there = {user.name: user.uid for user in staged.accounts.users}
    try:
        here = pwd.getpwnam(name).pw_uid
    except KeyError:
        return None
    return here if there.get(name, here) == here else None


def _staged(node: Node, drill: Drill) -> Payload | None:
    group = node.state.find_group(drill.group)
    try:
        found = staging.newest(node, group) if group is not None else None
    except NasError as exc:  # damaged: the next replication brings it anew
        log.warning("test failover of %s: %s", drill.name, exc)
        return None
    return found[1] if found else None
