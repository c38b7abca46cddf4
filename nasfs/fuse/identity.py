"""The identity map of a mount: whose numbers of the volume stand for whom on this node.

A volume that another site wrote may hold numbers that belong to somebody else here.  Then the
mount shows each of those as the number of the same person here, and stores what is given the
other way: owners, groups, POSIX ACLs, and the SIDs in Samba's security descriptors.  What is stored
stays as it was, so nothing has to be rewritten, and nothing differs between the sites.

The map is one to one, in both directions, so nobody gains or loses anybody's files by it.
`mapped` puts it between the kernel's requests and the volume.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nasfs.fuse.ntacl import Subject, redigested, translated, unix_sids
from nasfs.volume import acl

NT_ACL = b"security.NTACL"
_SID_HEAD = bytes((1, 5, 0, 0, 0, 0, 0, 5)) + struct.pack("<I", 21)
"""Revision 1, five numbers below authority 5 (NT), the first of them 21: a machine or domain."""


def machine_prefix(sid: str) -> bytes:
    """The first bytes of the SIDs below that of a machine, ``S-1-5-21-A-B-C``.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"S-1-5-21-(\d+)-(\d+)-(\d+)", sid)
    if match is None:
        raise ValueError(f"{sid!r} is not the SID of a machine")
    return _SID_HEAD + struct.pack("<III", *map(int, match.groups()))


def completed(wanted: Mapping[int, int]) -> dict[int, int]:
    """A permutation that does what is *wanted* (which gives no two the same)."""
    full = dict(wanted)
    sources = {here: stored for stored, here in wanted.items()}
    assert len(sources) == len(wanted), "two stored numbers would be one"
    for loose in sources.keys() - wanted.keys():
        begin = loose
        while begin in sources:
            begin = sources[begin]
        full[loose] = begin
    return {stored: here for stored, here in full.items() if stored != here}


@dataclass(frozen=True, slots=True)
class Numbers:
    """One permutation: of UIDs, of GIDs, or of the last numbers of SIDs."""

    here: Mapping[int, int] = field(default_factory=dict)
    """By what is stored."""

    @property
    def is_identity(self) -> bool:
        return not self.here

    def to_here(self, stored: int) -> int:
        return self.here.get(stored, stored)

    def to_stored(self, here: int) -> int:
        return next((stored for stored, shown in self.here.items() if shown == here), here)


@dataclass(frozen=True, slots=True)
class IdentityMap:
    uids: Numbers = Numbers()
    gids: Numbers = Numbers()
    rids: Numbers = Numbers()
    machine_stored: str = ""
    """The machine SID below which the stored SIDs of local accounts are; empty: no map."""
    machine_here: str = ""

    @property
    def is_empty(self) -> bool:
        return self.uids.is_identity and self.gids.is_identity and not self.maps_sids

    @property
    def maps_sids(self) -> bool:
        return bool(self.machine_stored) and (
            self.machine_stored != self.machine_here or not self.rids.is_identity
        )

    def is_about_numbers(self, name: bytes) -> bool:
        """Whether such an attribute is translated by what else there is of the file."""
        return name == NT_ACL and not (self.uids.is_identity and self.gids.is_identity)

    def value_here(self, name: bytes, value: bytes) -> bytes:
        """An extended attribute as it is shown."""
        if name in (acl.ACCESS, acl.DEFAULT):
            return self._acl(value, self.uids.to_here, self.gids.to_here)
        if name == NT_ACL and self.maps_sids:
            return self._sids(value, self.machine_stored, self.machine_here, self.rids.to_here)
        return value

    def value_stored(self, name: bytes, value: bytes) -> bytes:
        """The other way."""
        if name in (acl.ACCESS, acl.DEFAULT):
            return self._acl(value, self.uids.to_stored, self.gids.to_stored)
        if name == NT_ACL and self.maps_sids:
            return self._sids(value, self.machine_here, self.machine_stored, self.rids.to_stored)
        return value

    def descriptor_here(self, value: bytes, stored: Subject) -> bytes:
        """Samba's security descriptor of a file, as it is shown."""
        user, group = self.uids.to_here, self.gids.to_here
        shown = redigested(value, stored, stored.translated(user, group))
        return unix_sids(self.value_here(NT_ACL, shown), user, group)

    def descriptor_stored(self, value: bytes, stored: Subject) -> bytes:
        """The other way."""
        here = stored.translated(self.uids.to_here, self.gids.to_here)
        given = unix_sids(value, self.uids.to_stored, self.gids.to_stored)
        return self.value_stored(NT_ACL, redigested(given, here, stored))

    def _acl(self, value: bytes, user: Translate, group: Translate) -> bytes:
        try:
            return acl.encode(translated(acl.decode(value), user, group))
        except ValueError:
            return value  # the engine says what is wrong with it

    def _sids(self, value: bytes, source: str, target: str, rid: Translate) -> bytes:
        """Both machines' SIDs change places, so that what one of them stored stays told apart."""
        ours, theirs = machine_prefix(source), machine_prefix(target)

        def swapped(match: re.Match[bytes]) -> bytes:
            (number,) = struct.unpack("<I", match[2])
            if match[1] == ours:
                return theirs + struct.pack("<I", rid(number))
            return ours + match[2] if ours != theirs else match[0]

        pattern = b"(" + re.escape(ours) + b"|" + re.escape(theirs) + b")(.{4})"
        return re.sub(pattern, swapped, value, flags=re.DOTALL)


class Translate(Protocol):
    def __call__(self, number: int, /) -> int: ...
