"""Which inodes the kernel knows, and so may still ask about after their last name is gone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from nasfs.volume import Ino, Volume

_PAGE_BITS = 12
_PAGE_MASK = (1 << _PAGE_BITS) - 1
_EMPTY_PAGE = array("Q", bytes(8 << _PAGE_BITS))


class LookupCounts:
    """How often the kernel was told of each inode: 8 bytes each, since it may know millions.

    Inode numbers are given in order, so the counts stand in pages of neighbours; a page goes
    when the kernel has forgotten all of them.
    """

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._known: dict[int, int] = {}
        """By page, how many of its counts are not zero."""

    def add(self, number: int) -> None:
        index = number >> _PAGE_BITS
        page = self._pages.get(index)
        if page is None:
            page = self._pages[index] = _EMPTY_PAGE[:]
            self._known[index] = 0
        place = number & _PAGE_MASK
        if not page[place]:
            self._known[index] += 1
        page[place] += 1

    def add_all(self, numbers: Sequence[int]) -> None:
        """The same for many, mostly neighbours, as in a listing."""
        index, page = -1, _EMPTY_PAGE
        for number in numbers:
            if number >> _PAGE_BITS != index:
                self.add(number)  # which makes the page if need be
                index = number >> _PAGE_BITS
                page = self._pages[index]
                continue
            place = number & _PAGE_MASK
            count = page[place]
            if not count:
                self._known[index] += 1
            page[place] = count + 1

    def take(self, told: Iterable[tuple[int, int]]) -> None:
        """Take counts back: pairs of a number and how often it is less known."""
        pages = self._pages
        for number, count in told:
            index, place = number >> _PAGE_BITS, number & _PAGE_MASK
            page = pages.get(index)
            if page is None:
                continue
            known = page[place]
            if known > count:
                page[place] = known - count
            elif known:
                page[place] = 0
                self._known[index] -= 1
                if not self._known[index]:
                    del pages[index], self._known[index]

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number >> _PAGE_BITS)
        return page is not None and page[number & _PAGE_MASK] > 0

    def clear(self) -> None:
        self._pages.clear()
        self._known.clear()

    @property
    def pages(self) -> int:
        """Pages of 32 KiB in use."""
        return len(self._pages)


class KnownInodes:
    """The kernel's knowledge of the live view's inodes.

    A removed inode that the kernel knows (a process stands in that directory, or holds a path to
    it) lives on until the kernel forgets it, just as an open one does until it is closed.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._counts = LookupCounts()
        self._kept: set[int] = set()
        self.add = self._counts.add
        """The kernel was told of this inode."""
        self.add_all = self._counts.add_all

    @contextmanager
    def outliving(self, ino: Ino) -> Iterator[None]:
        """A name of *ino* goes in the body; if it was the last one, the inode stays for now."""
        if ino not in self._counts or ino in self._kept:
            yield
            return
        self._volume.acquire(ino)
        try:
            yield
        finally:
            if self._volume.getattr(ino).nlink:
                self._volume.release(ino)
            else:
                self._kept.add(ino)

    def forget(self, told: Sequence[tuple[int, int]]) -> list[Ino]:
        """The kernel takes lookups back: (number, how many); those that were kept for it alone."""
        self._counts.take(told)
        if not self._kept:
            return []
        numbers = self._kept.intersection(number for number, _ in told)
        return [Ino(number) for number in numbers if number not in self._counts]

    def drop(self, ino: Ino) -> None:
        """Let a kept inode go, unless the kernel has asked for it again."""
        if ino in self._kept and ino not in self._counts:
            self._kept.discard(ino)
            self._volume.release(ino)

    def drop_all(self) -> None:
        """The mount is over: the kernel knows nothing any more."""
        self._counts.clear()
        for number in list(self._kept):
            self.drop(Ino(number))
