"""Learning that the partner has taken over: a higher term there ends our role here."""

from __future__ import annotations

import logging

import trio

from nasfs.errors import NasError
from replication.client import peer_status

from ..context import Node
from ..inventory import WRITABLE_ROLES
from ..pairing import connect_peer
from ..services import Services, end_mount

log = logging.getLogger(__name__)

FIRST_S = 5.0
"""Before anything is mounted, the partner may take so long to answer (seconds)."""
EVERY_S = 15.0
"""How often it is asked afterwards."""


async def watch_partner(
    services: Services, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Ask the partner for its terms, at first before anything is mounted, until cancelled."""
    for group in services.node.state.groups():
        if group.role not in WRITABLE_ROLES:  # a daemon that was killed may have left it mounted
            await _stop_serving(services, group.uuid)
    await _ask(services)
    task_status.started()
    while True:
        await trio.sleep(EVERY_S)
        await _ask(services)


async def _ask(services: Services) -> None:
    for group_uuid in await services.run(taken_over):
        await _step_down(services, group_uuid)


def taken_over(node: Node) -> list[str]:
    """The groups, active here, of which the partner knows a higher term."""
    replicated = {made.group for made in node.bond.replications()}
    groups = [
        group
        for group in node.state.groups()
        if group.role == "failed-over" or (group.role == "active" and group.uuid in replicated)
    ]
    if not groups or node.bond.peer() is None:
        return []
    found = []
    try:
        with connect_peer(node, timeout_s=FIRST_S) as connection:
            for group in groups:
                if peer_status(connection, group.uuid).term > group.term:
                    found.append(group.uuid)
    except NasError as exc:
        log.debug("the partner was not asked: %s", exc)
    return found


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
    for row in services.node.state.members(group_uuid):
        try:
            await end_mount(services, row.uuid, force=True)
        except NasError as exc:
            log.error("unmounting %s: %s", row.name, exc)
