"""Local users and groups, as far as shares and files refer to them; directories as facts.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .model import Share, Value


class User(Value, frozen=True):
    """A line of passwd(5), without its password."""

    name: str
    uid: int
    gid: int
    gecos: str = ""
    home: str = ""
    shell: str = ""
    smb: bool = False
    """Whether Samba has an account of that name."""


class Group(Value, frozen=True):
    """A line of group(5)."""

    name: str
    gid: int
    members: tuple[str, ...] = ()


class Accounts(Value, frozen=True):
    """Users and groups, each by name in order."""

    users: tuple[User, ...] = ()
    groups: tuple[Group, ...] = ()

    def user(self, name: str) -> User | None:
        return next((one for one in self.users if one.name == name), None)

    def user_of(self, uid: int) -> User | None:
        return next((one for one in self.users if one.uid == uid), None)

    def group(self, name: str) -> Group | None:
        return next((one for one in self.groups if one.name == name), None)

    def group_of(self, gid: int) -> Group | None:
        return next((one for one in self.groups if one.gid == gid), None)


class Directory(Value, frozen=True):
    """Where names come from beside the local files: to be compared, never copied."""

    passwd: tuple[str, ...] = ()
    """The sources of nsswitch.conf(5)."""
    group: tuple[str, ...] = ()
    realm: str = ""
    workgroup: str = ""
    security: str = ""
    idmap: tuple[str, ...] = ()
    """The lines ``idmap config ...`` of smb.conf, sorted."""
    sssd_domains: tuple[str, ...] = ()
    nis_domain: str = ""


def compare_directories(here: Directory, there: Directory) -> list[tuple[str, str, str]]:
    """What differs: its name, as it is here, as it is there."""
    found = []
    for name in here.__struct_fields__:
        mine, theirs = getattr(here, name), getattr(there, name)
        if mine != theirs:
            found.append((name, _text(mine), _text(theirs)))
    return found


def _text(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")


def names_in(shares: Iterable[Share]) -> tuple[frozenset[str], frozenset[str]]:
    """The local users and groups that shares name.

    ``@x`` and ``+x`` are groups; names with a domain or a variable of Samba are not local.
    """
    users: set[str] = set()
    groups: set[str] = set()
    for share in shares:
        smb = share.smb
        if smb is None:
            continue
        words = (*smb.users, *smb.denied_users, *smb.readers, *smb.writers, *smb.admins)
        for word in (*words, smb.force_user):
            plain = word.lstrip("@+&")
            if _PLAIN.fullmatch(plain):
                (groups if plain != word else users).add(plain)
        group = smb.force_group.lstrip("+")
        if _PLAIN.fullmatch(group):
            groups.add(group)
    return frozenset(users), frozenset(groups)
