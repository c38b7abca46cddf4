"""What Samba's security descriptors say of the numbers of a file, besides SIDs.  Pure.

vfs_acl_xattr keeps a descriptor together with a digest of the file's owner, group, mode and POSIX
ACLs as they were when it was written, and goes by the POSIX ACLs when they have changed since.
Where numbers are translated, that digest must be the one of the numbers that Samba is shown; else
no descriptor would count.  A digest of anything else than what the file has now is left as it is:
it was not valid before, and is not made so.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nasfs.volume import acl
from nasfs.volume.acl import Acl, Entry, Tag

_TYPES = {
    Tag.USER: 1,
    Tag.USER_OBJ: 2,
    Tag.GROUP: 3,
    Tag.GROUP_OBJ: 4,
    Tag.OTHER: 5,
    Tag.MASK: 6,
}
"""Samba's numbers of them."""
_NAMED = (Tag.USER, Tag.GROUP)
_REFERENTS = (0x20000, 0x20004)
_UNIX = re.compile(rb"(\x01\x02\0\0\0\0\0\x16(?:\x01|\x02)\0\0\0)(.{4})", re.DOTALL)
"""``S-1-22-1-UID`` and ``S-1-22-2-GID``: who has no account of Samba's."""

Translate = Callable[[int], int]


class Subject(NamedTuple):
    """What the digest is about."""

    uid: int
    gid: int
    mode: int
    """With the kind of file."""
    access: Acl = ()
    """Empty: what the mode says."""
    default: Acl = ()

    def translated(self, user: Translate, group: Translate) -> Subject:
        return self._replace(
            uid=user(self.uid),
            gid=group(self.gid),
            access=translated(self.access, user, group),
            default=translated(self.default, user, group),
        )


def translated(entries: Acl, user: Translate, group: Translate) -> Acl:
    """With other numbers.  Entries of one kind stand in the order of their numbers: acl(5)."""
    mapped = (
        entry._replace(id=user(entry.id))
        if entry.tag is Tag.USER
        else entry._replace(id=group(entry.id))
        if entry.tag is Tag.GROUP
        else entry
        for entry in entries
    )
    return tuple(sorted(mapped, key=lambda entry: (entry.tag, entry.id)))


def redigested(value: bytes, before: Subject, after: Subject) -> bytes:
    """The attribute for *after*, if it is valid for *before*; else as it is."""
    for old, new in zip(_digests(before), _digests(after), strict=True):
        if old in value:
            return value.replace(old, new)
    return value


def unix_sids(value: bytes, user: Translate, group: Translate) -> bytes:
    """The attribute with other numbers in the SIDs of those who have no account of Samba's."""

    def other(match: re.Match[bytes]) -> bytes:
        (number,) = struct.unpack("<I", match[2])
        translate = user if match[1][8] == 1 else group
        return match[1] + struct.pack("<I", translate(number))

    return _UNIX.sub(other, value)


def _digests(subject: Subject) -> Iterator[bytes]:
    """As Samba may have made it: for a directory without a default list, with none or an empty."""
    access = subject.access or _of_mode(subject.mode)
    for default in (subject.default, None):
        yield hashlib.sha256(_wrapper(subject, access, default)).digest()


def _of_mode(mode: int) -> Acl:
    bits = stat.S_IMODE(mode)
    return (
        Entry(Tag.USER_OBJ, bits >> 6 & 7),
        Entry(Tag.GROUP_OBJ, bits >> 3 & 7),
        Entry(Tag.OTHER, bits & 7),
    )


def _wrapper(subject: Subject, access: Acl, default: Acl | None) -> bytes:
    """``smb_acl_wrapper`` of Samba's smb_acl.idl, in NDR."""
    if not stat.S_ISDIR(subject.mode):
        default = None
    second = _REFERENTS[1] if default is not None else 0
    data = bytearray(struct.pack("<II", _REFERENTS[0], second))
    data += struct.pack("<QQI", subject.uid, subject.gid, subject.mode)
    for entries in (access, default):
        if entries is not None:
            _append(data, entries)
    return bytes(data)


def _append(data: bytearray, entries: Acl) -> None:
    data += struct.pack("<I", len(entries))
    _align(data)
    data += struct.pack("<II", len(entries), 0)
    for entry in entries:
        _align(data)
        kind = _TYPES[entry.tag]
        data += struct.pack("<HH", kind, kind)
        if entry.tag in _NAMED:
            _align(data)
            data += struct.pack("<Q", entry.id)
        data += struct.pack("<I", entry.permissions)
    _align(data)


def _align(data: bytearray) -> None:
    data += bytes(-len(data) % 8)


def decoded(value: bytes) -> Acl:
    """An ACL's attribute; () if it is none that counts."""
    try:
        return acl.decode(value)
    except ValueError:
        return ()
