"""Restore to a snapshot: the live view becomes what it was, at the cost of what changed since."""

from __future__ import annotations

from nasfs.volume.live import Live
from nasfs.volume.space import Space, by_layer, only_in
from nasfs.volume.store import Store
from nasfs.volume.types import Epoch
from nasfs.volume.view import AsOf, mapped_runs


def roll_back(store: Store, space: Space, live: Live, epoch: Epoch) -> None:
    """Within the open transaction; the caller has committed before, and commits after.

    Rows born after *epoch* leave the live tables (to the past, if a snapshot saw them), rows that
    were visible at *epoch* and died since come back, born now.  Inode numbers, cookies and the
    epoch itself go on: nothing is given twice.
    """
    store.flush()
    target = AsOf(store, live._layers, epoch)
    _account(store, space, live, target, epoch)
    store.flush()
    current, newest = store.epochs.current, store.epochs.newest
    for table in store.tables:
        name = table.spec.name
        columns = ", ".join(table.spec.columns)
        returned = columns.replace("born", "?", 1)
        store.execute(
            f"INSERT INTO {name}_past ({columns}, died) SELECT {columns}, ? FROM {name}"
            " WHERE born > ? AND born <= ?",
            (current, epoch, newest),
        )
        store.execute(f"DELETE FROM {name} WHERE born > ?", (epoch,))
        store.execute(
            f"INSERT INTO {name} ({columns}) SELECT {returned} FROM {name}_past"
            " WHERE born <= ? AND died > ?",
            (current, epoch, epoch),
        )
    store.forget()
    store.execute("DELETE FROM orphan")
    store.execute(
        "INSERT INTO orphan SELECT ino FROM inode WHERE born = ? AND nlink = 0", (current,)
    )
    if newest > epoch:
        store.execute("INSERT OR REPLACE INTO rollback VALUES (?, ?)", (current, epoch))
        with store.sql_errors():
            store.kept.lose()


def _account(store: Store, space: Space, live: Live, target: AsOf, epoch: int) -> None:
    """Move the blocks that change hands between the counters, before the rows move."""
    touched = store.db.execute(
        "SELECT ino FROM inode WHERE born > ? UNION"
        " SELECT ino FROM inode_past WHERE born <= ? AND died > ?",
        (epoch, epoch, epoch),
    ).fetchall()
    for (ino,) in touched:
        now, then = live._inode(ino), target._inode(ino)
        store.counters.inodes += (then is not None) - (now is not None)
        ours = by_layer([] if now is None else mapped_runs(live, now))
        theirs = by_layer([] if then is None else mapped_runs(target, then))
        space.regained(only_in(theirs, ours))
        space.dropped(ino, only_in(ours, theirs))
