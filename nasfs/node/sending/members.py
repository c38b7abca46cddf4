"""In a send process: the group's volumes, each open to look at for the time of one attempt."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from nasfs.volume import Access, Hold, Snapshot, Volume, open_volume

from ..context import Node
from ..records import HOLDER, VolumeRow


class Members:
    """A context manager.  What it tells is as of the volumes' last commits.

    For the thread that made it.

    Attributes:
        rows: the volumes, as the node knew them when the attempt began.
    """

    def __init__(self, node: Node, rows: Iterable[VolumeRow]) -> None:
        self.rows = list(rows)
        self._node = node
        self._open: dict[str, Volume] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def volume(self, row: VolumeRow) -> Volume:
        """Read-only, beside its owner."""
        found = self._open.get(row.uuid)
        if found is None:
            found = open_volume(self._node.volume_path(row), Access.READ_ONLY)
            self._open[row.uuid] = self._stack.enter_context(found)
        return found

    def snapshots(self, row: VolumeRow) -> tuple[Snapshot, ...]:
        """Oldest first."""
        return tuple(self.volume(row).snapshots())

    def held(self, row: VolumeRow) -> set[str]:
        """GUIDs of what replication holds."""
        return {guid for guid, holds in self._holds(row) if any(h.owner == HOLDER for h in holds)}

    def others_hold(self) -> set[str]:
        """GUIDs of the snapshots that somebody but replication holds."""
        return {
            guid
            for row in self.rows
            for guid, holds in self._holds(row)
            if any(hold.owner != HOLDER for hold in holds)
        }

    def _holds(self, row: VolumeRow) -> Iterable[tuple[str, list[Hold]]]:
        return self.volume(row).all_holds().items()
