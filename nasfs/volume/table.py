"""The versioned table: rows that remember the epochs in which they were visible.

Two SQL tables make one versioned table.  The live table holds what is visible now, each row
with `born`, the epoch of its last change.  The past table holds what a snapshot may still see,
with `born` and `died`.  The first change of a row after a snapshot copies it to the past table
(`died` = the current epoch); that is all that a snapshot ever costs.

- live view: the live table
- as of sealed epoch S: live rows with born <= S, past rows with born <= S < died
- delta (S1, S2]: rows visible at S2 with born > S1, and keys that are visible at S1 only

`VersionedTable` is exact and unbuffered; `WriteBack` puts a bounded cache in front of it, so that
many changes of one row between two commits cost one statement, and what comes and goes between
them costs none.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

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
        self._sql_get_group = f"SELECT {columns} FROM {live} WHERE {spec.key_names[0]} = ?"
        self._sql_get_many = (
            f"SELECT {columns} FROM {live} WHERE {spec.key_names[0]} IN"
            " (SELECT value FROM json_each(?))"
        )
        self._sql_get_past = (
            f"SELECT {columns} FROM {past} WHERE {where} AND born <= ? AND died > ?"
            " ORDER BY born DESC LIMIT 1"
        )
        self._sql_keep = (
            f"INSERT INTO {past} ({self._past_columns})"
            f" SELECT {columns}, ? FROM {live} WHERE {where}"
        )
        self._sql_put = f"REPLACE INTO {live} ({columns}) VALUES ({marks})"
        changed = ", ".join(f"{name} = ?" for name, _ in spec.values)
        self._sql_change = f"UPDATE {live} SET {changed} WHERE {where}"
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

    def get_group(self, key: int) -> Iterator[RowValues]:
        """The live rows with this value of the first column of the key."""
        return self._db.execute(self._sql_get_group, (key,))

    def get_many(self, keys: Sequence[int]) -> Iterator[RowValues]:
        """The live rows with these values of the first column of the key, in no order."""
        return self._db.execute(self._sql_get_many, (json.dumps(keys),))

    @property
    def newest(self) -> int:
        """The newest snapshot's epoch: rows born up to it are kept when they change."""
        return self._epochs.newest

    def get_at(self, key: Key, epoch: int) -> RowValues | None:
        """The row visible at a sealed epoch."""
        row = self.get(key)
        if row is not None and row[len(key)] <= epoch:
            return row
        past: RowValues | None = self._db.execute(
            self._sql_get_past, (*key, epoch, epoch)
        ).fetchone()
        return past

    def get_many_at(self, keys: Sequence[int], epoch: int) -> Iterator[RowValues]:
        """The rows visible at a sealed epoch with these values of the first column of the key."""
        where = f"{self.spec.key_names[0]} IN (SELECT value FROM json_each(?))"
        return self.scan_at(where, (json.dumps(keys),), epoch)

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
        self,
        keep: Sequence[Key],
        delete: Sequence[Key],
        put: Sequence[RowValues],
        change: Sequence[RowValues],
    ) -> None:
        """Many changes at once: the rows in *keep* are copied to the past first.

        Args:
            change: rows that are there, with the same `born`: where nothing else is indexed,
                this does not touch the indexes.
        """
        current = self._epochs.current
        if keep:
            self._db.executemany(self._sql_keep, [(current, *key) for key in keep])
        if delete:
            self._db.executemany(self._sql_delete, delete)
        if put:
            self._db.executemany(self._sql_put, put)
        if change:
            width = len(self.spec.key)
            values = [row[width + 1 :] + row[:width] for row in change]
            self._db.executemany(self._sql_change, values)

    def scan_at(self, where: str, values: Key, epoch: int, tail: str = "") -> Iterator[RowValues]:
        """Rows visible at a sealed epoch, by a condition on the columns; *tail* orders them."""
        columns = ", ".join(self.spec.columns)
        sql = (
            f"SELECT {columns} FROM {self.spec.name} WHERE {where} AND born <= ?"
            f" UNION ALL SELECT {columns} FROM {self.spec.name}_past"
            f" WHERE {where} AND born <= ? AND died > ? {tail}"
        )
        return self._db.execute(sql, (*values, epoch, *values, epoch, epoch))

    def sum_at(self, expression: str, where: str, epoch: int) -> int:
        """The sum of an SQL expression over the rows visible at a sealed epoch."""
        name = self.spec.name
        sql = (
            f"SELECT (SELECT COALESCE(SUM({expression}), 0) FROM {name}"
            f" WHERE {where} AND born <= ?)"
            f" + (SELECT COALESCE(SUM({expression}), 0) FROM {name}_past"
            f" WHERE {where} AND born <= ? AND died > ?)"
        )
        return int(self._db.execute(sql, (epoch, epoch, epoch)).fetchone()[0])

    def changed_since(self, epoch: int) -> bool:
        """Whether a live row is not what a sealed epoch sees, or a row is missing that it sees."""
        born = f"SELECT 1 FROM {self.spec.name} WHERE born > ? LIMIT 1"
        died = f"SELECT 1 FROM {self.spec.name}_past WHERE died > ? AND born <= ? LIMIT 1"
        return (
            self._db.execute(born, (epoch,)).fetchone() is not None
            or self._db.execute(died, (epoch, epoch)).fetchone() is not None
        )

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


class Record(Protocol):
    """What `WriteBack` keeps: a row as a struct."""

    @property
    def born(self) -> int: ...


K = TypeVar("K", bound=Hashable)
R = TypeVar("R", bound=Record)


class WriteBack(Generic[K, R]):
    """A bounded cache of live rows that writes many changes at once.

    `get` sees every change; SQL over the live table sees them after `flush`.  What is known to be
    missing is remembered, too: a name is looked up before it is made.

    Args:
        key: from what callers name a record by to the row's key.
        make, row: from an SQL row to the record and back; `born` is the record's own.
        limit: clean records kept; dirty ones are kept until the flush.
    """

    def __init__(
        self,
        table: VersionedTable,
        key: Callable[[K], Key],
        make: Callable[..., R],
        row: Callable[[R], RowValues],
        *,
        limit: int,
    ) -> None:
        self._table = table
        self._key = key
        self._make = make
        self._row = row
        self._limit = limit
        self._clean: dict[K, R | None] = {}
        self._dirty: dict[K, R | None] = {}
        self._stored_born: dict[K, int | None] = {}

    def get(self, key: K) -> R | None:
        found = self._clean.get(key)
        if found is not None:
            return found
        if key in self._dirty:
            return self._dirty[key]
        if key in self._clean:
            return None
        return self._read(key)

    def put(self, key: K, record: R, *, new: bool = False) -> None:
        """*new*: the caller knows that the database has no such row."""
        self._note(key, new)
        self._dirty[key] = record

    def delete(self, key: K) -> None:
        self._note(key, False)
        if self._stored_born[key] is None:  # never written: nothing to remove
            del self._dirty[key], self._stored_born[key]
            self._clean[key] = None
        else:
            self._dirty[key] = None

    @property
    def dirty_count(self) -> int:
        return len(self._dirty)

    def get_many(self: WriteBack[int, R], keys: list[int]) -> list[R | None]:
        """The rows of many keys of one column; those that are not cached by one statement."""
        found = list(map(self._clean.get, keys))
        if all(found):  # as for most listings; a record is never false
            return found
        missing = [key for key in keys if not self._is_cached(key)]
        if len(missing) > 1:
            self._make_room(len(missing))
            for row in self._table.get_many(missing):
                self._clean[row[0]] = self._make(*row)
        return [self.get(key) for key in keys]

    def _is_cached(self, key: K) -> bool:
        return key in self._clean or key in self._dirty

    def flush(self) -> None:
        """Write all changes; the caller has begun a transaction."""
        if not self._dirty:
            return
        newest = self._table.newest
        born, table_key = self._stored_born, self._key
        keep = [table_key(k) for k, b in born.items() if b is not None and b <= newest]
        delete = [table_key(key) for key, record in self._dirty.items() if record is None]
        put: list[RowValues] = []
        change: list[RowValues] = []
        for key, record in self._dirty.items():
            if record is not None:
                (change if record.born == born[key] else put).append(self._row(record))
        self._table.write_many(keep, delete, put, change)
        self._clean.update(self._dirty)
        self._dirty.clear()
        self._stored_born.clear()
        self._make_room(0)

    def forget(self) -> None:
        """Drop everything cached; changes that were not flushed are lost."""
        self._clean.clear()
        self._dirty.clear()
        self._stored_born.clear()

    def _read(self, key: K) -> R | None:
        row = self._table.get(self._key(key))
        record = None if row is None else self._make(*row)
        self._make_room(1)
        self._clean[key] = record
        return record

    def _note(self, key: K, new: bool) -> None:
        """From now on the key is dirty; what the database has of it is remembered."""
        if key in self._dirty:
            return
        if new:
            record = self._clean.pop(key, None)
        else:
            record = self._clean.get(key) or self._read(key)
            del self._clean[key]
        self._stored_born[key] = None if new or record is None else record.born
        self._dirty[key] = record

    def _make_room(self, count: int) -> None:
        excess = len(self._clean) + count - self._limit
        if excess > 0:
            # Oldest first: a dict keeps the order in which records came in.
            for key in list(itertools.islice(self._clean, excess + self._limit // 2)):
                del self._clean[key]


class KeyBuffer:
    """A table that holds keys and nothing else; changes are written many at once."""

    def __init__(self, connection: sqlite3.Connection, name: str, columns: Sequence[str]) -> None:
        marks = ", ".join("?" * len(columns))
        where = " AND ".join(f"{column} = ?" for column in columns)
        self._db = connection
        self._sql_add = f"INSERT OR IGNORE INTO {name} VALUES ({marks})"
        self._sql_remove = f"DELETE FROM {name} WHERE {where}"
        self._added: dict[Key, None] = {}
        self._removed: dict[Key, None] = {}
        self.additions = 0
        """How often a key was added since the volume was opened."""

    def add(self, key: Key) -> None:
        self.additions += 1
        self._removed.pop(key, None)
        self._added[key] = None

    def remove(self, key: Key) -> None:
        """A key that is not there is fine."""
        self._added.pop(key, None)
        self._removed[key] = None

    @property
    def dirty_count(self) -> int:
        return len(self._added) + len(self._removed)

    def flush(self) -> None:
        """Write all changes; the caller has begun a transaction."""
        if self._removed:
            self._db.executemany(self._sql_remove, self._removed)
        if self._added:
            self._db.executemany(self._sql_add, self._added)
        self.forget()

    def forget(self) -> None:
        """Changes that were not flushed are lost."""
        self._added.clear()
        self._removed.clear()
