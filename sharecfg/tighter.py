"""Two forms of a share, and the one that lets nobody do what either of them does not.  Pure.

Where it can't be told what both allow, nobody is let in: a share that is closed is opened again by
a person, at leisure; one that was opened to the wrong people is not taken back.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from msgspec.structs import replace

from .checks import smb_key
from .model import Access, Guests, Nfs, NfsClient, Share, Smb, Squash

_SQUASH = (Squash.NONE, Squash.ROOT, Squash.ALL)
_ACCESS = (Access.READ_WRITE, Access.READ_ONLY, Access.NONE)


def tighter(mine: Share, staged: Share) -> Share:
    """The staged share, with access for those alone whom both forms let in.

    Doing it again with the same staged form changes nothing.
    """
    return replace(staged, smb=_smb(mine.smb, staged.smb), nfs=_nfs(mine.nfs, staged.nfs))


def closed(share: Share) -> Share:
    """By no protocol."""
    return replace(
        share,
        smb=replace(share.smb, enabled=False) if share.smb else None,
        nfs=replace(share.nfs, enabled=False) if share.nfs else None,
    )


def _smb(mine: Smb | None, staged: Smb | None) -> Smb | None:
    if mine == staged:
        return mine
    if mine is None or staged is None:
        known = mine or staged
        return _smb(replace(known, enabled=False), known) if known else None
    users, some = _both(mine.users, staged.users)
    hosts = _hosts(mine, staged)
    guests, possible = _guests(mine.guests, staged.guests)
    if hosts is None:
        some, hosts = False, (mine.hosts, mine.denied_hosts)
    modules = staged.modules
    if "acl_xattr" in mine.modules and "acl_xattr" not in modules:
        modules = (*modules, "acl_xattr")
    return replace(
        staged,
        enabled=mine.enabled and staged.enabled and some and possible,
        access=max(mine.access, staged.access, key=_ACCESS.index),
        listed=mine.listed and staged.listed,
        listed_for_users_only=mine.listed_for_users_only or staged.listed_for_users_only,
        guests=guests,
        users=users or mine.users,
        denied_users=_all(mine.denied_users, staged.denied_users),
        readers=_all(mine.readers, staged.readers),
        writers=_writers(mine, staged),
        admins=tuple(word for word in mine.admins if word in staged.admins),
        hosts=hosts[0],
        denied_hosts=hosts[1],
        modules=modules,
        create_mask=mine.create_mask,
        directory_mask=mine.directory_mask,
        force_user=mine.force_user,
        force_group=mine.force_group,
        extra=_lines(mine.extra, staged.extra),
    )


def _both(mine: tuple[str, ...], staged: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Who is in both lists, an empty one being everybody; False: nobody is."""
    if not mine or not staged:
        return mine or staged, True
    found = tuple(word for word in mine if word in staged)
    return found, bool(found)


def _all(mine: Iterable[str], staged: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*mine, *staged)))


def _guests(mine: Guests, staged: Guests) -> tuple[Guests, bool]:
    """False: the one lets accounts in and the other lets none in as what they are."""
    pair = {mine, staged}
    if Guests.ONLY in pair and Guests.NO in pair:
        return Guests.NO, False
    return (Guests.ONLY if Guests.ONLY in pair else Guests.NO if Guests.NO in pair else mine), True


def _writers(mine: Smb, staged: Smb) -> tuple[str, ...]:
    """Who may write in spite of the rest: where everybody may, no list is needed for it."""
    if mine.access is Access.READ_WRITE and staged.access is Access.READ_ONLY:
        return tuple(word for word in staged.writers if word not in mine.readers)
    if staged.access is Access.READ_WRITE and mine.access is Access.READ_ONLY:
        return tuple(word for word in mine.writers if word not in staged.readers)
    return tuple(word for word in mine.writers if word in staged.writers)


def _hosts(mine: Smb, staged: Smb) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """``hosts allow`` and ``hosts deny``; None: what both allow can't be said."""
    same = (mine.hosts, mine.denied_hosts)
    if same == (staged.hosts, staged.denied_hosts):
        return same
    words = (*mine.hosts, *staged.hosts, *mine.denied_hosts, *staged.denied_hosts)
    if any(word.upper() == "EXCEPT" for word in words):
        return None
    if not mine.hosts and not staged.hosts:
        return (), _all(mine.denied_hosts, staged.denied_hosts)
    if mine.denied_hosts or staged.denied_hosts:
        return None
    if not mine.hosts or not staged.hosts:
        return mine.hosts or staged.hosts, ()
    found = {_narrower(a, b) for a in mine.hosts for b in staged.hosts} - {""}
    hosts = tuple(sorted(found, key=_narrowest_first))
    return (hosts, ()) if hosts else None


def _lines(mine: tuple[str, ...], staged: tuple[str, ...]) -> tuple[str, ...]:
    """All of them; of one parameter, mine."""
    said = {smb_key(line.partition("=")[0]) for line in mine}
    return (*mine, *(line for line in staged if smb_key(line.partition("=")[0]) not in said))


def _narrower(one: str, other: str) -> str:
    """What both names of hosts or networks stand for; empty: nothing, or it is not known."""
    if one == other or other == "*":
        return one
    if one == "*":
        return other
    try:
        a = ipaddress.ip_network(one, strict=False)
        b = ipaddress.ip_network(other, strict=False)
    except ValueError:
        return ""
    if a.version != b.version or not a.overlaps(b):
        return ""
    return one if a.prefixlen >= b.prefixlen else other


def _nfs(mine: Nfs | None, staged: Nfs | None) -> Nfs | None:
    if mine == staged:
        return mine
    if mine is None or staged is None:
        known = mine or staged
        return _nfs(replace(known, enabled=False), known) if known else None
    pairs = ((a.who, b.who) for a in mine.clients for b in staged.clients)
    whos = sorted({who for a, b in pairs if (who := _narrower(a, b))}, key=_narrowest_first)
    clients = tuple(
        _client(who, _about(who, mine.clients), _about(who, staged.clients)) for who in whos
    )
    versions = tuple(version for version in staged.versions if version in mine.versions)
    return replace(
        staged,
        enabled=mine.enabled and staged.enabled and bool(clients) and bool(versions),
        clients=clients or mine.clients,
        versions=versions or mine.versions,
        ganesha=_lines(mine.ganesha, staged.ganesha),
    )


def _about(who: str, clients: Iterable[NfsClient]) -> NfsClient:
    """The narrowest of the entries that are about all of *who*."""
    fitting = (one for one in clients if _narrower(one.who, who) == who)
    return min(fitting, key=lambda one: _narrowest_first(one.who))


def _narrowest_first(who: str) -> tuple[int, str]:
    if who == "*":
        return 1, who
    try:
        return -ipaddress.ip_network(who, strict=False).prefixlen, who
    except ValueError:
        return -999, who  # a name


def _client(who: str, a: NfsClient, b: NfsClient) -> NfsClient:
    security = tuple(flavour for flavour in a.security if flavour in b.security)
    access = max(a.access, b.access, key=_ACCESS.index)
    return replace(
        a,
        who=who,
        access=access if security else Access.NONE,
        squash=max(a.squash, b.squash, key=_SQUASH.index),
        security=security or a.security,
        sync=a.sync or b.sync,
        privileged_ports=a.privileged_ports or b.privileged_ports,
    )
