"""Pools and volumes: make, list, rename, destroy.  Plain functions; they may wait for the disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, NasError, Refused
from nasfs.volume import (
    NoSuchVolume,
    VolumeInfo,
    create_pool,
    create_volume,
    list_volumes,
    open_pool,
    remove_leftovers,
)
from nasfs.volume import destroy_volume as engine_destroy
from nasfs.volume import rename_volume as engine_rename

from .coming_back import check_heard, how_to_go_on, why_it_waits
from .context import MountPhase, MountState, Node
from .engine import Server, ask, change, find_server, info
from .messages import PoolCreate, PoolView, VolumeCreate, VolumeView
from .records import YIELD, Group, Pool, VolumeRow
from .state import new_uuid
from .words import VolumeName, check_name, check_provision, parse_volume, render_size

RESIZE_S = 240.0
"""So long reserving the space of an exact volume may take (seconds)."""

WRITABLE_ROLES = ("active", "failed-over")


def make_pool(node: Node, request: PoolCreate) -> PoolView:
    """A new pool in an empty or new directory.

    Raises:
        Failed: the name is taken, or the directory is not empty or cannot be made.
    """
    check_name(request.name, "pool")
    path = Path(request.path)
    if not path.is_absolute():
        raise ConfigError(f"{request.path!r} is not an absolute path")
    if any(pool.name == request.name for pool in node.state.pools()):
        raise Failed(f"pool {request.name} exists already", hint="nasfs pool list shows the pools")
    try:
        made = create_pool(path)
    except OSError as exc:
        raise Failed(f"cannot make a pool at {path}: {exc.strerror}") from exc
    pool = Pool(made.uuid, request.name, str(path))
    node.state.add_pool(pool)
    node.note("pool created", pool.name, str(path))
    return pool_view(node, pool)


def pool_views(node: Node) -> list[PoolView]:
    return [pool_view(node, pool) for pool in node.state.pools()]


def pool_view(node: Node, pool: Pool) -> PoolView:
    """A pool that cannot be read is shown with its problem."""
    count = sum(row.pool == pool.uuid for row in node.state.volumes())
    try:
        open_pool(Path(pool.path))
        space = os.statvfs(pool.path)
    except (NasError, OSError) as exc:
        return PoolView(pool.name, pool.uuid, pool.path, count, 0, 0, problem=str(exc))
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    return PoolView(pool.name, pool.uuid, pool.path, count, size, free)


def make_volume(node: Node, request: VolumeCreate) -> VolumeView:
    """A new, empty volume.

    Raises:
        VolumeExists: the name is taken.
        ConfigError: a bad name, size, provision or mount point.
    """
    name = parse_volume(request.name)
    check_provision(request.provision)
    if request.mountpoint:
        check_mountpoint(node, request.mountpoint)
    pool = node.state.pool(name.pool)
    row = VolumeRow(new_uuid(), pool.uuid, name.volume, request.mountpoint, 0, "")
    create_volume(
        open_pool(Path(pool.path)),
        name.volume,
        size=request.size,
        provision=request.provision,
        uuid=row.uuid,
    )
    node.state.add_volume(row)
    node.note("volume created", name)
    return volume_view(node, row)


def check_mountpoint(node: Node, mountpoint: str, *, but: str = "") -> None:
    """Raises ConfigError, or Failed if another volume than *but* (a UUID) has it."""
    path = Path(mountpoint)
    if not path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{mountpoint!r} is not an absolute path")
    for row in node.state.volumes():
        if row.uuid != but and node.mountpoint(row) == path:
            raise Failed(f"{path} is the mount point of {node.state.volume_name(row)} already")


def move_mountpoint(node: Node, name: VolumeName, mountpoint: str) -> VolumeView:
    """Where the volume is mounted from its next mount on."""
    row = node.state.volume(name)
    check_mountpoint(node, mountpoint, but=row.uuid)
    node.state.set_mountpoint(row.uuid, mountpoint)
    return volume_view(node, node.state.volume(name))


def adopt_volumes(node: Node) -> list[str]:
    """Take up volumes that lie in a pool and are not in node.db (a crash between the two)."""
    adopted = []
    for pool in node.state.pools():
        try:
            handle = open_pool(Path(pool.path))
            names = set(list_volumes(handle))
        except (NasError, OSError):
            continue  # shown as the pool's problem
        known = {row.name for row in node.state.volumes() if row.pool == pool.uuid}
        for name in sorted(names - known):
            row = VolumeRow("", pool.uuid, name, "", 0, "")
            try:
                row = VolumeRow(info(node, row).uuid, pool.uuid, name, "", 0, "")
                node.state.add_volume(row)
            except NasError:
                continue  # a half-made one, or a copy of a volume that we know
            adopted.append(f"{pool.name}/{name}")
            node.note("volume adopted", adopted[-1], "found in its pool")
    return adopted


def volume_views(node: Node) -> list[VolumeView]:
    return [volume_view(node, row) for row in node.state.volumes()]


def volume_view(node: Node, row: VolumeRow) -> VolumeView:
    """A volume that cannot be read is shown with its problem."""
    mount = mount_state(node, row)
    group = node.state.find_group(row.group) if row.group else None
    if group is not None and row.wanted and mount.phase is MountPhase.UNMOUNTED:
        mount = _waiting(node, group) or mount
    base = VolumeView(
        name=str(node.state.volume_name(row)),
        uuid=row.uuid,
        size=0,
        used=0,
        live=0,
        inodes=0,
        provision="",
        reserved=0,
        unreserved=0,
        snapshots=0,
        list_snapshots=False,
        group=group.name if group else "",
        mountpoint=mount.mountpoint or str(node.mountpoint(row)),
        wanted=bool(row.wanted),
        mount_state=mount.phase.value,
        mount_pid=mount.pid,
        problem=mount.problem,
    )
    try:
        found = info(node, row)
    except (NasError, OSError) as exc:
        return replace(base, problem=str(exc))
    unreserved = _unreserved(node, row, found)
    return replace(
        base,
        size=found.size,
        used=found.stats.used,
        live=found.stats.live,
        inodes=found.stats.inodes,
        provision=found.provision,
        reserved=found.reserved,
        unreserved=unreserved,
        snapshots=len(found.snapshots),
        list_snapshots=found.lists_snapshots,
        problem=base.problem or _lacks(unreserved),
    )


def _waiting(node: Node, group: Group) -> MountState | None:
    why = why_it_waits(node, group)
    problem = f"{why}; {how_to_go_on(group.name)}"
    return MountState(MountPhase.WAITING, problem=problem) if why else None


def _unreserved(node: Node, row: VolumeRow, found: VolumeInfo) -> int:
    """What the guarantee of an exact volume lacks."""
    if not found.unreserved:
        return 0
    try:  # between two commits only the owner knows what has taken the place of what
        return int(ask(node, row, "stats")["unreserved"])
    except NasError:
        return found.unreserved


def _lacks(unreserved: int) -> str:
    if not unreserved:
        return ""
    return (
        f"{render_size(unreserved)} of its capacity are no longer guaranteed: others have filled"
        " the pool's disk; free space there"
    )


def mount_state(node: Node, row: VolumeRow) -> MountState:
    """What the supervisor knows, else whether a mount process answers."""
    known = node.mounts.get(row.uuid)
    if known is not None and known.phase is not MountPhase.UNMOUNTED:
        return known
    return running_mount(node, row) or MountState()


def running_mount(node: Node, row: VolumeRow) -> MountState | None:
    """Of a mount process that answers, be it the supervisor's already or not; else None."""
    server = find_server(node, row.uuid)
    return _mounted_by_hand(server) if server else None


def _mounted_by_hand(server: Server) -> MountState:
    return MountState(MountPhase.MOUNTED, server.pid, mountpoint=str(server.mountpoint))


def check_writable(node: Node, row: VolumeRow) -> None:
    """Raises Refused if the group's role forbids to change or mount the volume here."""
    group = node.state.find_group(row.group) if row.group else None
    if group is None:
        return
    check_active(node, group)


def is_received(node: Node, row: VolumeRow) -> bool:
    """Whether the partner's snapshots arrive in it."""
    group = node.state.find_group(row.group) if row.group else None
    return group is not None and group.role == "passive"


def check_active(node: Node, group: Group) -> None:
    """Raises Refused unless the group is active here."""
    if group.role not in WRITABLE_ROLES:
        hint = {
            "passive": f"it receives from the partner; to take over: nasfs failover {group.name};"
            " to read it: nasfs mount POOL/VOLUME DIR",
            "stale": "the partner has taken over; this side keeps everything until it rejoins",
        }
        raise Refused(f"group {group.name} is {group.role} here", hint=hint[group.role])
    if is_yielding(node, group):
        raise Refused(
            f"group {group.name} is being handed over to the partner",
            hint=f"to call that off: nasfs failover {group.name} --call-off",
        )
    check_heard(node, group)


def is_yielding(node: Node, group: Group) -> bool:
    """Whether nothing may be changed here because the partner is about to take the group over."""
    journal = node.bond.journal(group.uuid)
    return journal is not None and journal.kind == YIELD


def _check_unused(node: Node, row: VolumeRow, doing: str) -> None:
    name = node.state.volume_name(row)
    if mount_state(node, row).phase is not MountPhase.UNMOUNTED or row.wanted:
        raise Refused(
            f"volume {name} is mounted and cannot be {doing}",
            hint=f"unmount it first: nasfs volume unmount {name}",
        )
    group = node.state.find_group(row.group) if row.group else None
    if group is not None:
        raise Refused(
            f"volume {name} is in group {group.name} and cannot be {doing}",
            hint=f"take it out first: nasfs group remove {group.name} {name}",
        )


def rename_volume(node: Node, name: VolumeName, new_name: str) -> VolumeView:
    """Give an unmounted volume another name in its pool.

    Raises:
        Refused: it is mounted or in a group.
        Failed: the new name is taken.
    """
    check_name(new_name, "volume")
    row = node.state.volume(name)
    _check_unused(node, row, "renamed")
    pool = open_pool(Path(node.state.pool(name.pool).path))
    with node.state.change():
        node.state.rename_volume(row.uuid, new_name)
        engine_rename(pool, name.volume, new_name)
    node.note("volume renamed", name, f"to {name.pool}/{new_name}")
    return volume_view(node, node.state.volume(VolumeName(name.pool, new_name)))


def resize_volume(node: Node, name: VolumeName, size: int) -> VolumeView:
    """Another size, mounted or not; durable on return.

    Raises:
        ConfigError: no size for a volume.
        Refused: the volume holds more than that, or its size follows that of the active copy.
        MediaError: the pool's disk has not the space that an exact volume needs.
    """
    row = node.state.volume(name)
    group = node.state.find_group(row.group) if row.group else None
    if group is not None and group.role == "passive":
        raise Refused(
            f"volume {name} is the passive copy of a volume of the partner",
            hint="resize it there: this copy follows with the next replication",
        )
    check_writable(node, row)
    before = info(node, row).size
    args = {"size": size}
    change(node, row, "resize", args, lambda v: v.resize(size), timeout_s=RESIZE_S)
    node.note("volume resized", name, f"{render_size(before)} to {render_size(size)}")
    return volume_view(node, row)


def destroy_volume(node: Node, name: VolumeName, *, lose_data: bool) -> None:
    """Remove a volume with all its snapshots.

    Raises:
        Refused: it is mounted or in a group, or the loss was not named.
    """
    row = node.state.volume(name)
    _check_unused(node, row, "destroyed")
    if shares := node.shares.of_volume(row.uuid):
        names = ", ".join(share.name for share in shares)
        raise Refused(f"volume {name} is shared as {names}", hint="nasfs share remove NAME")
    if not lose_data:
        raise Refused(
            f"destroying {name} loses its files and all its snapshots",
            hint=f"if you mean it: nasfs volume destroy {name} --lose-data",
        )
    with contextlib.suppress(NoSuchVolume):  # gone already: an interrupted attempt
        engine_destroy(open_pool(Path(node.state.pool(name.pool).path)), name.volume)
    node.state.forget_volume(row.uuid)
    node.note("volume destroyed", name)


def sweep_pools(node: Node) -> None:
    """Remove what an interrupted creation or destruction of a volume has left."""
    for pool in node.state.pools():
        with contextlib.suppress(NasError, OSError):  # shown as the pool's problem
            remove_leftovers(open_pool(Path(pool.path)))
