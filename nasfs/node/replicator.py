"""When to send: one task for each replicated group, each attempt a process of its own."""

from __future__ import annotations

import logging
import signal
import subprocess

import trio

from .attempts import Attempts, Memory
from .children import Child, command, environment
from .context import Node
from .orders import write_order
from .reports import Both, Done, Failure, Held, Running, read_report
from .traffic import Sending, Traffic
from .watchdog import Watchdog

log = logging.getLogger(__name__)

END_S = 10.0
"""So long a send process may take to end when it is asked to, and when it is killed (seconds)."""


class Replicator:
    """Runs replications when they are asked for, and again when they failed for a while."""

    def __init__(self, node: Node, traffic: Traffic, fenced: trio.MemorySendChannel[str]) -> None:
        """*fenced* gets the UUID of a group of which the partner knows a higher term."""
        self._node = node
        self.traffic = traffic
        self._memory = Memory(node)
        self._fenced = fenced
        self.attempts: dict[str, Attempts] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.traffic.run)
            while True:
                self._wake = trio.Event()
                wanted = {
                    made.group
                    for made in self._node.bond.replications()
                    if not made.paused and not made.split
                }
                for group in wanted - self._scopes.keys():
                    self._scopes[group] = trio.CancelScope()
                    nursery.start_soon(self._serve, group)
                for group in self._scopes.keys() - wanted:
                    self._scopes[group].cancel()
                await self._wake.wait()

    def poke(self) -> None:
        """Replications were made, changed, paused, resumed or deleted."""
        self._wake.set()
        self.traffic.poke()

    def ask(self, group_uuid: str, *, urgent: bool = True) -> int:
        """Replicate now; the attempt that will have seen everything has the number returned.

        If not *urgent*, a pause after a failure is waited for.
        """
        attempts = self.of(group_uuid)
        attempts.ask(urgent=urgent)
        self.poke()
        return attempts.finished + (2 if attempts.under_way else 1)

    def of(self, group_uuid: str) -> Attempts:
        return self.attempts.setdefault(group_uuid, Attempts())

    async def _serve(self, group_uuid: str) -> None:
        attempts = self.of(group_uuid)
        try:
            with self._scopes[group_uuid]:
                await self._attempt_forever(group_uuid, attempts)
        finally:
            attempts.waits, attempts.next_try_ns = "", 0
            del self._scopes[group_uuid]
            self.poke()

    async def _attempt_forever(self, group_uuid: str, attempts: Attempts) -> None:
        pause, unasked = 0.0, True  # a new daemon looks at once whether something is waiting
        while True:
            with trio.move_on_after(pause):
                await attempts.urgent.wait()
            if not unasked:
                await attempts.asked.wait()

            def tell(reason: str) -> None:
                attempts.waits = reason

            async with self.traffic.turn(group_uuid, tell) as sending:
                began_ns, last = self._memory.began(group_uuid), Running()
                attempts.begin()
                outcome: Done | Held | Failure = Held("it was interrupted")
                try:
                    outcome = await self._attempt(group_uuid, attempts, sending)
                finally:
                    last = attempts.running or last
                    pause = attempts.end(outcome)
                self._memory.ended(group_uuid, began_ns, outcome, last)
            unasked = isinstance(outcome, Held) or (
                isinstance(outcome, Failure) and outcome.transient
            )
            if isinstance(outcome, Failure) and outcome.fenced:
                await self._fenced.send(group_uuid)

    async def _attempt(
        self, group_uuid: str, attempts: Attempts, sending: Sending
    ) -> Done | Held | Failure:
        group = self._node.state.find_group(group_uuid)
        if group is None or group.role != "active":
            return Failure(f"the group is {group.role if group else 'gone'}", exit_code=3)
        words = [group.name, write_order(sending.order).decode().strip()]
        words += ["--rebase"] if attempts.rebase else []
        process = await trio.lowlevel.open_process(
            command("nasfs.node.send", self._node.places, *words),
            stdin=subprocess.PIPE,  # its orders; its end tells the child that we are gone
            stdout=subprocess.PIPE,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        child = Child(process.pid, process)
        assert process.stdin is not None
        sending.orders = process.stdin
        try:
            outcome = await self._listen(process, group_uuid, attempts)
            if outcome is None:
                await child.wait()
        finally:
            sending.orders = None
            await self._end(child)
        if sending.stopped and not isinstance(outcome, Done):
            return Held(sending.stopped)
        return outcome or Failure(f"the send process {child.ending()}", transient=True)

    async def _listen(
        self, process: trio.Process, group_uuid: str, attempts: Attempts
    ) -> Done | Held | Failure | None:
        """What the process says in the end; None if it ended without a word."""
        assert process.stdout is not None
        buffer, watchdog = b"", Watchdog(trio.current_time())
        while True:
            piece = None
            with trio.move_on_at(watchdog.deadline):
                piece = await process.stdout.receive_some()
            if piece is None:
                return Failure(f"the send process hangs: {watchdog}", transient=True)
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                match read_report(line):
                    case Running() as running:
                        watchdog.note(running, trio.current_time())
                        attempts.note(running)
                    case Both() as both:
                        self._memory.both(group_uuid, both)
                    case outcome:
                        return outcome
            if not piece:
                return None

    async def _end(self, child: Child) -> None:
        """Whatever it does; one that not even a kill ends is left to a task of its own."""
        process = child.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        assert self._nursery is not None
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()  # tells it that we are gone
            for number in (None, signal.SIGTERM, signal.SIGKILL):
                if number is not None:
                    child.send(number)
                with trio.move_on_after(END_S):
                    await child.wait()
                    break
            else:
                log.error("process %d does not end; it waits for a disk", child.pid)
                self._nursery.start_soon(child.wait)
            await process.stdout.aclose()
