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
from nasfs.fuse.known import KnownInodes
from nasfs.fuse.snapdir import Trees
from nasfs.volume import Restore, Snapshot, Touched, Volume


class Versions:
    """The requests that bring an earlier state back; one at a time."""

    def __init__(
        self, volume: Volume, trees: Trees, committer: Committer, known: KnownInodes
    ) -> None:
        self._volume = volume
        self._trees = trees
        self._committer = committer
        self._known = known
        self._alone = trio.Lock()

    def handlers(self) -> control.Handlers:
        return {
            control.RollBack: self._roll_back,
            control.RestorePath: self._restore,
            control.ListSnapshots: self._list_snapshots,
        }

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
        kept = self._volume.snapshot(request.kept) if request.kept else None
        if kept is None or self._volume.changed_since(kept.guid):
            kept = self._volume.seal_nowait(request.keep_as)
        self._volume.rollback(target.epoch)
        return kept

    async def _restore(self, request: control.RestorePath) -> control.Restored:
        committer = self._committer
        async with self._alone:
            restore = Restore(
                self._volume,
                request.name,
                tuple(request.source),
                tuple(request.target),
                replace=request.replace,
            )
            try:
                await committer.in_steps(restore.plan())
                await committer.in_steps(restore.stage())
                kept, touched = await committer.at_commit(
                    lambda: self._keep_and_apply(restore, request.keep_as)
                )
            except Exception:  # at the end of the mount it stays, for the next one to remove
                await committer.in_steps(restore.abandon())
                raise
            await forget_entries(touched.entries)
            await forget_inodes(touched.inodes)
        return control.Restored(restore.summary(), kept)

    def _keep_and_apply(self, restore: Restore, keep_as: str) -> tuple[bool, Touched]:
        kept = restore.ready() and keep_as != ""
        if kept:
            self._volume.seal_nowait(keep_as)
        return kept, restore.apply(self._known.outliving)

    async def _list_snapshots(self, request: control.ListSnapshots) -> None:
        await self._committer.at_commit(lambda: self._volume.list_snapshots_nowait(request.on))
        self._trees.list_snapshots(request.on)


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
