"""Who may use the link to the partner now, and how fast: windows, turns, shares.

Each group that wants to send waits for its window and then for its turn.  While it sends, this
tells its process how fast it may, whenever that changes, and stops it when its window closes or,
if others wait for their turn, when its own is over.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from replication.link import Calendar, Opening, parse_window
from replication.pacing import Claim, share

from ..context import Node
from ..messages import when
from ..records import Replication
from .orders import Order, write_order

TICK_S = 0.5
"""How often windows and shares are looked at (seconds)."""
SLICE_S = 60.0
"""So long a turn is, if others wait for theirs."""
OBEY_S = 5.0
"""A process that was told to stop ends within about a second; one that hangs is ended after so
long (seconds)."""
SLOWEST = 4096
"""Bytes a second: with less than that the partner would take a sender for dead."""
NOT_AGAIN = "its windows never open"


def calendar(made: Replication) -> Calendar:
    """Its windows and its rate."""
    return Calendar(tuple(map(parse_window, made.windows.splitlines())), made.rate)


@dataclass
class Sending:
    """A transfer under way, as the traffic sees it."""

    began: float
    order: Order = field(default_factory=Order)
    orders: trio.abc.SendStream | None = None
    """Its process's standard input, once it runs."""
    stopped: str = ""
    """Why it was told to stop."""
    hearing: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around what follows the process: one that does not stop is not waited for, so that it keeps
    its turn from no other group."""


@dataclass
class Traffic:
    """One for each daemon.  `poke` it when settings change."""

    node: Node
    _sending: dict[str, Sending] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _turns: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    def poke(self) -> None:
        """Windows, rates, priorities or the number of turns were changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Give orders until cancelled."""
        while True:
            self._turns.total_tokens = max(1, self.node.traffic.link().transfers)
            for group_uuid, order in self._orders().items():
                await self._give(self._sending.get(group_uuid), order)
            await self._wait(TICK_S)

    async def _wait(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._changed.wait()

    def order(self, group_uuid: str) -> Order | None:
        """What a transfer under way was told last; None: there is none."""
        sending = self._sending.get(group_uuid)
        return sending.order if sending else None

    def sending(self) -> list[str]:
        """The UUIDs of the groups that have their turn."""
        return list(self._sending)

    def opening(self, group_uuid: str) -> Opening:
        """How the group's windows stand."""
        made = self.node.bond.replication(group_uuid)
        return calendar(made).at(time.time_ns()) if made else Opening(False, 0, None)

    def closed(self, group_uuid: str) -> str:
        """Why its windows do not let it send now; empty: they do."""
        made = self.node.bond.replication(group_uuid)
        if made is None or self.opening(group_uuid).open:
            return ""
        opens = calendar(made).opens(time.time_ns())
        return f"it is outside its windows; the next opens {when(opens)}" if opens else NOT_AGAIN

    @asynccontextmanager
    async def turn(self, group_uuid: str, tell: Callable[[str], None]) -> AsyncIterator[Sending]:
        """Inside, the group may send.  *tell* gets why it has to wait, and "" in the end."""
        while True:
            if reason := self.closed(group_uuid):
                tell(reason)
                await self._wait(TICK_S)
                continue
            if self._turns.available_tokens < 1:
                tell(f"{self._turns.borrowed_tokens} other groups have their turn")
            await self._turns.acquire_on_behalf_of(group_uuid)
            if not self.closed(group_uuid):
                break
            self._turns.release_on_behalf_of(group_uuid)
        tell("")
        sending = self._sending[group_uuid] = Sending(trio.current_time())
        try:
            sending.order = self._orders()[group_uuid]
            yield sending
        finally:
            del self._sending[group_uuid]
            self._turns.release_on_behalf_of(group_uuid)
            self.poke()

    def _orders(self) -> dict[str, Order]:
        """What each transfer under way may do, as of now."""
        made = {
            uuid: found
            for uuid in self._sending
            if (found := self.node.bond.replication(uuid)) is not None
        }
        openings = {uuid: self.opening(uuid) for uuid in made}
        budget = self.node.traffic.link().rate
        claims = {uuid: Claim(made[uuid].priority, openings[uuid].rate) for uuid in made}
        rates = share(budget, claims)
        waiting = self._turns.statistics().tasks_waiting > 0
        now = trio.current_time()
        orders = {}
        for uuid, rate in rates.items():
            stop = ""
            if not openings[uuid].open:
                stop = "its window has closed"
            elif waiting and now - self._sending[uuid].began > SLICE_S:
                stop = "its turn is over"
            # With a known link, the share is a rate; else it is one of the time.
            percent = 100 if budget else made[uuid].priority
            rate = max(rate, SLOWEST) if rate else 0
            orders[uuid] = Order(rate, percent, made[uuid].priority, stop)
        return orders

    async def _give(self, sending: Sending | None, order: Order) -> None:
        if sending is None or sending.stopped or sending.orders is None or order == sending.order:
            return
        sending.order = order
        sending.stopped = order.stop
        if order.stop:
            sending.hearing.deadline = trio.current_time() + OBEY_S
        try:
            await sending.orders.send_all(write_order(order))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has just ended
