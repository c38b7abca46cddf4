"""The directory entries of the live view: by name, and in the order of a listing.

Names are looked up through a write-back cache.  What was listed is remembered in its order, whole
directories at a time, because they are listed again and again; a change keeps it right.  A name
that is not in a directory whose entries are all remembered needs no look into the table.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right

import msgspec

from nasfs.volume.table import Key, VersionedTable, WriteBack
from nasfs.volume.types import FIRST_COOKIE, Dirent

NAMES = 100_000
"""Names whose entry, or absence, is remembered."""

LISTED = 65_536
"""Entries in all the listings that are remembered."""

EMPTY = 8
"""An empty directory counts as so many entries."""

LARGE = 32_768
"""A directory with more entries is read anew each time."""

PAGE = 512
"""Entries read at once."""

_PAGE_SQL = (
    "SELECT parent, name, born, cookie, ino, kind FROM dirent"
    " WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)


class _Listing:
    """The first entries of one directory, or all of them."""

    def __init__(self) -> None:
        self.cookies: list[int] = []
        """Ascending; those of removed entries may be among them."""
        self.entries: dict[int, Dirent] = {}
        self.names: set[bytes] = set()
        self.is_complete = False

    @property
    def end(self) -> int:
        """Up to this cookie all entries are known."""
        return self.cookies[-1] if self.cookies else 0

    def append(self, entry: Dirent) -> None:
        self.cookies.append(entry.cookie)
        self.entries[entry.cookie] = entry
        self.names.add(entry.name)

    def lacks(self, name: bytes) -> bool:
        """It is certain that there is no such name."""
        return self.is_complete and name not in self.names

    def page(self, after: int, limit: int) -> list[Dirent]:
        found: list[Dirent] = []
        cookies, entries = self.cookies, self.entries
        index = bisect_right(cookies, after)
        while index < len(cookies) and len(found) < limit:
            known = cookies[index : index + limit - len(found)]
            found += filter(None, map(entries.get, known))  # an entry is never false
            index += len(known)
        return found


class Names:
    """One volume's live rows of the table ``dirent``.  Changes need an open transaction."""

    def __init__(self, connection: sqlite3.Connection, table: VersionedTable) -> None:
        self._db = connection
        self._rows: WriteBack[Key, Dirent] = WriteBack(
            table, tuple, Dirent, msgspec.structs.astuple, limit=NAMES
        )
        self._listings: dict[int, _Listing] = {}
        self._listed = 0
        self._large: set[int] = set()

    def is_new(self, directory: int) -> None:
        """The directory was made just now: it has no entries."""
        self._large.discard(directory)
        listing = self._listing(directory)
        listing.is_complete = True
        self._count(directory, listing, 0)

    def get(self, parent: int, name: bytes) -> Dirent | None:
        listing = self._listings.get(parent)
        if listing is not None and listing.lacks(name):
            return None
        return self._rows.get((parent, name))

    def put(self, entry: Dirent, *, new: bool = False) -> None:
        """The name means this from now on.  *new*: the caller knows that there is no such name."""
        key: Key = (entry.parent, entry.name)
        listing = self._listings.get(entry.parent)
        if listing is not None:
            new = new or listing.lacks(entry.name)
            old = None if new else self._rows.get(key)
            if old is not None and old.cookie != entry.cookie:
                listing.entries.pop(old.cookie, None)
            if entry.cookie in listing.entries:
                listing.entries[entry.cookie] = entry
            elif entry.cookie <= listing.end:  # not made by this site: its place is in the middle
                self._forget_listing(entry.parent)
            elif listing.is_complete:
                listing.append(entry)
                self._listing(entry.parent)
                self._count(entry.parent, listing, 1)
        self._rows.put(key, entry, new=new)

    def delete(self, entry: Dirent) -> None:
        self._rows.delete((entry.parent, entry.name))
        listing = self._listings.get(entry.parent)
        if listing is None:
            return
        listing.entries.pop(entry.cookie, None)
        listing.names.discard(entry.name)
        if len(listing.cookies) > 2 * len(listing.entries) + PAGE:
            self._forget_listing(entry.parent)

    def page(self, parent: int, after: int, limit: int) -> list[Dirent]:
        """Entries with a cookie above *after*, in the order of cookies.

        All changes must have been written (`flush`), unless the directory `is_listed`.
        """
        if parent in self._large:
            return self._read(parent, after, limit)
        listing = self._listing(parent)
        # A mount's own entries come first: behind them, too, is the beginning.
        if after > max(listing.end, FIRST_COOKIE - 1) and not listing.is_complete:
            return self._read(parent, after, limit)  # begins in the middle
        found = listing.page(after, limit)
        while len(found) < limit and not listing.is_complete:
            rows = self._read(parent, listing.end, PAGE)
            listing.is_complete = len(rows) < PAGE
            for entry in rows:
                listing.append(entry)
            self._count(parent, listing, len(rows))
            if parent in self._large:
                return self._read(parent, after, limit)
            found = listing.page(after, limit)
        return found

    def is_listed(self, parent: int) -> bool:
        """`page` answers from memory."""
        listing = self._listings.get(parent)
        return listing is not None and listing.is_complete

    def _read(self, parent: int, after: int, limit: int) -> list[Dirent]:
        rows = self._db.execute(_PAGE_SQL, (parent, after, limit))
        return [Dirent(*row) for row in rows]

    def _listing(self, parent: int) -> _Listing:
        """The listing of a directory, which now is the last one to be dropped."""
        listing = self._listings.pop(parent, None)
        if listing is None:
            listing = _Listing()
            self._listed += EMPTY
        self._listings[parent] = listing
        return listing

    def _count(self, parent: int, listing: _Listing, more: int) -> None:
        """So many entries more are remembered: drop other listings, if it gets too much."""
        self._listed += more
        if len(listing.cookies) > LARGE:
            self._forget_listing(parent)
            self._large.add(parent)
        while self._listed > LISTED and len(self._listings) > 1:
            self._forget_listing(next(iter(self._listings)))

    def _forget_listing(self, parent: int) -> None:
        self._listed -= len(self._listings.pop(parent).cookies) + EMPTY

    # as a buffer of the store

    @property
    def dirty_count(self) -> int:
        return self._rows.dirty_count

    def flush(self) -> None:
        self._rows.flush()

    def forget(self) -> None:
        self._rows.forget()
        self._listings.clear()
        self._listed = 0
        self._large.clear()
