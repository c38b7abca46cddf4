"""Room on the pool's disk: who adds is refused while there is still room for who removes.

Theory of operation.  A commit that the disk refuses loses changes that were told to be done, so
it must not come to that: each change is charged before it is made.  What a transaction will add
to SQLite's log is estimated from above (`Store.log_need`).  When the disk is nearly full, the log
is committed and moved into the tables in small pieces, and the last part of the disk, the
*headroom*, is for some kinds of changes only: half of it for what adds nothing, more for what
removes, all of it for what gives space back.

Small writes may wait in memory (`Layers.delays`), charged like all others, while there is ample
room for all that can wait; when there no longer is, each is the host's before it is acknowledged.

What the host calls free is a hint: XFS holds much more for a while behind the end of files that
grow.  So who removes is refused only if the host can't allocate what the log will need, either.
Others on the same disk may take the headroom away; an exact volume holds its own.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path

from nasfs.volume.behind import LIMIT_BYTES
from nasfs.volume.errors import MediaError
from nasfs.volume.layers import Layers
from nasfs.volume.media import Media
from nasfs.volume.store import Store

HEADROOM_BYTES = 16 * 1024 * 1024
"""The last part of the pool's disk, or a twentieth of it: data gets ENOSPC before."""

LOOK_BYTES = 4 * 1024 * 1024
"""The disk is asked again after so many bytes at most."""


class Kind(Enum):
    """What a change does to the space in use; the value is the part of the headroom it leaves."""

    ADDS = 1.0
    CHANGES = 0.5
    REMOVES = 0.25
    """While a snapshot sees what is removed, even that adds rows."""
    RECLAIMS = 0.0


class Room:
    """What is left on the disk of one volume.

    Args:
        commit: makes the open transaction durable; called before a change, never within one.
    """

    def __init__(
        self,
        path: Path,
        media: Media,
        store: Store,
        layers: Layers,
        commit: Callable[[], None],
    ) -> None:
        self._path = path
        self._media = media
        self._store = store
        self._layers = layers
        self._commit = commit
        self._taken = 0
        self._credit = 0
        self.is_short = False
        """The disk is nearly full."""
        self._headroom = HEADROOM_BYTES

    def take(self, count: int, kind: Kind, *, may_commit: bool = True) -> None:
        """Charge a change before it is made.

        Args:
            count: bytes that it adds, beside its rows.
            may_commit: the open transaction may end here.

        Raises:
            MediaError: no room for it (ENOSPC); nothing has happened.
        """
        self._taken += count + self._store.OPERATION_BYTES
        if self._taken > self._credit:
            self._look(count, kind, may_commit)

    def log_is_too_long(self) -> bool:
        """Whether the log takes room that others need more, and is to go into the tables."""
        return self.is_short and self._store.log_size() > self._headroom // 4

    def _look(self, count: int, kind: Kind, may_commit: bool) -> None:
        if kind is Kind.REMOVES and not self._store.all_snapshots:
            kind = Kind.RECLAIMS
        need = self._store.log_need() + count + self._layers.waiting_bytes
        free = self._free()
        keep = int(self._headroom * kind.value)
        self.is_short = free - need < 2 * self._headroom
        self._layers.delays = free - need > 2 * (self._headroom + LIMIT_BYTES)
        if not self._layers.delays:
            with suppress(MediaError):  # then what waits goes on to wait, and to be charged
                self._layers.land_all()
        if self.is_short and may_commit and need - count > self._headroom // 8:
            self._commit()
            if kind is Kind.RECLAIMS:
                self._store.checkpoint()
            need, free = count, self._free()
        if free - need < keep and (
            kind in (Kind.ADDS, Kind.CHANGES)
            or not self._store.extend_log(need + self._store.OPERATION_BYTES + keep)
        ):
            raise MediaError(
                errno.ENOSPC,
                f"the pool's disk ({self._path.parent})",
                hint="free space on the pool's disk, or destroy snapshots",
            )
        self._taken = 0
        self._credit = min(max(free - need - self._headroom, 0) // 4, LOOK_BYTES)

    def _free(self) -> int:
        free, total = self._media.free_bytes(self._path)
        self._headroom = min(HEADROOM_BYTES, total // 20)
        return free
