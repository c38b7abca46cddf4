"""What the control socket's requests do to a mounted volume."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import msgspec
import pyfuse3
import trio

from nasfs.errors import ConfigError, Refused
from nasfs.fuse import control
from nasfs.fuse.commit import Committer, Hold
from nasfs.fuse.known import KnownInodes
from nasfs.fuse.snapdir import SNAPSHOTS_INO, Trees, to_bytes
from nasfs.fuse.versions import Versions
from nasfs.volume import Snapshot, Volume

LIMIT_S = 30.0
"""Changes are never held for longer, whoever asks."""


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
        self._held: dict[str, Hold] = {}
        self._versions = Versions(volume, trees, committer, known)

    def handlers(self) -> control.Handlers:
        return {
            control.Ping: self._ping,
            control.Stats: self._stats,
            control.Changed: self._changed,
            control.Commit: self._commit,
            control.TakeSnapshot: self._snapshot,
            control.HoldChanges: self._hold_changes,
            control.SealHeld: self._seal_held,
            control.LetChange: self._let_change,
            control.SettleSnapshot: self._settle,
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

    async def _changed(self, request: control.Changed) -> bool:
        return self._volume.changed_since(request.snapshot)

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

    async def _hold_changes(self, request: control.HoldChanges) -> str:
        if not 0 < request.limit_s <= LIMIT_S:
            raise ConfigError(f"changes are held for more than 0 and at most {LIMIT_S:g} s")
        hold = await self._committer.hold(request.limit_s)
        token = str(uuid4())
        self._held[token] = hold
        return token

    async def _seal_held(self, request: control.SealHeld) -> Snapshot:
        hold = self._held.pop(request.token, None)
        if hold is None:
            raise Refused("nothing is held under that token")
        return await self._committer.at_instant(
            hold,
            lambda: self._volume.seal_nowait(
                request.name,
                time_ns=request.time_ns,
                snap_group=request.snap_group,
                pending=True,
            ),
        )

    async def _let_change(self, request: control.LetChange) -> None:
        self.release(request.token)

    def release(self, token: str) -> None:
        """Changes go on, unless they do already."""
        hold = self._held.pop(token, None)
        if hold is not None:
            hold.decide()

    async def _settle(self, request: control.SettleSnapshot) -> None:
        await self._committer.at_commit(
            lambda: self._volume.settle_nowait(request.snap_group, keep=request.keep)
        )

    async def _rename(self, request: control.RenameSnapshot) -> None:
        await self._committer.at_commit(
            lambda: self._volume.rename_snapshot_nowait(request.name, request.new_name)
        )
        await _forget_names([request.name])

    async def _destroy(self, request: control.DestroySnapshots) -> None:
        names = list(dict.fromkeys(request.names))
        await self._committer.at_commit(lambda: self._destroy_all(names))
        await _forget_names(names)

    def _destroy_all(self, names: list[str]) -> None:
        for snapshot in self._volume.destroy_snapshots_nowait(names):
            self._trees.forget_snapshot(snapshot.epoch)

    async def _hold(self, request: control.Hold) -> None:
        await self._committer.at_commit(
            lambda: self._volume.hold_nowait(request.name, request.owner, request.reason)
        )

    async def _release(self, request: control.Release) -> None:
        await self._committer.at_commit(
            lambda: self._volume.release_hold_nowait(request.name, request.owner)
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
