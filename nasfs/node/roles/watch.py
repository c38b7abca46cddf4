"""Hearing from the partner whether it has taken over: a higher term there ends our role here.

A group that has come back (`coming_back`) is not served before that was heard.
"""

from __future__ import annotations

import logging

import trio

from nasfs.errors import NasError, Refused

from ..coming_back import waits_since
from ..context import Node
from ..inventory import WRITABLE_ROLES
from ..messages import PlanView
from ..records import Group, VolumeRow
from ..services import Services, end_mount
from ..words import VolumeName
from .hearing import ask_terms

log = logging.getLogger(__name__)

EVERY_S = 15.0
"""How often the partner is asked (seconds)."""
BACKOFF_S = (0.5, 5.0)
"""The first and the longest pause while a group waits for its answer."""


async def watch_partner(
    services: Services, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Ask the partner for its terms, at first before anything is mounted, until cancelled."""
    node = services.node
    for group in node.state.groups():
        if group.role not in WRITABLE_ROLES or waits_since(node, group):
            await _stop_serving(services, group.uuid)  # a daemon that was killed may have left it
    await _ask(services)
    if node.config.failover.without_partner == "mount":
        for group in _waiting(node):
            go_on(services, group, "the configuration says that it shall not wait", "daemon")
    task_status.started()
    pause = BACKOFF_S[0]
    while True:
        if waiting := _waiting(node):
            for group in waiting:  # a mount that an earlier daemon was about to make
                await _stop_serving(services, group.uuid)
            await trio.sleep(pause)
            pause = min(2 * pause, BACKOFF_S[1])
        else:
            pause = BACKOFF_S[0]
            await trio.sleep(EVERY_S)
        await _ask(services)


def _waiting(node: Node) -> list[Group]:
    return [group for group in node.state.groups() if waits_since(node, group)]


async def _ask(services: Services) -> None:
    node = services.node
    answers = await services.run(ask_terms)
    for group in node.state.groups():
        if group.uuid not in answers:
            continue
        if answers[group.uuid] > group.term:
            await _step_down(services, group.uuid)
        elif waits_since(node, group):
            go_on(services, group, f"the partner has not taken over: term {group.term}", "partner")


def go_on(services: Services, group: Group, why: str, who: str) -> None:
    """A group that waits is served again."""
    node = services.node
    if not node.bond.end_waiting(group.uuid, group.term):
        return
    node.state.note(who, "goes on as the primary", group.name, why)
    for row in node.state.members(group.uuid):
        services.supervisor.retry(row.uuid)
    services.supervisor.poke()
    services.replicator.poke()


async def insist(services: Services, name: str) -> PlanView:
    """A person knows that the partner has not taken over: the group does not wait any more.

    Raises:
        Refused: the group does not wait, or the partner answers and has taken over.
    """
    node = services.node
    group = node.state.group(name)
    if not waits_since(node, group):
        raise Refused(
            f"group {name} does not wait for its partner",
            hint=f"how it stands: nasfs explain {name}",
        )
    await _ask(services)  # it may answer by now
    group = node.state.group(name)
    if group.role not in WRITABLE_ROLES:
        raise Refused(
            f"the partner answers, and has taken over group {name}: it is {group.role} here",
            hint="this side keeps everything; there: nasfs failback-join " + name,
        )
    go_on(services, group, "without its partner", node.actor)
    return PlanView(name, group.term, "", (), "failover")


async def insist_of(services: Services, volume: VolumeName) -> None:
    """The same for the group of a volume, if it waits.  Raises Refused as `insist` does."""
    row = services.node.state.volume(volume)
    group = services.node.state.find_group(row.group) if row.group else None
    if group is not None and waits_since(services.node, group):
        await insist(services, group.name)


async def step_down_of(services: Services, fenced: trio.MemoryReceiveChannel[str]) -> None:
    """Step down in every group of which a sender learned that the partner has taken over."""
    async with fenced:
        async for group_uuid in fenced:
            await _step_down(services, group_uuid)


async def _step_down(services: Services, group_uuid: str) -> None:
    """The group is stale from now on: nothing of it is written or served here; all is kept."""
    node = services.node
    async with services.lock(group_uuid):
        group = node.state.find_group(group_uuid)
        if group is None or not await services.run(lambda node: node.state.step_down(group_uuid)):
            return
        node.state.note("daemon", "stepped down", group.name, "the partner has taken over")
        log.warning("group %s: the partner has taken over", group.name)
        await _stop_serving(services, group_uuid)


async def _stop_serving(services: Services, group_uuid: str) -> None:
    """All its volumes at once: one that hangs keeps no other in service."""
    async with trio.open_nursery() as nursery:
        for row in services.node.state.members(group_uuid):
            nursery.start_soon(_unmount, services, row)


async def _unmount(services: Services, row: VolumeRow) -> None:
    try:
        await end_mount(services, row.uuid, force=True)
    except NasError as exc:
        log.error("unmounting %s: %s", row.name, exc)
