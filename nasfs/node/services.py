"""The running parts of the daemon, as the API's actions use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

import trio

from nasfs.errors import Failed, NasError

from .context import MountPhase, Node
from .engine import end_server
from .inventory import check_writable, volume_view
from .messages import VolumeView
from .policy.scheduler import Scheduler
from .sending.replicator import Replicator
from .supervisor import Supervisor
from .words import VolumeName

T = TypeVar("T")
Values = TypeVarTuple("Values")


@dataclass(frozen=True, slots=True)
class Services:
    """One node, who keeps its mounts up, who sends its groups, who takes its snapshots."""

    node: Node
    supervisor: Supervisor
    replicator: Replicator
    scheduler: Scheduler
    heard: dict[str, float] = field(default_factory=dict)
    """By group (UUID): when the partner last asked about a change of roles (trio's clock)."""
    agreeing: dict[str, trio.CancelScope] = field(default_factory=dict)
    """By group (UUID): a change of roles that waits for the partner, and can be called off."""
    _locks: dict[str, trio.Lock] = field(default_factory=dict)

    def lock(self, group_uuid: str) -> trio.Lock:
        """Held by who changes the role of a group."""
        return self._locks.setdefault(group_uuid, trio.Lock())

    async def run(self, operation: Callable[[Node, *Values], T], *values: *Values) -> T:
        """``operation(node, *values)`` in a thread: it may wait for the disk.  Never abandoned."""
        return await trio.to_thread.run_sync(operation, self.node, *values)


def begin_mounts(services: Services, volume_uuids: Iterable[str]) -> None:
    """Have all of them mounted at the same time: each takes a process, and most of a second.

    Who waits for one of them calls `mount_volume`.
    """
    node = services.node
    for uuid in volume_uuids:
        row = node.state.find_volume(uuid)
        if row is not None and not row.wanted:
            node.state.set_wanted(uuid, True)
            node.note("volume mounted", node.state.volume_name(row), str(node.mountpoint(row)))
    services.supervisor.poke()


async def mount_volume(services: Services, name: VolumeName) -> VolumeView:
    """Mount at its mount point, and keep it so over restarts.

    Raises:
        Refused: the role of its group forbids that.
        Failed: it cannot be mounted; then nothing has changed.
    """
    node = services.node
    row = node.state.volume(name)
    check_writable(node, row)
    # Without a mount, who takes a snapshot owns the volume for that moment.
    async with services.scheduler.scope(row.group or row.uuid):
        node.state.set_wanted(row.uuid, True)
        services.supervisor.poke()
        services.supervisor.retry(row.uuid)
        state = await services.supervisor.settled(row.uuid)
    if state.phase is not MountPhase.MOUNTED:
        if not row.wanted:
            node.state.set_wanted(row.uuid, False)
            await services.supervisor.stop(row.uuid, force=True)
        raise Failed(f"cannot mount {name}: {state.problem or 'it is not wanted any more'}")
    if not row.wanted:
        node.note("volume mounted", name, str(node.mountpoint(row)))
    return await services.run(volume_view, row)


async def end_mount(services: Services, volume_uuid: str, *, force: bool) -> None:
    """Unmount a volume, whoever mounted it.

    Raises:
        Failed: files in it are in use, and *force* is false.
    """
    await services.supervisor.stop(volume_uuid, force=force)
    await services.run(lambda node: end_server(node, volume_uuid, force=force))


async def unmount_volume(
    services: Services, name: VolumeName, *, force: bool = False
) -> VolumeView:
    """Unmount and do not mount again; everything is durable on return.

    Raises:
        Failed: files in it are in use; it stays mounted.
    """
    node = services.node
    row = node.state.volume(name)
    node.state.set_wanted(row.uuid, False)
    try:
        await end_mount(services, row.uuid, force=force)
    except NasError:
        node.state.set_wanted(row.uuid, bool(row.wanted))
        raise
    if row.wanted:
        node.note("volume unmounted", name)
    return await services.run(volume_view, node.state.volume(name))
