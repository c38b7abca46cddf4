"""What the numbers of a volume's files mean on both nodes, and what of it would go wrong.  Pure.

*There* is the node where the group is passive: what counts is what its users find after a failover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from msgspec import field

from .accounts import Directory, compare_directories
from .model import Value


class Asked(Value, frozen=True):
    """Numbers and names that a node shall resolve."""

    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Names(Value, frozen=True):
    """How a node resolves what it was asked, of users or of groups; who is unknown is left out."""

    by_number: dict[int, str] = field(default_factory=dict)
    by_name: dict[str, int] = field(default_factory=dict)
    local: frozenset[str] = frozenset()
    """Those of the names that stand in its own passwd(5) or group(5)."""


class Resolved(Value, frozen=True):
    users: Names = Names()
    groups: Names = Names()
    directory: Directory = Directory()


class Meaning(Enum):
    """Of a number, on both nodes."""

    SAME = "same"
    UNNAMED = "nobody's"
    """On neither of them."""
    MISSING = "missing there"
    OTHER_NAME = "other name there"
    OTHER_NUMBER = "other number there"


@dataclass(frozen=True, slots=True)
class Compared:
    """One number or name that the files or shares use."""

    kind: str
    """``user`` or ``group``."""
    number: int
    name: str
    """Where the group is active; empty: it has none."""
    name_there: str
    number_there: int | None
    meaning: Meaning
    wrong: bool
    """Somebody would get or miss what is not his, unless a person does something."""

    def __str__(self) -> str:
        me = (
            f"{self.kind} {self.name} ({self.number})"
            if self.name
            else f"{self.kind} {self.number}"
        )
        match self.meaning:
            case Meaning.MISSING if not self.wrong:
                return f"{me} is missing there; a failover creates it with its number"
            case Meaning.MISSING:
                return f"{me} comes from a directory that does not tell of it there"
            case Meaning.OTHER_NAME if not self.name:
                return f"{me} is nobody's, and {self.name_there}'s there"
            case Meaning.OTHER_NAME:
                return f"{me}: the number is {self.name_there}'s there"
            case Meaning.OTHER_NUMBER:
                return f"{me} has the number {self.number_there} there"
            case _:
                return f"{me}: {self.meaning.value}"


def compare(
    kind: str, numbers: Iterable[int], names: Iterable[str], active: Names, passive: Names
) -> Iterator[Compared]:
    """Each number once, in order.

    Args:
        names: who is named by shares; their numbers are compared as well.
    """
    wanted = {*numbers, *(active.by_name[name] for name in names if name in active.by_name)}
    for number in sorted(wanted):
        name = active.by_number.get(number, "")
        name_there = passive.by_number.get(number, "")
        number_there = passive.by_name.get(name) if name else None
        meaning = _meaning(name, number, name_there, number_there)
        missing = meaning is Meaning.MISSING and name in active.local
        fine = meaning in (Meaning.SAME, Meaning.UNNAMED) or missing
        yield Compared(kind, number, name, name_there, number_there, meaning, not fine)


def _meaning(name: str, number: int, name_there: str, number_there: int | None) -> Meaning:
    if name == name_there:
        return Meaning.SAME if name else Meaning.UNNAMED
    if number_there is not None and number_there != number:
        return Meaning.OTHER_NUMBER
    if name_there:
        return Meaning.OTHER_NAME
    return Meaning.MISSING


def directory_findings(
    active: Resolved, passive: Resolved, compared: Iterable[Compared]
) -> tuple[tuple[str, ...], bool]:
    """Where names come from: a line for each difference; whether it matters.

    It does if one of the names is a directory's.
    """
    differ = compare_directories(active.directory, passive.directory)
    lines = tuple(f"{key}: {here or '-'} here, {there or '-'} there" for key, here, there in differ)
    local = active.users.local | active.groups.local
    foreign = any(one.name and one.name not in local for one in compared)
    return lines, bool(lines) and foreign
