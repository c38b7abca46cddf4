"""Going back in a mounted volume: the live view changes under the kernel, and the kernel is told.

Everything is done at the instant of a commit, when no change is under way.  From then on requests
are answered from the new state; what the kernel remembers of the old one is taken from it before
the asker gets an answer.  docs/snapshots.md tells what a program sees that has files open.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import pyfuse3
import trio

from nasfs.fuse import control
from nasfs.fuse.commit import Committer
from nasfs.volume import Snapshot, Volume


class Versions:
    """The requests that bring an earlier state back; one at a time."""

    def __init__(self, volume: Volume, committer: Committer) -> None:
        self._volume = volume
        self._committer = committer
        self._alone = trio.Lock()

    def handlers(self) -> control.Handlers:
        return {control.RollBack: self._roll_back}

    async def _roll_back(self, request: control.RollBack) -> Snapshot:
        async with self._alone:
            kept = await self._committer.at_commit(lambda: self._keep_and_roll_back(request))
            for inodes in self._volume.inodes_changed_since(kept.epoch):
                await forget_inodes(inodes)
            for entries in self._volume.entries_changed_since(kept.epoch):
                await forget_entries(entries)
        return kept

    def _keep_and_roll_back(self, request: control.RollBack) -> Snapshot:
        target = self._volume.snapshot(request.name)
        kept = self._volume.seal_nowait(request.keep_as)
        self._volume.rollback(target.epoch)
        return kept


async def forget_inodes(numbers: Iterable[int]) -> None:
    """What the kernel remembers of these live inodes: attributes, access lists, data."""
    await trio.to_thread.run_sync(_forget_inodes, list(numbers))


async def forget_entries(entries: Iterable[tuple[int, bytes]]) -> None:
    """What the kernel believes of these (directory, name), be it that there is none."""
    # In a thread: it waits for look-ups in that directory, which the loop answers.
    await trio.to_thread.run_sync(_forget_entries, list(entries))


def _forget_inodes(numbers: list[int]) -> None:
    for number in numbers:
        with suppress(OSError):  # the kernel does not know it
            pyfuse3.invalidate_inode(pyfuse3.InodeT(number))


def _forget_entries(entries: list[tuple[int, bytes]]) -> None:
    for parent, name in entries:
        with suppress(OSError):  # the kernel does not know it
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
