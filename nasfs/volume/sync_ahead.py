"""Making data durable in a thread while more of it is written, so that a commit finds little left.

For who writes much and commits often, such as a receiver of deltas; the volume has one owner, who
calls everything here but the sync itself.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from nasfs.volume.datasync import DataSync
from nasfs.volume.errors import MediaError

if TYPE_CHECKING:
    from nasfs.volume.volume import Volume

WORTH_BYTES = 4 * 1024 * 1024
"""Less than this is sooner synced with the commit than handed to a thread."""


class SyncAhead:
    """Of one volume.  One sync is under way at a time; while it is, what is written waits."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: tuple[DataSync, Future[None]] | None = None
        self._written = 0

    def wrote(self, count: int) -> None:
        """So many bytes more are in layers.

        Raises:
            MediaError: a sync that has ended meanwhile failed.
        """
        self._written += count
        if self._written < WORTH_BYTES:
            return
        if self._under_way is not None:
            if not self._under_way[1].done():
                return
            self.finish()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sync")
        work = self._volume.dirty_data()
        self._under_way = work, self._thread.submit(work.run)
        self._written = 0

    def finish(self) -> None:
        """Before a commit: nothing is under way on return.

        Raises:
            MediaError: some of the data could not be made durable; the commit would not tell.
        """
        if self._under_way is None:
            return
        (work, done), self._under_way = self._under_way, None
        try:
            done.result()
        except MediaError as exc:
            self._volume.data_refused(work, exc)
            raise

    def committed(self) -> None:
        """All that was written is durable."""
        self._written = 0

    def close(self) -> None:
        """The thread is gone on return; what it failed to do does not matter any more."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
