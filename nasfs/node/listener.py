"""The partner's way in: every connection goes, before any TLS, to a receive process of its own."""

from __future__ import annotations

import logging
import subprocess
from functools import partial

import trio

from nasfs.errors import Failed

from .children import Child, command, environment
from .config import parse_address
from .context import Node

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
    await trio.serve_listeners(partial(_serve, node, limiter), listeners)


async def _serve(node: Node, limiter: trio.CapacityLimiter, stream: trio.SocketStream) -> None:
    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        stream.socket.close()
        return
    try:
        await _run_child(node, stream.socket)
    finally:
        limiter.release()


async def _run_child(node: Node, sock: trio.socket.SocketType) -> None:
    with sock:
        number = sock.fileno()
        words = command("nasfs.node.receive", node.places, "--fd", str(number))
        process = await trio.lowlevel.open_process(
            words,
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            env=environment(),
            cwd="/",
            pass_fds=[number],
            start_new_session=True,
        )
    child = Child(process.pid, process)
    try:
        await child.wait()
    finally:
        if process.returncode is None:
            await child.end(grace_s=END_S)
        assert process.stdin is not None
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
