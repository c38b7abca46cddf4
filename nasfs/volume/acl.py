"""POSIX access control lists: their form as an extended attribute, and what they do to a mode.

Pure: acl(5) and the kernel's rules as functions of lists and modes.  The kernel checks access; we
keep an inode's mode and its lists in step, and pass default lists on to what is made below.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

ENTRIES_MAX = 511
"""As many as the kernel hands over: they fit into one page."""

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF


class Tag(IntEnum):
    """Whom an entry is about, in the order in which entries stand."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_NAMED = (Tag.USER, Tag.GROUP)


class Entry(NamedTuple):
    """One line of an ACL."""

    tag: Tag
    permissions: int
    """4 read, 2 write, 1 execute or search."""
    id: int = _NO_ID
    """The user or group of a named entry."""


Acl = tuple[Entry, ...]
"""A valid list: what `decode` returns, and what is made of it here."""


def decode(value: bytes) -> Acl:
    """The list that an xattr holds; () for one without entries.

    Raises:
        ValueError: it is no valid list.
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise ValueError(f"{len(value)} bytes are no list")
    (version,) = _HEADER.unpack_from(value)
    if version != _VERSION:
        raise ValueError(f"version {version}")
    acl = tuple(
        Entry(Tag(tag), permissions, number if tag in _NAMED else _NO_ID)
        for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :])
    )
    if acl:
        _validate(acl)
    return acl


def _validate(acl: Acl) -> None:
    tags = [entry.tag for entry in acl]
    if len(acl) > ENTRIES_MAX:
        raise ValueError(f"{len(acl)} entries")
    if tags != sorted(tags):
        raise ValueError("entries are out of order")
    if len({(entry.tag, entry.id) for entry in acl}) != len(acl):
        raise ValueError("two entries for the same")
    for needed in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER):
        if needed not in tags:
            raise ValueError(f"no entry {needed.name}")
    if any(entry.permissions > 7 for entry in acl):
        raise ValueError("unknown permissions")
    named = [entry for entry in acl if entry.tag in _NAMED]
    if named and Tag.MASK not in tags:
        raise ValueError("named entries without a mask")
    if any(entry.id == _NO_ID for entry in named):
        raise ValueError("a named entry without an id")


def encode(acl: Acl) -> bytes:
    """The xattr of a list."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """Whether the list says no more than a mode does."""
    return len(acl) == 3


def permissions(acl: Acl) -> int:
    """The nine permission bits of a mode; the group's are the mask's where there is one."""
    bits = {entry.tag: entry.permissions for entry in acl if entry.tag not in _NAMED}
    group = bits.get(Tag.MASK, bits[Tag.GROUP_OBJ])
    return bits[Tag.USER_OBJ] << 6 | group << 3 | bits[Tag.OTHER]


def with_permissions(acl: Acl, mode: int) -> Acl:
    """The list after a chmod to *mode*: the group's bits go to the mask where there is one."""
    group = Tag.MASK if any(entry.tag is Tag.MASK for entry in acl) else Tag.GROUP_OBJ
    shifts = {Tag.USER_OBJ: 6, group: 3, Tag.OTHER: 0}
    return tuple(
        entry._replace(permissions=mode >> shifts[entry.tag] & 7) if entry.tag in shifts else entry
        for entry in acl
    )


def inherited(default: Acl, mode: int) -> Acl:
    """The access list of an object made with *mode* where *default* is the default list."""
    return with_permissions(default, permissions(default) & mode)
