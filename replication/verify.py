"""Where the contents of two sites' snapshots differ: two witnesses in, differences out.  Pure.

Both tell the digests of their parts in the same order.  Where two differ, both are asked what is
in that page, directory or part of a file; so what travels is a few bytes for each 256 inodes and
each 64 MiB, and details of what differs.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import msgspec

from .digests import (
    BLOCK,
    DIGEST,
    GENERATION,
    GROUP_BLOCKS,
    MODE,
    SMALL_BLOCKS,
    UNREADABLE,
    ZERO,
    EntryFact,
    Facts,
    InodeFact,
    Part,
)

T = TypeVar("T")


class Witness(Protocol):
    """One site's snapshot of a volume.  Everything comes in ascending order."""

    def parts(self) -> Iterator[Part]: ...

    def facts(self, page: int) -> Iterator[Facts]: ...

    def entries(self, ino: int) -> Iterator[EntryFact]:
        """By name."""
        ...

    def blocks(self, ino: int, first: int, stop: int) -> bytes:
        """Digests of at most `GROUP_BLOCKS` blocks, joined."""
        ...

    def path(self, ino: int) -> bytes | None: ...


class InodeDiffers(msgspec.Struct, frozen=True):
    """The rows differ; None: that site has none.

    Nothing is said of the data of what is missing on one side, or is another object there.
    """

    ino: int
    ours: InodeFact | None
    theirs: InodeFact | None

    @property
    def is_other(self) -> bool:
        """Not the same object, though it has the number."""
        return is_other(self.ours, self.theirs)


class XattrDiffers(msgspec.Struct, frozen=True):
    """Digests of the values; None: that site has no such attribute."""

    ino: int
    name: bytes
    ours: bytes | None
    theirs: bytes | None


class EntryDiffers(msgspec.Struct, frozen=True):
    parent: int
    ours: EntryFact | None
    theirs: EntryFact | None

    @property
    def name(self) -> bytes:
        entry = self.ours or self.theirs
        assert entry is not None
        return entry.name


class DataDiffers(msgspec.Struct, frozen=True):
    """Blocks [first, stop) of these ranges, all of one group of a file."""

    ino: int
    ranges: tuple[tuple[int, int], ...]
    unreadable: str
    """``here``, ``there``, ``on both sides``, or empty."""


Difference = InodeDiffers | XattrDiffers | EntryDiffers | DataDiffers


def compare(ours: Witness, theirs: Witness) -> Iterator[Difference]:
    """All differences, by inode number; a directory's entries belong to the directory."""
    page = -1
    rows, groups = False, set[tuple[int, int]]()
    for mine, other in side_by_side(ours.parts(), theirs.parts(), lambda part: part.key):
        part = mine or other
        assert part is not None
        if part.page != page:
            yield from _page(ours, theirs, page, rows, groups)
            page, rows, groups = part.page, False, set()
        if (mine.digest if mine else ZERO) != (other.digest if other else ZERO):
            rows = rows or not part.ino
            if part.ino:
                groups.add((part.ino, part.group))
    yield from _page(ours, theirs, page, rows, groups)


def _page(
    ours: Witness, theirs: Witness, page: int, rows: bool, groups: set[tuple[int, int]]
) -> Iterator[Difference]:
    """What differs in a page: in its rows, and in these groups of its large files."""
    if not (rows or groups):
        return
    for mine, other in side_by_side(ours.facts(page), theirs.facts(page), lambda facts: facts.ino):
        known = mine or other
        assert known is not None
        suspects = sorted(group for ino, group in groups if ino == known.ino)
        yield from _number(ours, theirs, mine or Facts(known.ino, None), other, suspects)


def _number(
    ours: Witness, theirs: Witness, mine: Facts, other: Facts | None, groups: list[int]
) -> Iterator[Difference]:
    """What differs of one inode number."""
    other = other or Facts(mine.ino, None)
    if mine.inode != other.inode:
        yield InodeDiffers(mine.ino, mine.inode, other.inode)
    known = () if is_other(mine.inode, other.inode) else other.xattrs
    for here, there in side_by_side(iter(mine.xattrs), iter(known), lambda xattr: xattr.name):
        if here != there:
            name = (here or there).name  # type: ignore[union-attr]  # one of them is there
            yield XattrDiffers(
                mine.ino, name, here.digest if here else None, there.digest if there else None
            )
    if mine.entries != other.entries:
        both = side_by_side(
            ours.entries(mine.ino) if mine.entries != ZERO else iter(()),
            theirs.entries(mine.ino) if other.entries != ZERO else iter(()),
            lambda entry: entry.name,
        )
        for entry, there_entry in both:
            if entry != there_entry:
                yield EntryDiffers(mine.ino, entry, there_entry)
    if not is_other(mine.inode, other.inode) and mine.inode is not None:
        yield from _data(ours, theirs, mine, other, groups)


def _data(
    ours: Witness, theirs: Witness, mine: Facts, other: Facts, groups: list[int]
) -> Iterator[DataDiffers]:
    assert mine.inode is not None
    assert other.inode is not None
    spans = [(group * GROUP_BLOCKS, (group + 1) * GROUP_BLOCKS) for group in groups]
    if mine.data != other.data and not (spans and spans[0][0] == 0):
        spans.insert(0, (0, SMALL_BLOCKS))
    shorter = min(mine.inode.size, other.inode.size)
    if mine.inode.size != other.inode.size and shorter % BLOCK:
        edge = shorter // BLOCK  # the end of one file, within the other: zeros are no hole there
        if not any(first <= edge < stop for first, stop in spans):
            spans.append((edge, edge + 1))
    for first, stop in sorted(spans):
        here = ours.blocks(mine.ino, first, stop)
        there = theirs.blocks(mine.ino, first, stop)
        found = _differing(here, there, first)
        if found is not None:
            yield DataDiffers(mine.ino, *found)


def _differing(here: bytes, there: bytes, first: int) -> tuple[tuple[Any, ...], str] | None:
    """Ranges of blocks, and who can't read some of them."""
    length = max(len(here), len(there))
    here, there = here.ljust(length, b"\0"), there.ljust(length, b"\0")
    ranges: list[tuple[int, int]] = []
    cannot = [False, False]
    for at in range(0, length, DIGEST):
        one, two = here[at : at + DIGEST], there[at : at + DIGEST]
        if one == two and one != UNREADABLE:
            continue
        cannot[0] |= one == UNREADABLE
        cannot[1] |= two == UNREADABLE
        block = first + at // DIGEST
        if ranges and ranges[-1][1] == block:
            ranges[-1] = (ranges[-1][0], block + 1)
        else:
            ranges.append((block, block + 1))
    if not ranges:
        return None
    words = {(True, False): "here", (False, True): "there", (True, True): "on both sides"}
    return tuple(ranges), words.get((cannot[0], cannot[1]), "")


def is_other(ours: InodeFact | None, theirs: InodeFact | None) -> bool:
    """Not one object on both sides: missing on one, or another with the same number."""
    if ours is None or theirs is None:
        return ours is not theirs
    here, there = ours.numbers, theirs.numbers
    return here[GENERATION] != there[GENERATION] or stat.S_IFMT(here[MODE]) != stat.S_IFMT(
        there[MODE]
    )


def side_by_side(
    ours: Iterator[T], theirs: Iterator[T], key: Callable[[T], Any]
) -> Iterator[tuple[T | None, T | None]]:
    """Two ascending streams, with None where one of them has not what the other has."""
    mine, other = next(ours, None), next(theirs, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and key(mine) < key(other)):
            yield mine, None
            mine = next(ours, None)
        elif mine is None or key(other) < key(mine):
            yield None, other
            other = next(theirs, None)
        else:
            yield mine, other
            mine, other = next(ours, None), next(theirs, None)
