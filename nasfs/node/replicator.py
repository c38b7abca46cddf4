"""When to send: one task for each replicated group, each attempt a process of its own."""

from __future__ import annotations

import logging
import subprocess
import time
from dataclasses import dataclass, field

import msgspec
import trio

from .children import Child, command, environment
from .context import Node
from .records import Transfer
from .reports import Done, Failure, Report, Running, read_report

log = logging.getLogger(__name__)

BACKOFF_S = (1.0, 300.0)
"""The first and the longest pause after a failure that may pass."""
END_S = 10.0


@dataclass
class Attempts:
    """How sending a group stands, in this daemon's memory."""

    running: Running | None = None
    under_way: bool = False
    finished: int = 0
    asked: trio.Event = field(default_factory=trio.Event)
    _pause_s: float = BACKOFF_S[0]


class Replicator:
    """Runs replications when they are asked for, and again when they failed for a while."""

    def __init__(self, node: Node, fenced: trio.MemorySendChannel[str]) -> None:
        """*fenced* gets the UUID of a group of which the partner knows a higher term."""
        self._node = node
        self._fenced = fenced
        self.attempts: dict[str, Attempts] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._wake = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                wanted = {made.group for made in self._node.bond.replications() if not made.paused}
                for group in wanted - self._scopes.keys():
                    self._scopes[group] = trio.CancelScope()
                    nursery.start_soon(self._serve, group)
                for group in self._scopes.keys() - wanted:
                    self._scopes[group].cancel()
                await self._wake.wait()

    def poke(self) -> None:
        """Replications were made, paused, resumed or deleted."""
        self._wake.set()

    def ask(self, group_uuid: str) -> int:
        """Replicate now; the attempt that will have seen everything has the number returned."""
        attempts = self.of(group_uuid)
        attempts._pause_s = BACKOFF_S[0]
        attempts.asked.set()
        self.poke()
        return attempts.finished + (2 if attempts.under_way else 1)

    def of(self, group_uuid: str) -> Attempts:
        return self.attempts.setdefault(group_uuid, Attempts())

    async def _serve(self, group_uuid: str) -> None:
        try:
            with self._scopes[group_uuid]:
                await self._attempt_forever(group_uuid)
        finally:
            del self._scopes[group_uuid]
            self.poke()

    async def _attempt_forever(self, group_uuid: str) -> None:
        attempts = self.of(group_uuid)
        attempts.asked.set()  # a new daemon looks at once whether something is waiting
        retry_after = trio.current_time()
        while True:
            with trio.move_on_at(retry_after):
                await attempts.asked.wait()
            attempts.asked = trio.Event()
            attempts.under_way = True
            try:
                outcome = await self._attempt(group_uuid, attempts)
            finally:
                attempts.under_way = False
                attempts.running = None
            retry_after = float("inf")
            if isinstance(outcome, Failure) and outcome.transient:
                retry_after = trio.current_time() + attempts._pause_s
                attempts._pause_s = min(attempts._pause_s * 2, BACKOFF_S[1])
            elif isinstance(outcome, Done):
                attempts._pause_s = BACKOFF_S[0]
            self._remember(group_uuid, outcome)
            attempts.finished += 1
            if isinstance(outcome, Failure) and outcome.fenced:
                await self._fenced.send(group_uuid)

    async def _attempt(self, group_uuid: str, attempts: Attempts) -> Done | Failure:
        group = self._node.state.find_group(group_uuid)
        if group is None or group.role != "active":
            return Failure(f"the group is {group.role if group else 'gone'}", exit_code=3)
        self._set_state(group_uuid, "running")
        process = await trio.lowlevel.open_process(
            command("nasfs.node.send", self._node.places, group.name),
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.PIPE,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        child = Child(process.pid, process)
        outcome: Done | Failure | None = None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            buffer = b""
            async for piece in process.stdout:
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    report = read_report(line)
                    if isinstance(report, Running):
                        attempts.running = report
                    else:
                        outcome = report
            await child.wait()
        finally:
            if process.returncode is None:
                await child.end(grace_s=END_S)
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
        return outcome or Failure(
            f"the send process ended with code {process.returncode}", transient=True
        )

    def _set_state(self, group_uuid: str, state: str) -> None:
        now = time.time_ns()
        before = self._node.bond.transfer(group_uuid) or _never(group_uuid)
        self._node.bond.set_transfer(msgspec.structs.replace(before, state=state, changed_ns=now))

    def _remember(self, group_uuid: str, outcome: Report) -> None:
        before = self._node.bond.transfer(group_uuid) or _never(group_uuid)
        now = time.time_ns()
        match outcome:
            case Done(snapshots=0):  # nothing was waiting: the figures of the one before stay
                after = msgspec.structs.replace(
                    before, state="idle", reason="", hint="", exit_code=0, attempts=0,
                    changed_ns=now, done_ns=now,
                )  # fmt: skip
            case Done():
                after = msgspec.structs.replace(
                    before,
                    state="idle", reason="", hint="", exit_code=0, attempts=0, changed_ns=now,
                    done_ns=now, rows=outcome.rows, bytes=outcome.bytes,
                    wire_bytes=outcome.wire_bytes, seconds=outcome.seconds,
                )  # fmt: skip
            case Failure():
                after = msgspec.structs.replace(
                    before,
                    state="waiting" if outcome.transient else "stopped",
                    reason=outcome.message, hint=outcome.hint, exit_code=outcome.exit_code,
                    attempts=before.attempts + 1, changed_ns=now,
                )  # fmt: skip
            case _:
                return
        self._node.bond.set_transfer(after)
        self._tell(group_uuid, before, outcome)

    def _tell(self, group_uuid: str, before: Transfer, outcome: Report) -> None:
        """Into the event log: what was sent, and each failure when its reason is a new one."""
        group = self._node.state.find_group(group_uuid)
        name = group.name if group else group_uuid
        match outcome:
            case Done() if outcome.snapshots:
                detail = f"{outcome.rows} rows, {outcome.bytes} bytes, {outcome.seconds:.1f} s"
                self._node.state.note("daemon", "replicated", name, detail)
            case Failure() if outcome.message != before.reason:
                self._node.state.note("daemon", "replication failed", name, outcome.message)
            case _:
                pass


def _never(group_uuid: str) -> Transfer:
    return Transfer(group_uuid, "idle", "", "", 0, 0, 0, 0, 0, 0, 0, 0.0)
