"""The versioned table: rows that remember the epochs in which they were visible.

Two SQL tables make one versioned table.  The live table holds what is visible now, each row
with `born`, the epoch of its last change.  The past table holds what a snapshot may still see,
with `born` and `died`.  The first change of a row after a snapshot copies it to the past table
(`died` = the current epoch); that is all that a snapshot ever costs.

- live view: the live table
- as of sealed epoch S: live rows with born <= S, past rows with born <= S < died
- delta (S1, S2]: rows visible at S2 with born > S1, and keys that are visible at S1 only

`VersionedTable` is exact and unbuffered; `WriteBack` puts a bounded cache in front of it, so that
many changes of one row between two commits cost one statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nasfs.volume.schema import TableSpec

RowValues = tuple[Any, ...]
Key = tuple[Any, ...]


@dataclass(slots=True)
class Epochs:
    """The two numbers that decide whether a change copies the old row."""

    current: int
    newest: int
    """The newest snapshot's epoch, 0 if there is none."""


class VersionedTable:
    """One of the four tables, as SQL.  The caller has begun a transaction before it changes."""

    def __init__(self, connection: sqlite3.Connection, spec: TableSpec, epochs: Epochs) -> None:
        self.spec = spec
        self._db = connection
        self._epochs = epochs
        self._width = len(spec.columns)
        columns = ", ".join(spec.columns)
        key = ", ".join(spec.key_names)
        where = " AND ".join(f"{name} = ?" for name in spec.key_names)
        marks = ", ".join("?" * self._width)
        live, past = spec.name, f"{spec.name}_past"
        self._past_columns = ", ".join((*spec.columns, "died"))
        self._sql_get = f"SELECT {columns} FROM {live} WHERE {where}"
        self._sql_get_past = (
            f"SELECT {columns} FROM {past} WHERE {where} AND born <= ? AND died > ?"
            " ORDER BY born DESC LIMIT 1"
        )
        self._sql_keep = (
            f"INSERT INTO {past} ({self._past_columns})"
            f" SELECT {columns}, ? FROM {live} WHERE {where}"
        )
        self._sql_put = f"REPLACE INTO {live} ({columns}) VALUES ({marks})"
        self._sql_delete = f"DELETE FROM {live} WHERE {where}"
        after = f"(born, {key}) > ({', '.join('?' * (1 + len(spec.key)))})"
        order = f"ORDER BY born, {key} LIMIT ?"
        self._sql_born_live = f"SELECT {columns} FROM {live} WHERE born <= ? AND {after} {order}"
        self._sql_born_past = (
            f"SELECT {columns} FROM {past} WHERE born <= ? AND died > ? AND {after} {order}"
        )
        after_died = f"(died, {key}) > ({', '.join('?' * (1 + len(spec.key)))})"
        self._sql_died = (
            f"SELECT {columns}, died FROM {past} WHERE died <= ? AND born <= ?"
            f" AND {after_died} ORDER BY died, {key} LIMIT ?"
        )

    def get(self, key: Key) -> RowValues | None:
        """The live row."""
        row: RowValues | None = self._db.execute(self._sql_get, key).fetchone()
        return row

    def get_at(self, key: Key, epoch: int) -> RowValues | None:
        """The row visible at a sealed epoch."""
        row = self.get(key)
        if row is not None and row[len(key)] <= epoch:
            return row
        past: RowValues | None = self._db.execute(
            self._sql_get_past, (*key, epoch, epoch)
        ).fetchone()
        return past

    def put(self, row: RowValues, stored_born: int | None) -> None:
        """Insert or replace a live row, born in the current epoch.

        Args:
            stored_born: `born` of the row that is there now; None if there is none.
        """
        if stored_born is not None and stored_born <= self._epochs.newest:
            self._db.execute(self._sql_keep, (self._epochs.current, *row[: len(self.spec.key)]))
        self._db.execute(self._sql_put, row)

    def delete(self, key: Key, stored_born: int) -> None:
        """Remove a live row; it stays visible to the snapshots that saw it."""
        if stored_born <= self._epochs.newest:
            self._db.execute(self._sql_keep, (self._epochs.current, *key))
        self._db.execute(self._sql_delete, key)

    def write_many(
        self, keep: Sequence[Key], delete: Sequence[Key], put: Sequence[RowValues]
    ) -> None:
        """Many changes at once: the rows in *keep* are copied to the past first."""
        current = self._epochs.current
        if keep:
            self._db.executemany(self._sql_keep, [(current, *key) for key in keep])
        if delete:
            self._db.executemany(self._sql_delete, delete)
        if put:
            self._db.executemany(self._sql_put, put)

    def scan_at(self, where: str, values: Key, epoch: int, tail: str = "") -> Iterator[RowValues]:
        """Rows visible at a sealed epoch, by a condition on the columns; *tail* orders them."""
        columns = ", ".join(self.spec.columns)
        sql = (
            f"SELECT {columns} FROM {self.spec.name} WHERE {where} AND born <= ?"
            f" UNION ALL SELECT {columns} FROM {self.spec.name}_past"
            f" WHERE {where} AND born <= ? AND died > ? {tail}"
        )
        return self._db.execute(sql, (*values, epoch, *values, epoch, epoch))

    def born_between(
        self, after: int, upto: int, cursor: tuple[int, Key] | None, limit: int
    ) -> list[RowValues]:
        """Rows visible at epoch *upto* that were born after *after*, by (born, key).

        At most *limit* rows behind *cursor*, a (born, key).  The order, and so each page, is
        fixed by the two snapshots: a row that moves to the past meanwhile keeps its place.
        """
        begin = self._begin(after, cursor)
        live = self._db.execute(self._sql_born_live, (upto, *begin, limit)).fetchall()
        past = self._db.execute(self._sql_born_past, (upto, upto, *begin, limit)).fetchall()
        if not past:
            return live
        width = len(self.spec.key)
        merged = sorted(live + past, key=lambda row: (row[width], *row[:width]))
        return merged[:limit]

    def gone_between(
        self, after: int, upto: int, cursor: tuple[int, Key] | None, limit: int
    ) -> list[tuple[int, RowValues]]:
        """(died, row) of rows visible at *after* that died by *upto*, by (died, key).

        A key that was given a new row meanwhile is among them: the caller looks.
        """
        begin = self._begin(after, cursor)
        rows = self._db.execute(self._sql_died, (upto, after, *begin, limit)).fetchall()
        return [(row[-1], row[:-1]) for row in rows]

    def _begin(self, after: int, cursor: tuple[int, Key] | None) -> tuple[Any, ...]:
        """The position behind which a page begins: the only lower bound in the statement.

        (With a second one SQLite may enter the index there and walk over all pages before.)
        """
        if cursor is not None:
            return (cursor[0], *cursor[1])
        # -1 and b"" stand before every key that we write.
        return (after + 1, *(b"" if "BLOB" in kind else -1 for _, kind in self.spec.key))


R = TypeVar("R")


class WriteBack(Generic[R]):
    """A bounded cache of live rows that writes many changes at once.

    `get` sees every change; SQL over the live table sees them after `flush`.

    Args:
        make, row: from an SQL row to the record and back; `born` is the record's own.
        limit: clean records kept; dirty ones are kept until the flush.
    """

    def __init__(
        self,
        table: VersionedTable,
        make: Callable[..., R],
        row: Callable[[R], RowValues],
        *,
        limit: int,
    ) -> None:
        self._table = table
        self._make = make
        self._row = row
        self._limit = limit
        self._width = len(table.spec.key)
        self._clean: dict[Key, R] = {}
        self._dirty: dict[Key, R | None] = {}
        self._stored_born: dict[Key, int | None] = {}

    def get(self, key: Key) -> R | None:
        found = self._clean.get(key)
        if found is not None:
            return found
        if key in self._dirty:
            return self._dirty[key]
        row = self._table.get(key)
        if row is None:
            return None
        record = self._make(*row)
        if len(self._clean) >= self._limit:
            self._shrink()
        self._clean[key] = record
        return record

    def put(self, key: Key, record: R, *, new: bool = False) -> None:
        """*new*: the caller knows that the database has no such row."""
        self._note(key, new)
        self._dirty[key] = record

    def delete(self, key: Key) -> None:
        self._note(key, False)
        if self._stored_born[key] is None:  # never written: nothing to remove
            del self._dirty[key], self._stored_born[key]
        else:
            self._dirty[key] = None

    def dirty(self, key: Key) -> R | None:
        """The record if it was changed since the last flush."""
        return self._dirty.get(key)

    @property
    def dirty_count(self) -> int:
        return len(self._dirty)

    def flush(self) -> None:
        """Write all changes; the caller has begun a transaction."""
        if not self._dirty:
            return
        newest = self._table._epochs.newest
        keep = [k for k, b in self._stored_born.items() if b is not None and b <= newest]
        delete = [key for key, record in self._dirty.items() if record is None]
        put = [self._row(record) for record in self._dirty.values() if record is not None]
        self._table.write_many(keep, delete, put)
        for key, record in self._dirty.items():
            if record is not None:
                self._clean[key] = record
        self._dirty.clear()
        self._stored_born.clear()
        if len(self._clean) > self._limit:
            self._shrink()

    def forget(self) -> None:
        """Drop everything cached; changes that were not flushed are lost."""
        self._clean.clear()
        self._dirty.clear()
        self._stored_born.clear()

    def _note(self, key: Key, new: bool) -> None:
        if key in self._dirty:
            return
        record = self._clean.pop(key, None)
        if new:
            self._stored_born[key] = None
        elif record is not None:
            self._stored_born[key] = self._row(record)[self._width]
        else:
            row = self._table.get(key)
            self._stored_born[key] = None if row is None else row[self._width]
        self._dirty[key] = record

    def _shrink(self) -> None:
        # Oldest first: a dict keeps the order in which records came in.
        drop = len(self._clean) - self._limit // 2
        for key in list(self._clean)[:drop]:
            del self._clean[key]
