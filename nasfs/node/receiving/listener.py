"""The partner's way in: every connection goes, before any TLS, to a receive process of its own."""

from __future__ import annotations

import logging
from functools import partial

import trio

from nasfs.errors import Failed

from ..children import Child
from ..config import parse_address
from ..context import Node
from .hatchery import Hatchery

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
"""So many at a time; further ones are closed at once."""
END_S = 10.0


async def listen(
    node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the configured address until cancelled; without one, do nothing.

    Raises:
        Failed: the address cannot be listened on.
    """
    if not node.config.listen:
        task_status.started()
        return
    host, port = parse_address(node.config.listen)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None)
    except OSError as exc:
        raise Failed(
            f"cannot listen on {node.config.listen}: {exc.strerror or exc}",
            hint=f"change `listen` in {node.places.config}",
        ) from exc
    task_status.started()
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    hatchery = Hatchery(node.places)
    try:
        await trio.serve_listeners(partial(_serve, hatchery, limiter), listeners)
    finally:
        await hatchery.close()


async def _serve(
    hatchery: Hatchery, limiter: trio.CapacityLimiter, stream: trio.SocketStream
) -> None:
    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        stream.socket.close()
        return
    try:
        with stream.socket as connection:
            try:
                child = await hatchery.hatch(connection)
            except OSError as exc:  # whoever connected tries again
                log.error("a connection is dropped, nobody can serve it: %s", exc)
                return
        if child is not None:
            await _await_end(child)
    finally:
        limiter.release()


async def _await_end(child: Child) -> None:
    """Of a process; cancelled, we end it."""
    ended = False
    try:
        await child.wait()
        ended = True
    finally:
        if not ended:
            await child.end(grace_s=END_S)
        child.close()
