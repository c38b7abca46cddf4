"""Replications: how a group is sent to the partner, and how that stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio
from msgspec.structs import replace

from nasfs.errors import ConfigError, Failed, Refused
from nasfs.schedule.spans import parse_span
from replication.client import create_replication
from replication.link import parse_rate, parse_window

from ..context import Node
from ..engine import info
from ..inventory import check_active
from ..leases import release_but
from ..messages import Nothing, ReplicationCreate, ReplicationView
from ..pairing import connect_peer
from ..records import Group, Replication
from ..services import Services
from ..words import check_name, check_provision, parse_volume
from .outgoing import COMPRESSION_LEVELS, group_spec
from .replication_messages import ReplicationRun, ReplicationSet, WindowAdd, WindowRemove
from .replication_views import replication_view
from .replicator import Replicator

MAX_SNAPSHOTS = 1000
MAX_WINDOWS = 64
LOOK_S = 0.2
"""So long the answer to who waits for the end of an attempt is kept back at most (seconds)."""

Params = Mapping[str, str]


async def create(services: Services, body: ReplicationCreate, params: Params) -> ReplicationView:
    """Agree with the partner, then remember; nothing is remembered if the partner says no."""
    group, made = await services.run(_create, body)
    services.replicator.poke()
    return await services.run(replication_view, services.replicator, group, made)


def _create(node: Node, body: ReplicationCreate) -> tuple[Group, Replication]:
    group = node.state.group(body.group)
    check_active(node, group)
    if not node.state.members(group.uuid):
        raise Refused(f"group {group.name} has no volumes")
    check_name(body.to_pool, "pool")
    check_provision(body.provision)
    names = _remote_names(node, group, body.volumes)
    made = _changed(
        Replication(group.uuid, body.to_pool, body.provision, 0, "", 0),
        ReplicationSet(
            body.compression, body.max_snapshots, body.priority, body.rate or None,
            body.max_lag or None, body.rpo or None,
        ),
    )  # fmt: skip
    for window in body.windows:
        made = _with_window(made, window)
    if node.bond.replication(group.uuid):
        raise Refused(
            f"group {group.name} is replicated already",
            hint=f"nasfs replication show {group.name}",
        )
    with connect_peer(node) as connection:
        sizes = {row.uuid: info(node, row).size for row in node.state.members(group.uuid)}
        create_replication(connection, group_spec(node, group, made, names, sizes))
    node.bond.add_replication(made, names)
    node.note("replication created", group.name, f"to pool {body.to_pool}")
    return group, made


def _changed(made: Replication, changes: ReplicationSet) -> Replication:
    """Raises ConfigError if one of them can't be."""
    if changes.compression is not None:
        if changes.compression not in COMPRESSION_LEVELS:
            raise ConfigError(
                f"{changes.compression!r} is no compression", hint="off, auto or 1 to 9"
            )
        made = replace(made, compression=changes.compression)
    if changes.max_snapshots is not None:
        if not 1 <= changes.max_snapshots <= MAX_SNAPSHOTS:
            raise ConfigError(f"the partner can keep 1 to {MAX_SNAPSHOTS} snapshots of a volume")
        made = replace(made, max_snapshots=changes.max_snapshots)
    if changes.priority is not None:
        if not 1 <= changes.priority <= 100:
            raise ConfigError("a priority is 1 to 100 per cent of the link")
        made = replace(made, priority=changes.priority)
    if changes.rate is not None:
        made = replace(made, rate=parse_rate(changes.rate))
    if changes.max_lag is not None:
        made = replace(made, max_lag_s=_span(changes.max_lag, "--max-lag"))
    if changes.rpo is not None:
        made = replace(made, rpo_s=_span(changes.rpo, "--rpo"))
    return made


def _span(text: str, what: str) -> int:
    return 0 if text == "off" else parse_span(text, what)


def _with_window(made: Replication, text: str) -> Replication:
    windows = made.windows.splitlines()
    window = str(parse_window(text))
    if window in windows:
        raise ConfigError(f"there is a window {window} already")
    if len(windows) == MAX_WINDOWS:
        raise ConfigError(f"a group can have {MAX_WINDOWS} windows")
    return replace(made, windows="\n".join([*windows, window]))


def _remote_names(node: Node, group: Group, asked: dict[str, str]) -> dict[str, str]:
    """Volume UUID to its name on the partner.  Raises ConfigError for a volume not in the group."""
    names = {row.uuid: row.name for row in node.state.members(group.uuid)}
    for text, remote in asked.items():
        row = node.state.volume(parse_volume(text))
        if row.uuid not in names:
            raise ConfigError(f"volume {text} is not in group {group.name}")
        names[row.uuid] = check_name(remote.rpartition("/")[2], "volume")
    if len(set(names.values())) < len(names):
        raise ConfigError(
            "two volumes would have the same name on the partner",
            hint="give one another: --volume LOCAL=REMOTE",
        )
    return names


def made_replication(node: Node, name: str) -> tuple[Group, Replication]:
    """A group and how it is replicated.  Raises Failed if it is not."""
    group = node.state.group(name)
    made = node.bond.replication(group.uuid)
    if made is None:
        raise Failed(
            f"group {name} is not replicated from this node",
            hint=f"nasfs replication create {name} --to-pool POOL",
        )
    return group, made


async def show(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """How it stands; with `finished`, as soon as that attempt has ended, or after a moment."""
    group, made = await services.run(made_replication, params["group"])
    if wanted := params.get("finished"):
        if not wanted.isdecimal():
            raise ConfigError("finished is the number of an attempt")
        with trio.move_on_after(LOOK_S):
            await services.replicator.of(group.uuid).until_finished(int(wanted))
        group, made = await services.run(made_replication, params["group"])
    return await services.run(replication_view, services.replicator, group, made)


async def run_now(services: Services, body: ReplicationRun, params: Params) -> ReplicationView:
    """Send what is waiting; the answer names the attempt that will have seen all of it."""
    group, made = await services.run(made_replication, params["group"])
    check_sends(services.node, group, made)
    if body.rebase:
        services.replicator.of(group.uuid).rebase += 1
        services.node.note("rebase asked for", group.name)
    asked = services.replicator.ask(group.uuid)
    view = await services.run(replication_view, services.replicator, group, made)
    return replace(view, asked_attempt=asked)


def check_sends(node: Node, group: Group, made: Replication) -> None:
    """Raises Refused unless the group is sent, sooner or later."""
    check_active(node, group)
    if made.paused or made.split:
        how, back = ("split", "join") if made.split else ("paused", "resume")
        raise Refused(
            f"replication of {group.name} is {how}",
            hint=f"nasfs replication {back} {group.name}",
        )


def ask_if_replicated(services: Services, name: str) -> None:
    """After a snap group was taken: it goes to the partner, unless that is paused."""
    ask_if_wanted(services.node, services.replicator, services.node.state.group(name).uuid)


def ask_if_wanted(node: Node, replicator: Replicator, group_uuid: str) -> None:
    """The same, by the group's UUID."""
    made = node.bond.replication(group_uuid)
    if made is not None and not made.paused and not made.split:
        replicator.ask(group_uuid, urgent=False)


async def pause(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """Stop sending; what the partner has durably is not sent again."""
    return await _set_paused(services, params["group"], True)


async def resume(services: Services, body: Nothing, params: Params) -> ReplicationView:
    return await _set_paused(services, params["group"], False)


async def _set_paused(services: Services, name: str, paused: bool) -> ReplicationView:
    group, made = await services.run(made_replication, name)
    made = replace(made, paused=int(paused))
    services.node.bond.set_paused(group.uuid, paused)
    services.node.note("replication " + ("paused" if paused else "resumed"), name)
    services.replicator.poke()
    return await services.run(replication_view, services.replicator, group, made)


async def split(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """Part the two sites of a group: nothing is sent, and nothing is held but what both have."""
    return await _set_split(services, params["group"], True)


async def join(services: Services, body: Nothing, params: Params) -> ReplicationView:
    """Bring them together again: what happened meanwhile is sent."""
    return await _set_split(services, params["group"], False)


async def _set_split(services: Services, name: str, apart: bool) -> ReplicationView:
    group, made = await services.run(made_replication, name)
    made = replace(made, split=int(apart))
    await services.run(lambda node: node.bond.set_replication(made))
    services.node.note("replication " + ("split" if apart else "joined"), name)
    services.replicator.poke()
    if apart:
        await services.run(_let_go, group)
    return await services.run(replication_view, services.replicator, group, made)


def _let_go(node: Node, group: Group) -> None:
    """Replication holds nothing any more but the newest snap group that both sites have."""
    common = node.traffic.common(group.uuid)
    for row in node.state.members(group.uuid):
        release_but(node, row, common.snap_group if common else None)


async def change(services: Services, body: ReplicationSet, params: Params) -> ReplicationView:
    """What is given counts from now on, for a transfer under way, too."""
    return await _change(services, params["group"], lambda made: _changed(made, body))


async def add_window(services: Services, body: WindowAdd, params: Params) -> ReplicationView:
    return await _change(services, params["group"], lambda made: _with_window(made, body.window))


async def remove_window(services: Services, body: WindowRemove, params: Params) -> ReplicationView:
    def without(made: Replication) -> Replication:
        windows = made.windows.splitlines()
        if not 0 <= body.number <= len(windows):
            raise ConfigError(
                f"there is no window {body.number}",
                hint=f"nasfs replication window list {params['group']}",
            )
        kept = [window for n, window in enumerate(windows, 1) if n != body.number]
        return replace(made, windows="\n".join(kept) if body.number else "")

    return await _change(services, params["group"], without)


async def _change(
    services: Services, name: str, changed: Callable[[Replication], Replication]
) -> ReplicationView:
    def write(node: Node) -> tuple[Group, Replication]:
        with node.state.change():
            group, before = made_replication(node, name)
            after = changed(before)
            node.bond.set_replication(after)
        if after != before:
            node.note("replication changed", name)
        return group, after

    group, made = await services.run(write)
    services.replicator.poke()
    return await services.run(replication_view, services.replicator, group, made)
