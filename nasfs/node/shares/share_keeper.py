"""Keeps what the servers are told in step with mounts and roles, while the daemon runs.

A group that is no longer active here has its merged shares and accounts handed back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from nasfs.errors import NasError
from sharecfg.model import Share

from ..context import Node
from ..inventory import WRITABLE_ROLES
from .share_files import share_files
from .share_handback import hand_back
from .sharing import activate, render, settle_ganeshas

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""How soon a share is served after its volume was mounted by somebody (seconds)."""
TRY_AGAIN_S = 30.0
"""How long a Ganesha is left alone that would not start (seconds)."""


async def keep_shares(node: Node, changed: Callable[[str], object]) -> None:
    """Until cancelled.  A problem is noted when it is new.

    Args:
        changed: gets the UUID of a group whose shares are others: the partner is to know.  A share
            that is closed here must not be open there because nothing was written since.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_ganeshas, node)
        await _keep_files(node, changed)


async def _keep_ganeshas(node: Node) -> None:
    told = ""
    while True:
        try:
            problem = "; ".join(await trio.to_thread.run_sync(settle_ganeshas, node))
        except NasError as exc:
            problem = str(exc)
        if problem and problem != told:
            log.warning("shares: %s", problem)
            node.state.note("daemon", "shares not served", node.config.name, problem)
        told = problem
        await trio.sleep(TRY_AGAIN_S if problem else LOOK_EVERY_S)


async def _keep_files(node: Node, changed: Callable[[str], object]) -> None:
    told = ""
    before: dict[str, tuple[Share, ...]] | None = None
    while True:
        try:
            await trio.to_thread.run_sync(_keep, node)
            now = await trio.to_thread.run_sync(_by_group, node)
            for group, shares in now.items():
                if before is not None and before.get(group, ()) != shares:
                    changed(group)
            before = now
            told = ""
        except NasError as exc:
            if str(exc) != told:
                told = str(exc)
                log.warning("shares: %s", told)
                node.state.note("daemon", "shares not served", node.config.name, told)
        await trio.sleep(LOOK_EVERY_S)


def _keep(node: Node) -> None:
    for group in node.state.groups():
        if group.role not in WRITABLE_ROLES:
            hand_back(node, group)
    shares = node.shares.all()
    for server, file in share_files(node.places, node.config.shares).items():
        if render(node, server, shares) != file.text() and (shares or file.text()):
            activate(node)
            return


def _by_group(node: Node) -> dict[str, tuple[Share, ...]]:
    """The shares of each group that is replicated from here."""
    return {
        made.group: tuple(
            share
            for row in node.state.members(made.group)
            for share in node.shares.of_volume(row.uuid)
        )
        for made in node.bond.replications()
    }
