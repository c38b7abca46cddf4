"""The extended attributes of the live view, with a bounded memory of them.

Programs ask for attributes far more often than they set them: a Samba session reads three an
object, and the kernel asks for one before every write, though most files have none at all.  So
all attributes of an inode are read at once and remembered; changes go to the table at once.
"""

from __future__ import annotations

from nasfs.volume.table import RowValues, VersionedTable

LIMIT = 50_000
"""Inodes of which all attributes are remembered; most have none."""

LIMIT_BYTES = 32 * 1024 * 1024
"""Bytes of names and values that are remembered."""

_BORN, _VALUE = 2, 3


class Xattrs:
    """One volume's live rows of the table ``xattr``.  Changes need an open transaction."""

    def __init__(self, table: VersionedTable) -> None:
        self._table = table
        self._known: dict[int, dict[bytes, RowValues]] = {}
        self._bytes = 0

    def get(self, ino: int, name: bytes) -> bytes | None:
        row = self._of(ino).get(name)
        return None if row is None else row[_VALUE]

    def names(self, ino: int) -> list[bytes]:
        return sorted(self._of(ino))

    def put(self, ino: int, name: bytes, epoch: int, value: bytes) -> None:
        rows = self._of(ino)
        old = rows.get(name)
        row = (ino, name, epoch, value)
        self._table.put(row, None if old is None else old[_BORN])
        rows[name] = row
        self._bytes += len(name) + len(value)

    def delete(self, ino: int, name: bytes) -> bool:
        """False if there is no attribute of that name."""
        rows = self._of(ino)
        old = rows.get(name)
        if old is None:
            return False
        self._table.delete((ino, name), old[_BORN])
        del rows[name]
        return True

    def delete_all(self, ino: int) -> None:
        for name in self.names(ino):
            self.delete(ino, name)
        self._known.pop(ino, None)

    def is_new(self, ino: int) -> None:
        """The inode was made just now: it has none."""
        self._remember(ino, {})

    def forget(self) -> None:
        """Drop what is remembered."""
        self._known.clear()
        self._bytes = 0

    def _of(self, ino: int) -> dict[bytes, RowValues]:
        found = self._known.get(ino)
        if found is None:
            found = {row[1]: row for row in self._table.get_group(ino)}
            self._remember(ino, found)
        return found

    def _remember(self, ino: int, rows: dict[bytes, RowValues]) -> None:
        if len(self._known) >= LIMIT or self._bytes > LIMIT_BYTES:
            self.forget()
        self._known[ino] = rows
        for name, row in rows.items():
            self._bytes += len(name) + len(row[_VALUE])
