"""When to send: one task for each replicated group, a process of its own for its attempts."""

from __future__ import annotations

import time

import msgspec
import trio

from nasfs.errors import Failed

from ..context import Node
from .attempts import Attempts, Memory
from .reports import Both, Done, Failure, Held, Running, read_report
from .senders import Sender, Senders
from .traffic import Sending, Traffic
from .watchdog import Watchdog


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
        self._senders: Senders | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._senders = Senders(self._node, nursery)
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
        """Replicate now; attempts of the number returned, and later ones, see everything.

        If not *urgent*, a pause after a failure is waited for.
        """
        attempts = self.of(group_uuid)
        attempts.ask(urgent=urgent)
        self.poke()
        return attempts.begun + 1

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
                began_ns, last = time.time_ns(), Running()
                attempts.begin()
                outcome: Done | Held | Failure = Held("it was interrupted")
                try:
                    outcome = await self._attempt(group_uuid, attempts, sending)
                finally:
                    last = attempts.running or last
                    pause = attempts.end(outcome)
                both, attempts.both = attempts.both, None
                self._memory.ended(group_uuid, began_ns, outcome, last, both)
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
        assert self._senders is not None
        order = msgspec.structs.replace(sending.order, rebase=attempts.rebasing > 0)
        try:
            sender = await self._senders.begin(group, order)
            outcome = await self._hear(sender, group_uuid, attempts, sending)
            if outcome is None and sender.kept and attempts.running is None and not sending.stopped:
                # It had ended while it waited.
                sender = await self._senders.begin(group, order)
                outcome = await self._hear(sender, group_uuid, attempts, sending)
        except Failed as exc:
            return Failure(str(exc), transient=True)
        if sending.stopped and not isinstance(outcome, Done):
            return Held(sending.stopped)
        return outcome or Failure(f"the send process {sender.child.ending()}", transient=True)

    async def _hear(
        self, sender: Sender, group_uuid: str, attempts: Attempts, sending: Sending
    ) -> Done | Held | Failure | None:
        """Follow one attempt of a process; it is kept if it has sent everything, else ended."""
        assert self._senders is not None
        sending.orders, outcome = sender.orders, None
        sending.hearing = trio.CancelScope()
        try:
            with sending.hearing:
                outcome = await self._listen(sender, group_uuid, attempts)
                if outcome is None:
                    await sender.child.wait()
        finally:
            sending.orders = None
            if isinstance(outcome, Done) and not sending.stopped:
                self._senders.keep(group_uuid, sender)
            else:
                hangs = sending.hearing.cancelled_caught
                await self._senders.end(sender, patient=not hangs)
        return outcome

    async def _listen(
        self, sender: Sender, group_uuid: str, attempts: Attempts
    ) -> Done | Held | Failure | None:
        """What the process says in the end; None if it ended without a word."""
        watchdog = Watchdog(trio.current_time())
        while True:
            lines: list[bytes] | None = []
            with trio.move_on_at(watchdog.deadline) as patience:
                lines = await sender.lines()
            if patience.cancelled_caught:
                return Failure(f"the send process hangs: {watchdog}", transient=True)
            if lines is None:
                return None
            for line in lines:
                match read_report(line):
                    case Running() as running:
                        watchdog.note(running, trio.current_time())
                        attempts.note(running)
                    case Both() as both:
                        attempts.both = both
                    case outcome:
                        return outcome  # what both have is remembered together with it
            told, attempts.both = attempts.both, None
            self._memory.both(group_uuid, told)
