"""Keeps what the servers are told in step with mounts and roles, while the daemon runs.

A group that is no longer active here has its merged shares and accounts handed back.
"""

from __future__ import annotations

import logging

import trio

from nasfs.errors import NasError

from .context import Node
from .inventory import WRITABLE_ROLES
from .share_files import share_files
from .share_handback import hand_back
from .sharing import activate, render

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""How soon a share is served after its volume was mounted by somebody (seconds)."""


async def keep_shares(node: Node) -> None:
    """Until cancelled.  A problem is noted when it is new."""
    told = ""
    while True:
        try:
            await trio.to_thread.run_sync(_keep, node)
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
