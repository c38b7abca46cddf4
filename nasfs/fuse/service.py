"""What the control socket's requests do to a mounted volume."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec
import pyfuse3
import trio

from nasfs.fuse import control
from nasfs.fuse.commit import Committer
from nasfs.fuse.known import KnownInodes
from nasfs.fuse.snapdir import SNAPSHOTS_INO, Trees, to_bytes
from nasfs.fuse.versions import Versions
from nasfs.volume import Snapshot, SnapshotHeld, Volume


class Service:
    """One function per request; a change is durable when its function returns."""

    def __init__(
        self,
        volume: Volume,
        mountpoint: Path,
        trees: Trees,
        committer: Committer,
        known: KnownInodes,
    ) -> None:
        self._volume = volume
        self._mountpoint = mountpoint
        self._trees = trees
        self._committer = committer
        self._resizing = trio.Lock()
        self._versions = Versions(volume, trees, committer, known)

    def handlers(self) -> control.Handlers:
        return {
            control.Ping: self._ping,
            control.Stats: self._stats,
            control.Commit: self._commit,
            control.TakeSnapshot: self._snapshot,
            control.RenameSnapshot: self._rename,
            control.DestroySnapshots: self._destroy,
            control.Hold: self._hold,
            control.Release: self._release,
            control.Resize: self._resize,
            control.Stop: self._stop,
            **self._versions.handlers(),
        }

    async def _ping(self, request: control.Ping) -> dict[str, object]:
        return {
            "uuid": self._volume.uuid,
            "name": self._volume.name,
            "mountpoint": str(self._mountpoint),
            "pid": os.getpid(),
        }

    async def _stats(self, request: control.Stats) -> dict[str, object]:
        stats: dict[str, object] = msgspec.to_builtins(self._volume.statfs())
        return stats | {
            "snapshots": len(self._volume.snapshots()),
            "commits": self._committer.rounds,
            "read_only": not self._volume.writable,
            "provision": self._volume.provision,
            "reserved": self._volume.reserved,
            "unreserved": self._volume.unreserved,
        }

    async def _commit(self, request: control.Commit) -> None:
        await self._committer.commit()

    async def _stop(self, request: control.Stop) -> None:
        if self._volume.writable:  # else there is nothing left to save, and all the more to stop
            await self._committer.commit()

    async def _snapshot(self, request: control.TakeSnapshot) -> Snapshot:
        return await self._committer.at_commit(
            lambda: self._volume.seal_nowait(
                request.name,
                guid=request.guid,
                time_ns=request.time_ns,
                snap_group=request.snap_group,
            )
        )

    async def _rename(self, request: control.RenameSnapshot) -> None:
        await self._committer.at_commit(
            lambda: self._volume.rename_snapshot(request.name, request.new_name)
        )
        await _forget_names([request.name])

    async def _destroy(self, request: control.DestroySnapshots) -> None:
        names = list(dict.fromkeys(request.names))
        await self._committer.at_commit(lambda: self._destroy_all(names))
        await _forget_names(names)

    def _destroy_all(self, names: list[str]) -> None:
        snapshots = [self._volume.snapshot(name) for name in names]
        for snapshot in snapshots:  # all or none
            if holds := self._volume.holds(snapshot.name):
                raise SnapshotHeld(snapshot.name, [hold.owner for hold in holds])
        for snapshot in snapshots:
            self._volume.destroy_snapshot(snapshot.name)
            self._trees.forget_snapshot(snapshot.epoch)

    async def _hold(self, request: control.Hold) -> None:
        await self._committer.at_commit(
            lambda: self._volume.hold(request.name, request.owner, request.reason)
        )

    async def _release(self, request: control.Release) -> None:
        await self._committer.at_commit(
            lambda: self._volume.release_hold(request.name, request.owner)
        )

    async def _resize(self, request: control.Resize) -> None:
        async with self._resizing:
            # In a thread: reserving the space of an exact volume may wait for the disk.
            await trio.to_thread.run_sync(self._volume.prepare_resize, request.size)
            try:
                await self._committer.at_commit(lambda: self._volume.resize_nowait(request.size))
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._volume.end_resize)


async def _forget_names(names: list[str]) -> None:
    """Let the kernel ask again for these names in `.snapshots`."""
    for name in names:
        with suppress(OSError):  # the kernel does not know the name
            # In a thread: it waits for look-ups in that directory, which the loop answers.
            await trio.to_thread.run_sync(
                pyfuse3.invalidate_entry, pyfuse3.InodeT(SNAPSHOTS_INO), to_bytes(name)
            )
