"""The merge of the partner's staged shares into a node's own: what would be done, and undone.

Pure: two sets of shares in, ordered changes and conflicts out.  Every conflict is decided by a
rule that was stated beforehand, and is told either way.  What the node had before is there
afterwards: unchanged, or under another name, or in the record that undoes the merge.  Merging
again what has been merged changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from .accounts import Accounts
from .checks import pseudo_path
from .merge_accounts import plan_accounts
from .model import NFS_PORT, Nfs, NfsClient, Share, free_export_id
from .ports import with_port
from .steps import RULES, AccountStep, Change, Conflict, Kind, Rule
from .tighter import closed, tighter


@dataclass(frozen=True, slots=True)
class Here:
    """What there is on this node."""

    shares: tuple[Share, ...]
    volumes: frozenset[str]
    """UUIDs of its volumes."""
    accounts: Accounts = field(default_factory=Accounts)
    sections: frozenset[str] = frozenset()
    """Names (in lower case) that the administrator's own smb.conf has."""
    export_ids: frozenset[int] = frozenset()
    """Those of the administrator's own ganesha.conf."""
    networks: tuple[str, ...] = ()
    """Of its interfaces; empty: not known, and not compared."""
    has_ganesha: bool = False
    """It serves one volume: the others need ports of their own."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Steps in their order: accounts first, then shares."""

    accounts: tuple[AccountStep, ...]
    changes: tuple[Change, ...]
    conflicts: tuple[Conflict, ...]
    equal: tuple[str, ...]
    """Names of staged shares that are here as they are."""

    def lines(self) -> list[str]:
        steps = [*map(str, self.accounts), *map(str, self.changes)]
        return [*(f"{n}. {step}" for n, step in enumerate(steps, 1)), *map(str, self.conflicts)]


def plan_merge(
    here: Here,
    staged: Iterable[Share],
    accounts: Accounts,
    *,
    origin: str,
    rules: Mapping[Kind, Rule] = RULES,
    networks: Mapping[str, str] | None = None,
    volumes: frozenset[str] = frozenset(),
) -> MergePlan:
    """What makes the staged shares and accounts available here.

    Args:
        volumes: UUIDs of the group that is taken over: what the partner shared of them is all
            that is shared of them, unless `Kind.REMOVED` says otherwise.
        origin: the partner's name: what is renamed is called NAME-ORIGIN.
        networks: which network of this site stands for one of the partner's.
    """
    merging = _Merging(here, tuple(staged), origin, {**RULES, **rules}, networks or {})
    merging.run()
    merging.close_removed(volumes)
    steps, conflicts = plan_accounts(here.accounts, accounts, merging.merged)
    return MergePlan(
        tuple(steps),
        tuple(merging.changes),
        (*merging.conflicts, *conflicts),
        tuple(merging.equal),
    )


class _Merging:
    """The shares of the node as they become, step by step."""

    def __init__(
        self,
        here: Here,
        staged: tuple[Share, ...],
        origin: str,
        rules: Mapping[Kind, Rule],
        networks: Mapping[str, str],
    ) -> None:
        self._here = here
        self._staged = {share.key: share for share in staged}
        self._staged_ids = {share.nfs.export_id for share in staged if share.nfs}
        self._origin = re.sub(r"[^A-Za-z0-9_.-]", "-", origin)
        self._rules = rules
        self._networks = networks
        self._own = {share.key: share for share in here.shares}
        self.changes: list[Change] = []
        self.conflicts: list[Conflict] = []
        self.equal: list[str] = []
        self.merged: list[Share] = []

    def run(self) -> None:
        for _, share in sorted(self._staged.items()):
            if share.volume not in self._here.volumes:
                reason = f"its volume {share.volume} is not here"
                self._tell(Kind.VOLUME, share, reason, "left out")
                continue
            self._merge(self._with_networks(share))

    def _tell(self, kind: Kind, share: Share, reason: str, decision: str) -> None:
        self.conflicts.append(Conflict(kind, f"share {share.name}", reason, decision))

    def _change(self, before: Share | None, after: Share | None) -> None:
        self.changes.append(Change(before=before, after=after))
        if before is not None:
            del self._own[before.key]
        if after is not None:
            self._own[after.key] = after

    def _merge(self, share: Share) -> None:
        mine = self._own.get(share.key)
        hidden = mine is None and share.smb is not None and share.key in self._here.sections
        if hidden or (mine is not None and not _same_place(mine, share)):
            named = self._named(share, mine)
            if named is None:
                return
            share = named
            mine = self._own.get(share.key)
        adapted = self._adapted(share, mine)
        if adapted is None:
            return
        if mine is None:
            self._change(None, adapted)
        elif mine == adapted:
            self.equal.append(mine.name)
        else:
            adapted = self._decided(mine, adapted)
        self.merged.append(adapted)

    def _named(self, share: Share, mine: Share | None) -> Share | None:
        """Under a name that is free, or made free; None: left out."""
        rule = self._rules[Kind.NAME]
        theirs = mine is None
        reason = "the administrator's smb.conf has that name" if theirs else "another has that name"
        if rule is Rule.TAKE_STAGED and mine is not None:
            aside = replace(mine, name=self._free_name(mine, "own", again=False))
            self._tell(Kind.NAME, share, reason, f"this node's is called {aside.name} now")
            self._change(mine, aside)
            return share
        if rule is Rule.KEEP_OWN:
            self._tell(Kind.NAME, share, reason, "left out")
            return None
        renamed = replace(share, name=self._free_name(share, self._origin, again=True))
        self._tell(Kind.NAME, share, reason, f"the partner's is called {renamed.name} here")
        return renamed

    def _free_name(self, share: Share, suffix: str, *, again: bool) -> str:
        """A name that nobody has.

        Args:
            again: but for a share of the same directory, which is this one, merged before.
        """
        number = 1
        while True:
            tail = f"-{suffix}" if number == 1 else f"-{suffix}-{number}"
            name = share.name[: 80 - len(tail)] + tail
            mine = self._own.get(name.casefold())
            taken = name.casefold() in self._staged or name.casefold() in self._here.sections
            if not taken and (mine is None or (again and _same_place(mine, share))):
                return name
            number += 1

    def _decided(self, mine: Share, staged: Share) -> Share:
        match self._rules[Kind.CHANGED]:
            case Rule.KEEP_OWN:
                self._tell(Kind.CHANGED, mine, "it is not the same there", "this node's stays")
                return mine
            case Rule.RENAME if mine.smb is not None:
                # By SMB alone: two exports of a directory would have the same handles.
                name = self._free_name(mine, "own", again=False)
                aside = replace(mine, name=name, nfs=None)
                self._tell(Kind.CHANGED, mine, "it is not the same there", f"both stay: {name}")
                self._change(mine, staged)
                self._change(None, aside)
                return staged
            case Rule.TIGHTER:
                both = tighter(mine, staged)
                decision = "what both allow is allowed" + ("" if _is_open(both) else ": nothing")
                self._tell(Kind.CHANGED, mine, "it is not the same there", decision)
                if both != mine:
                    self._change(mine, both)
                return both
            case _:
                self._tell(Kind.CHANGED, mine, "it is not the same there", "the partner's counts")
                self._change(mine, staged)
                return staged

    def close_removed(self, volumes: frozenset[str]) -> None:
        """Shares of these volumes that the partner has not: he may have closed them for good."""
        if self._rules[Kind.REMOVED] is Rule.KEEP_OWN:
            return
        merged = {share.key for share in self.merged}
        for share in sorted(self._own.values(), key=lambda one: one.key):
            if share.volume in volumes and share.key not in merged and _is_open(share):
                self._tell(Kind.REMOVED, share, "the partner has no such share", "closed here")
                self._change(share, closed(share))

    # what a share must not have in common with the others

    def _adapted(self, share: Share, mine: Share | None) -> Share | None:
        """None: nothing is left of it."""
        if share.nfs is None:
            return share
        others = [one for one in self._own.values() if one is not mine and one.nfs is not None]
        for other in others:
            if _same_place(other, share):
                adapted = self._one_export(share, other)
                if adapted is None or adapted.nfs is None:
                    return adapted
                others = [one for one in self._own.values() if one is not mine and one.nfs]
                break
        share = self._with_port(self._with_pseudo(share, others))
        return self._with_export_id(share, others)

    def _with_port(self, share: Share) -> Share:
        there = {one.nfs.port for one in self._staged.values() if one.nfs}
        placed = with_port(share, self._own.values(), there, is_ganesha=self._here.has_ganesha)
        assert share.nfs is not None
        assert placed.nfs is not None
        if placed.nfs.port != share.nfs.port:
            reason = f"another volume's Ganesha has port {share.nfs.port or NFS_PORT} here"
            decision = f"its volume is served at port {placed.nfs.port or NFS_PORT}"
            self._tell(Kind.PORT, share, reason, decision)
        return placed

    def _one_export(self, share: Share, other: Share) -> Share | None:
        reason = f"{other.name} exports the same directory by NFS"
        if self._rules[Kind.PATH] is not Rule.TAKE_STAGED:
            self._tell(Kind.PATH, share, reason, "not exported by NFS a second time")
            return replace(share, nfs=None) if share.smb else None
        self._tell(Kind.PATH, share, reason, f"{other.name} is not exported by NFS any more")
        self._change(other, replace(other, nfs=None) if other.smb else None)
        return share

    def _with_pseudo(self, share: Share, others: Iterable[Share]) -> Share:
        assert share.nfs is not None
        taken = {pseudo_path(other) for other in others}
        wanted = path = pseudo_path(share)
        number = 1
        while path in taken:
            path = f"{wanted}-{self._origin}" + (f"-{number}" if number > 1 else "")
            number += 1
        if path == wanted:
            return share
        self._tell(Kind.PATH, share, f"{wanted} is another's NFSv4 path", f"it stands at {path}")
        return replace(share, nfs=replace(share.nfs, pseudo=path))

    def _with_export_id(self, share: Share, others: Iterable[Share]) -> Share:
        nfs = share.nfs
        assert nfs is not None
        by_id = {other.nfs.export_id: other for other in others if other.nfs}
        other = by_id.get(nfs.export_id)
        theirs = nfs.export_id in self._here.export_ids
        if other is None and not theirs:
            return share
        taken = {*by_id, *self._staged_ids, *self._here.export_ids}
        reason = f"{nfs.export_id} is {other.name + chr(39) + 's' if other else 'taken'} here"
        if other is not None and not theirs and self._rules[Kind.EXPORT_ID] is Rule.TAKE_STAGED:
            number = free_export_id(other, taken)
            self._tell(Kind.EXPORT_ID, share, reason, f"{other.name} has {number} now")
            assert other.nfs is not None
            self._change(other, replace(other, nfs=replace(other.nfs, export_id=number)))
            return share
        number = free_export_id(share, taken)
        decision = f"it has {number} here: NFS clients of the partner's Ganesha mount it anew"
        self._tell(Kind.EXPORT_ID, share, reason, decision)
        return replace(share, nfs=replace(nfs, export_id=number))

    # networks

    def _with_networks(self, share: Share) -> Share:
        """With the networks of this site in the place of the partner's, where that was said."""
        smb, nfs = share.smb, share.nfs
        if smb is not None:
            hosts = tuple(dict.fromkeys(self._networks.get(host, host) for host in smb.hosts))
            smb = replace(smb, hosts=hosts)
        if nfs is not None:
            nfs = _with_clients(nfs, self._networks)
        words = [*(smb.hosts if smb else ()), *(c.who for c in (nfs.clients if nfs else ()))]
        for word in words:
            if self._here.networks and _is_elsewhere(word, self._here.networks):
                reason = f"{word} holds no network of this site"
                self._tell(Kind.NETWORK, share, reason, "taken as it is")
        return replace(share, smb=smb, nfs=nfs)


def _with_clients(nfs: Nfs, networks: Mapping[str, str]) -> Nfs:
    clients: dict[str, NfsClient] = {}
    for client in nfs.clients:
        who = networks.get(client.who, client.who)
        clients.setdefault(who, replace(client, who=who))
    return replace(nfs, clients=tuple(clients.values()))


def _is_elsewhere(word: str, networks: Iterable[str]) -> bool:
    """It names a network, and none of these has an address in it."""
    try:
        asked = ipaddress.ip_network(word, strict=False)
    except ValueError:
        return False
    known = (ipaddress.ip_network(one, strict=False) for one in networks)
    return not any(one.version == asked.version and one.overlaps(asked) for one in known)


def _is_open(share: Share) -> bool:
    return any(by is not None and by.enabled for by in (share.smb, share.nfs))


def _same_place(one: Share, other: Share) -> bool:
    return (one.volume, one.directory) == (other.volume, other.directory)
