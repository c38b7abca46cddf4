"""Keeps every wanted mount up: one mount process for each, started again when it dies.

The mount processes outlive the daemon: a daemon that is killed leaves them serving, and the next
one takes them over through their control sockets.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from nasfs.errors import Failed, NasError
from nasfs.fuse.mount import unmount

from .children import Child, command, environment
from .context import MountPhase, MountState, Node
from .engine import find_server
from .inventory import check_writable
from .mountdir import prepare
from .records import VolumeRow
from .shares.ganeshas import release

log = logging.getLogger(__name__)

_Report = Callable[[str, MountState], None]

START_S = 60.0
"""A mount process that is not ready after so many seconds is ended."""
STOP_S = 60.0
BACKOFF_S = (0.2, 30.0)
"""The first and the longest pause before a mount process is started again."""
STEADY_S = 30.0
"""A process that lived so long starts the back-off anew."""


class Supervisor:
    """One keeper task for each wanted volume; `node.mounts` says how they stand."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._keepers: dict[str, _Keeper] = {}
        self._ending = False
        self._wake = trio.Event()
        self._changed = trio.Event()

    def poke(self) -> None:
        """Compare what is wanted with what is there, soon."""
        self._wake.set()

    def retry(self, volume_uuid: str) -> None:
        """If its mount failed: try again now."""
        keeper = self._keepers.get(volume_uuid)
        if keeper is not None:
            keeper.hurry()

    async def run(self) -> None:
        """Until cancelled; the mounts stay (see `stop_all`)."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                self._reconcile(nursery)
                await self._wake.wait()

    def _reconcile(self, nursery: trio.Nursery) -> None:
        for row in self._node.state.volumes():
            if row.uuid not in self._keepers and self.is_due(row) and not self._ending:
                keeper = self._keepers[row.uuid] = _Keeper(self._node, row.uuid, self._set)
                self._set(row.uuid, MountState(MountPhase.STARTING))
                nursery.start_soon(self._keep, keeper)

    async def _keep(self, keeper: _Keeper) -> None:
        try:
            await keeper.run()
        finally:
            del self._keepers[keeper.uuid]
            self._set(keeper.uuid, MountState())
            self.poke()

    def is_due(self, row: VolumeRow) -> bool:
        """Whether the volume shall be mounted here."""
        return is_due(self._node, row)

    def _set(self, volume_uuid: str, state: MountState) -> None:
        self._node.mounts[volume_uuid] = state
        self._changed.set()
        self._changed = trio.Event()

    async def settled(self, volume_uuid: str) -> MountState:
        """How the mount stands once it is neither starting nor stopping."""
        while True:
            state = self._node.mounts.get(volume_uuid, MountState())
            row = self._node.state.find_volume(volume_uuid)
            absent = volume_uuid not in self._keepers and not self._ending
            coming = absent and row is not None and self.is_due(row)
            if not coming and state.phase not in (MountPhase.STARTING, MountPhase.STOPPING):
                return state
            await self._changed.wait()

    async def stop(self, volume_uuid: str, *, force: bool = False) -> None:
        """Unmount one volume; the caller has already noted that it is no longer wanted.

        *force*: files that are in use do not prevent it.  Raises Failed if they do.
        """
        while volume_uuid in self._keepers:
            await self.settled(volume_uuid)
            keeper = self._keepers.get(volume_uuid)
            if keeper is not None:
                await keeper.stop(force=force)
                break
        while volume_uuid in self._keepers:
            await self._changed.wait()

    async def stop_all(self) -> None:
        """Unmount everything, at the end of the daemon; what is wanted stays wanted."""
        self._ending = True
        async with trio.open_nursery() as nursery:
            for volume_uuid in list(self._keepers):
                nursery.start_soon(partial(self._stop_at_end, volume_uuid))

    async def _stop_at_end(self, volume_uuid: str) -> None:
        try:
            await self.stop(volume_uuid, force=True)
        except NasError as exc:
            log.error("unmounting volume %s: %s", volume_uuid, exc)


def is_due(node: Node, row: VolumeRow) -> bool:
    """Wanted, and the role of its group allows to write here."""
    if not row.wanted:
        return False
    try:
        check_writable(node, row)
    except NasError:
        return False
    return True


class _Keeper:
    """Keeps one volume mounted until it is stopped."""

    def __init__(self, node: Node, volume_uuid: str, report: _Report) -> None:
        self.uuid = volume_uuid
        self._node = node
        self._report = report
        self._child: Child | None = None
        self._mountpoint = Path()
        self._stopping = False
        self._hurry = trio.Event()
        self._state = MountState(MountPhase.STARTING)

    def hurry(self) -> None:
        """Do not wait for the back-off."""
        if self._state.phase is MountPhase.FAILED:
            self._set(MountPhase.STARTING, self._state.problem)
        self._hurry.set()

    def _set(self, phase: MountPhase, problem: str = "", *, pid: int = 0) -> None:
        where = str(self._mountpoint) if pid else ""
        self._state = replace(self._state, phase=phase, problem=problem, pid=pid, mountpoint=where)
        self._report(self.uuid, self._state)

    async def run(self) -> None:
        pause = BACKOFF_S[0]
        while (row := self._due()) is not None:
            self._set(MountPhase.STARTING, self._state.problem)
            began = trio.current_time()
            try:
                self._child = await self._adopt() or await self._start(row)
            except (NasError, OSError) as exc:
                problem = str(exc)
            else:
                self._set(MountPhase.MOUNTED, pid=self._child.pid)
                await self._child.wait()
                problem = f"the mount process {self._child.ending()}: {last_words(self._log)}"
                self._child.close()
                self._child = None
            if self._due() is None:
                return
            log.warning("volume %s: %s", row.name, problem)
            self._node.state.note("daemon", "mount failed", row.name, problem)
            self._state = replace(self._state, restarts=self._state.restarts + 1)
            self._set(MountPhase.FAILED, problem)
            if trio.current_time() - began > STEADY_S:
                pause = BACKOFF_S[0]
            self._hurry = trio.Event()
            with trio.move_on_after(pause):
                await self._hurry.wait()
            pause = min(pause * 2, BACKOFF_S[1])

    def _due(self) -> VolumeRow | None:
        row = self._node.state.find_volume(self.uuid)
        return row if row and not self._stopping and is_due(self._node, row) else None

    @property
    def _log(self) -> Path:
        return self._node.places.mount_log(self.uuid)

    async def _adopt(self) -> Child | None:
        """A mount process that serves the volume already, from an earlier daemon or by hand."""
        server = await trio.to_thread.run_sync(find_server, self._node, self.uuid)
        child = Child.adopt(server.pid) if server else None
        if server is not None and child is not None:
            self._mountpoint = server.mountpoint
            log.info("volume %s: took over mount process %d", self.uuid, child.pid)
        return child

    async def _start(self, row: VolumeRow) -> Child:
        mountpoint = self._mountpoint = self._node.mountpoint(row)
        await trio.to_thread.run_sync(prepare, mountpoint)
        name = str(self._node.state.volume_name(row))
        words = command(
            "nasfs.cli.main", self._node.places, "mount", "--foreground", name, str(mountpoint)
        )
        with self._log.open("wb") as errors:
            process = await trio.lowlevel.open_process(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                cwd="/",
                start_new_session=True,
            )
        child = Child(process.pid, process)
        assert process.stdout is not None
        async with process.stdout:  # its first line says that it is mounted; then nobody listens
            with trio.move_on_after(START_S):
                if await process.stdout.receive_some():
                    return child
        await child.end(grace_s=5)
        raise Failed(last_words(self._log))

    async def stop(self, *, force: bool) -> None:
        """Unmount, and wait until the process has ended.

        Raises:
            Failed: files are in use, and *force* is false; the volume stays mounted.
        """
        before = self._state
        self._stopping = True
        self._hurry.set()
        child = self._child
        if child is None:  # between two attempts: there is nothing to unmount
            return
        self._set(MountPhase.STOPPING, pid=child.pid)
        mountpoint = self._mountpoint
        try:
            await trio.to_thread.run_sync(release, self._node, self.uuid)
            await trio.to_thread.run_sync(unmount, mountpoint)
        except NasError as exc:
            if not force:
                self._stopping = False
                self._set(before.phase, pid=child.pid)
                raise
            log.warning("%s; ending its process", exc)  # it makes everything durable
            await child.end(grace_s=STOP_S)
            return
        with trio.move_on_after(STOP_S):
            await child.wait()
            return
        await child.end(grace_s=STOP_S)


def last_words(path: Path) -> str:
    """What the process said last: its error message, without our own prefix."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return lines[-1] if lines else "it said nothing"
