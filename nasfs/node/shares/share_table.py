"""The shares in node.db, and which merges with the partner's are in force."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nasfs.errors import Failed
from sharecfg.model import Share

from ..database import Database


class Shares:
    """The table share."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> tuple[Share, ...]:
        """By name."""
        rows = self._database.rows("SELECT body FROM share ORDER BY key")
        return tuple(msgspec.json.decode(row[0], type=Share) for row in rows)

    def get(self, name: str) -> Share:
        """Raises Failed if there is none."""
        row = self._database.row("SELECT body FROM share WHERE key = ?", name.casefold())
        if row is None:
            raise Failed(f"there is no share {name}", hint="nasfs share list shows the shares")
        return msgspec.json.decode(row[0], type=Share)

    def change(self, before: Iterable[Share], after: Iterable[Share]) -> None:
        """From one set of shares to another, as a whole.

        Raises:
            Failed: they are not *before* any more; nothing is changed.
        """
        old = {share.key: share for share in before}
        new = {share.key: share for share in after}
        with self._database.change():
            if {share.key: share for share in self.all()} != old:
                raise Failed("somebody else changed the shares in the meantime", "try again")
            for key in old.keys() - new.keys():
                self._database.do("DELETE FROM share WHERE key = ?", key)
            for key, share in new.items():
                if old.get(key) != share:
                    body = msgspec.json.encode(share).decode()
                    self._database.do("INSERT OR REPLACE INTO share VALUES (?, ?)", key, body)

    def of_volume(self, volume_uuid: str) -> tuple[Share, ...]:
        return tuple(share for share in self.all() if share.volume == volume_uuid)
