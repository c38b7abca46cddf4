"""Comparisons of two sites, in the daemon: each is a process whose lines go on to who asked."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nasfs.errors import Refused

from ..children import Child, command, environment
from ..lines import TYPE
from ..messages import Nothing, ReplicationView
from ..sending.attempts import Attempts
from ..sending.replication_messages import ReplicationRun
from ..sending.replications import check_sends, made_replication, run_now
from ..services import Services
from ..snapshots import take_snapshot
from .verify_messages import VerifyRequest

WAIT_S = 60.0
"""So long a transfer that is under way may take before a repair is refused (seconds)."""
END_S = 10.0
"""So long the process may take to end when nobody listens any more (seconds)."""


async def verify(services: Services, body: VerifyRequest, params: Mapping[str, str]) -> Response:
    """Compare the snapshots of a group; the answer has any length, and ends when it is done."""
    group, _ = await services.run(made_replication, params["group"])
    words = ["--snapshot", body.snapshot] if body.snapshot else []
    words += ["--newest"] if body.newest else []
    module, places = "nasfs.node.comparing.verify", services.node.places
    return ProcessResponse(command(module, places, *words, group.name))


async def repair(services: Services, body: Nothing, params: Mapping[str, str]) -> ReplicationView:
    """Take a snap group, and send in it whatever the partner's newest one differs in.

    No sealed snapshot is changed, on either site.  The answer names the attempt that does it.
    """
    group, made = await services.run(made_replication, params["group"])
    check_sends(services.node, group, made)
    attempts = services.replicator.of(group.uuid)
    attempts.rebase += 1  # so that the snap group can't go by itself, as an ordinary delta
    try:
        await _wait_for_ordinary(attempts, group.name)
        name = f"repair-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        await services.run(take_snapshot, f"{group.name}@{name}")
        return await run_now(services, ReplicationRun(rebase=True), params)
    except BaseException:
        attempts.rebase = max(0, attempts.rebase - 1)
        raise


async def _wait_for_ordinary(attempts: Attempts, group: str) -> None:
    """Until no attempt is under way that began before it was asked to send what differs.

    Raises:
        Refused: it takes too long.
    """
    with trio.move_on_after(WAIT_S) as patience:
        if attempts.under_way and not attempts.rebasing:
            await attempts.ended.wait()
    if patience.cancelled_caught:
        raise Refused(
            f"group {group} is being sent, and a repair begins after that",
            hint=f"nasfs replication run {group} --wait; or pause and resume it",
        )


class ProcessResponse(Response):
    """What a process says on its standard output; it ends with its reader."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(media_type=TYPE)
        del self.headers["content-length"]
        self._words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        process = await trio.lowlevel.open_process(
            self._words,
            stdin=subprocess.PIPE,  # its end tells the process that we are gone
            stdout=subprocess.PIPE,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        child = Child(process.pid, process)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with process.stdin, process.stdout, trio.open_nursery() as nursery:
                nursery.start_soon(_wait_for_leave, receive, nursery.cancel_scope)
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                async for piece in process.stdout:
                    part = {"type": "http.response.body", "body": bytes(piece), "more_body": True}
                    await send(part)
                await send({"type": "http.response.body", "body": b""})
                nursery.cancel_scope.cancel()
        finally:
            await child.end(grace_s=END_S)


async def _wait_for_leave(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
