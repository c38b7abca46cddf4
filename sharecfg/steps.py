"""What a merge does and decides, as values that print themselves.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from .accounts import Group, User
from .model import Share, Value


class Kind(Enum):
    """What can be in the way of a staged share or account."""

    NAME = "name"
    """Another directory has that name here."""
    CHANGED = "changed"
    """The same directory has that name here, and is exported in another way."""
    PATH = "path"
    """Another export here shows the same directory, or stands at the same NFSv4 path."""
    REMOVED = "removed"
    """This node has a share of the group's volumes that the partner has not (any more)."""
    EXPORT_ID = "export-id"
    """Another export here has the number."""
    PORT = "port"
    """Another volume's Ganesha has the port here."""
    VOLUME = "volume"
    """The volume is not on this node."""
    ACCOUNT = "account"
    """A share names a user or group that is neither here nor staged."""
    NUMBER = "number"
    """A name has another number here, or the number belongs to somebody else."""
    NETWORK = "network"
    """No network of this site is in what the share is open to."""


class Rule(Enum):
    """Who gives way."""

    KEEP_OWN = "keep-own"
    RENAME = "rename"
    TAKE_STAGED = "take-staged"
    TIGHTER = "tighter"
    """Of two forms of a share: whom both let in.  Of anything else: as `RENAME`."""


RULES: Mapping[Kind, Rule] = {
    Kind.NAME: Rule.RENAME,
    Kind.CHANGED: Rule.TIGHTER,
    Kind.REMOVED: Rule.TIGHTER,
    Kind.PATH: Rule.KEEP_OWN,
    Kind.EXPORT_ID: Rule.KEEP_OWN,
}
"""By default.  The other kinds have nothing to choose: they are told, and the share is merged
without what is not there."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Something that was in the way, and what was decided."""

    kind: Kind
    subject: str
    reason: str
    decision: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.subject}: {self.reason}; {self.decision}"


class Change(Value, frozen=True):
    """One share before and after; None: it is not there."""

    before: Share | None = None
    after: Share | None = None

    def __str__(self) -> str:
        match self.before, self.after:
            case None, Share() as new:
                return f"add share {new.name}"
            case Share() as old, None:
                return f"remove share {old.name}"
            case Share() as old, Share() as new if old.name != new.name:
                return f"rename share {old.name} to {new.name}"
            case Share() as old, _:
                return f"change share {old.name}"
        return "nothing"


@dataclass(frozen=True, slots=True)
class CreateGroup:
    group: Group

    def __str__(self) -> str:
        return f"create group {self.group.name} with number {self.group.gid}"


@dataclass(frozen=True, slots=True)
class CreateUser:
    user: User

    def __str__(self) -> str:
        return f"create user {self.user.name} with number {self.user.uid}"


@dataclass(frozen=True, slots=True)
class AddMember:
    group: str
    user: str

    def __str__(self) -> str:
        return f"add user {self.user} to group {self.group}"


AccountStep = CreateGroup | CreateUser | AddMember
